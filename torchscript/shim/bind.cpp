// Binds the arguments of a `forward`: request tensors, numbers in them, tuples of them, and
// constants.

#include "source.hpp"

#include <torch/csrc/jit/ir/constants.h>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

// The rest of `text` after `mark`, if it starts with it.
std::optional<std::string> behind(const std::string &text, const std::string &mark) {
  if (text.compare(0, mark.size(), mark) != 0) return std::nullopt;
  return text.substr(mark.size());
}

std::optional<IValue> constant(const std::string &binding) {
  if (binding == "none") return IValue();
  if (auto text = behind(binding, "fixed_int:")) return IValue(int64_t(std::stoll(*text)));
  if (auto text = behind(binding, "fixed_float:")) return IValue(std::stod(*text));
  if (auto text = behind(binding, "fixed_bool:")) return IValue(*text == "1");
  if (auto text = behind(binding, "fixed_text:")) return IValue(*text);
  return std::nullopt;
}

std::optional<c10::Symbol> reader(const std::string &binding) {
  if (binding == "int") return aten::Int;
  if (binding == "float") return aten::Float;
  if (binding == "bool") return aten::Bool;
  return std::nullopt;
}

Value *insert_tensor(Graph &graph, size_t at) {
  Value *tensor = graph.insertInput(at, "");
  tensor->setType(c10::TensorType::get());
  return tensor;
}

}  // namespace

void bind_arguments(Graph &graph, const std::vector<std::string> &bindings) {
  // Input 0 is the module.
  size_t at = 1;
  for (const std::string &binding : bindings) {
    if (binding == "tensor") {
      ++at;
      continue;
    }
    torch::jit::WithInsertPoint here(*graph.nodes().begin());
    Value *argument = graph.inputs().at(at);
    Value *filled = nullptr;
    size_t count = 0;
    if (auto value = constant(binding)) {
      filled = graph.insertConstant(*value);
    } else if (auto read = reader(binding)) {
      filled = graph.insert(*read, {insert_tensor(graph, at)});
      count = 1;
    } else {
      auto fields = behind(binding, "tuple:");
      TORCH_CHECK(fields.has_value(), "nobody knows the binding ", binding);
      count = static_cast<size_t>(std::stoul(*fields));
      std::vector<Value *> tensors;
      for (size_t i = 0; i < count; ++i) tensors.push_back(insert_tensor(graph, at + i));
      filled = graph.insertNode(graph.createTuple(tensors))->output();
    }
    argument->replaceAllUsesWith(filled);
    at += count;
    graph.eraseInput(at);
  }
}

}  // namespace lamina
