// Makes memory sharing visible that libtorch's alias analysis misses: its passes would not see that
// a write to one value changes another.

#include "source.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inline_fork_wait.h>
#include <torch/csrc/jit/passes/inliner.h>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

// Whether values of this type may share memory with others.
bool shares_memory(const c10::TypePtr &type) {
  switch (type->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::ComplexType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::NumberType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::NoneType:
    case c10::TypeKind::DeviceObjType:
      return false;
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::TupleType:
      for (const c10::TypePtr &part : type->containedTypes())
        if (shares_memory(part)) return true;
      return false;
    default:
      return true;
  }
}

void add_nodes(Block *block, std::vector<Node *> &nodes) {
  for (Node *node : block->nodes()) {
    nodes.push_back(node);
    for (Block *inner : node->blocks()) add_nodes(inner, nodes);
  }
}

// Nodes with blocks write through the nodes in them.
bool may_write(const Node *node) {
  const c10::FunctionSchema *schema = node->maybeSchema();
  return node->blocks().empty() && (schema == nullptr || schema->is_mutable());
}

bool holds(const Node *outer, const Node *node) {
  while (node != nullptr && node != outer) node = node->owningBlock()->owningNode();
  return node == outer;
}

// The outermost loop around `node`, or the node itself.
Node *outermost(Node *node) {
  Node *found = node;
  for (Node *outer = node; outer != nullptr; outer = outer->owningBlock()->owningNode())
    if (outer->kind() == prim::Loop) found = outer;
  return found;
}

// The writes known to libtorch.
class Writes {
 public:
  explicit Writes(const std::shared_ptr<Graph> &graph) : aliases_(graph) {
    add_nodes(graph->block(), nodes_);
  }

  const std::vector<Node *> &nodes() const { return nodes_; }

  // Whether something writes to one of `values` in `node` or after it. Earlier writes do not
  // matter, unless a loop contains both.
  bool follow(Node *node, const torch::jit::ValueSet &values) const {
    Node *whole = outermost(node);
    for (Node *writer : nodes_)
      if (may_write(writer) && (holds(whole, writer) || writer->isAfter(whole)) &&
          aliases_.writesToAlias(writer, values))
        return true;
    return false;
  }

 private:
  torch::jit::AliasDb aliases_;
  std::vector<Node *> nodes_;
};

// The value whose memory `value` certainly has: in-place operations return their target.
const Value *written_in_place(const Value *value) {
  for (;;) {
    const Node *node = value->node();
    const c10::FunctionSchema *schema = node->maybeSchema();
    if (schema == nullptr || schema->returns().size() != 1 || schema->arguments().empty())
      return value;
    const auto *given = schema->arguments()[0].alias_info();
    const auto *result = schema->returns()[0].alias_info();
    if (given == nullptr || result == nullptr || !given->isWrite() || !result->isWrite())
      return value;
    value = node->input(0);
  }
}

// The indices of `loop`'s carried values that are written to. libtorch assumes that a loop's
// outputs come from its iterations. But without iterations a loop returns its inputs, and each
// iteration but the first takes the values of the one before.
std::vector<size_t> written_places(Node *loop, const Writes &writes) {
  const Block *body = loop->blocks().at(0);
  std::vector<size_t> places;
  for (size_t i = 0; i < loop->outputs().size(); ++i) {
    const Value *inside = body->inputs().at(1 + i), *next = body->outputs().at(1 + i);
    if (!shares_memory(loop->output(i)->type()) || written_in_place(next) == inside) continue;
    if (writes.follow(loop, {loop->input(2 + i), inside, next, loop->output(i)}))
      places.push_back(i);
  }
  return places;
}

// Carries the value of `loop` at `place` in a list of one item: to libtorch, an item may be
// anything that was ever put into the list.
void carry_in_list(Node *loop, size_t place) {
  Graph &graph = *loop->owningGraph();
  Block *body = loop->blocks().at(0);
  c10::TypePtr type = loop->output(place)->type();
  Value *list = nullptr, *first = nullptr;
  auto item = [&] {
    Node *get = graph.insertNode(graph.create(aten::__getitem__, {list, first}));
    get->output()->setType(type);
    return get->output();
  };
  {
    torch::jit::WithInsertPoint before(loop);
    list = graph.insertNode(graph.createList(type, {loop->input(2 + place)}))->output();
    first = graph.insertConstant(static_cast<int64_t>(0));
  }
  {
    torch::jit::WithInsertPoint begin(*body->nodes().begin());
    body->inputs().at(1 + place)->replaceAllUsesWith(item());
  }
  {
    torch::jit::WithInsertPoint end(body->return_node());
    Node *set = graph.create(aten::_set_item, {list, first, body->outputs().at(1 + place)});
    graph.insertNode(set)->output()->setType(list->type());
  }
  {
    torch::jit::WithInsertPoint behind(loop->next());
    loop->output(place)->replaceAllUsesWith(item());
  }
  body->eraseOutput(1 + place);
  body->eraseInput(1 + place);
  loop->eraseOutput(place);
  loop->removeInput(2 + place);
}

enum class Kind {
  kDropout,      // returns its input except in training
  kTypeAs,       // returns its input if it has the type
  kConjugate,    // returns its input if it is real
  kSumToSize,    // returns its input if it has the size
  kAtLeast,      // returns its input, perhaps with more dimensions of size 1
  kUnsafeParts,  // returns parts of its input
  kBroadcast,    // returns its input, expanded
};

// Operators that return memory of their inputs, which their schemas do not declare.
std::optional<Kind> shares_silently(const Node *node) {
  static const std::map<std::string, Kind> kinds = {
      {"aten::dropout", Kind::kDropout},
      {"aten::feature_dropout", Kind::kDropout},
      {"aten::alpha_dropout", Kind::kDropout},
      {"aten::feature_alpha_dropout", Kind::kDropout},
      {"aten::type_as", Kind::kTypeAs},
      {"aten::conj_physical", Kind::kConjugate},
      {"aten::sum_to_size", Kind::kSumToSize},
      {"aten::atleast_1d", Kind::kAtLeast},
      {"aten::atleast_2d", Kind::kAtLeast},
      {"aten::atleast_3d", Kind::kAtLeast},
      {"aten::unsafe_chunk", Kind::kUnsafeParts},
      {"aten::unsafe_split", Kind::kUnsafeParts},
      {"aten::unsafe_split_with_sizes", Kind::kUnsafeParts},
      {"aten::broadcast_tensors", Kind::kBroadcast},
  };
  auto found = kinds.find(node->kind().toQualString());
  if (found == kinds.end() || node->outputs().size() != 1) return std::nullopt;
  // The variant for lists has visible items.
  if (found->second == Kind::kAtLeast && !is_tensor(node->output())) return std::nullopt;
  return found->second;
}

// Whether only the one reader of `value` can see its memory.
bool is_private(const Value *value) {
  const Node *node = value->node();
  const c10::FunctionSchema *schema = node->maybeSchema();
  if (value->uses().size() != 1 || schema == nullptr || !node->kind().is_aten()) return false;
  if (!is_tensor(value) || shares_silently(node).has_value()) return false;
  for (const auto &result : schema->returns())
    if (result.alias_info() != nullptr) return false;
  return true;
}

// Inputs and outputs of `node`; for lists, the items that its neighbours put in and take out.
torch::jit::ValueSet in_sight(const Node *node) {
  const Value *given = node->input(0), *result = node->output();
  torch::jit::ValueSet values{given, result};
  if (!is_tensor(given))
    for (const Value *item : given->node()->inputs()) values.insert(item);
  if (!is_tensor(result))
    for (const torch::jit::Use &use : result->uses())
      for (const Value *item : use.user->outputs()) values.insert(item);
  return values;
}

Value *insert(Node *before, c10::Symbol operation, std::vector<Value *> inputs,
              c10::TypePtr type) {
  Node *node = before->owningGraph()->create(operation, inputs);
  node->insertBefore(before);
  node->output()->setType(std::move(type));
  return node->output();
}

void replace(Node *node, Value *result) {
  node->output()->replaceAllUsesWith(result);
  node->destroy();
}

// Runs `node` only if `condition` holds; otherwise the result is `given`.
void only_where(Value *condition, Node *node, Value *given) {
  Node *choice = node->owningGraph()->create(prim::If, {condition}, 1);
  choice->insertAfter(node);
  choice->output()->setType(node->output()->type());
  node->output()->replaceAllUsesWith(choice->output());
  Block *done = choice->addBlock(), *skipped = choice->addBlock();
  node->moveBefore(done->return_node());
  done->registerOutput(node->output());
  skipped->registerOutput(given);
}

// Rewrites `node` such that libtorch sees the sharing; results are the same bit for bit.
void write_openly(Node *node, Kind kind) {
  Graph &graph = *node->owningGraph();
  Value *given = node->input(0);
  c10::TypePtr type = node->output()->type();
  torch::jit::WithInsertPoint here(node);
  switch (kind) {
    case Kind::kDropout:
      return only_where(node->input(2), node, given);
    case Kind::kConjugate:
      return only_where(insert(node, aten::is_complex, {given}, c10::BoolType::get()), node,
                        given);
    case Kind::kSumToSize: {
      Value *size = insert(node, aten::size, {given}, c10::ListType::ofInts());
      Value *other = insert(node, aten::ne, {size, node->input(1)}, c10::BoolType::get());
      return only_where(other, node, given);
    }
    case Kind::kTypeAs: {
      Value *no = graph.insertConstant(false), *none = graph.insertConstant(IValue());
      return replace(node, insert(node, aten::to, {given, node->input(1), no, no, none}, type));
    }
    case Kind::kAtLeast: {
      auto uses = node->output()->uses();
      Node *behind = node->next();
      Value *size = insert(behind, aten::size, {node->output()}, c10::ListType::ofInts());
      Value *result = insert(behind, aten::reshape, {given, size}, type);
      for (const torch::jit::Use &use : uses) use.user->replaceInput(use.offset, result);
      return;
    }
    case Kind::kUnsafeParts: {
      std::string name = node->kind().toQualString();
      name.erase(name.find("unsafe_"), std::strlen("unsafe_"));
      auto safe = c10::Symbol::fromQualString(name);
      return replace(node, insert(node, safe, node->inputs().vec(), type));
    }
    case Kind::kBroadcast:
      // libtorch assumes that tensors stay in a list that it reads; from a copy they come out.
      node->replaceInput(0, insert(node, aten::list, {given}, given->type()));
      return;
  }
}

// Returns whether anything was rewritten. A rewrite may reveal more.
bool share_openly(const std::shared_ptr<Graph> &graph) {
  std::unordered_set<const Node *> open;
  for (bool ever = false;; ever = true) {
    Writes writes(graph);
    std::vector<std::pair<Node *, Kind>> operations;
    std::vector<std::pair<Node *, std::vector<size_t>>> loops;
    for (Node *node : writes.nodes()) {
      if (node->kind() == prim::Loop) {
        auto places = written_places(node, writes);
        if (!places.empty()) loops.emplace_back(node, std::move(places));
      }
      auto kind = shares_silently(node);
      if (!kind.has_value() || open.count(node) > 0 || is_private(node->input(0))) continue;
      if (!writes.follow(node, in_sight(node))) continue;
      operations.emplace_back(node, *kind);
      open.insert(node);
    }
    if (operations.empty() && loops.empty()) return ever;
    for (auto &[node, kind] : operations) write_openly(node, kind);
    for (auto &[loop, places] : loops)
      // Backwards, because later indices shift.
      for (auto place = places.rbegin(); place != places.rend(); ++place)
        carry_in_list(loop, *place);
  }
}

// Whether there may be sharing that libtorch misses.
bool may_share_silently(const Block *block) {
  for (const Node *node : block->nodes()) {
    if (node->kind() == prim::Loop || shares_silently(node).has_value()) return true;
    for (const Block *inner : node->blocks())
      if (may_share_silently(inner)) return true;
  }
  return false;
}

}  // namespace

void share_openly(Module &module) {
  auto inlined = [](const std::shared_ptr<Graph> &graph) {
    torch::jit::Inline(*graph);
    torch::jit::InlineForkWait(graph);
    // Forked functions call others.
    torch::jit::Inline(*graph);
    return graph;
  };
  auto graph = module.get_method("forward").graph();
  auto tried = inlined(graph->copy());
  // Only if needed: what is inlined here would be inlined by freezing anyway.
  if (may_share_silently(tried->block()) && share_openly(tried)) share_openly(inlined(graph));
}

}  // namespace lamina
