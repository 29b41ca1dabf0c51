#include "exits.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <functional>

namespace prim = c10::prim;

namespace lamina {
namespace {

// Adds the values read by `node` and the nodes inside it.
void add_reads(const Node *node, std::vector<const Value *> &reads) {
  for (const Value *input : node->inputs()) reads.push_back(input);
  for (const Block *block : node->blocks()) {
    for (const Node *inner : block->nodes()) add_reads(inner, reads);
    for (const Value *output : block->outputs()) reads.push_back(output);
  }
}

// The node of the graph's top-level block that a value comes from; none for inputs.
Node *top_level(const Value *value) {
  auto *node = const_cast<Node *>(value->node());
  while (node->owningBlock() != nullptr && node->owningBlock()->owningNode() != nullptr &&
         node->owningBlock() != node->owningGraph()->block())
    node = node->owningBlock()->owningNode();
  return node->kind() == prim::Param ? nullptr : node;
}

using Nodes = std::unordered_set<const Node *>;

void add_closure(const Value *value, Nodes &found) {
  std::vector<const Value *> open{value};
  while (!open.empty()) {
    Node *node = top_level(open.back());
    open.pop_back();
    if (node == nullptr || !found.insert(node).second) continue;
    add_reads(node, open);
  }
}

void bring_up(torch::jit::AliasDb &aliases, const std::vector<Node *> &head) {
  Node *last = nullptr;
  for (const Value *value : read_from_outside(head)) {
    Node *giver = top_level(value);
    if (giver == nullptr || giver->kind() == prim::Constant) continue;
    if (last == nullptr || giver->isAfter(last)) last = giver;
  }
  if (last == nullptr) return;
  for (Node *node : head) {
    if (!aliases.moveAfterTopologicallyValid(node, last)) return;
    last = node;
  }
}

}  // namespace

std::vector<const Value *> read_from_outside(const std::vector<Node *> &nodes) {
  Nodes inside(nodes.begin(), nodes.end());
  std::vector<const Value *> outside;
  for (const Node *node : nodes) {
    std::vector<const Value *> reads;
    add_reads(node, reads);
    for (const Value *value : reads)
      if (inside.count(top_level(value)) == 0) outside.push_back(value);
  }
  return outside;
}

std::vector<std::vector<Node *>> bring_up_heads(const std::shared_ptr<Graph> &graph) {
  torch::jit::AliasDb aliases(graph);
  Nodes known;
  add_closure(graph->outputs().back(), known);
  std::vector<std::vector<Node *>> heads;
  for (size_t i = 0; i + 1 < graph->outputs().size(); ++i) {
    Nodes closure;
    add_closure(graph->outputs()[i], closure);
    std::vector<Node *> head;
    for (Node *node : graph->nodes())
      if (closure.count(node) > 0 && known.count(node) == 0 && node->kind() != prim::Constant)
        head.push_back(node);
    bring_up(aliases, head);
    known.insert(closure.begin(), closure.end());
    heads.push_back(head);
  }
  return heads;
}

std::optional<size_t> stage_of(const Node *node) {
  static const std::string kStages = "stages.";
  std::optional<size_t> stage;
  for (const Value *input : node->inputs()) {
    if (input->node()->kind() != prim::Constant) continue;
    std::string name = input->debugName();
    size_t at = name.find(kStages);
    if (at == std::string::npos) continue;
    size_t digits = at + kStages.size();
    if (digits >= name.size() || std::isdigit(static_cast<unsigned char>(name[digits])) == 0)
      continue;
    size_t found = std::strtoul(name.c_str() + digits, nullptr, 10);
    stage = std::max(stage.value_or(0), found);
  }
  return stage;
}

}  // namespace lamina
