// Shared by the shim's files: the exception barrier, JSON text, and graph helpers.
#pragma once

#include "lamina.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace lamina {

using c10::IValue;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

inline char *copy_text(const std::string &text) {
  char *copy = static_cast<char *>(std::malloc(text.size() + 1));
  if (copy != nullptr) std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

// Runs `body`; an exception becomes a message and status 1.
template <class Body>
int guarded(char **text, Body &&body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error &e) {
    *text = copy_text(e.what_without_backtrace());
  } catch (const std::exception &e) {
    *text = copy_text(e.what());
  } catch (...) {
    *text = copy_text("an exception of unknown type");
  }
  return 1;
}

// `text` as a JSON string.
std::string quoted(const std::string &text);

// Whether requests can carry the value as a tensor.
inline bool is_tensor(const Value *value) {
  return value->type()->isSubtypeOf(*c10::TensorType::get());
}

// Compute-heavy operations; a block holds at least one.
bool is_heavy(const Node *node);

// Removes the references of `block`'s nodes to the functions from which they were inlined.
// Exception messages name those functions, but freezing destroys them before the graph.
void forget_callers(Block *block);

// Extra file of a block's archive: values to warm it up with.
inline constexpr const char *kExamples = "examples.json";

// OpenMP keeps its setting per thread, so it must be set on each thread that runs.
void use_threads(int threads);

std::vector<at::Tensor> private_copies(lts_tensor *const *inputs, size_t count);

// Rewrites a merged graph so that it runs fast on this host, and returns how to run it. Call before
// its first run. If fused, its first runs may throw: the fuser does not support every operation.
torch::jit::ExecutorExecutionMode optimize(std::shared_ptr<Graph> &graph, bool fuse);

// Makes the profiling executor use oneDNN Graph from now on, if this build of libtorch has it.
bool has_onednn_graph();

// Bytes of the tensor constants of `block`, each weight counted once.
uint64_t constant_bytes(const Block *block);

}  // namespace lamina

struct lts_bytes {
  std::string data;
};

struct lts_graph {
  std::shared_ptr<torch::jit::Graph> graph;
  // Set if the graph reads attributes of its module.
  std::optional<torch::jit::Module> self;
  // For the trailing inputs that requests do not carry.
  std::vector<std::optional<c10::IValue>> defaults;
  // Whether a run packs the weights again, beside the constants.
  bool packs = false;
  torch::jit::GraphExecutor executor;
  // If set, this is run instead: the graph as written, without any executor's passes.
  std::optional<torch::jit::Code> plain;

  // The simple executor neither profiles nor specializes: the first run is as exact as the last,
  // and any batch size runs the same code.
  lts_graph(std::shared_ptr<torch::jit::Graph> g, std::optional<torch::jit::Module> m,
            std::vector<std::optional<c10::IValue>> d,
            torch::jit::ExecutorExecutionMode mode = torch::jit::ExecutorExecutionMode::SIMPLE)
      : graph(std::move(g)), self(std::move(m)), defaults(std::move(d)),
        packs(mode == torch::jit::ExecutorExecutionMode::PROFILING),
        executor(graph, "forward", mode) {}

  void run(torch::jit::Stack &stack) {
    if (plain.has_value()) {
      torch::jit::InterpreterState(*plain).run(stack);
    } else {
      executor.run(stack);
    }
  }
};

namespace lamina {

// The stack on which `graph` is called for these inputs.
torch::jit::Stack stack_of(const lts_graph &graph, std::vector<at::Tensor> inputs);

}  // namespace lamina
