#include "codec.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include <algorithm>
#include <cctype>
#include <functional>
#include <numeric>
#include <sstream>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

using Kind = Layout::Kind;

// Integer tensors of up to this many elements are kept as examples.
constexpr int64_t kMostExamples = 8;

c10::TypePtr without_optional(const c10::TypePtr &type) {
  if (auto optional = type->cast<c10::OptionalType>()) return optional->getElementType();
  return type;
}

bool is_carried(at::ScalarType type) {
  switch (type) {
    case at::kBool:
    case at::kByte:
    case at::kChar:
    case at::kShort:
    case at::kInt:
    case at::kLong:
    case at::kHalf:
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble:
    case at::kComplexFloat:
    case at::kComplexDouble:
      return true;
    default:
      return false;
  }
}

// See `Layout::order`.
std::vector<int64_t> memory_order(const at::Tensor &tensor) {
  if (tensor.is_contiguous() || !tensor.is_non_overlapping_and_dense()) return {};
  std::vector<int64_t> order(tensor.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return tensor.stride(a) > tensor.stride(b); });
  return order;
}

Layout of_tensor(const at::Tensor &tensor) {
  Layout layout;
  if (!tensor.defined() || tensor.is_nested() || tensor.layout() != c10::Layout::Strided)
    return layout;
  layout.type = tensor.scalar_type();
  if (!is_carried(tensor.scalar_type())) return layout;
  layout.kind = Kind::kTensor;
  layout.shape = tensor.sizes().vec();
  layout.bytes = static_cast<uint64_t>(tensor.numel()) * tensor.element_size();
  layout.order = memory_order(tensor);
  layout.is_complex = tensor.is_complex();
  if (layout.is_complex) layout.shape.push_back(2);
  if (tensor.scalar_type() == at::kLong && tensor.numel() <= kMostExamples) {
    at::Tensor flat = tensor.contiguous();
    const int64_t *data = flat.const_data_ptr<int64_t>();
    layout.example.emplace(data, data + flat.numel());
  }
  return layout;
}

Layout of_numbers(Kind kind, size_t count, uint64_t size, std::vector<int64_t> example) {
  Layout layout;
  // An empty list needs no tensor.
  layout.kind = count == 0 ? Kind::kList : kind;
  layout.bytes = count * size;
  if (count > 0 && !example.empty()) layout.example = std::move(example);
  return layout;
}

template <class List>
Layout of_items(Kind kind, const List &items) {
  Layout layout;
  layout.kind = kind;
  for (const IValue &item : items) layout.fields.push_back(observe(item));
  return layout;
}

Layout of_tuple(const IValue &value) {
  Layout layout = of_items(Kind::kTuple, value.toTupleRef().elements());
  auto type = value.toTupleRef().type<c10::TupleType>();
  if (type != nullptr && type->schema() != nullptr)
    for (const auto &argument : type->schema()->arguments()) layout.names.push_back(argument.name());
  return layout;
}

Layout of_dict(const IValue &value) {
  Layout layout;
  for (const auto &entry : value.toGenericDict()) {
    if (!entry.key().isString()) return Layout();
    layout.names.push_back(entry.key().toStringRef());
    layout.fields.push_back(observe(entry.value()));
  }
  layout.kind = Kind::kDict;
  return layout;
}

const char *name_of(Kind kind) {
  switch (kind) {
    case Kind::kTensor: return "tensor";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kBool: return "bool";
    case Kind::kInts: return "ints";
    case Kind::kFloats: return "floats";
    case Kind::kBools: return "bools";
    case Kind::kNone: return "none";
    case Kind::kTuple: return "tuple";
    case Kind::kList: return "list";
    case Kind::kDict: return "dict";
    case Kind::kOther: return "other";
  }
  return "other";
}

at::ScalarType number_type(Kind kind) {
  switch (kind) {
    case Kind::kInt:
    case Kind::kInts:
      return at::kLong;
    case Kind::kFloat:
    case Kind::kFloats:
      return at::kDouble;
    default:
      return at::kBool;
  }
}

Value *append(Graph &graph, c10::Symbol kind, at::ArrayRef<Value *> inputs, c10::TypePtr type) {
  Node *node = graph.insertNode(graph.create(kind, inputs));
  node->output()->setType(std::move(type));
  return node->output();
}

// Complex numbers to pairs, and back. A lazily conjugated tensor is resolved first, since it cannot
// be viewed as pairs.
Value *as_pairs(Graph &graph, Value *tensor) {
  Value *plain = append(graph, aten::resolve_conj, {tensor}, c10::TensorType::get());
  return append(graph, aten::view_as_real, {plain}, c10::TensorType::get());
}

Value *of_pairs(Graph &graph, Value *wire) {
  return append(graph, aten::view_as_complex, {wire}, c10::TensorType::get());
}

Value *tensor_of(Graph &graph, Value *list, at::ScalarType type) {
  Value *datatype = graph.insertConstant(static_cast<int64_t>(type));
  Value *device = graph.insertConstant(IValue());
  Value *grad = graph.insertConstant(false);
  return append(graph, aten::tensor, {list, datatype, device, grad}, c10::TensorType::get());
}

// One number; a `Scalar` was observed with the layout's kind.
Value *tensor_of_number(Graph &graph, Kind kind, Value *value) {
  c10::TypePtr type = c10::IntType::get();
  c10::Symbol cast = aten::Int;
  if (kind == Kind::kFloat) {
    type = c10::FloatType::get();
    cast = aten::Float;
  } else if (kind == Kind::kBool) {
    type = c10::BoolType::get();
    cast = aten::Bool;
  }
  if (value->type()->kind() == c10::TypeKind::NumberType)
    value = append(graph, cast, {value}, type);
  Node *list = graph.insertNode(graph.createList(type, {value}));
  return tensor_of(graph, list->output(), number_type(kind));
}

// Message for a request that differs from the observed ones; clients read it.
constexpr const char *kOtherWay =
    "this request takes another way through the network than those that it was cut for: ";

// Raises if `fails` is true.
void refuse_where(Graph &graph, Value *fails, const std::string &reason) {
  Node *branch = graph.insertNode(graph.create(prim::If, {fails}, 0));
  Block *raising = branch->addBlock();
  branch->addBlock();
  torch::jit::WithInsertPoint inside(raising);
  Value *message = graph.insertConstant(kOtherWay + reason);
  Value *no_class = graph.insertConstant(IValue());
  graph.insertNode(graph.create(prim::RaiseException, {message, no_class}, 0));
}

void refuse_unless_equal(Graph &graph, Value *number, int64_t expected,
                         const std::string &reason) {
  Value *constant = graph.insertConstant(expected);
  refuse_where(graph, append(graph, aten::ne, {number, constant}, c10::BoolType::get()), reason);
}

// Checks that `value` is None exactly if it was when observed.
void check_presence(Graph &graph, const Layout &layout, Value *value) {
  bool none = layout.kind == Kind::kNone;
  if (none ? value->mustBeNone() : value->type()->kind() != c10::TypeKind::OptionalType) return;
  Value *nothing = graph.insertConstant(IValue());
  Value *differs = append(graph, none ? aten::__isnot__ : aten::__is__, {value, nothing},
                          c10::BoolType::get());
  refuse_where(graph, differs, called(value) + (none ? " was None then" : " is None now"));
}

void check_items(Graph &graph, const Layout &layout, Value *value, const std::string &name) {
  if (layout.kind == Kind::kList) {
    size_t count = layout.fields.size();
    refuse_unless_equal(graph, append(graph, aten::len, {value}, c10::IntType::get()),
                        static_cast<int64_t>(count),
                        name + " had " + std::to_string(count) + " items then");
  } else if (layout.kind == Kind::kDict) {
    auto strings = c10::ListType::ofStrings();
    std::vector<Value *> keys;
    for (const std::string &key : layout.names) keys.push_back(graph.insertConstant(key));
    Value *seen = graph.insertNode(graph.createList(c10::StringType::get(), keys))->output();
    Value *now = append(graph, aten::keys, {value}, strings);
    refuse_where(graph, append(graph, aten::ne, {now, seen}, c10::BoolType::get()),
                 name + " had other keys then");
  }
}

void check_type(Graph &graph, const Layout &layout, Value *tensor, const std::string &name) {
  refuse_unless_equal(graph, append(graph, prim::dtype, {tensor}, c10::IntType::get()),
                      static_cast<int64_t>(*layout.type),
                      name + " was of type " + c10::toString(*layout.type) + " then");
  size_t dimensions = layout.shape.size() - (layout.is_complex ? 1 : 0);
  refuse_unless_equal(graph, append(graph, aten::dim, {tensor}, c10::IntType::get()),
                      static_cast<int64_t>(dimensions),
                      name + " had " + std::to_string(dimensions) + " dimensions then");
}

// Checks that a `Scalar` has the observed type.
void check_scalar(Graph &graph, Kind kind, Value *value) {
  if (value->type()->kind() != c10::TypeKind::NumberType) return;
  Value *tensor = append(graph, prim::NumToTensor, {value}, c10::TensorType::get());
  refuse_unless_equal(graph, append(graph, prim::dtype, {tensor}, c10::IntType::get()),
                      static_cast<int64_t>(number_type(kind)),
                      called(value) + " was of another type then");
}

void encode_fields(Graph &graph, const Layout &layout, Value *value, std::vector<Value *> &wires,
                   const Doubts &doubts) {
  if (layout.kind == Kind::kDict) {
    auto type = value->type()->expect<c10::DictType>()->getValueType();
    for (size_t i = 0; i < layout.fields.size(); ++i) {
      Value *key = graph.insertConstant(layout.names[i]);
      encode(graph, layout.fields[i], append(graph, aten::__getitem__, {value, key}, type), wires,
             doubts);
    }
    return;
  }
  Node *unpack = layout.kind == Kind::kTuple
                     ? graph.createTupleUnpack(value)
                     : graph.createListUnpack(value, layout.fields.size());
  graph.insertNode(unpack);
  for (size_t i = 0; i < layout.fields.size(); ++i)
    encode(graph, layout.fields[i], unpack->output(i), wires, doubts);
}

Value *decode_fields(Graph &graph, const Layout &layout, const c10::TypePtr &type,
                     Value *const *&wires) {
  std::vector<Value *> fields;
  if (layout.kind == Kind::kTuple) {
    auto types = type->expect<c10::TupleType>()->elements();
    TORCH_CHECK(types.size() == layout.fields.size(), "a tuple changed its size");
    for (size_t i = 0; i < types.size(); ++i)
      fields.push_back(decode(graph, layout.fields[i], types[i], wires));
    return graph.insertNode(graph.createTuple(fields))->output();
  }
  if (layout.kind == Kind::kList) {
    auto item = type->expect<c10::ListType>()->getElementType();
    for (const Layout &field : layout.fields) fields.push_back(decode(graph, field, item, wires));
    return graph.insertNode(graph.createList(item, fields))->output();
  }
  auto dict = type->expect<c10::DictType>();
  std::vector<Value *> keys;
  for (size_t i = 0; i < layout.fields.size(); ++i) {
    keys.push_back(graph.insertConstant(layout.names[i]));
    fields.push_back(decode(graph, layout.fields[i], dict->getValueType(), wires));
  }
  return graph.insertNode(graph.createDict(dict->getKeyType(), dict->getValueType(), keys, fields))
      ->output();
}

// Counted from the end, which models rarely do: this distinguishes our permutations from theirs.
std::vector<int64_t> from_the_end(std::vector<int64_t> dimensions) {
  for (int64_t &dimension : dimensions) dimension -= static_cast<int64_t>(dimensions.size());
  return dimensions;
}

std::vector<int64_t> inverse(const std::vector<int64_t> &order) {
  std::vector<int64_t> back(order.size());
  for (size_t i = 0; i < order.size(); ++i) back[order[i]] = static_cast<int64_t>(i);
  return back;
}

// The dense tensor `wire` in the observed memory order. libtorch chooses kernels by it, and another
// kernel may round differently.
Value *in_memory_order(Graph &graph, const std::vector<int64_t> &order, Value *wire) {
  auto permuted = [&](Value *tensor, const std::vector<int64_t> &dimensions) {
    Value *constant = graph.insertConstant(from_the_end(dimensions));
    return append(graph, aten::permute, {tensor, constant}, c10::TensorType::get());
  };
  Value *format = graph.insertConstant(static_cast<int64_t>(at::MemoryFormat::Contiguous));
  Value *dense = append(graph, aten::contiguous, {permuted(wire, order), format},
                        c10::TensorType::get());
  return permuted(dense, inverse(order));
}

// The order, if `node` is one of our permutations. In a block's file its dimensions are a list of
// constants.
std::optional<std::vector<int64_t>> order_of(const Node *node) {
  if (node->kind() != aten::permute) return std::nullopt;
  const Node *list = node->input(1)->node();
  if (list->kind() != prim::ListConstruct) return std::nullopt;
  std::vector<int64_t> order;
  for (const Value *item : list->inputs()) {
    auto dimension = torch::jit::toIValue(item);
    if (!dimension.has_value() || !dimension->isInt() || dimension->toInt() >= 0)
      return std::nullopt;
    order.push_back(dimension->toInt() + static_cast<int64_t>(list->inputs().size()));
  }
  return order;
}

// If `node` restores the memory order of a tensor from another block, that tensor, which already
// has the order there.
Value *ordered_by_its_giver(const Node *node) {
  auto back = order_of(node);
  if (!back.has_value() || node->input(0)->node()->kind() != aten::contiguous) return nullptr;
  const Node *permute = node->input(0)->node()->input(0)->node();
  auto order = order_of(permute);
  if (!order.has_value() || inverse(*order) != *back) return nullptr;
  Value *wire = permute->input(0);
  const Node *giver = wire->node();
  if (giver->kind() == aten::view_as_complex) giver = giver->input()->node();
  return giver->kind() == prim::Param ? nullptr : wire;
}

// The list of numbers from which `tensor` was made.
Value *source_of(Value *tensor, at::ScalarType type) {
  Node *node = tensor->node();
  if (node->kind() != aten::tensor || node->inputs().size() != 4) return nullptr;
  auto datatype = torch::jit::toIValue(node->input(1));
  bool fits = datatype.has_value() && datatype->isInt() &&
              datatype->toInt() == static_cast<int64_t>(type) &&
              node->input(0)->type()->kind() == c10::TypeKind::ListType;
  return fits ? node->input(0) : nullptr;
}

// The value that `node` restores, and everything that must not be written to for it to be
// unchanged.
Value *undone(Node *node, std::vector<Value *> &unwritten) {
  auto scalar = [&](at::ScalarType type, c10::TypeKind kind) -> Value * {
    if (node->inputs().size() != 1) return nullptr;
    Value *list = source_of(node->input(), type);
    if (list == nullptr || list->node()->kind() != prim::ListConstruct ||
        list->node()->inputs().size() != 1 || list->node()->input()->type()->kind() != kind)
      return nullptr;
    unwritten = {node->input(), list};
    return list->node()->input();
  };
  if (node->kind() == aten::Int) return scalar(at::kLong, c10::TypeKind::IntType);
  if (node->kind() == aten::Float) return scalar(at::kDouble, c10::TypeKind::FloatType);
  if (node->kind() == aten::Bool) return scalar(at::kBool, c10::TypeKind::BoolType);
  if (node->kind() == prim::tolist) {
    for (at::ScalarType type : {at::kLong, at::kDouble, at::kBool}) {
      Value *list = source_of(node->input(0), type);
      if (list == nullptr || !(*list->type() == *node->output()->type())) continue;
      unwritten = {node->input(0), list, node->output()};
      return list;
    }
  }
  if (node->kind() == aten::view_as_complex) {
    Value *pairs = node->input();
    if (pairs->node()->kind() != aten::view_as_real) return nullptr;
    Value *plain = pairs->node()->input();
    if (plain->node()->kind() != aten::resolve_conj) return nullptr;
    Value *complex = plain->node()->input();
    unwritten = {pairs, plain, complex, node->output()};
    return complex;
  }
  if (node->kind() == aten::permute) {
    Value *wire = ordered_by_its_giver(node);
    if (wire != nullptr) unwritten = {wire, node->output()};
    return wire;
  }
  if (node->kind() == prim::ListConstruct && !node->inputs().empty()) {
    Node *unpack = node->input(0)->node();
    if (unpack->kind() != prim::ListUnpack || node->inputs() != unpack->outputs() ||
        !(*unpack->input()->type() == *node->output()->type()))
      return nullptr;
    unwritten = {unpack->input(), node->output()};
    return unpack->input();
  }
  return nullptr;
}

}  // namespace

bool is_transportable(const c10::TypePtr &type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::NumberType:
    case c10::TypeKind::NoneType:
      return true;
    case c10::TypeKind::DictType:
      return type->expect<c10::DictType>()->getKeyType()->kind() == c10::TypeKind::StringType &&
             is_transportable(type->expect<c10::DictType>()->getValueType());
    case c10::TypeKind::ListType:
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::TupleType:
      for (const auto &inner : type->containedTypes())
        if (!is_transportable(inner)) return false;
      return true;
    default:
      return false;
  }
}

Layout observe(const IValue &value) {
  if (value.isTensor()) return of_tensor(value.toTensor());
  if (value.isInt()) return of_numbers(Kind::kInt, 1, 8, {value.toInt()});
  if (value.isDouble()) return of_numbers(Kind::kFloat, 1, 8, {});
  if (value.isBool()) return of_numbers(Kind::kBool, 1, 1, {value.toBool() ? 1 : 0});
  if (value.isIntList()) {
    auto items = value.toIntVector();
    return of_numbers(Kind::kInts, items.size(), 8, items);
  }
  if (value.isDoubleList())
    return of_numbers(Kind::kFloats, value.toDoubleVector().size(), 8, {});
  if (value.isBoolList()) {
    std::vector<int64_t> items;
    for (bool item : value.toBoolList()) items.push_back(item ? 1 : 0);
    return of_numbers(Kind::kBools, items.size(), 1, items);
  }
  Layout layout;
  if (value.isNone()) {
    layout.kind = Kind::kNone;
  } else if (value.isTuple()) {
    layout = of_tuple(value);
  } else if (value.isTensorList()) {
    layout.kind = Kind::kList;
    for (const at::Tensor &item : value.toTensorVector()) layout.fields.push_back(of_tensor(item));
  } else if (value.isList()) {
    layout = of_items(Kind::kList, value.toListRef());
  } else if (value.isGenericDict()) {
    layout = of_dict(value);
  }
  for (const Layout &field : layout.fields)
    if (field.kind == Kind::kOther) return Layout();
  return layout;
}

void take_orders(std::vector<Layout> &layouts, const std::vector<Layout> &seen) {
  for (size_t i = 0; i < std::min(layouts.size(), seen.size()); ++i) {
    take_orders(layouts[i].fields, seen[i].fields);
    bool same_rank = seen[i].shape.size() == layouts[i].shape.size();
    if (!seen[i].order.empty() && same_rank) layouts[i].order = seen[i].order;
  }
}

std::string to_json(const Layout &layout) {
  std::ostringstream out;
  out << "{\"kind\":\"" << name_of(layout.kind) << "\",\"bytes\":" << layout.bytes
      << ",\"datatype\":"
      << (layout.type.has_value() ? quoted(c10::toString(*layout.type)) : "null") << ",\"shape\":[";
  for (size_t i = 0; i < layout.shape.size(); ++i) out << (i ? "," : "") << layout.shape[i];
  out << "],\"order\":[";
  for (size_t i = 0; i < layout.order.size(); ++i) out << (i ? "," : "") << layout.order[i];
  out << "],\"names\":[";
  for (size_t i = 0; i < layout.names.size(); ++i) out << (i ? "," : "") << quoted(layout.names[i]);
  out << "],\"fields\":[";
  for (size_t i = 0; i < layout.fields.size(); ++i)
    out << (i ? "," : "") << to_json(layout.fields[i]);
  out << "]}";
  return out.str();
}

size_t width(const Layout &layout) {
  switch (layout.kind) {
    case Kind::kNone:
      return 0;
    case Kind::kTuple:
    case Kind::kList:
    case Kind::kDict: {
      size_t sum = 0;
      for (const Layout &field : layout.fields) sum += width(field);
      return sum;
    }
    default:
      return 1;
  }
}

void add_examples(const Layout &layout, std::vector<std::string> &examples) {
  for (const Layout &field : layout.fields) add_examples(field, examples);
  if (!layout.fields.empty() || width(layout) == 0) return;
  if (!layout.example.has_value()) {
    examples.push_back("null");
    return;
  }
  std::string text = "[";
  for (int64_t number : *layout.example)
    text += (text.size() > 1 ? "," : "") + std::to_string(number);
  examples.push_back(text + ']');
}

std::string called(const Value *value) {
  std::string name = value->hasDebugName() ? value->debugNameBase() : "";
  bool is_number = name.empty() || std::isdigit(static_cast<unsigned char>(name[0])) != 0;
  return is_number ? "one of its values" : '`' + name + '`';
}

void encode(Graph &graph, const Layout &layout, Value *value, std::vector<Value *> &wires,
            const Doubts &doubts) {
  TORCH_CHECK(layout.kind != Kind::kOther, "value %", value->debugName(), " cannot be sent");
  torch::jit::WithInsertPoint end(graph.block());
  check_presence(graph, layout, value);
  if (layout.kind == Kind::kNone) return;
  const std::string name = called(value);
  if (auto optional = value->type()->cast<c10::OptionalType>())
    value = append(graph, aten::_unwrap_optional, {value}, optional->getElementType());
  if (doubts.make) check_items(graph, layout, value, name);
  switch (layout.kind) {
    case Kind::kTensor:
      if (doubts.type) check_type(graph, layout, value, name);
      wires.push_back(layout.is_complex ? as_pairs(graph, value) : value);
      return;
    case Kind::kInt:
    case Kind::kFloat:
    case Kind::kBool:
      check_scalar(graph, layout.kind, value);
      wires.push_back(tensor_of_number(graph, layout.kind, value));
      return;
    case Kind::kInts:
    case Kind::kFloats:
    case Kind::kBools:
      wires.push_back(tensor_of(graph, value, number_type(layout.kind)));
      return;
    default:
      if (!layout.fields.empty()) {
        // The making of the items is not visible.
        Doubts inner = doubts;
        inner.make = true;
        encode_fields(graph, layout, value, wires, inner);
      }
  }
}

Value *decode(Graph &graph, const Layout &layout, c10::TypePtr type, Value *const *&wires) {
  torch::jit::WithInsertPoint end(graph.block());
  type = without_optional(type);
  switch (layout.kind) {
    case Kind::kTensor: {
      Value *wire = *wires++;
      if (layout.is_complex) wire = of_pairs(graph, wire);
      return layout.order.empty() ? wire : in_memory_order(graph, layout.order, wire);
    }
    case Kind::kInt:
      return append(graph, aten::Int, {*wires++}, c10::IntType::get());
    case Kind::kFloat:
      return append(graph, aten::Float, {*wires++}, c10::FloatType::get());
    case Kind::kBool:
      return append(graph, aten::Bool, {*wires++}, c10::BoolType::get());
    case Kind::kInts:
    case Kind::kFloats:
    case Kind::kBools:
      return graph.insertToList(*wires++, type);
    case Kind::kNone:
      return graph.insertConstant(IValue());
    case Kind::kTuple:
    case Kind::kList:
    case Kind::kDict:
      return decode_fields(graph, layout, type, wires);
    case Kind::kOther:
      break;
  }
  TORCH_CHECK(false, "a value cannot be sent");
}

void remove_codecs(const std::shared_ptr<Graph> &graph) {
  torch::jit::LowerSimpleTuples(graph);
  std::optional<torch::jit::AliasDb> aliases;
  for (Node *node : graph->nodes()) {
    std::vector<Value *> unwritten;
    Value *value = undone(node, unwritten);
    if (value == nullptr) continue;
    // For values of the original graph; removing uses adds no writer.
    if (!aliases.has_value()) aliases.emplace(graph);
    bool written = false;
    for (Value *part : unwritten) written = written || aliases->hasWriters(part);
    if (!written) node->output()->replaceAllUsesWith(value);
  }
}

void flatten(const IValue &value, std::vector<at::Tensor> &tensors) {
  if (value.isTensor()) {
    at::Tensor tensor = value.toTensor();
    if (!tensor.defined()) return;
    tensors.push_back(tensor.is_complex() ? at::view_as_real(tensor.resolve_conj()) : tensor);
  } else if (value.isInt()) {
    tensors.push_back(at::tensor(std::vector<int64_t>{value.toInt()}, at::kLong));
  } else if (value.isDouble()) {
    tensors.push_back(at::tensor(std::vector<double>{value.toDouble()}, at::kDouble));
  } else if (value.isBool()) {
    tensors.push_back(at::tensor(std::vector<int64_t>{value.toBool()}, at::kLong).to(at::kBool));
  } else if (value.isTuple()) {
    for (const IValue &field : value.toTupleRef().elements()) flatten(field, tensors);
  } else if (value.isIntList()) {
    if (!value.toIntVector().empty()) tensors.push_back(at::tensor(value.toIntVector(), at::kLong));
  } else if (value.isDoubleList()) {
    if (!value.toDoubleVector().empty())
      tensors.push_back(at::tensor(value.toDoubleVector(), at::kDouble));
  } else if (value.isTensorList()) {
    for (const at::Tensor &tensor : value.toTensorVector()) flatten(tensor, tensors);
  } else if (value.isList()) {
    for (const IValue &item : value.toListRef()) flatten(item, tensors);
  } else if (value.isGenericDict()) {
    for (const auto &entry : value.toGenericDict()) flatten(entry.value(), tensors);
  }
}

}  // namespace lamina
