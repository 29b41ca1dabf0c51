// Cuts a model file into the archives of its blocks.

#include "exits.hpp"
#include "watch.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/autocast.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/inline_fork_wait.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/interpreter.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <unordered_map>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

constexpr size_t kEnd = SIZE_MAX;

// Extra file of the SDK's models.
constexpr const char *kMetadata = "lamina.json";

// A cut has no more live values than this.
constexpr size_t kMostLive = 64;
// Nor more live tensors, as far as types tell. `MOST_TENSORS` in looks.rs.
constexpr size_t kMostTensors = 32;
// Integer inputs of up to this many elements are kept unchanged for the warm-up.
constexpr int64_t kMostExamples = 4096;

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

// Constants, and pure nodes that do not return a tensor and read only such nodes.
bool is_repeated(const lts_source &source, const torch::jit::AliasDb &aliases, Node *node) {
  if (node->kind() == prim::Constant) return true;
  if (!node->blocks().empty() || node->outputs().size() != 1) return false;
  if (node->hasSideEffects() || node->isNondeterministic()) return false;
  if (is_tensor(node->output()) || aliases.hasWriters(node->output())) return false;
  for (const Value *input : node->inputs())
    if (source.repeated.count(input->node()) == 0) return false;
  return true;
}

// Positions of writes, by pairs of values that may share memory.
class Writes {
 public:
  Writes(const lts_source &source, const torch::jit::AliasDb &aliases)
      : source_(source), aliases_(aliases) {}

  // Whether a node after `position` writes to memory that both may share: on different hosts they
  // would be independent copies.
  bool divide(Value *a, Value *b, size_t position) {
    auto key = std::make_pair(a, b);
    auto found = last_.find(key);
    if (found == last_.end()) found = last_.emplace(key, last_write(a, b)).first;
    return found->second.has_value() && *found->second > position;
  }

 private:
  std::optional<size_t> last_write(Value *a, Value *b) const {
    if (!aliases_.mayContainAlias(a, b)) return std::nullopt;
    torch::jit::ValueSet both{a, b};
    for (size_t i = source_.nodes.size(); i-- > 0;)
      if (aliases_.writesToAlias(source_.nodes[i], both)) return i;
    return std::nullopt;
  }

  const lts_source &source_;
  const torch::jit::AliasDb &aliases_;
  std::map<std::pair<Value *, Value *>, std::optional<size_t>> last_;
};

// Number of live values without the outputs of side exits, which are small.
size_t beside_exits(const lts_source &source, const std::vector<Value *> &live, bool tensors) {
  return std::count_if(live.begin(), live.end(), [&](const Value *value) {
    return source.exits.count(value) == 0 && (!tensors || is_tensor(value));
  });
}

bool is_legal(const lts_source &source, const std::vector<Value *> &live, size_t position,
              Writes &writes) {
  if (live.empty() || beside_exits(source, live, false) > kMostLive) return false;
  for (const Value *value : live)
    if (!is_transportable(value->type())) return false;
  size_t tensors = beside_exits(source, live, true);
  if (tensors > kMostTensors) return false;
  for (size_t i = 0; i < live.size(); ++i)
    for (size_t j = i + 1; j < live.size(); ++j)
      if (writes.divide(live[i], live[j], position)) return false;
  return true;
}

// Finds every position where all live values can be sent.
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

  Writes writes(source, aliases);
  std::vector<Value *> live;
  for (Value *input : source.graph->inputs())
    if (last_use.count(input) > 0) live.push_back(input);
  for (size_t i = 0; i + 1 < source.nodes.size(); ++i) {
    for (Value *output : source.nodes[i]->outputs())
      if (last_use.count(output) > 0) live.push_back(output);
    live.erase(std::remove_if(live.begin(), live.end(),
                              [&](const Value *value) { return last_use.at(value) <= i; }),
               live.end());
    if (!is_legal(source, live, i, writes)) continue;
    source.cuts[i] = live;
    for (const Value *value : live)
      if (aliases.hasWriters(value)) source.written.insert(value);
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

std::string signature(const Module &module, const std::string &metadata) {
  const auto &arguments = module.get_method("forward").function().getSchema().arguments();
  std::vector<std::string> parts;
  for (size_t i = 1; i < arguments.size(); ++i) {
    std::ostringstream part;
    part << "{\"name\":" << quoted(arguments[i].name())
         << ",\"type\":" << quoted(arguments[i].type()->repr_str()) << ",\"hasDefault\":"
         << (arguments[i].default_value().has_value() ? "true" : "false") << '}';
    parts.push_back(part.str());
  }
  return "{\"arguments\":" + list(parts, [](const std::string &part) { return part; }) +
         ",\"metadata\":" + (metadata.empty() ? "null" : quoted(metadata)) + '}';
}

// Per head the position of the node whose output it reads, of its own last node, and of its heavy
// operations. JSON: `Head` in ffi.rs.
std::string heads(const lts_source &source) {
  std::unordered_map<const Node *, size_t> positions;
  for (size_t i = 0; i < source.nodes.size(); ++i) positions[source.nodes[i]] = i;
  std::vector<std::string> parts;
  for (size_t exit = 0; exit < source.heads.size(); ++exit) {
    const auto &head = source.heads[exit];
    auto outside = read_from_outside(head);
    if (head.empty()) outside.push_back(source.graph->outputs()[exit]);
    size_t from = 0, to = 0;
    for (const Value *value : outside) {
      auto giver = positions.find(value->node());
      if (giver != positions.end()) from = std::max(from, giver->second);
    }
    to = from;
    std::vector<size_t> heavy;
    for (const Node *node : head) {
      auto own = positions.find(node);
      if (own == positions.end()) continue;
      to = std::max(to, own->second);
      if (is_heavy(node)) heavy.push_back(own->second);
    }
    parts.push_back("{\"from\":" + std::to_string(from) + ",\"to\":" + std::to_string(to) +
                    ",\"heavy\":" +
                    list(heavy, [](size_t position) { return std::to_string(position); }) + '}');
  }
  return list(parts, [](const std::string &part) { return part; });
}

std::string analysis(const lts_source &source, bool writes) {
  std::vector<size_t> heavy;
  for (size_t i = 0; i < source.nodes.size(); ++i)
    if (is_heavy(source.nodes[i])) heavy.push_back(i);
  std::set<std::string> operators;
  add_operators(source.graph->block(), operators);
  // A block with state is the frozen model itself.
  if (source.nodes.empty())
    add_operators(source.frozen.get_method("forward").graph()->block(), operators);
  auto number = [](size_t n) { return std::to_string(n); };
  auto stage = [&](size_t position) {
    auto found = stage_of(source.nodes[position]);
    return found.has_value() ? std::to_string(*found) : std::string("null");
  };
  auto identity = [](const Value *value) { return std::to_string(value->unique()); };
  auto place = [&](const auto &cut) {
    bool direct = beside_exits(source, cut.second, false) == 1 &&
                  beside_exits(source, cut.second, true) == 1;
    return "{\"at\":" + std::to_string(cut.first) + ",\"direct\":" + (direct ? "true" : "false") + '}';
  };
  std::ostringstream out;
  out << "{\"readsSelf\":" << (source.reads_self ? "true" : "false")
      << ",\"writesConstants\":" << (writes ? "true" : "false")
      << ",\"weightBytes\":" << constant_bytes(source.graph->block())
      << ",\"nodes\":" << source.nodes.size() << ",\"heavy\":" << list(heavy, number)
      << ",\"stages\":" << list(heavy, stage) << ",\"heads\":" << heads(source)
      << ",\"cuts\":" << list(source.cuts, place)
      << ",\"inputs\":" << list(source.graph->inputs().slice(1), identity)
      << ",\"outputs\":" << list(source.graph->outputs(), identity)
      << ",\"structure\":" << source.structure
      << ",\"operators\":" << list(operators, quoted) << '}';
  return out.str();
}

// Copies nodes of `source` into a new graph, with what they read.
class Copier {
 public:
  Copier(const lts_source &source, Graph &target) : source_(source), target_(target) {}

  void give(const Value *from, Value *to) { copies_[from] = to; }

  // A value that arrived as tensors; it is rebuilt where it is used.
  void give(const Value *from, const Layout &layout, std::vector<Value *> wires) {
    if (layout.kind == Layout::Kind::kTensor && layout.order.empty() && !layout.is_complex) {
      give(from, wires[0]);
    } else {
      arrived_[from] = {&layout, std::move(wires)};
    }
  }

  // Sends the tensors of a value: those that arrived, if nothing wrote to it.
  void send(const Value *value, const Layout &layout, std::vector<Value *> &wires) {
    auto found = arrived_.find(value);
    if (found != arrived_.end() && source_.written.count(value) == 0) {
      wires.insert(wires.end(), found->second.second.begin(), found->second.second.end());
    } else {
      encode(target_, layout, get(value), wires, doubts(value));
    }
  }

  Value *get(const Value *value) {
    auto found = copies_.find(value);
    if (found != copies_.end()) return found->second;
    auto arrived = arrived_.find(value);
    if (arrived != arrived_.end()) {
      Value *const *next = arrived->second.second.data();
      Value *made = decode(target_, *arrived->second.first, value->type(), next);
      give(value, made);
      return made;
    }
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
  // A list that is made in one node, and never written to, has the length of its construction.
  Doubts doubts(const Value *value) const {
    auto maker = value->node()->kind();
    bool in_sight = maker == prim::ListConstruct || maker == prim::DictConstruct;
    bool written = source_.written.count(value) > 0;
    return {/*make=*/!in_sight || written, /*type=*/source_.unsure.count(value) > 0};
  }

  // Drops the user's source lines, which do not belong into a block, and copies weights that are
  // views, which would keep their whole storage.
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
  std::unordered_map<const Value *, std::pair<const Layout *, std::vector<Value *>>> arrived_;
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

// The tensors of all values that are live after `to`.
std::vector<Value *> sent(const lts_source &source, Copier &copier, size_t to) {
  auto values = to == kEnd ? source.graph->outputs().vec() : source.cuts.at(to);
  const auto &layouts = to == kEnd ? source.outputs : source.layouts.at(to);
  std::vector<Value *> wires;
  for (size_t i = 0; i < values.size(); ++i) copier.send(values[i], layouts.at(i), wires);
  return wires;
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
    const auto &layouts = source.layouts.at(from);
    for (size_t i = 0; i < layouts.size(); ++i) {
      std::vector<Value *> wires;
      while (wires.size() < width(layouts[i])) {
        wires.push_back(graph->addInput("x" + std::to_string(graph->inputs().size() - 1)));
        wires.back()->setType(c10::TensorType::get());
      }
      copier.give(source.cuts.at(from)[i], layouts[i], wires);
    }
  }
  size_t begin = from == kEnd ? 0 : from + 1;
  size_t end = to == kEnd ? source.nodes.size() : to + 1;
  for (size_t i = begin; i < end; ++i) copier.append(source.nodes[i]);
  register_outputs(*graph, sent(source, copier, to));
  graph->lint();
  return graph;
}

}  // namespace

// One fixed name in its own compilation unit: equal blocks have equal bytes.
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
  torch::jit::ExtraFilesMap extra{{kMetadata, ""}};
  Module module = torch::jit::load(std::string(path), c10::Device(c10::kCPU), extra,
                                   /*load_debug_files=*/false);
  source.metadata = extra.at(kMetadata);
  TORCH_CHECK(module.find_method("forward").has_value(), "the model has no `forward`");
  module.eval();
  source.as_written = module.get_method("forward").graph()->copy();
  share_openly(module);
  source.frozen = torch::jit::freeze_module(module);
  // Some matrices that require a gradient are multiplied differently.
  for (at::Tensor weight : module.parameters())
    if (weight.requires_grad()) weight.set_requires_grad(false);
  source.read = module;
  for (const Module &part : source.frozen.modules())
    for (const auto &method : part.get_methods()) {
      forget_callers(method.graph()->block());
      name_no_gpu(method.graph()->block());
    }
}

bool analyse(lts_source &source, std::vector<std::string> bindings, bool has_exits) {
  const auto &arguments = source.frozen.get_method("forward").function().getSchema().arguments();
  source.bindings = std::move(bindings);
  for (size_t i = source.bindings.size() + 1; i < arguments.size(); ++i)
    source.defaults.push_back(arguments[i].default_value());
  source.graph = source.frozen.get_method("forward").graph()->copy();
  torch::jit::Inline(*source.graph);
  torch::jit::InlineForkWait(source.graph);
  forget_callers(source.graph->block());
  bind_arguments(*source.graph, source.bindings);
  bind_defaults(*source.graph, source.defaults);
  source.structure = clean(source.graph);
  name_no_gpu(source.graph->block());
  TORCH_CHECK(!source.graph->outputs().empty(), "the model gives no tensor");
  source.reads_self = !source.graph->inputs().at(0)->uses().empty();
  bool all_tensors = true;
  for (const std::string &binding : source.bindings) all_tensors &= binding == "tensor";
  TORCH_CHECK(all_tensors || !source.reads_self,
              "it keeps attributes that change, and takes arguments that are no tensors: make its "
              "state an input and an output");
  if (has_exits) {
    source.heads = bring_up_heads(source.graph);
    for (size_t i = 0; i < source.heads.size(); ++i)
      source.exits.insert(source.graph->outputs()[i]);
  }
  torch::jit::AliasDb aliases(source.graph);
  bool writes = writes_constants(source.graph->block(), aliases);
  if (!source.reads_self && !writes) find_cuts(source, aliases);
  return writes;
}

// With state there is one block, which keeps its module including the attributes.
Module block_module(const lts_source &source, size_t from, size_t to) {
  bool whole = from == kEnd && to == kEnd;
  if (whole && source.nodes.empty()) return source.frozen;
  return as_module(block_graph(source, from, to));
}

// Copies the whole model's nodes into a new graph; calls `behind` after each.
template <class Behind>
std::shared_ptr<Graph> copied(const lts_source &source, Copier &copier,
                              std::shared_ptr<Graph> graph, Behind &&behind) {
  for (size_t i = 1; i < source.graph->inputs().size(); ++i) {
    const Value *input = source.graph->inputs()[i];
    copier.give(input, add_plain_input(*graph, input, i - 1));
  }
  for (size_t i = 0; i < source.nodes.size(); ++i) {
    copier.append(source.nodes[i]);
    behind(i);
  }
  return graph;
}

// A copy of the model including its state, which runs may change.
lts_graph *stateful_graph(const lts_source &source) {
  return new lts_graph(source.graph->copy(), source.frozen.deepcopy(), {});
}

// As libtorch's interpreter runs it. The effects of `with torch.autocast` are part of the model.
lts_graph *graph_as_written(const lts_source &source) {
  TORCH_CHECK(source.read.has_value(), "a model that was traced again has no file");
  auto graph = source.as_written->copy();
  bind_arguments(*graph, source.bindings);
  torch::jit::Inline(*graph);
  torch::jit::Autocast(graph);
  torch::jit::InlineForkWait(graph);
  torch::jit::Inline(*graph);
  forget_callers(graph->block());
  remove_asides(graph->block());
  // After those that requests carry.
  std::vector<std::optional<IValue>> defaults(source.graph->inputs().size() - 1);
  defaults.insert(defaults.end(), source.defaults.begin(), source.defaults.end());
  Module module = source.reads_self ? source.read->deepcopy() : *source.read;
  auto whole = std::make_unique<lts_graph>(graph, std::move(module), std::move(defaults));
  whole->plain.emplace(graph, "forward");
  return whole.release();
}

lts_graph *reference_graph(const lts_source &source, const size_t *cuts, size_t count) {
  if (source.nodes.empty()) return stateful_graph(source);
  auto graph = std::make_shared<Graph>();
  Copier copier(source, *graph);
  std::vector<Value *> outputs;
  size_t next = 0;
  copied(source, copier, graph, [&](size_t i) {
    if (next == count || cuts[next] != i) return;
    ++next;
    for (Value *live : sent(source, copier, i)) {
      // A copy: a later operation may overwrite the value in place.
      Value *format = graph->insertConstant(IValue());
      outputs.push_back(
          graph->appendNode(graph->create(aten::clone, {live, format}))->output());
    }
  });
  for (Value *output : sent(source, copier, kEnd)) outputs.push_back(output);
  register_outputs(*graph, outputs);
  graph->lint();
  return new lts_graph(graph, std::nullopt, {});
}

// The values at some cuts, and the outputs, as they are in one forward.
struct Looks {
  std::vector<std::vector<Layout>> cuts;
  std::vector<Layout> outputs;
};

// Each value is observed where it crosses: lists may grow later, and tensors be written to.
Looks look_at(const lts_source &source, const size_t *cuts, size_t count,
              std::vector<at::Tensor> inputs) {
  Looks looks;
  looks.cuts.resize(count);
  torch::jit::Stack stack;
  if (source.nodes.empty()) {
    std::unique_ptr<lts_graph> graph(stateful_graph(source));
    stack = stack_of(*graph, std::move(inputs));
    graph->executor.run(stack);
  } else {
    auto graph = std::make_shared<Graph>();
    Copier copier(source, *graph);
    size_t next = 0;
    copied(source, copier, graph, [&](size_t i) {
      if (next == count || cuts[next] != i) return;
      std::vector<Layout> *seen = &looks.cuts[next++];
      for (const Value *live : source.cuts.at(i)) {
        auto *look = new torch::jit::ProfileIValueOp(
            graph.get(), [seen](std::vector<IValue> &values) {
              values.pop_back();  // The number of the interpreter's frame.
              seen->push_back(observe(values.back()));
              values.pop_back();
            });
        look->addInput(copier.get(live));
        graph->appendNode(look);
      }
    });
    for (const Value *output : source.graph->outputs()) graph->registerOutput(copier.get(output));
    graph->lint();
    for (at::Tensor &input : inputs) stack.emplace_back(std::move(input));
    torch::jit::Code code(graph, "forward");
    torch::jit::InterpreterState(code).run(stack);
  }
  for (const IValue &output : stack) looks.outputs.push_back(observe(output));
  return looks;
}

// The numbers of an input as JSON, or only the smallest, for all elements, if there are many; null
// for anything but integers, for which noise is used.
std::string input_example(const at::Tensor &input) {
  if (!at::isIntegralType(input.scalar_type(), /*includeBool=*/false) || input.numel() == 0)
    return "null";
  at::Tensor flat = input.to(at::kLong).flatten();
  if (flat.numel() > kMostExamples) flat = flat.min().reshape({1});
  const int64_t *data = flat.const_data_ptr<int64_t>();
  return list(std::vector<int64_t>(data, data + flat.numel()),
              [](int64_t number) { return std::to_string(number); });
}

std::string observed(lts_source &source, const size_t *cuts, size_t count,
                     std::vector<at::Tensor> inputs) {
  if (source.input_examples.empty())
    for (const at::Tensor &input : inputs) source.input_examples.push_back(input_example(input));
  Looks looks = look_at(source, cuts, count, std::move(inputs));
  std::vector<std::string> places;
  for (size_t i = 0; i < count; ++i) {
    const auto &live = source.cuts.at(cuts[i]);
    const auto &layouts = looks.cuts.at(i);
    std::vector<std::string> values;
    for (size_t j = 0; j < live.size(); ++j)
      values.push_back("{\"value\":" + std::to_string(live[j]->unique()) + ",\"written\":" +
                       (source.written.count(live[j]) > 0 ? "true" : "false") +
                       ",\"layout\":" + to_json(layouts[j]) + '}');
    places.push_back(list(values, [](const std::string &value) { return value; }));
    auto [known, is_new] = source.layouts.emplace(cuts[i], layouts);
    if (!is_new) take_orders(known->second, layouts);
  }
  if (source.outputs.empty()) source.outputs = looks.outputs;
  return "{\"cuts\":" + list(places, [](const std::string &place) { return place; }) +
         ",\"outputs\":" + list(looks.outputs, to_json) + '}';
}

// JSON: `Watched` in ffi.rs.
std::string watched(lts_source &source, const std::vector<std::vector<at::Tensor>> &requests,
                    size_t batches, const std::vector<std::string> &names) {
  auto look = [&](size_t from, size_t to) {
    std::vector<Sights> seen;
    for (size_t i = from; i < to; ++i) seen.push_back(watch(source, requests.at(i)));
    return seen;
  };
  std::vector<Sights> first = look(0, batches);
  Follows batch = follow_batch(source.graph, first);
  std::optional<std::string> by_size;
  for (size_t i = 0; i < names.size(); ++i) {
    size_t from = batches + kSizes * i;
    Follows size = follow_size(source.graph, look(from, from + kSizes), names[i]);
    batch.conditions.insert(size.conditions.begin(), size.conditions.end());
    if (!by_size.has_value()) by_size = size.fixes_trace;
  }
  Unsteady unsteady = unsteady_cuts(source, batch, first.at(0));
  auto place = [](const std::pair<const size_t, std::string> &cut) {
    return "{\"at\":" + std::to_string(cut.first) + ",\"reason\":" + quoted(cut.second) + '}';
  };
  return "{\"unsteady\":" + list(unsteady.cuts, place) + ",\"mayDiffer\":" +
         (unsteady.may_differ ? "true" : "false") + ",\"fixesTrace\":" +
         (batch.fixes_trace.has_value() ? lamina::quoted(*batch.fixes_trace) : "null") +
         ",\"sizesFixTrace\":" + (by_size.has_value() ? lamina::quoted(*by_size) : "null") + '}';
}

// One item per tensor that the block takes, to warm up a slice that begins with it. JSON: an array;
// empty if zeros will do.
std::string examples(const lts_source &source, size_t from) {
  std::vector<std::string> parts = source.input_examples;
  if (from != kEnd) parts.clear();
  if (from != kEnd)
    for (const Layout &layout : source.layouts.at(from)) add_examples(layout, parts);
  for (const std::string &part : parts)
    if (part != "null") return list(parts, [](const std::string &text) { return text; });
  return "";
}

}  // namespace
}  // namespace lamina

extern "C" {

int lts_source_open(const char *path, lts_source **out, char **text) {
  return lamina::guarded(text, [&] {
    auto source = std::make_unique<lts_source>();
    lamina::open(*source, path);
    *text = lamina::copy_text(lamina::signature(source->frozen, source->metadata));
    *out = source.release();
  });
}

int lts_source_analyse(lts_source *source, const char *const *bindings, size_t count,
                       int has_exits, char **text) {
  return lamina::guarded(text, [&] {
    bool writes = lamina::analyse(*source, {bindings, bindings + count}, has_exits != 0);
    *text = lamina::copy_text(lamina::analysis(*source, writes));
  });
}

void lts_source_free(lts_source *source) { delete source; }

int lts_source_block(lts_source *source, size_t from, size_t to, lts_bytes **out, char **text) {
  return lamina::guarded(text, [&] {
    auto bytes = std::make_unique<lts_bytes>();
    torch::jit::ExtraFilesMap extra;
    std::string examples = lamina::examples(*source, from);
    if (!examples.empty()) extra[lamina::kExamples] = examples;
    torch::jit::ExportModule(
        lamina::block_module(*source, from, to),
        [&](const void *data, size_t size) {
          bytes->data.append(static_cast<const char *>(data), size);
          return size;
        },
        extra);
    *out = bytes.release();
  });
}

int lts_source_observe(lts_source *source, const size_t *cuts, size_t count,
                       lts_tensor *const *inputs, size_t inputs_count, char **text) {
  return lamina::guarded(text, [&] {
    lamina::use_threads(1);
    c10::InferenceMode inference;
    *text = lamina::copy_text(lamina::observed(*source, cuts, count,
                                               lamina::private_copies(inputs, inputs_count)));
  });
}

int lts_source_watch(lts_source *source, lts_tensor *const *inputs, size_t batches,
                     const char *const *names, size_t sizes, size_t count, char **text) {
  return lamina::guarded(text, [&] {
    lamina::use_threads(1);
    c10::InferenceMode inference;
    std::vector<std::vector<at::Tensor>> requests;
    for (size_t i = 0; i < batches + lamina::kSizes * sizes; ++i)
      requests.push_back(lamina::private_copies(inputs + i * count, count));
    std::vector<std::string> called(names, names + sizes);
    *text = lamina::copy_text(lamina::watched(*source, requests, batches, called));
  });
}

int lts_source_as_written(lts_source *source, lts_graph **out, char **text) {
  return lamina::guarded(text, [&] {
    std::unique_ptr<lts_graph> graph(lamina::graph_as_written(*source));
    std::set<std::string> operators;
    lamina::add_operators(graph->graph->block(), operators);
    *text = lamina::copy_text(lamina::list(operators, lamina::quoted));
    *out = graph.release();
  });
}

int lts_source_graph(lts_source *source, const size_t *cuts, size_t count, lts_graph **out,
                     char **text) {
  return lamina::guarded(text,
                         [&] { *out = lamina::reference_graph(*source, cuts, count); });
}

}
