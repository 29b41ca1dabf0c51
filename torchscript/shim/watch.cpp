// One forward in which every value is observed.

#include "watch.hpp"

#include <torch/csrc/jit/runtime/interpreter.h>

namespace prim = c10::prim;

namespace lamina {
namespace {

// A loop's values are observed in this many of its iterations.
constexpr size_t kMostSights = 64;

Sight sight_of(const IValue &value) {
  Sight sight;
  auto number = [&](double n) {
    sight.kind = Sight::Kind::kNumber;
    sight.numbers = {n};
  };
  auto length = [&](size_t n) {
    sight.kind = Sight::Kind::kLength;
    sight.numbers = {static_cast<double>(n)};
  };
  if (value.isTensor()) {
    const at::Tensor &tensor = value.toTensor();
    if (!tensor.defined() || tensor.is_nested()) return sight;
    sight.kind = Sight::Kind::kTensor;
    sight.type = tensor.scalar_type();
    for (int64_t size : tensor.sizes()) sight.numbers.push_back(static_cast<double>(size));
  } else if (value.isInt()) {
    number(static_cast<double>(value.toInt()));
  } else if (value.isDouble()) {
    number(value.toDouble());
  } else if (value.isBool()) {
    number(value.toBool() ? 1 : 0);
  } else if (value.isIntList()) {
    sight.kind = Sight::Kind::kNumbers;
    for (int64_t n : value.toIntVector()) sight.numbers.push_back(static_cast<double>(n));
  } else if (value.isDoubleList()) {
    sight.kind = Sight::Kind::kNumbers;
    sight.numbers = value.toDoubleVector();
  } else if (value.isList()) {
    length(value.toListRef().size());
  } else if (value.isGenericDict()) {
    length(value.toGenericDict().size());
  }
  return sight;
}

class Watcher {
 public:
  explicit Watcher(Sights &sights) : sights_(sights) {}

  // Observes each value of `copy` on behalf of its original.
  void visit(const Block *original, Block *copy) {
    auto next = copy->nodes().begin();
    Node *first = *next;
    for (size_t i = 0; i < original->inputs().size(); ++i)
      look(original->inputs()[i], copy->inputs()[i], first);
    for (const Node *node : original->nodes()) {
      Node *twin = *next++;
      for (size_t i = 0; i < node->blocks().size(); ++i)
        visit(node->blocks()[i], twin->blocks()[i]);
      for (size_t i = 0; i < node->outputs().size(); ++i)
        look(node->output(i), twin->output(i), *next);
    }
  }

 private:
  // Inserted before `behind`, which at the end of a block is its return node.
  void look(const Value *original, Value *copy, Node *behind) {
    std::vector<Sight> *seen = &sights_[original];
    auto *node = new torch::jit::ProfileIValueOp(
        behind->owningGraph(), [seen](std::vector<IValue> &stack) {
          stack.pop_back();  // The number of the interpreter's frame.
          if (seen->size() < kMostSights) seen->push_back(sight_of(stack.back()));
          stack.pop_back();
        });
    node->addInput(copy);
    node->insertBefore(behind);
  }

  Sights &sights_;
};

}  // namespace

Sights watch(const lts_source &source, const std::vector<at::Tensor> &inputs) {
  Sights sights;
  auto graph = source.graph->copy();
  Watcher(sights).visit(source.graph->block(), graph->block());
  torch::jit::Stack stack{IValue(
      (source.reads_self ? source.frozen.deepcopy() : source.frozen)._ivalue())};
  for (const at::Tensor &input : inputs) stack.emplace_back(input);
  torch::jit::Code code(graph, "forward");
  torch::jit::InterpreterState(code).run(stack);
  return sights;
}

}  // namespace lamina
