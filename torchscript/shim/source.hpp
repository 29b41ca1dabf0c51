// A model that is being cut, as the files that read and change it share it.
#pragma once

#include "codec.hpp"
#include "common.hpp"

#include <map>
#include <unordered_set>

struct lts_source {
  // As the file has it, and its `forward` before anything was rewritten; not of a model that
  // was traced again. Its weights are the frozen one's.
  std::optional<torch::jit::Module> read;
  std::shared_ptr<torch::jit::Graph> as_written;
  torch::jit::Module frozen;
  std::shared_ptr<torch::jit::Graph> graph;
  // What fills its arguments, as `bind_arguments` has it; the others have defaults.
  std::vector<std::string> bindings;
  std::vector<std::optional<c10::IValue>> defaults;
  // Attributes of the module survived freezing: state, or values that depend
  // on it.
  bool reads_self = false;
  // Top-level nodes in program order, without those that are cheaper to repeat
  // in each block than to send.
  std::vector<torch::jit::Node *> nodes;
  std::unordered_set<const torch::jit::Node *> repeated;
  // The values that are live behind each node where a cut is legal, in order of
  // definition.
  std::map<size_t, std::vector<torch::jit::Value *>> cuts;
  // How those values, and the outputs, were made up when they were first seen.
  std::map<size_t, std::vector<lamina::Layout>> layouts;
  std::vector<lamina::Layout> outputs;
  // JSON: per input null or the numbers of the first request, where they are whole ones.
  std::vector<std::string> input_examples;
  // Live values that some node writes to.
  std::unordered_set<const torch::jit::Value *> written;
  // Live tensors whose type or rank a request may change.
  std::unordered_set<const torch::jit::Value *> unsure;
  // Outputs of side exits, and the nodes that each alone needs.
  std::unordered_set<const torch::jit::Value *> exits;
  std::vector<std::vector<torch::jit::Node *>> heads;
  // Text of `lamina.json`; empty where the file has none.
  std::string metadata;
  // JSON: the model's own nest of outputs, leaves numbered.
  std::string structure;
};

namespace lamina {

template <class Items, class Format>
std::string list(const Items &items, Format &&format) {
  std::string out = "[";
  for (const auto &item : items) {
    if (out.size() > 1) out += ',';
    out += format(item);
  }
  return out + ']';
}

// Has the graph take tensors alone, and fills its first arguments with them: each with a
// `tensor`, the `int`, `float` or `bool` in one, a `tuple:N` of them, or with a constant,
// `fixed_int:16000`, `fixed_float:`, `fixed_bool:1`, `fixed_text:` or `none`.
void bind_arguments(Graph &graph, const std::vector<std::string> &bindings);

// Arguments behind those that are bound take their defaults.
void bind_defaults(Graph &graph, const std::vector<std::optional<IValue>> &defaults);

// Simplifies a graph in ways that keep every bit of the result. Gives the nest of its
// outputs as JSON: `Structure` in ffi.rs.
std::string clean(std::shared_ptr<Graph> &graph);

// Rewrites what may share memory without libtorch knowing it, such that it knows, where
// something writes to it. To be called before freezing, which drops writes that nobody seems
// to read.
void share_openly(Module &module);

// Removes warnings, prints and marks, which would be repeated with every request.
void remove_asides(Block *block);

// Constants of a file that was exported on a GPU name devices that this host lacks.
void name_no_gpu(Block *block);

// Gives one value as it is, several as a tuple.
void register_outputs(Graph &graph, const std::vector<Value *> &outputs);

// A module whose `forward` is `graph`; equal graphs give equal archives.
Module as_module(const std::shared_ptr<Graph> &graph);

// What a trace of `graph` would fix although it depends on the values of a
// request: a branch, the length of a loop, a number read from a tensor.
std::optional<std::string> fixed_by_tracing(const std::shared_ptr<Graph> &graph);

// Why what `graph` keeps in its module cannot be left out of a trace.
std::optional<std::string> state_lost_by_tracing(const std::shared_ptr<Graph> &graph);

// Makes `one`, traced at batch 1, hold for any batch, with `two`, the same
// model traced at batch 2. Gives the reason where that is impossible; `one` is
// then what it was.
std::optional<std::string> free_batch(Graph &one, Graph &two);

}  // namespace lamina
