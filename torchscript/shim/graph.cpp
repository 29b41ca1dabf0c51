// Makes blocks executable, and measures their cost.

#include "codec.hpp"
#include "common.hpp"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <sstream>

struct lts_block {
  torch::jit::Module module;
  // JSON of the file's examples; empty if it has none.
  std::string examples;
};

namespace lamina {

// OpenMP keeps its setting per thread, so it must be set on each thread that runs.
void use_threads(int threads) {
  thread_local int current = 0;
  if (current == threads) return;
  at::set_num_threads(threads);
  current = threads;
}

std::vector<at::Tensor> private_copies(lts_tensor *const *inputs, size_t count) {
  std::vector<at::Tensor> copies;
  for (size_t i = 0; i < count; ++i)
    copies.push_back(inputs[i]->clone(at::MemoryFormat::Contiguous));
  return copies;
}

torch::jit::Stack stack_of(const lts_graph &graph, std::vector<at::Tensor> inputs) {
  torch::jit::Stack stack;
  if (graph.self.has_value()) stack.emplace_back(graph.self->_ivalue());
  for (at::Tensor &input : inputs) stack.emplace_back(std::move(input));
  for (size_t i = inputs.size(); i < graph.defaults.size(); ++i) {
    TORCH_CHECK(graph.defaults[i].has_value(), "input ", i, " is missing");
    stack.push_back(*graph.defaults[i]);
  }
  TORCH_CHECK(stack.size() == graph.graph->inputs().size(), "the graph takes ",
              graph.graph->inputs().size(), " values, got ", stack.size());
  return stack;
}

namespace {

// `self` is input 0 of every method's graph; it is removed if nothing reads it.
bool drop_self(Graph &graph) {
  if (!graph.inputs().at(0)->uses().empty()) return false;
  graph.eraseInput(0);
  return true;
}

std::shared_ptr<Graph> inlined_forward(const Module &module) {
  auto graph = module.get_method("forward").graph()->copy();
  torch::jit::Inline(*graph);
  forget_callers(graph->block());
  return graph;
}

// The tensors that a block's graph returns as one tuple.
std::vector<Value *> unpacked(Graph &graph, Value *output) {
  if (output->type()->kind() != c10::TypeKind::TupleType) return {output};
  Node *unpack = graph.insertNode(graph.createTupleUnpack(output));
  return unpack->outputs().vec();
}

// A module with attributes is not merged and runs unchanged.
lts_graph *stateful(const Module &module) {
  auto graph = inlined_forward(module);
  const auto &arguments = module.get_method("forward").function().getSchema().arguments();
  std::vector<std::optional<IValue>> defaults;
  for (size_t i = 1; i < arguments.size(); ++i) defaults.push_back(arguments[i].default_value());
  return new lts_graph(graph, module, defaults);
}

lts_graph *merge(lts_block *const *blocks, size_t count, int gear) {
  auto merged = std::make_shared<Graph>();
  std::vector<Value *> current;
  for (size_t i = 0; i < count; ++i) {
    auto callee = inlined_forward(blocks[i]->module);
    if (!drop_self(*callee)) {
      TORCH_CHECK(count == 1, "block ", i, " keeps state and cannot be merged with others");
      return stateful(blocks[i]->module);
    }
    if (i == 0) {
      for (const Value *input : callee->inputs()) {
        Value *copy = merged->addInput();
        copy->setType(input->type());
        current.push_back(copy);
      }
    }
    TORCH_CHECK(callee->inputs().size() == current.size(), "block ", i, " takes ",
                callee->inputs().size(), " values, the one before it gives ", current.size());
    torch::jit::WithInsertPoint end(merged->block());
    std::vector<Value *> outputs = torch::jit::insertGraph(*merged, *callee, current);
    TORCH_CHECK(outputs.size() == 1, "block ", i, " has ", outputs.size(), " results");
    current = unpacked(*merged, outputs[0]);
  }
  for (Value *value : current) merged->registerOutput(value);
  remove_codecs(merged);
  torch::jit::EliminateDeadCode(merged);
  // Before the first run: an executor keeps its plan.
  auto mode = gear == LTS_PLAIN ? torch::jit::ExecutorExecutionMode::SIMPLE
                                : optimize(merged, /*fuse=*/gear == LTS_FUSED);
  return new lts_graph(merged, std::nullopt, {}, mode);
}

std::vector<at::Tensor> given(lts_tensor *const *inputs, size_t count) {
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < count; ++i) tensors.push_back(*inputs[i]);
  return tensors;
}

std::vector<at::Tensor> forward(lts_graph &graph, std::vector<at::Tensor> inputs) {
  torch::jit::Stack stack = stack_of(graph, std::move(inputs));
  graph.run(stack);
  std::vector<at::Tensor> tensors;
  for (const IValue &value : stack) flatten(value, tensors);
  return tensors;
}

// The tensor as it is sent: dense and unshared, because it is sent from its memory while the graph
// may run again.
at::Tensor dense(at::Tensor result) {
  TORCH_CHECK(!result.is_nested(), "a value is a nested tensor, which cannot be sent");
  if (result.is_mkldnn() || result.is_sparse()) result = result.to_dense();
  // A lazy conjugation or negation would otherwise be lost.
  result = result.to(at::kCPU).resolve_conj().resolve_neg().contiguous();
  bool shared = result.use_count() > 1 || result.storage().use_count() > 1;
  return shared ? result.clone() : result;
}

// Counts each multiply-add as two, for leaf operations only: `linear`, `matmul` and `conv2d`
// dispatch to them.
struct Flops {
  uint64_t sum = 0;
  // Of a single operation.
  uint64_t largest = 0;

  void add(uint64_t flops) {
    sum += flops;
    largest = std::max(largest, flops);
  }
};
thread_local Flops *counting = nullptr;

struct Convolution : at::ObserverContext {
  uint64_t weight_elements = 0;
  std::vector<int64_t> input;
  bool transposed = false;
};

// The arguments of an operation. The interpreter calls boxed: the list is then its whole stack,
// which ends with the operation's own arguments.
c10::ArrayRef<const IValue> own_inputs(const at::RecordFunction &fn) {
  auto all = fn.inputs();
  return all.size() > fn.num_inputs() ? all.slice(all.size() - fn.num_inputs()) : all;
}

uint64_t product(c10::IntArrayRef sizes) {
  uint64_t product = 1;
  for (int64_t size : sizes) product *= static_cast<uint64_t>(size);
  return product;
}

uint64_t leaf_flops(const std::string &name, c10::ArrayRef<const IValue> in) {
  auto sizes = [&](size_t i) { return in[i].toTensor().sizes(); };
  if (name == "aten::mm") return 2 * product(sizes(0)) * sizes(1)[1];
  if (name == "aten::addmm") return 2 * product(sizes(1)) * sizes(2)[1];
  if (name == "aten::bmm") return 2 * product(sizes(0)) * sizes(1)[2];
  if (name == "aten::baddbmm") return 2 * product(sizes(1)) * sizes(2)[2];
  if (name == "aten::mv" || name == "aten::dot") return 2 * product(sizes(0));
  if (name == "aten::addmv") return 2 * product(sizes(1));
  if (name == "aten::_scaled_dot_product_flash_attention_for_cpu") {
    auto query = sizes(0), key = sizes(1), value = sizes(2);
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3]);
  }
  if (name == "aten::mkldnn_rnn_layer")
    return 2 * sizes(0)[0] * sizes(0)[1] * (product(sizes(1)) + product(sizes(2)));
  return 0;
}

std::unique_ptr<at::ObserverContext> on_enter(const at::RecordFunction &fn) {
  if (counting == nullptr) return nullptr;
  std::string name = fn.name();
  auto in = own_inputs(fn);
  if (name == "aten::_convolution") {
    auto context = std::make_unique<Convolution>();
    context->input = in[0].toTensor().sizes().vec();
    context->weight_elements = product(in[1].toTensor().sizes());
    context->transposed = in[6].isBool() && in[6].toBool();
    return context;
  }
  counting->add(leaf_flops(name, in));
  return nullptr;
}

void on_exit(const at::RecordFunction &fn, at::ObserverContext *context) {
  if (counting == nullptr || context == nullptr) return;
  const auto &call = static_cast<const Convolution &>(*context);
  const auto &outputs = fn.outputs();
  if (outputs.empty() || !outputs.back().isTensor()) return;
  auto output = outputs.back().toTensor().sizes();
  c10::IntArrayRef places = call.transposed ? c10::IntArrayRef(call.input) : output;
  uint64_t positions = product(places.slice(2)) * static_cast<uint64_t>(output[0]);
  counting->add(2 * positions * call.weight_elements);
}

// Peak memory of one thread's forward.
struct Activations : c10::MemoryReportingInfoBase {
  int64_t held = 0;
  int64_t peak = 0;
  void reportMemoryUsage(void *, int64_t size, size_t, size_t, c10::Device) override {
    held += size;
    peak = std::max(peak, held);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

std::string cost(lts_graph &graph, lts_tensor *const *inputs, size_t count) {
  Flops flops;
  auto activations = std::make_shared<Activations>();
  auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(on_enter, on_exit)
                                               .needsInputs(true)
                                               .needsOutputs(true)
                                               .scopes({at::RecordScope::FUNCTION}));
  counting = &flops;
  struct Stop {
    at::CallbackHandle handle;
    ~Stop() {
      counting = nullptr;
      at::removeCallback(handle);
    }
  } stop{handle};
  {
    c10::DebugInfoGuard watch(c10::DebugInfoKind::PROFILER_STATE, activations);
    forward(graph, private_copies(inputs, count));
  }
  uint64_t constants = constant_bytes(graph.graph->block()) * (graph.packs ? 2 : 1);
  std::ostringstream out;
  out << "{\"flops\":" << flops.sum << ",\"largestFlops\":" << flops.largest
      << ",\"peakBytes\":" << activations->peak
      << ",\"constantBytes\":" << constants << '}';
  return out.str();
}

double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

lts_tensor **given_away(const std::vector<at::Tensor> &tensors) {
  auto **array = static_cast<lts_tensor **>(
      std::calloc(std::max<size_t>(tensors.size(), 1), sizeof(lts_tensor *)));
  TORCH_CHECK(array != nullptr, "out of memory");
  for (size_t i = 0; i < tensors.size(); ++i) array[i] = new at::Tensor(tensors[i]);
  return array;
}

}  // namespace
}  // namespace lamina

extern "C" {

int lts_block_load(const char *path, lts_block **out, char **text) {
  return lamina::guarded(text, [&] {
    auto block = std::make_unique<lts_block>();
    torch::jit::ExtraFilesMap extra{{lamina::kExamples, ""}};
    block->module = torch::jit::load(std::string(path), c10::Device(c10::kCPU), extra,
                                     /*load_debug_files=*/false);
    block->examples = extra.at(lamina::kExamples);
    TORCH_CHECK(block->module.find_method("forward").has_value(), "no `forward` in the file");
    *out = block.release();
  });
}

int lts_block_examples(lts_block *block, char **text) {
  return lamina::guarded(text, [&] {
    *text = lamina::copy_text(block->examples.empty() ? "[]" : block->examples);
  });
}

void lts_block_free(lts_block *block) { delete block; }

int lts_graph_merge(lts_block *const *blocks, size_t count, int gear, lts_graph **out,
                    char **text) {
  return lamina::guarded(text,
                         [&] { *out = lamina::merge(blocks, count, gear); });
}

int lts_graph_again(const lts_graph *graph, lts_graph **out, char **text) {
  return lamina::guarded(text, [&] {
    *out = nullptr;
    if (!graph->packs) return;
    // Constants are shared: a copy of a graph refers to the same tensors.
    *out = new lts_graph(graph->graph->copy(), graph->self, graph->defaults,
                         torch::jit::ExecutorExecutionMode::PROFILING);
  });
}

void lts_graph_free(lts_graph *graph) { delete graph; }

int lts_graph_keeps_state(const lts_graph *graph) { return graph->self.has_value() ? 1 : 0; }

int lts_graph_run(lts_graph *graph, lts_tensor *const *inputs, size_t count, int threads,
                  lts_tensor ***outputs, size_t *outputs_count, char **text) {
  return lamina::guarded(text, [&] {
    lamina::use_threads(threads);
    c10::InferenceMode inference;
    auto results = lamina::forward(*graph, lamina::given(inputs, count));
    for (at::Tensor &result : results) result = lamina::dense(std::move(result));
    *outputs = lamina::given_away(results);
    *outputs_count = results.size();
  });
}

int lts_graph_cost(lts_graph *graph, lts_tensor *const *inputs, size_t count, int threads,
                   char **text) {
  return lamina::guarded(text, [&] {
    lamina::use_threads(threads);
    c10::InferenceMode inference;
    *text = lamina::copy_text(lamina::cost(*graph, inputs, count));
  });
}

int lts_graph_time(lts_graph *graph, lts_tensor *const *inputs, size_t count, int threads,
                   double *wall_seconds, double *cpu_seconds, char **text) {
  return lamina::guarded(text, [&] {
    lamina::use_threads(threads);
    c10::InferenceMode inference;
    double cpu = lamina::thread_cpu_seconds();
    auto wall = std::chrono::steady_clock::now();
    // Including copies of a request's values, which are part of a cut's cost.
    auto results = lamina::forward(*graph, lamina::private_copies(inputs, count));
    for (at::Tensor &result : results) result = lamina::dense(std::move(result));
    *wall_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - wall).count();
    *cpu_seconds = lamina::thread_cpu_seconds() - cpu;
  });
}

int lts_set_threads(int threads, char **text) {
  return lamina::guarded(text, [&] { lamina::use_threads(threads); });
}

}
