// Finds what a graph computes from the values of a request but a trace would fix.

#include "watch.hpp"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/ir/alias_analysis.h>

#include <algorithm>
#include <functional>
#include <unordered_map>
#include <unordered_set>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

// How a value depends on the values of a request. Shapes, types and devices are the same for every
// request that passes the shape check.
using Marks = uint8_t;
constexpr Marks kData = 1;    // a tensor whose elements do
constexpr Marks kShape = 2;   // a tensor whose shape does
constexpr Marks kNumber = 4;  // anything else that does
// Set if the value is chosen, or grows, by a number of a request, by the batch or by a free size:
constexpr Marks kChoice = 8;   // whether it is None, its length, its keys
constexpr Marks kUnsure = 16;  // a tensor's type and rank
constexpr Marks kOrder = 32;   // the order of a tensor's dimensions in memory
// A tensor whose dimensions may lie in memory in another order than theirs, for whatever reason.
constexpr Marks kTurned = 64;

bool holds_tensor(const c10::TypePtr &type) {
  if (type->kind() == c10::TypeKind::TensorType) return true;
  for (const c10::TypePtr &inner : type->containedTypes())
    if (holds_tensor(inner)) return true;
  return false;
}

bool named(const Node *node, const std::unordered_set<std::string> &names) {
  return names.count(node->kind().toQualString()) > 0;
}

// Reads of a tensor that do not depend on its elements.
bool reads_metadata(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "aten::size", "aten::dim", "aten::len", "aten::numel", "aten::stride",
      "aten::storage_offset", "aten::element_size", "aten::is_contiguous",
      "aten::is_floating_point", "aten::is_complex", "aten::is_signed", "aten::is_same_size",
      "aten::get_device", "aten::result_type", "aten::keys", "aten::__is__", "aten::__isnot__",
      "prim::dtype", "prim::device", "prim::layout", "prim::type", "prim::shape",
      "prim::is_cuda", "prim::is_cpu", "prim::is_sparse", "prim::is_mkldnn", "prim::is_quantized",
      "prim::is_nested", "prim::is_meta", "prim::requires_grad", "prim::isinstance"};
  if (node->kind() == aten::__contains__)
    return node->input(0)->type()->kind() == c10::TypeKind::DictType;
  return named(node, names);
}

// Builds a container or takes one apart.
bool moves_values(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "prim::ListConstruct", "prim::TupleConstruct", "prim::DictConstruct", "prim::TupleUnpack",
      "prim::TupleIndex", "prim::TupleSlice", "prim::ListUnpack", "prim::unchecked_cast",
      "prim::Uninitialized", "aten::__getitem__", "aten::get", "aten::values",
      "aten::_unwrap_optional"};
  return named(node, names);
}

// Whether the type determines the structure of its values.
bool is_of_one_make(const c10::TypePtr &type) {
  switch (type->kind()) {
    case c10::TypeKind::ListType:
    case c10::TypeKind::DictType:
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::NumberType:
      return false;
    case c10::TypeKind::TupleType:
      for (const c10::TypePtr &inner : type->containedTypes())
        if (!is_of_one_make(inner)) return false;
      return true;
    default:
      return true;
  }
}

// Whether `node` returns a tensor of its first argument's size, whatever the others are.
bool keeps_shape(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "index_add", "index_copy", "index_fill", "index_put", "index_put_", "_index_put_impl_",
      "index_reduce", "scatter", "scatter_add", "scatter_reduce", "masked_fill", "masked_scatter",
      "put", "fill", "copy", "zeros_like", "ones_like", "full_like"};
  static const std::unordered_set<std::string> reshaping = {
      "resize_", "resize_as_", "set_", "squeeze_", "unsqueeze_", "transpose_", "t_", "swapdims_",
      "swapaxes_", "as_strided_", "detach_"};
  if (!node->kind().is_aten() || node->inputs().empty() || !is_tensor(node->input(0)))
    return false;
  std::string name = node->kind().toUnqualString();
  return names.count(name) > 0 || (name.back() == '_' && reshaping.count(name) == 0);
}

// Whether `node` returns a tensor whose dimensions lie in order, whatever it reads.
bool makes_rows(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "aten::linear", "aten::matmul", "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm",
      "aten::layer_norm", "aten::embedding", "aten::zeros", "aten::ones", "aten::full",
      "aten::arange", "aten::tensor", "aten::as_tensor", "prim::NumToTensor"};
  if (node->kind() == aten::contiguous) {
    auto format = torch::jit::toIValue(node->input(1));
    return format.has_value() && format->isInt() &&
           format->toInt() == static_cast<int64_t>(at::MemoryFormat::Contiguous);
  }
  if (node->kind() == prim::Constant) {
    return !node->hasAttribute(torch::jit::attr::value) ||
           node->kindOf(torch::jit::attr::value) != torch::jit::AttributeKind::t ||
           node->t(torch::jit::attr::value).is_contiguous();
  }
  return named(node, names);
}

// Whether `node` returns tensors whose dimensions lie in order if those of all it reads do.
bool keeps_rows(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "aten::clone", "aten::detach", "aten::dropout", "aten::to", "aten::type_as", "aten::view",
      "aten::view_as", "aten::reshape", "aten::flatten", "aten::unflatten", "aten::unsqueeze",
      "aten::squeeze", "aten::slice", "aten::select", "aten::narrow", "aten::chunk",
      "aten::unsafe_chunk", "aten::split", "aten::unsafe_split", "aten::expand", "aten::expand_as",
      "aten::cat", "aten::stack", "aten::softmax", "aten::log_softmax", "aten::mean", "aten::sum",
      "aten::atleast_2d", "aten::index_add", "aten::index_copy", "aten::copy_", "aten::zeros_like",
      "aten::ones_like", "aten::full_like", "aten::empty_like", "aten::list", "aten::copy",
      "aten::append", "aten::extend", "aten::pop", "aten::_set_item"};
  if (named(node, names)) return true;
  const c10::FunctionSchema *schema = node->maybeSchema();
  if (schema == nullptr) return false;
  auto op = c10::Dispatcher::singleton().findSchema(schema->operator_name());
  return op.has_value() && op->hasTag(at::Tag::pointwise);
}

bool has_dynamic_shape(const Node *node) {
  static const std::unordered_set<std::string> untold = {
      "aten::nonzero_numpy", "aten::argwhere", "aten::_pack_padded_sequence",
      "aten::_pad_packed_sequence"};
  if (named(node, untold)) return true;
  if (node->kind() == aten::where && node->inputs().size() == 1) return true;
  const c10::FunctionSchema *schema = node->maybeSchema();
  if (schema == nullptr) return false;
  auto op = c10::Dispatcher::singleton().findSchema(schema->operator_name());
  return op.has_value() && op->hasTag(at::Tag::dynamic_output_shape);
}

// Whether a number of this type may be a size.
bool may_be_a_size(const Node *node, const Value *value) {
  auto kind = value->type()->kind();
  if (kind != c10::TypeKind::FloatType && kind != c10::TypeKind::NumberType) return true;
  static const std::unordered_set<std::string> ranges = {"aten::arange", "aten::range",
                                                         "aten::linspace", "aten::logspace"};
  return named(node, ranges);
}

// Propagates the values of a request through a graph until nothing changes.
class Dependence {
 public:
  // `conditions` vary with the batch or a size; `sights`, if any, show the types of indices.
  explicit Dependence(const std::shared_ptr<Graph> &graph,
                      const std::unordered_set<const Value *> &conditions = {},
                      const Sights *sights = nullptr)
      : conditions_(conditions), sights_(sights), aliases_(graph) {
    collect(graph->block());
    for (const Value *input : graph->inputs())
      if (holds_tensor(input->type())) mark(input, kData);
    do {
      changed_ = false;
      visit(graph->block());
    } while (changed_);
  }

  Marks of(const Value *value) const {
    auto found = marks_.find(value);
    return found == marks_.end() ? 0 : found->second;
  }

  // Whether anything differs in structure, type or size between requests.
  bool may_differ() const {
    return std::any_of(marks_.begin(), marks_.end(), [](const auto &entry) {
      return (entry.second & (kShape | kChoice | kUnsure | kOrder)) != 0;
    });
  }

 private:
  void collect(const Block *block) {
    for (const Value *input : block->inputs()) shareable_.push_back(input);
    for (const Node *node : block->nodes()) {
      for (const Value *output : node->outputs())
        if (holds_tensor(output->type()) || !is_of_one_make(output->type()))
          shareable_.push_back(output);
      for (const Block *inner : node->blocks()) collect(inner);
    }
  }

  void mark(const Value *value, Marks marks) {
    Marks &known = marks_[value];
    if ((known | marks) == known) return;
    known |= marks;
    changed_ = true;
  }

  void visit(const Block *block) {
    for (const Node *node : block->nodes()) visit(node);
  }

  void visit(const Node *node) {
    if (node->kind() == prim::If) return join(node);
    if (node->kind() == prim::Loop) return carry(node);
    for (const Block *block : node->blocks()) visit(block);
    Marks in = 0;
    for (const Value *input : node->inputs()) in |= of(input);
    Marks rest = in & ~(kTurned | kOrder);
    for (const Value *output : node->outputs())
      mark(output, given(node, output, rest) | laid(node, output, in));
    written(node, in);
  }

  bool is_decided_by_request(const Value *condition) const {
    return (of(condition) & kNumber) != 0 || conditions_.count(condition) > 0;
  }

  // The marks of a value that is chosen between several branches.
  static Marks chosen(const Value *value) {
    if (is_tensor(value)) return kUnsure;
    if (!is_of_one_make(value->type())) return kChoice;
    return holds_tensor(value->type()) ? kUnsure : kNumber;
  }

  void inside(const Node *node, bool decided) {
    decided_ += decided ? 1 : 0;
    for (const Block *block : node->blocks()) visit(block);
    decided_ -= decided ? 1 : 0;
  }

  void join(const Node *node) {
    bool decided = is_decided_by_request(node->input(0));
    inside(node, decided);
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      const Value *output = node->output(i);
      if (decided) mark(output, chosen(output));
      for (const Block *block : node->blocks()) mark(output, of(block->outputs()[i]));
      if (decided && (of(output) & kTurned) != 0) mark(output, kOrder);
    }
  }

  void carry(const Node *node) {
    const Block *body = node->blocks()[0];
    bool decided = is_decided_by_request(node->input(0)) ||
                   is_decided_by_request(node->input(1)) ||
                   is_decided_by_request(body->outputs()[0]);
    inside(node, decided);
    mark(body->inputs()[0], of(node->input(0)) & kNumber);
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      Marks carried = of(node->input(i + 2)) | of(body->outputs()[i + 1]);
      if (decided) carried |= chosen(node->output(i));
      if (decided && (carried & kTurned) != 0) carried |= kOrder;
      mark(body->inputs()[i + 1], carried);
      mark(node->output(i), carried);
    }
  }

  // Whether the shape of `node`'s output depends on elements that it reads.
  bool shape_from_elements(const Node *node) const {
    if (!has_dynamic_shape(node)) return false;
    // Indexing by numbers gives the shape of the index.
    if (node->kind() == aten::index && !holds_mask(node->input(1))) return false;
    size_t first = node->kind() == aten::index ? 1 : 0;
    for (size_t i = first; i < node->inputs().size(); ++i)
      if ((of(node->input(i)) & kData) != 0) return true;
    return false;
  }

  // Whether one of the indices may be a mask.
  bool holds_mask(const Value *indices) const {
    if (sights_ == nullptr || indices->node()->kind() != prim::ListConstruct) return true;
    for (const Value *index : indices->node()->inputs()) {
      if (index->mustBeNone()) continue;
      auto seen = sights_->find(index);
      if (seen == sights_->end() || seen->second.empty()) return true;
      for (const Sight &sight : seen->second)
        if (!sight.type.has_value() || *sight.type == at::kBool || *sight.type == at::kByte)
          return true;
    }
    return false;
  }

  bool shape_depends(const Node *node) const {
    if (keeps_shape(node)) return (of(node->input(0)) & kShape) != 0;
    for (const Value *input : node->inputs()) {
      if ((of(input) & kShape) != 0) return true;
      if ((of(input) & kNumber) != 0 && may_be_a_size(node, input)) return true;
    }
    return shape_from_elements(node);
  }

  // How the dimensions of what `node` gives lie in memory.
  static Marks laid(const Node *node, const Value *output, Marks in) {
    if (!holds_tensor(output->type())) {
      static const std::unordered_set<std::string> reads = {"aten::stride", "aten::is_contiguous"};
      return named(node, reads) && (in & kOrder) != 0 ? kNumber : 0;
    }
    if (makes_rows(node)) return 0;
    Marks lies = in & (kTurned | kOrder);
    return moves_values(node) || keeps_rows(node) ? lies : lies | kTurned;
  }

  Marks given(const Node *node, const Value *output, Marks in) const {
    bool tensor = holds_tensor(output->type());
    if (moves_values(node)) {
      Marks kept = tensor ? in & ~kChoice : in & kNumber;
      if ((in & kChoice) != 0) kept |= chosen(output);
      return kept;
    }
    if (!tensor) {
      Marks read = reads_metadata(node) ? in & (kShape | kNumber | kChoice) : in & ~kUnsure;
      if (read == 0) return 0;
      // The length of a list of numbers depends on the number of elements.
      bool other_make = !is_of_one_make(output->type()) && (in & (kShape | kNumber | kChoice)) != 0;
      return other_make ? kNumber | kChoice : kNumber;
    }
    Marks out = in & (kData | kUnsure);
    if ((in & kNumber) != 0) out |= kData;
    if ((in & kChoice) != 0) out |= kUnsure;
    if (shape_depends(node)) out |= kShape;
    // If the size of a tensor depends on the request, so does the number of its parts.
    bool parts = !is_of_one_make(output->type()) && (out & kShape) != 0;
    return parts ? out | kChoice : out;
  }

  // A write mostly keeps a tensor's size.
  static Marks in_elements(const Node *node, Marks in) {
    Marks marks = in & ~(kShape | kNumber | kChoice | kTurned | kOrder);
    if ((in & kNumber) != 0) marks |= kData;
    if (!keeps_shape(node)) marks |= in & kShape;
    return marks;
  }

  // Marks what `node` writes to, and all values that share its memory, by what it reads.
  void written(const Node *node, Marks in) {
    const c10::FunctionSchema *schema = node->maybeSchema();
    if (schema == nullptr || !schema->is_mutable()) return;
    for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
      const auto *alias = schema->arguments()[i].alias_info();
      if (alias == nullptr || !alias->isWrite()) continue;
      const Value *target = node->input(i);
      Marks marks = is_tensor(target) ? in_elements(node, in) : in;
      // A write in only some requests changes the structure of a list or dictionary.
      if (decided_ > 0 && !is_of_one_make(target->type())) marks |= kChoice;
      if (is_tensor(target) && !keeps_shape(node)) marks |= kTurned;
      if (decided_ > 0 && (marks & kTurned) != 0) marks |= kOrder;
      if (marks == 0) continue;
      mark(target, marks);
      for (const Value *other : sharing(target)) mark(other, marks);
    }
  }

  const std::vector<const Value *> &sharing(const Value *target) {
    auto found = sharing_.find(target);
    if (found != sharing_.end()) return found->second;
    std::vector<const Value *> others;
    for (const Value *other : shareable_)
      if (other != target && aliases_.mayContainAlias(const_cast<Value *>(other),
                                                      const_cast<Value *>(target)))
        others.push_back(other);
    return sharing_[target] = std::move(others);
  }

  std::unordered_set<const Value *> conditions_;
  const Sights *sights_;
  torch::jit::AliasDb aliases_;
  // Values that may share memory with others.
  std::vector<const Value *> shareable_;
  std::unordered_map<const Value *, Marks> marks_;
  std::unordered_map<const Value *, std::vector<const Value *>> sharing_;
  // Depth of branches and loops around the current node that depend on the request.
  int decided_ = 0;
  bool changed_ = false;
};

// The first node in program order for which `is` holds.
const Node *first(const Block *block, const std::function<bool(const Node *)> &is) {
  for (const Node *node : block->nodes()) {
    if (is(node)) return node;
    for (const Block *inner : node->blocks())
      if (const Node *found = first(inner, is)) return found;
  }
  return nullptr;
}

// Adds all values from which `value` is computed, conservatively.
void add_sources(const Value *value, std::unordered_set<const Value *> &sources) {
  if (!sources.insert(value).second) return;
  std::function<void(const Node *)> add_node = [&](const Node *node) {
    for (const Value *input : node->inputs()) add_sources(input, sources);
    for (const Block *block : node->blocks()) {
      for (const Value *output : block->outputs()) add_sources(output, sources);
      for (const Node *inner : block->nodes()) add_node(inner);
    }
  };
  const Node *node = value->node();
  if (node->kind() == prim::Param && node->owningBlock()->owningNode() != nullptr)
    node = node->owningBlock()->owningNode();
  if (node->kind() != prim::Param) add_node(node);
}

// A value read directly from the module as text, `self.cache`.
std::optional<std::string> path(const Graph &graph, const Value *value) {
  if (value == graph.inputs()[0]) return "self";
  if (value->node()->kind() != prim::GetAttr) return std::nullopt;
  auto owner = path(graph, value->node()->input(0));
  if (!owner.has_value()) return std::nullopt;
  return *owner + '.' + value->node()->s(torch::jit::attr::name);
}

void add_nodes(const Block *block, std::vector<const Node *> &nodes) {
  for (const Node *node : block->nodes()) {
    nodes.push_back(node);
    for (const Block *inner : node->blocks()) add_nodes(inner, nodes);
  }
}

const Value *written_by(const Node *node) {
  const c10::FunctionSchema *schema = node->maybeSchema();
  if (schema == nullptr || !schema->is_mutable()) return nullptr;
  for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
    const auto *alias = schema->arguments()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) return node->input(i);
  }
  return nullptr;
}

}  // namespace

std::optional<std::string> fixed_by_tracing(const std::shared_ptr<Graph> &graph) {
  Dependence dependence(graph);
  auto number = [&](const Value *value) { return (dependence.of(value) & kNumber) != 0; };
  const Node *origin = first(graph->block(), [&](const Node *node) {
    bool gives = false, takes = false;
    for (const Value *output : node->outputs()) gives |= number(output);
    for (const Value *input : node->inputs()) takes |= number(input);
    return gives && !takes && node->blocks().empty();
  });
  const Node *branch = first(graph->block(), [&](const Node *node) {
    if (node->kind() == prim::If) return number(node->input(0));
    if (node->kind() != prim::Loop) return false;
    return number(node->input(0)) || number(node->input(1)) ||
           number(node->blocks()[0]->outputs()[0]);
  });
  if (origin == nullptr && branch == nullptr) return std::nullopt;
  std::string by = origin == nullptr ? "" : std::string(" (") + origin->kind().toQualString() + ')';
  if (branch == nullptr)
    return "a number is read from the values of a request" + by +
           ", and a trace would keep that of one request";
  if (branch->kind() == prim::Loop)
    return "the length of a loop depends on the values of a request" + by +
           ", and a trace would keep one length";
  return "a branch depends on the values of a request" + by + ", and a trace would keep one side";
}

Unsteady unsteady_cuts(lts_source &source, const Follows &follows, const Sights &sights) {
  Dependence dependence(source.graph, follows.conditions, &sights);
  Unsteady unsteady;
  unsteady.may_differ = dependence.may_differ();
  for (const auto &[position, live] : source.cuts) {
    for (const Value *value : live) {
      Marks marks = dependence.of(value);
      if (is_tensor(value) && (marks & kUnsure) != 0) source.unsure.insert(value);
      if ((marks & kChoice) != 0 && !is_tensor(value))
        unsteady.cuts[position] = "what " + called(value) + " is made of depends on the request";
      else if ((marks & kOrder) != 0)
        unsteady.cuts[position] = "how " + called(value) + " lies in memory depends on the request";
      else if ((marks & kShape) != 0)
        unsteady.cuts[position] = "the size of " + called(value) + " depends on the values of a request";
    }
  }
  return unsteady;
}

std::optional<std::string> state_lost_by_tracing(const std::shared_ptr<Graph> &graph) {
  const Value *self = graph->inputs()[0];
  std::vector<const Node *> nodes;
  add_nodes(graph->block(), nodes);
  // Stores by attribute.
  std::unordered_map<std::string, std::vector<const Node *>> stores;
  for (const Node *node : nodes) {
    if (node->kind() == prim::SetAttr)
      return "it sets its attribute `" + node->s(torch::jit::attr::name) + "` in each forward";
    const Value *target = written_by(node);
    if (target == nullptr) continue;
    std::unordered_set<const Value *> sources;
    add_sources(target, sources);
    if (sources.count(self) == 0 || is_tensor(target)) continue;
    auto attribute = path(*graph, target);
    if (!attribute.has_value() || node->kind() != aten::_set_item)
      return std::string("it changes what it keeps in its attributes (") +
             node->kind().toQualString() + ')';
    stores[*attribute].push_back(node);
  }
  for (const auto &[attribute, writes] : stores) {
    for (const Node *write : writes) {
      std::unordered_set<const Value *> sources;
      for (size_t i = 1; i < write->inputs().size(); ++i) add_sources(write->input(i), sources);
      for (const Value *source : sources) {
        bool request = source->node() == graph->inputs()[0]->node() && source != self;
        auto read = path(*graph, source);
        if (request) return "it keeps values of requests in `" + attribute + '`';
        if (read.has_value() && stores.count(*read) > 0)
          return "what it keeps in `" + attribute + "` depends on what it kept before";
      }
    }
  }
  torch::jit::AliasDb aliases(graph);
  for (const Node *node : nodes) {
    const Value *target = written_by(node);
    if (target == nullptr || !is_tensor(target)) continue;
    std::unordered_set<const Value *> sources;
    add_sources(target, sources);
    if (sources.count(self) > 0 &&
        aliases.mayContainAlias(const_cast<Value *>(target), graph->inputs()[0]))
      return std::string("it overwrites a tensor that it keeps (") +
             node->kind().toQualString() + ')';
  }
  return std::nullopt;
}

}  // namespace lamina
