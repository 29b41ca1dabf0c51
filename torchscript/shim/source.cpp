// From a model's file to the archives of its blocks.

#include "source.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/common_subexpression_elimination.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/loop_unrolling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/passes/peephole.h>
#include <torch/csrc/jit/passes/remove_dropout.h>
#include <torch/csrc/jit/passes/remove_mutation.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <set>
#include <sstream>
#include <unordered_map>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

constexpr size_t kEnd = SIZE_MAX;

// Warnings and prints would be repeated with every request.
void remove_messages(Block *block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    Node *node = *it++;
    for (Block *inner : node->blocks()) remove_messages(inner);
    if (node->kind() == aten::warn || node->kind() == prim::Print) node->destroy();
  }
}

// Tuples at the end become their tensors; `None` fields, the outputs that
// exist in training only, are dropped.
void flatten_outputs(Graph &graph) {
  std::vector<Value *> flat;
  std::function<void(Value *)> add = [&](Value *value) {
    if (value->node()->kind() == prim::TupleConstruct) {
      for (Value *field : value->node()->inputs()) add(field);
    } else if (!value->mustBeNone()) {
      flat.push_back(value);
    }
  };
  for (Value *output : graph.outputs()) add(output);
  while (!graph.outputs().empty()) graph.eraseOutput(graph.outputs().size() - 1);
  for (Value *value : flat) graph.registerOutput(value);
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

// The passes that keep every bit of the result. Folding and layout changes
// wait until blocks are merged on the host that runs them. Not among them:
// EliminateExceptions, which does not end on some scripted models, and
// RemoveTensorMutation, which makes graphs slower.
void clean(std::shared_ptr<Graph> &graph) {
  remove_messages(graph->block());
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
  flatten_outputs(*graph);
  torch::jit::EliminateDeadCode(graph);
}

void add_uses(const Node *node, std::vector<const Value *> &uses) {
  for (const Value *input : node->inputs()) uses.push_back(input);
  for (const Block *block : node->blocks()) {
    for (const Node *inner : block->nodes()) add_uses(inner, uses);
    for (const Value *output : block->outputs()) uses.push_back(output);
  }
}

void add_operators(const Block *block, std::set<std::string> &names) {
  for (const Node *node : block->nodes()) {
    names.insert(node->kind().toQualString());
    for (const Block *inner : node->blocks()) add_operators(inner, names);
  }
}

// Constants, and pure nodes that give no tensor and read only such nodes.
bool is_repeated(const lts_source &source, const torch::jit::AliasDb &aliases, Node *node) {
  if (node->kind() == prim::Constant) return true;
  if (!node->blocks().empty() || node->outputs().size() != 1) return false;
  if (node->hasSideEffects() || node->isNondeterministic()) return false;
  if (is_tensor(node->output()) || aliases.hasWriters(node->output())) return false;
  for (const Value *input : node->inputs())
    if (source.repeated.count(input->node()) == 0) return false;
  return true;
}

// Finds every place where one tensor alone is live. Two live values that share
// memory would be a second thing to check (across a network they would be
// independent copies); with one value there is none.
void find_cuts(lts_source &source, const torch::jit::AliasDb &aliases) {
  for (Node *node : source.graph->nodes()) {
    if (is_repeated(source, aliases, node)) {
      source.repeated.insert(node);
    } else {
      source.nodes.push_back(node);
    }
  }
  std::unordered_map<const Value *, size_t> last_use;
  for (size_t i = 0; i < source.nodes.size(); ++i) {
    std::vector<const Value *> uses;
    add_uses(source.nodes[i], uses);
    for (const Value *value : uses) last_use[value] = i;
  }
  for (const Value *output : source.graph->outputs()) last_use[output] = source.nodes.size();

  std::vector<Value *> live;
  for (Value *input : source.graph->inputs())
    if (last_use.count(input) > 0) live.push_back(input);
  for (size_t i = 0; i + 1 < source.nodes.size(); ++i) {
    for (Value *output : source.nodes[i]->outputs())
      if (last_use.count(output) > 0) live.push_back(output);
    live.erase(std::remove_if(live.begin(), live.end(),
                              [&](const Value *value) { return last_use.at(value) <= i; }),
               live.end());
    if (live.size() == 1 && is_tensor(live[0])) source.cuts[i] = live[0];
  }
}

bool writes_constants(const Block *block, const torch::jit::AliasDb &aliases) {
  for (const Node *node : block->nodes()) {
    if (node->kind() == prim::Constant && aliases.hasWriters(node->output())) return true;
    for (const Block *inner : node->blocks())
      if (writes_constants(inner, aliases)) return true;
  }
  return false;
}

template <class Items, class Format>
std::string list(const Items &items, Format &&format) {
  std::string out = "[";
  for (const auto &item : items) {
    if (out.size() > 1) out += ',';
    out += format(item);
  }
  return out + ']';
}

std::string signature(const Module &module) {
  const auto &arguments = module.get_method("forward").function().getSchema().arguments();
  std::vector<std::string> parts;
  for (size_t i = 1; i < arguments.size(); ++i) {
    std::ostringstream part;
    part << "{\"name\":" << quoted(arguments[i].name())
         << ",\"type\":" << quoted(arguments[i].type()->repr_str()) << ",\"hasDefault\":"
         << (arguments[i].default_value().has_value() ? "true" : "false") << '}';
    parts.push_back(part.str());
  }
  return "{\"arguments\":" + list(parts, [](const std::string &part) { return part; }) + '}';
}

std::string analysis(const lts_source &source, bool writes) {
  std::vector<size_t> heavy;
  for (size_t i = 0; i < source.nodes.size(); ++i)
    if (is_heavy(source.nodes[i])) heavy.push_back(i);
  std::set<std::string> operators;
  add_operators(source.graph->block(), operators);
  auto number = [](size_t n) { return std::to_string(n); };
  std::ostringstream out;
  out << "{\"readsSelf\":" << (source.reads_self ? "true" : "false")
      << ",\"writesConstants\":" << (writes ? "true" : "false")
      << ",\"nodes\":" << source.nodes.size() << ",\"heavy\":" << list(heavy, number)
      << ",\"cuts\":" << list(source.cuts, [](const auto &cut) { return std::to_string(cut.first); })
      << ",\"operators\":" << list(operators, quoted) << '}';
  return out.str();
}

// Copies nodes of `source` into a new graph, with what they read.
class Copier {
 public:
  Copier(const lts_source &source, Graph &target) : source_(source), target_(target) {}

  void give(const Value *from, Value *to) { copies_[from] = to; }

  Value *get(const Value *value) {
    auto found = copies_.find(value);
    if (found != copies_.end()) return found->second;
    TORCH_CHECK(source_.repeated.count(value->node()) > 0, "value %", value->debugName(),
                " is not available in this block");
    append(const_cast<Node *>(value->node()));
    return copies_.at(value);
  }

  void append(Node *node) {
    Node *copy = target_.createClone(node, [this](Value *value) { return get(value); });
    target_.block()->appendNode(copy);
    strip(copy);
    for (size_t i = 0; i < copy->outputs().size(); ++i) give(node->output(i), copy->output(i));
  }

 private:
  // Source lines of the user's files have no place in a block; a weight that
  // is a view would drag its whole storage along.
  static void strip(Node *node) {
    node->setSourceRange(torch::jit::SourceRange());
    if (node->hasAttribute(torch::jit::attr::value) &&
        node->kindOf(torch::jit::attr::value) == torch::jit::AttributeKind::t) {
      at::Tensor tensor = node->t(torch::jit::attr::value);
      if (tensor.has_storage() && tensor.storage().nbytes() > tensor.nbytes())
        node->t_(torch::jit::attr::value, tensor.clone());
    }
    for (Block *block : node->blocks())
      for (Node *inner : block->nodes()) strip(inner);
  }

  const lts_source &source_;
  Graph &target_;
  std::unordered_map<const Value *, Value *> copies_;
};

}  // namespace

void register_outputs(Graph &graph, const std::vector<Value *> &outputs) {
  if (outputs.size() == 1) {
    graph.registerOutput(outputs[0]);
  } else {
    graph.registerOutput(graph.appendNode(graph.createTuple(outputs))->output());
  }
}

namespace {

Value *add_plain_input(Graph &graph, const Value *like, size_t index) {
  Value *input = graph.addInput("x" + std::to_string(index));
  input->setType(is_tensor(like) ? c10::TypePtr(c10::TensorType::get()) : like->type());
  return input;
}

std::shared_ptr<Graph> block_graph(const lts_source &source, size_t from, size_t to) {
  auto graph = std::make_shared<Graph>();
  Copier copier(source, *graph);
  graph->addInput("self");
  if (from == kEnd) {
    for (size_t i = 1; i < source.graph->inputs().size(); ++i) {
      const Value *input = source.graph->inputs()[i];
      copier.give(input, add_plain_input(*graph, input, i - 1));
    }
  } else {
    copier.give(source.cuts.at(from), add_plain_input(*graph, source.cuts.at(from), 0));
  }
  size_t begin = from == kEnd ? 0 : from + 1;
  size_t end = to == kEnd ? source.nodes.size() : to + 1;
  for (size_t i = begin; i < end; ++i) copier.append(source.nodes[i]);
  std::vector<Value *> outputs;
  if (to == kEnd) {
    for (const Value *output : source.graph->outputs()) outputs.push_back(copier.get(output));
  } else {
    outputs.push_back(copier.get(source.cuts.at(to)));
  }
  register_outputs(*graph, outputs);
  graph->lint();
  return graph;
}

}  // namespace

// One fixed name in a compilation unit of its own: equal blocks have equal
// bytes.
Module as_module(const std::shared_ptr<Graph> &graph) {
  auto unit = std::make_shared<torch::jit::CompilationUnit>();
  Module module(c10::QualifiedName("__torch__.lamina.Block"), unit);
  graph->inputs().at(0)->setType(module.type());
  auto *forward =
      unit->create_function(c10::QualifiedName(*module.type()->name(), "forward"), graph);
  module.type()->addMethod(forward);
  return module;
}

namespace {

void open(lts_source &source, const char *path) {
  Module module = torch::jit::load(std::string(path), c10::Device(c10::kCPU),
                                   /*load_debug_files=*/false);
  TORCH_CHECK(module.find_method("forward").has_value(), "the model has no `forward`");
  module.eval();
  source.frozen = torch::jit::freeze_module(module);
}

bool analyse(lts_source &source, size_t inputs_given) {
  const auto &arguments = source.frozen.get_method("forward").function().getSchema().arguments();
  for (size_t i = inputs_given + 1; i < arguments.size(); ++i)
    source.defaults.push_back(arguments[i].default_value());
  source.graph = source.frozen.get_method("forward").graph()->copy();
  torch::jit::Inline(*source.graph);
  bind_defaults(*source.graph, source.defaults);
  clean(source.graph);
  TORCH_CHECK(!source.graph->outputs().empty(), "the model gives no tensor");
  source.reads_self = !source.graph->inputs().at(0)->uses().empty();
  torch::jit::AliasDb aliases(source.graph);
  bool writes = writes_constants(source.graph->block(), aliases);
  if (!source.reads_self && !writes) find_cuts(source, aliases);
  return writes;
}

// A block in one piece with state keeps its module, attributes and all.
Module block_module(const lts_source &source, size_t from, size_t to) {
  bool whole = from == kEnd && to == kEnd;
  if (whole && source.nodes.empty()) return source.frozen;
  return as_module(block_graph(source, from, to));
}

lts_graph *reference_graph(const lts_source &source, const size_t *cuts, size_t count) {
  if (source.nodes.empty()) {
    // A copy, for running it may change what it keeps.
    return new lts_graph(source.graph->copy(), source.frozen.deepcopy(), {});
  }
  auto graph = std::make_shared<Graph>();
  Copier copier(source, *graph);
  for (size_t i = 1; i < source.graph->inputs().size(); ++i) {
    const Value *input = source.graph->inputs()[i];
    copier.give(input, add_plain_input(*graph, input, i - 1));
  }
  std::vector<Value *> outputs;
  size_t next = 0;
  for (size_t i = 0; i < source.nodes.size(); ++i) {
    copier.append(source.nodes[i]);
    if (next < count && cuts[next] == i) {
      // A copy: a later operation may overwrite the value in place.
      Value *live = copier.get(source.cuts.at(i));
      Value *format = graph->insertConstant(IValue());
      outputs.push_back(
          graph->appendNode(graph->create(aten::clone, {live, format}))->output());
      ++next;
    }
  }
  for (const Value *output : source.graph->outputs()) outputs.push_back(copier.get(output));
  register_outputs(*graph, outputs);
  graph->lint();
  return new lts_graph(graph, std::nullopt, {});
}

}  // namespace
}  // namespace lamina

extern "C" {

int lts_source_open(const char *path, lts_source **out, char **text) {
  return lamina::guarded(text, [&] {
    auto source = std::make_unique<lts_source>();
    lamina::open(*source, path);
    *text = lamina::copy_text(lamina::signature(source->frozen));
    *out = source.release();
  });
}

int lts_source_analyse(lts_source *source, size_t inputs_given, char **text) {
  return lamina::guarded(text, [&] {
    bool writes = lamina::analyse(*source, inputs_given);
    *text = lamina::copy_text(lamina::analysis(*source, writes));
  });
}

void lts_source_free(lts_source *source) { delete source; }

int lts_source_block(lts_source *source, size_t from, size_t to, lts_bytes **out, char **text) {
  return lamina::guarded(text, [&] {
    auto bytes = std::make_unique<lts_bytes>();
    torch::jit::ExportModule(lamina::block_module(*source, from, to),
                             [&](const void *data, size_t size) {
                               bytes->data.append(static_cast<const char *>(data), size);
                               return size;
                             });
    *out = bytes.release();
  });
}

int lts_source_graph(lts_source *source, const size_t *cuts, size_t count, lts_graph **out,
                     char **text) {
  return lamina::guarded(text,
                         [&] { *out = lamina::reference_graph(*source, cuts, count); });
}

}
