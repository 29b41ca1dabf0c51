// What a graph computes from the values of a request and a trace would fix.

#include "source.hpp"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/ir/alias_analysis.h>

#include <functional>
#include <unordered_map>
#include <unordered_set>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

// How a value depends on the values of a request. Shapes, types and devices
// are the same for every request that passes the check of its shapes.
using Marks = uint8_t;
constexpr Marks kData = 1;    // a tensor whose elements do
constexpr Marks kShape = 2;   // a tensor whose shape does
constexpr Marks kNumber = 4;  // anything else that does

bool holds_tensor(const c10::TypePtr &type) {
  if (type->kind() == c10::TypeKind::TensorType) return true;
  for (const c10::TypePtr &inner : type->containedTypes())
    if (holds_tensor(inner)) return true;
  return false;
}

bool named(const Node *node, const std::unordered_set<std::string> &names) {
  return names.count(node->kind().toQualString()) > 0;
}

// Reads of a tensor that its elements have no part in.
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

// Whether the shape of what `node` gives depends on elements that it reads.
bool shape_from_elements(const Node *node, const std::function<Marks(const Value *)> &marks) {
  const c10::FunctionSchema *schema = node->maybeSchema();
  if (schema == nullptr) return false;
  auto op = c10::Dispatcher::singleton().findSchema(schema->operator_name());
  if (!op.has_value() || !op->hasTag(at::Tag::dynamic_output_shape)) return false;
  // An index by numbers has the shape of the index.
  size_t first = node->kind() == aten::index ? 1 : 0;
  for (size_t i = first; i < node->inputs().size(); ++i)
    if ((marks(node->input(i)) & kData) != 0) return true;
  return false;
}

// Follows the values of a request through a graph until nothing changes.
class Dependence {
 public:
  explicit Dependence(const std::shared_ptr<Graph> &graph) : aliases_(graph) {
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

 private:
  void collect(const Block *block) {
    for (const Value *input : block->inputs()) tensors_.push_back(input);
    for (const Node *node : block->nodes()) {
      for (const Value *output : node->outputs())
        if (holds_tensor(output->type())) tensors_.push_back(output);
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
    for (const Block *block : node->blocks()) visit(block);
    if (node->kind() == prim::If) return join(node);
    if (node->kind() == prim::Loop) return carry(node);
    Marks in = 0;
    for (const Value *input : node->inputs()) in |= of(input);
    for (const Value *output : node->outputs()) mark(output, given(node, output, in));
    if (in != 0) written(node, in);
  }

  void join(const Node *node) {
    for (const Block *block : node->blocks())
      for (size_t i = 0; i < node->outputs().size(); ++i)
        mark(node->output(i), of(block->outputs()[i]));
  }

  void carry(const Node *node) {
    const Block *body = node->blocks()[0];
    mark(body->inputs()[0], of(node->input(0)) & kNumber);
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      Marks carried = of(node->input(i + 2)) | of(body->outputs()[i + 1]);
      mark(body->inputs()[i + 1], carried);
      mark(node->output(i), carried);
    }
  }

  Marks given(const Node *node, const Value *output, Marks in) const {
    bool tensor = holds_tensor(output->type());
    if (moves_values(node)) return tensor ? in : in & kNumber;
    if (!tensor) {
      Marks read = reads_metadata(node) ? in & (kShape | kNumber) : in;
      return read != 0 ? kNumber : 0;
    }
    Marks out = in & kData;
    bool shape = (in & (kShape | kNumber)) != 0 ||
                 shape_from_elements(node, [this](const Value *value) { return of(value); });
    return shape ? out | kShape : out;
  }

  // What `node` writes into, and whatever shares its memory, takes what it reads.
  void written(const Node *node, Marks in) {
    const c10::FunctionSchema *schema = node->maybeSchema();
    if (schema == nullptr || !schema->is_mutable()) return;
    for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); ++i) {
      const auto *alias = schema->arguments()[i].alias_info();
      if (alias == nullptr || !alias->isWrite()) continue;
      const Value *target = node->input(i);
      mark(target, in);
      for (const Value *other : sharing(target)) mark(other, in);
    }
  }

  const std::vector<const Value *> &sharing(const Value *target) {
    auto found = sharing_.find(target);
    if (found != sharing_.end()) return found->second;
    std::vector<const Value *> others;
    for (const Value *other : tensors_)
      if (other != target && aliases_.mayContainAlias(const_cast<Value *>(other),
                                                      const_cast<Value *>(target)))
        others.push_back(other);
    return sharing_[target] = std::move(others);
  }

  torch::jit::AliasDb aliases_;
  std::vector<const Value *> tensors_;
  std::unordered_map<const Value *, Marks> marks_;
  std::unordered_map<const Value *, std::vector<const Value *>> sharing_;
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

// All that `value` is computed from, conservatively.
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

// `self.cache` as a text, for a value that is read from the module directly.
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

std::optional<std::string> state_lost_by_tracing(const std::shared_ptr<Graph> &graph) {
  const Value *self = graph->inputs()[0];
  std::vector<const Node *> nodes;
  add_nodes(graph->block(), nodes);
  // What is stored, by the attribute that takes it.
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
