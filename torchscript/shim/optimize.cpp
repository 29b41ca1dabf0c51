// Makes a merged graph fast on the host that runs it.

#include "common.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/frozen_graph_optimizations.h>
#include <torch/csrc/jit/passes/frozen_linear_transpose.h>
#include <torch/csrc/jit/passes/frozen_ops_to_mkldnn.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/pass_manager.h>
#include <torch/csrc/jit/passes/remove_mutation.h>
#include <torch/csrc/jit/passes/tensorexpr_fuser.h>

#include <algorithm>
#include <unordered_set>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace torch::jit::fuser::onednn {
// Weak, because builds of libtorch for processors other than x86-64 lack it.
TORCH_API __attribute__((weak)) void fuseGraph(std::shared_ptr<Graph> &graph);
}  // namespace torch::jit::fuser::onednn

namespace lamina {
namespace {

using Sizes = std::vector<int64_t>;

// As observed by the profiling executor.
std::optional<Sizes> sizes_of(const Value *value) {
  auto type = value->type()->cast<c10::TensorType>();
  return type == nullptr ? std::nullopt : type->sizes().concrete_sizes();
}

bool is_product(const Node *node) {
  return node->kind() == aten::linear || node->kind() == aten::matmul ||
         node->kind() == aten::mm || node->kind() == aten::bmm || node->kind() == aten::addmm;
}

bool is_sum(const Node *node) {
  return node->kind() == aten::add || node->kind() == aten::add_;
}

// Whether a product of one row flows into `value` through operations that keep its shape, so that
// oneDNN Graph may fuse them into one kernel.
bool has_one_row_product(const Value *value, const std::optional<Sizes> &sizes,
                         std::unordered_set<const Value *> &seen) {
  auto own = sizes_of(value);
  bool keeps_shape = !own.has_value() || !sizes.has_value() || *own == *sizes;
  if (!keeps_shape || !seen.insert(value).second) return false;
  const Node *node = value->node();
  if (is_product(node)) {
    bool is_known = own.has_value() && own->size() >= 2;
    return !is_known || (*own)[own->size() - 2] == 1;
  }
  for (const Value *input : node->inputs())
    if (is_tensor(input) && has_one_row_product(input, sizes, seen)) return true;
  return false;
}

bool is_float(const Value *value) {
  auto type = value->type()->cast<c10::TensorType>();
  return type != nullptr && type->scalarType().has_value() &&
         c10::isFloatingType(*type->scalarType());
}

// oneDNN's product of one row followed by a sum writes past its scratchpad if the row has more than
// 1024 elements (brgemm, oneDNN 3.x of libtorch 2.13). The sum is written as a subtraction, which
// libtorch computes by the same kernel and oneDNN Graph does not support. The length of the row is
// not checked: with one row there is nothing to gain.
void keep_sums_apart(Block *block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    Node *node = *it++;
    for (Block *inner : node->blocks()) keep_sums_apart(inner);
    if (!is_sum(node) || node->inputs().size() != 3 || !is_tensor(node->input(1))) continue;
    auto alpha = torch::jit::toIValue(node->input(2));
    if (!alpha.has_value() || !alpha->isScalar() || !is_float(node->input(0))) continue;
    std::unordered_set<const Value *> seen;
    auto sizes = sizes_of(node->output());
    if (!has_one_row_product(node->input(0), sizes, seen) &&
        !has_one_row_product(node->input(1), sizes, seen))
      continue;
    torch::jit::WithInsertPoint here(node);
    Value *minus = block->owningGraph()->insertConstant(-alpha->toScalar());
    Node *apart = block->owningGraph()->create(node->kind() == aten::add ? aten::sub : aten::sub_,
                                               {node->input(0), node->input(1), minus});
    apart->insertBefore(node);
    apart->output()->setType(node->output()->type());
    node->output()->replaceAllUsesWith(apart->output());
    node->destroy();
  }
}

// Whether it is `x * 1` or `x + 0`.
bool is_identity(const Node *node) {
  bool multiplies = node->kind() == aten::mul || node->kind() == aten::mul_;
  if (!multiplies && !is_sum(node)) return false;
  auto constant = torch::jit::toIValue(node->input(1));
  if (!constant.has_value() || !(constant->isInt() || constant->isDouble())) return false;
  return constant->toScalar().toDouble() == (multiplies ? 1.0 : 0.0);
}

void find_identities(Block *block, std::vector<Node *> &found) {
  for (Node *node : block->nodes()) {
    for (Block *inner : node->blocks()) find_identities(inner, found);
    if (is_identity(node)) found.push_back(node);
  }
}

// oneDNN Graph takes `x * 1` and `x + 0` for x itself, whatever the types, and although one of the
// two is written to. Where that is something else, it does not see the constant.
void keep_identities_apart(const std::shared_ptr<Graph> &graph) {
  std::vector<Node *> found;
  find_identities(graph->block(), found);
  if (found.empty()) return;
  torch::jit::AliasDb aliases(graph);
  for (Node *node : found) {
    bool may_be_one = node->kind() == aten::mul || node->kind() == aten::add;
    if (may_be_one && is_float(node->input(0)) &&
        aliases.safeToChangeAliasingRelationship({node->input(0)}, {node->output()}))
      continue;
    torch::jit::WithInsertPoint here(node);
    auto constant = torch::jit::toIValue(node->input(1))->toScalar();
    Value *minus = graph->insertConstant(-constant);
    node->replaceInput(1, graph->insert(aten::neg, {minus}));
  }
}

// A fused kernel is compiled for the sizes that it first runs with. Its guard compares the types that
// profiling found; where they tell no sizes, as behind an operation in place with a number, any
// sizes would pass, and the kernel would read and write the memory of others. The operations
// themselves run instead.
void distrust_unknown_sizes(Block *block) {
  for (Node *node : block->nodes()) {
    for (Block *inner : node->blocks()) distrust_unknown_sizes(inner);
    if (node->kind() != prim::oneDNNFusionGuard) continue;
    const auto &types = node->tys(torch::jit::attr::types);
    bool known = std::all_of(types.begin(), types.end(), [](const c10::TypePtr &type) {
      auto tensor = type->cast<c10::TensorType>();
      return tensor != nullptr && tensor->sizes().concrete_sizes().has_value();
    });
    if (known) continue;
    torch::jit::WithInsertPoint here(node);
    node->outputs().back()->replaceAllUsesWith(block->owningGraph()->insertConstant(false));
  }
}

// Shapes are in the graph once the nodes that profiled its first run are removed.
void fuse(std::shared_ptr<Graph> &graph) {
  torch::jit::RemoveProfileNodesAndSpecializeTypes(graph);
  keep_sums_apart(graph->block());
  keep_identities_apart(graph);
  torch::jit::fuser::onednn::fuseGraph(graph);
  distrust_unknown_sizes(graph->block());
}

}  // namespace

// oneDNN Graph fuses convolutions and linear layers with the operations after them, chooses layouts
// and packs weights. It is libtorch's fastest option on every network in
// docs/benchmarks/slicing.md.
bool has_onednn_graph() {
  static const bool available = [] {
    if (torch::jit::fuser::onednn::fuseGraph == nullptr) return false;
    torch::jit::registerPrePass(fuse);
    // It compiles for the shapes of the first run. Other shapes run the unfused code, instead of
    // another set of packed weights each.
    torch::jit::FusionStrategy once = {{torch::jit::FusionBehavior::STATIC, 1}};
    torch::jit::setFusionStrategy(once);
    return true;
  }();
  return available;
}

torch::jit::ExecutorExecutionMode optimize(std::shared_ptr<Graph> &graph, bool fuse) {
  // An archive stores lists of numbers as code; folding needs constants.
  torch::jit::ConstantPropagation(graph, /*ignore_custom_classes=*/true);
  torch::jit::OptimizeFrozenGraph(graph, /*optimize_numerics=*/true);
  bool fused_later = fuse && has_onednn_graph();
  if (!fused_later) {
    torch::jit::ConvertFrozenOpsToMKLDNN(graph);
    torch::jit::FrozenLinearTranspose(graph);
  }
  // Before their sizes are profiled, which oneDNN Graph would not know otherwise.
  if (fused_later)
    torch::jit::RemoveTensorMutation(graph, [](Node *node) {
      return node->kind() == aten::add_ || node->kind() == aten::mul_;
    });
  // The original weights of folded or transposed ones would stay in memory.
  torch::jit::EliminateDeadCode(graph);
  return fused_later ? torch::jit::ExecutorExecutionMode::PROFILING
                     : torch::jit::ExecutorExecutionMode::SIMPLE;
}

}  // namespace lamina
