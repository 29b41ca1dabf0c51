// Makes one graph for any batch size from traces at batch 1 and 2.

#include "source.hpp"

#include <torch/csrc/jit/ir/constants.h>

#include <unordered_map>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

// A number that is `at_one` at batch 1 and twice that at batch 2.
struct Scaled {
  Node *constant;
  int64_t at_one;
};

// A tensor whose first dimension is `rows` at batch 1 and twice that at batch 2.
struct Anchor {
  Value *tensor = nullptr;
  int64_t rows = 0;
};

std::optional<std::vector<int64_t>> sizes(const Value *value) {
  auto type = value->type()->cast<c10::TensorType>();
  return type == nullptr ? std::nullopt : type->sizes().concrete_sizes();
}

bool equal_constants(const IValue &one, const IValue &two) {
  if (one.isTensor() && two.isTensor()) {
    const at::Tensor &a = one.toTensor(), &b = two.toTensor();
    if (!a.defined() || !b.defined()) return a.defined() == b.defined();
    return a.is_same(b) || (a.sizes() == b.sizes() && a.dtype() == b.dtype() && a.equal(b));
  }
  return one.tagKind() == two.tagKind() && one == two;
}

class Pairing {
 public:
  // The reason if the traces differ in more than numbers proportional to the batch.
  std::optional<std::string> walk(Graph &one, Graph &two) {
    if (one.inputs().size() != two.inputs().size()) return unlike();
    for (size_t i = 0; i < one.inputs().size(); ++i) pair(one.inputs()[i], two.inputs()[i]);
    auto at_two = two.nodes().begin();
    for (Node *node : one.nodes()) {
      if (at_two == two.nodes().end()) return unlike();
      if (auto reason = pair(node, *at_two)) return reason;
      ++at_two;
    }
    if (at_two != two.nodes().end()) return unlike();
    return same_values(one.outputs(), two.outputs()) ? std::nullopt : unlike();
  }

  const std::vector<Scaled> &scaled() const { return scaled_; }

  std::optional<Anchor> anchor(Value *value) const {
    auto found = rows_.find(value);
    if (found == rows_.end()) return std::nullopt;
    return Anchor{value, found->second};
  }

 private:
  static std::optional<std::string> unlike() {
    return "traced with a batch of 2 it runs other operations";
  }

  bool same_values(c10::ArrayRef<Value *> one, c10::ArrayRef<Value *> two) const {
    if (one.size() != two.size()) return false;
    for (size_t i = 0; i < one.size(); ++i) {
      auto found = pairs_.find(two[i]);
      if (found == pairs_.end() || found->second != one[i]) return false;
    }
    return true;
  }

  void pair(Value *one, Value *two) {
    pairs_[two] = one;
    auto a = sizes(one), b = sizes(two);
    if (a.has_value() && b.has_value() && !a->empty() && !b->empty() && a->front() > 0 &&
        b->front() == 2 * a->front())
      rows_[one] = a->front();
  }

  std::optional<std::string> pair(Node *one, Node *two) {
    if (one->kind() != two->kind() || !one->blocks().empty() || !two->blocks().empty() ||
        one->outputs().size() != two->outputs().size() ||
        !same_values(one->inputs(), two->inputs()))
      return unlike();
    for (size_t i = 0; i < one->outputs().size(); ++i) pair(one->output(i), two->output(i));
    if (one->kind() != prim::Constant) return std::nullopt;
    auto a = torch::jit::toIValue(one->output()), b = torch::jit::toIValue(two->output());
    if (!a.has_value() || !b.has_value()) return unlike();
    if (equal_constants(*a, *b)) return std::nullopt;
    if (a->isTensor()) return "traced with a batch of 2 it keeps another tensor";
    if (!a->isInt() || !b->isInt() || a->toInt() <= 0 || b->toInt() != 2 * a->toInt())
      return "a number in it changes with the batch, but not in proportion";
    scaled_.push_back({one, a->toInt()});
    return std::nullopt;
  }

  std::unordered_map<const Value *, Value *> pairs_;
  std::unordered_map<const Value *, int64_t> rows_;
  std::vector<Scaled> scaled_;
};

// The node that reads the number, looking through a list that holds it.
Node *reader(Node *user) {
  if (user->kind() != prim::ListConstruct || user->output()->uses().empty()) return user;
  return user->output()->uses()[0].user;
}

// A tensor with the batch dimension, available before `user`: an argument of the node that reads
// the number, or the last one computed. A tensor from further up would have to be sent to every
// block in between.
std::optional<Anchor> nearest(const Pairing &pairing, Graph &graph, Node *user) {
  auto before = [&](const Value *value) {
    return value->node()->kind() == prim::Param || value->node()->isBefore(user);
  };
  for (Value *input : reader(user)->inputs())
    if (auto found = pairing.anchor(input); found.has_value() && before(input)) return found;
  for (Node *node = user->prev(); node->kind() != prim::Param && node != graph.return_node();
       node = node->prev())
    for (Value *output : node->outputs())
      if (auto found = pairing.anchor(output)) return found;
  for (Value *input : graph.inputs())
    if (auto found = pairing.anchor(input)) return found;
  return std::nullopt;
}

// `at_one` times the batch, read from the anchor's shape.
Value *in_proportion(Graph &graph, Node *before, const Anchor &anchor, int64_t at_one) {
  torch::jit::WithInsertPoint here(before);
  Value *value = graph.insert(aten::size, {anchor.tensor, 0});
  if (at_one != 1) value = graph.insert(aten::mul, {value, at_one});
  if (anchor.rows != 1) value = graph.insert(aten::floordiv, {value, anchor.rows});
  return value;
}

}  // namespace

std::optional<std::string> free_batch(Graph &one, Graph &two) {
  Pairing pairing;
  if (auto reason = pairing.walk(one, two)) return reason;
  struct Change {
    torch::jit::Use use;
    Anchor anchor;
    int64_t at_one;
  };
  std::vector<Change> changes;
  for (const Scaled &number : pairing.scaled()) {
    for (const torch::jit::Use &use : number.constant->output()->uses()) {
      auto anchor = nearest(pairing, one, use.user);
      if (!anchor.has_value()) return "no tensor in it has the batch first";
      changes.push_back({use, *anchor, number.at_one});
    }
  }
  for (const Change &change : changes)
    change.use.user->replaceInput(
        change.use.offset, in_proportion(one, change.use.user, change.anchor, change.at_one));
  return std::nullopt;
}

}  // namespace lamina
