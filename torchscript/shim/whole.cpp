// Runs the whole model in libtorch's own ways, for benchmarks.

#include "common.hpp"

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/passes/pass_manager.h>
#include <torch/csrc/jit/serialization/import.h>

#include <utility>

namespace lamina {
namespace {

enum Way { kFrozen, kFolded, kOptimizedForInference, kChannelsLast, kOnednnGraph };

// Disables the passes that `optimize` registered for all graphs.
struct NoCustomPasses {
  decltype(torch::jit::getCustomPrePasses()) registered = torch::jit::getCustomPrePasses();
  std::vector<torch::jit::GraphPassEntry> saved = std::exchange(registered, {});
  ~NoCustomPasses() { registered = std::move(saved); }
};

void convert_weights(const Module &module) {
  at::NoGradGuard plain;
  for (at::Tensor weight : module.parameters(/*recurse=*/true))
    if (weight.dim() == 4) weight.set_data(weight.to(at::MemoryFormat::ChannelsLast));
}

lts_graph *whole(const char *path, int way) {
  Module module = torch::jit::load(std::string(path), c10::Device(c10::kCPU),
                                   /*load_debug_files=*/false);
  module.eval();
  if (way == kChannelsLast) convert_weights(module);
  module = torch::jit::freeze(module, std::nullopt, /*optimize_numerics=*/way != kFrozen);
  if (way == kOptimizedForInference) module = torch::jit::optimize_for_inference(module);
  auto graph = module.get_method("forward").graph()->copy();
  return new lts_graph(graph, module, {}, torch::jit::ExecutorExecutionMode::PROFILING);
}

void warm_up(lts_graph &graph, lts_tensor *const *inputs, size_t count) {
  c10::InferenceMode inference;
  for (int run = 0; run < 3; ++run) {
    torch::jit::Stack stack;
    stack.emplace_back(graph.self->_ivalue());
    for (size_t i = 0; i < count; ++i) stack.emplace_back(inputs[i]->clone());
    graph.executor.run(stack);
  }
}

}  // namespace
}  // namespace lamina

extern "C" int lts_whole_load(const char *path, int way, lts_tensor *const *inputs, size_t count,
                              lts_graph **out, char **text) {
  return lamina::guarded(text, [&] {
    std::unique_ptr<lts_graph> graph(lamina::whole(path, way));
    if (way == lamina::kOnednnGraph) {
      TORCH_CHECK(lamina::has_onednn_graph(), "this build of libtorch has no oneDNN Graph");
      lamina::warm_up(*graph, inputs, count);
    } else {
      lamina::NoCustomPasses none;
      lamina::warm_up(*graph, inputs, count);
    }
    *out = graph.release();
  });
}
