// What makes a merged graph fast on the host that runs it.

#include "common.hpp"

#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/frozen_graph_optimizations.h>
#include <torch/csrc/jit/passes/frozen_linear_transpose.h>
#include <torch/csrc/jit/passes/frozen_ops_to_mkldnn.h>
#include <torch/csrc/jit/passes/pass_manager.h>

namespace torch::jit::fuser::onednn {
// Weak, for builds of libtorch for other processors than x86-64 lack it.
TORCH_API __attribute__((weak)) void fuseGraph(std::shared_ptr<Graph> &graph);
}  // namespace torch::jit::fuser::onednn

namespace lamina {

// oneDNN Graph fuses convolutions and linear layers with what follows them,
// chooses layouts and packs weights. Of what libtorch offers it is the fastest
// on each network that docs/benchmarks/slicing.md lists.
bool has_onednn_graph() {
  static const bool available = [] {
    if (torch::jit::fuser::onednn::fuseGraph == nullptr) return false;
    torch::jit::registerPrePass(torch::jit::fuser::onednn::fuseGraph);
    // It compiles for the shapes of the first run. Other shapes take the code
    // that was not fused, instead of one more set of packed weights for each.
    torch::jit::FusionStrategy once = {{torch::jit::FusionBehavior::STATIC, 1}};
    torch::jit::setFusionStrategy(once);
    return true;
  }();
  return available;
}

torch::jit::ExecutorExecutionMode optimize(std::shared_ptr<Graph> &graph, bool fuse) {
  // An archive spells lists of numbers as code; folding wants constants.
  torch::jit::ConstantPropagation(graph, /*ignore_custom_classes=*/true);
  torch::jit::OptimizeFrozenGraph(graph, /*optimize_numerics=*/true);
  bool fused_later = fuse && has_onednn_graph();
  if (!fused_later) {
    torch::jit::ConvertFrozenOpsToMKLDNN(graph);
    torch::jit::FrozenLinearTranspose(graph);
  }
  // The weights that were folded or transposed would stay in memory.
  torch::jit::EliminateDeadCode(graph);
  return fused_later ? torch::jit::ExecutorExecutionMode::PROFILING
                     : torch::jit::ExecutorExecutionMode::SIMPLE;
}

}  // namespace lamina
