// A model to be cut, shared by the files that read and change it.
#pragma once

#include "codec.hpp"
#include "common.hpp"

#include <map>
#include <unordered_set>

struct lts_source {
  // The module of the file, and its `forward` before any rewrite; not for a retraced model. Its
  // weights are shared with the frozen one.
  std::optional<torch::jit::Module> read;
  std::shared_ptr<torch::jit::Graph> as_written;
  torch::jit::Module frozen;
  std::shared_ptr<torch::jit::Graph> graph;
  // Bindings of the first arguments, for `bind_arguments`; the others have defaults.
  std::vector<std::string> bindings;
  std::vector<std::optional<c10::IValue>> defaults;
  // Attributes of the module survived freezing: state, or values that depend
  // on it.
  bool reads_self = false;
  // Top-level nodes in program order, without those that are cheaper to repeat in each block than
  // to send.
  std::vector<torch::jit::Node *> nodes;
  std::unordered_set<const torch::jit::Node *> repeated;
  // The values that are live after each node where a cut is legal, in order of definition.
  std::map<size_t, std::vector<torch::jit::Value *>> cuts;
  // Structure of those values and of the outputs when first observed.
  std::map<size_t, std::vector<lamina::Layout>> layouts;
  std::vector<lamina::Layout> outputs;
  // JSON: per input null or the numbers of the first request, if integers.
  std::vector<std::string> input_examples;
  // Live values that some node writes to.
  std::unordered_set<const torch::jit::Value *> written;
  // Live tensors whose type or rank a request may change.
  std::unordered_set<const torch::jit::Value *> unsure;
  // Outputs of side exits, and the nodes that each alone needs.
  std::unordered_set<const torch::jit::Value *> exits;
  std::vector<std::vector<torch::jit::Node *>> heads;
  // Text of `lamina.json`; empty if the file has none.
  std::string metadata;
  // JSON: the nesting of the model's own outputs, with numbered leaves.
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

// Makes the graph take only tensors, and binds its first arguments: each to a `tensor`, the `int`,
// `float` or `bool` in one, a `tuple:N` of them, or a constant, `fixed_int:16000`, `fixed_float:`,
// `fixed_bool:1`, `fixed_text:` or `none`.
void bind_arguments(Graph &graph, const std::vector<std::string> &bindings);

// Arguments after the bound ones take their defaults.
void bind_defaults(Graph &graph, const std::vector<std::optional<IValue>> &defaults);

// Simplifies a graph without changing any bit of its results. Returns the nesting of its outputs as
// JSON: `Structure` in ffi.rs.
std::string clean(std::shared_ptr<Graph> &graph);

// Rewrites operations that may share memory unknown to libtorch, if something writes to it, so that
// libtorch sees it. Call before freezing, which drops writes that seem unread.
void share_openly(Module &module);

// Removes warnings, prints and marks, which would be repeated for every request.
void remove_asides(Block *block);

// Constants of a file exported on a GPU name devices that this host lacks.
void name_no_gpu(Block *block);

// Returns one value as it is, several as a tuple.
void register_outputs(Graph &graph, const std::vector<Value *> &outputs);

// A module whose `forward` is `graph`; equal graphs give equal archives.
Module as_module(const std::shared_ptr<Graph> &graph);

// What a trace of `graph` would fix although it depends on the values of a request: a branch, the
// length of a loop, a number read from a tensor.
std::optional<std::string> fixed_by_tracing(const std::shared_ptr<Graph> &graph);

// Why the state that `graph` keeps in its module cannot be left out of a trace.
std::optional<std::string> state_lost_by_tracing(const std::shared_ptr<Graph> &graph);

// Makes `one`, traced at batch 1, hold for any batch, with `two`, the same model traced at batch 2.
// Returns the reason if that is impossible; `one` is then unchanged.
std::optional<std::string> free_batch(Graph &one, Graph &two);

}  // namespace lamina
