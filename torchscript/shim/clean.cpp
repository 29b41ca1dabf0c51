// Prepares a model's graph for the slicer: flat, without prints and warnings.

#include "source.hpp"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/loop_unrolling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_dropout.h>
#include <torch/csrc/jit/passes/remove_mutation.h>

#include <algorithm>
#include <functional>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

// Whether a node prints, warns, profiles, or sets a mode that has no effect without gradients.
bool is_aside(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "aten::warn", "prim::Print", "aten::set_grad_enabled", "profiler::_record_function_exit",
      "profiler::_record_function_enter", "profiler::_record_function_enter_new"};
  return names.count(node->kind().toQualString()) > 0;
}

// Whether an object is a mode or mark that a forward can do without.
bool is_entered_for_nothing(const Value *object) {
  auto type = object->type()->cast<c10::ClassType>();
  if (type == nullptr || !type->name().has_value()) return false;
  const std::string name = type->name()->qualifiedName();
  return name.find(".torch.autograd.grad_mode.") != std::string::npos ||
         name.find(".torch.autograd.profiler.record_function") != std::string::npos;
}

bool enters_or_leaves(const Node *node) {
  return node->kind() == prim::Enter || node->kind() == prim::Exit;
}

// Replaces the attributes of objects local to one block, such as those entered by `with`, by plain
// values.
void dissolve_objects(Block *block) {
  for (Node *node : block->nodes())
    for (Block *inner : node->blocks()) dissolve_objects(inner);
  std::vector<Node *> objects;
  for (Node *node : block->nodes()) {
    if (node->kind() != prim::CreateObject) continue;
    bool plain = true;
    for (const torch::jit::Use &use : node->output()->uses()) {
      bool sets = use.user->kind() == prim::SetAttr && use.offset == 0;
      bool leaves = enters_or_leaves(use.user) && is_entered_for_nothing(node->output());
      for (const Value *output : use.user->outputs()) leaves &= output->uses().empty();
      plain &= (sets || leaves || use.user->kind() == prim::GetAttr) &&
               use.user->owningBlock() == block;
    }
    if (plain) objects.push_back(node);
  }
  for (Node *object : objects) {
    std::map<std::string, Value *> attributes;
    auto uses = object->output()->uses();
    std::sort(uses.begin(), uses.end(), [](const torch::jit::Use &a, const torch::jit::Use &b) {
      return a.user->isBefore(b.user);
    });
    bool known = true;
    for (const torch::jit::Use &use : uses) {
      if (enters_or_leaves(use.user)) continue;
      const std::string &name = use.user->s(torch::jit::attr::name);
      if (use.user->kind() == prim::SetAttr) attributes[name] = nullptr;
      else known &= attributes.count(name) > 0;
    }
    if (!known) continue;
    for (const torch::jit::Use &use : uses) {
      if (use.user->kind() == prim::SetAttr)
        attributes[use.user->s(torch::jit::attr::name)] = use.user->input(1);
      else if (use.user->kind() == prim::GetAttr)
        use.user->output()->replaceAllUsesWith(
            attributes[use.user->s(torch::jit::attr::name)]);
      use.user->destroy();
    }
    object->destroy();
  }
}

// Output tuples become their fields; `None` fields, which are outputs for training only, are
// dropped. JSON: `Structure` in ffi.rs.
std::string flatten_outputs(Graph &graph) {
  std::vector<Value *> flat;
  std::function<std::string(Value *)> add = [&](Value *value) -> std::string {
    if (value->mustBeNone()) return "{\"kind\":\"none\"}";
    Node *node = value->node();
    if (node->kind() != prim::TupleConstruct) {
      flat.push_back(value);
      return "{\"kind\":\"output\"}";
    }
    std::vector<std::string> fields, names;
    for (Value *field : node->inputs()) fields.push_back(add(field));
    auto schema = value->type()->expect<c10::TupleType>()->schema();
    if (schema != nullptr)
      for (const auto &argument : schema->arguments()) names.push_back(argument.name());
    return "{\"kind\":\"tuple\",\"names\":" + list(names, quoted) +
           ",\"fields\":" + list(fields, [](const std::string &field) { return field; }) + '}';
  };
  std::string structure = add(graph.outputs().at(0));
  while (!graph.outputs().empty()) graph.eraseOutput(graph.outputs().size() - 1);
  for (Value *value : flat) graph.registerOutput(value);
  return structure;
}

}  // namespace

void remove_asides(Block *block) {
  // Backwards: the end of a mark reads the output of its begin.
  for (auto it = block->nodes().rbegin(); it != block->nodes().rend();) {
    Node *node = *it++;
    for (Block *inner : node->blocks()) remove_asides(inner);
    bool unused = true;
    for (const Value *output : node->outputs()) unused &= output->uses().empty();
    if (is_aside(node) && unused) node->destroy();
  }
}

void name_no_gpu(Block *block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    Node *node = *it++;
    for (Block *inner : node->blocks()) name_no_gpu(inner);
    if (node->kind() != prim::Constant) continue;
    auto constant = torch::jit::toIValue(node->output());
    if (!constant.has_value() || !constant->isDevice() || constant->toDevice().is_cpu()) continue;
    torch::jit::WithInsertPoint here(node);
    node->output()->replaceAllUsesWith(
        node->owningGraph()->insertConstant(c10::Device(c10::kCPU)));
    node->destroy();
  }
}

void bind_defaults(Graph &graph, const std::vector<std::optional<IValue>> &defaults) {
  for (size_t i = defaults.size(); i-- > 0;) {
    size_t at = graph.inputs().size() - 1;
    Value *input = graph.inputs()[at];
    TORCH_CHECK(defaults[i].has_value(), "argument `", input->debugName(),
                "` has no default and no input is declared for it");
    torch::jit::WithInsertPoint here(*graph.nodes().begin());
    input->replaceAllUsesWith(graph.insertConstant(*defaults[i]));
    graph.eraseInput(at);
  }
}

// The passes that keep results bit for bit. Folding and layout changes wait until blocks are merged
// on the host that runs them. Left out: EliminateExceptions, which does not terminate on some
// scripted models, and RemoveTensorMutation, which makes graphs slower.
std::string clean(std::shared_ptr<Graph> &graph) {
  dissolve_objects(graph->block());
  remove_asides(graph->block());
  for (int round = 0; round < 3; ++round) {
    torch::jit::LowerSimpleTuples(graph);
    torch::jit::ConstantPropagation(graph, /*ignore_custom_classes=*/true);
    torch::jit::UnrollConstantLoops(graph);
    torch::jit::RemoveListMutation(graph);
    torch::jit::PeepholeOptimize(graph);
    torch::jit::EliminateDeadCode(graph);
  }
  torch::jit::removeDropout(graph);
  torch::jit::EliminateCommonSubexpression(graph);
  std::string structure = flatten_outputs(*graph);
  torch::jit::EliminateDeadCode(graph);
  return structure;
}

}  // namespace lamina
