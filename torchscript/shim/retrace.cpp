// Retraces a model inside libtorch: control flow and numbers that depend on shapes only become
// constants.

#include "source.hpp"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/shape_analysis.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

namespace lamina {
namespace {

using torch::jit::Stack;

Stack copies(lts_tensor *const *inputs, size_t count) {
  Stack stack;
  for (size_t i = 0; i < count; ++i)
    stack.emplace_back(inputs[i]->clone(at::MemoryFormat::Contiguous));
  return stack;
}

// Runs the source's graph on its own module.
class Original {
 public:
  explicit Original(const lts_source &source)
      : module_(source.reads_self ? source.frozen.deepcopy() : source.frozen),
        executor_(source.graph, "forward", torch::jit::ExecutorExecutionMode::SIMPLE) {
    // The tracer accepts parameters as constants only without gradients.
    for (at::Tensor parameter : module_.parameters()) parameter.set_requires_grad(false);
  }

  Stack run(Stack inputs) {
    Stack stack{IValue(module_._ivalue())};
    for (IValue &input : inputs) stack.push_back(std::move(input));
    executor_.run(stack);
    return stack;
  }

 private:
  Module module_;
  torch::jit::GraphExecutor executor_;
};

std::shared_ptr<Graph> trace(Original &original, lts_tensor *const *inputs, size_t count) {
  // A first run, because it compiles and fills state that the model creates on its first forward.
  original.run(copies(inputs, count));
  auto traced = torch::jit::tracer::trace(
      copies(inputs, count), [&](Stack stack) { return original.run(std::move(stack)); },
      [](const at::Tensor &) { return std::string(); }, /*strict=*/false);
  auto graph = traced.first->graph;
  torch::jit::EliminateDeadCode(graph);
  return graph;
}

// `graph` as a source that is analysed like a model read from a file.
std::unique_ptr<lts_source> as_source(const std::shared_ptr<Graph> &graph) {
  auto source = std::make_unique<lts_source>();
  graph->insertInput(0, "self");
  std::vector<Value *> outputs = graph->outputs().vec();
  if (outputs.size() > 1) {
    while (!graph->outputs().empty()) graph->eraseOutput(graph->outputs().size() - 1);
    register_outputs(*graph, outputs);
  }
  // Shapes of one request do not hold for the next.
  torch::jit::EraseShapeInformation(graph);
  source->frozen = as_module(graph);
  graph->lint();
  return source;
}

std::unique_ptr<lts_source> retrace(const lts_source &source, lts_tensor *const *inputs,
                                    lts_tensor *const *pair, size_t count,
                                    std::optional<std::string> &fixed_batch) {
  auto fixed = fixed_by_tracing(source.graph);
  TORCH_CHECK(!fixed.has_value(), *fixed);
  if (source.reads_self) {
    auto lost = state_lost_by_tracing(source.graph);
    TORCH_CHECK(!lost.has_value(), *lost);
  }
  at::NoGradGuard no_grad;
  Original original(source);
  auto graph = trace(original, inputs, count);
  if (pair != nullptr) fixed_batch = free_batch(*graph, *trace(original, pair, count));
  return as_source(graph);
}

}  // namespace
}  // namespace lamina

extern "C" int lts_source_retrace(lts_source *source, lts_tensor *const *inputs,
                                  lts_tensor *const *pair, size_t count, lts_source **out,
                                  char **text) {
  return lamina::guarded(text, [&] {
    std::optional<std::string> fixed_batch;
    auto traced = lamina::retrace(*source, inputs, pair, count, fixed_batch);
    *text = lamina::copy_text(
        "{\"fixedBatch\":" +
        (fixed_batch.has_value() ? lamina::quoted(*fixed_batch) : std::string("null")) + '}');
    *out = traced.release();
  });
}
