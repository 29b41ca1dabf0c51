#include "common.hpp"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/scope.h>
#include <torch/version.h>

#include <set>
#include <unordered_set>
#include <utility>

namespace lamina {

std::string quoted(const std::string &text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

namespace {

// Whether an operation only reads properties of a packed weight, such as quantized::conv2d_stride.
bool asks_a_weight(const std::string &name) {
  for (const char *end : {"_stride", "_padding", "_dilation", "_groups", "_transpose"}) {
    size_t length = std::strlen(end);
    if (name.size() > length && name.compare(name.size() - length, length, end) == 0) return true;
  }
  return name.find("prepack") != std::string::npos || name.find("unpack") != std::string::npos;
}

}  // namespace

bool is_heavy(const Node *node) {
  static const std::unordered_set<std::string> names = {
      "aten::_convolution", "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::convolution",
      "aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d",
      "aten::linear", "aten::addmm", "aten::matmul", "aten::mm", "aten::bmm", "aten::baddbmm",
      "aten::bilinear", "aten::tensordot", "aten::_sparse_mm", "aten::sparse_sampled_addmm",
      "aten::einsum", "aten::scaled_dot_product_attention", "aten::_native_multi_head_attention",
      "aten::_transformer_encoder_layer_fwd", "aten::lstm", "aten::gru", "aten::rnn_tanh",
      "aten::rnn_relu", "aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell",
      "aten::rnn_relu_cell", "aten::quantized_lstm", "aten::quantized_gru",
      "aten::quantized_lstm_cell", "aten::quantized_gru_cell", "aten::embedding",
      "aten::embedding_bag"};
  const std::string name = node->kind().toQualString();
  if (names.count(name) > 0) return true;
  for (const char *family : {"quantized::linear", "quantized::conv", "quantized::matmul",
                             "quantized::embedding", "sparse::qlinear"})
    if (name.rfind(family, 0) == 0 && !asks_a_weight(name)) return true;
  for (const Block *block : node->blocks())
    for (const Node *inner : block->nodes())
      if (is_heavy(inner)) return true;
  return false;
}

void forget_callers(Block *block) {
  // Never freed.
  static torch::jit::Function *const somebody =
      (new torch::jit::CompilationUnit)->create_function("inlined", std::make_shared<Graph>());
  for (Node *node : block->nodes()) {
    if (node->callstack().has_value())
      node->setCallStack(
          c10::make_intrusive<torch::jit::InlinedCallStack>(somebody, node->sourceRange()));
    for (Block *inner : node->blocks()) forget_callers(inner);
  }
}

// Address and number of elements of a constant: full views of one weight count once.
using Place = std::pair<const void *, int64_t>;

static void add_constants(const Block *block, std::set<Place> &seen, uint64_t &sum) {
  for (const Node *node : block->nodes()) {
    for (const Block *inner : node->blocks()) add_constants(inner, seen, sum);
    if (!node->hasAttribute(torch::jit::attr::value)) continue;
    if (node->kindOf(torch::jit::attr::value) != torch::jit::AttributeKind::t) continue;
    const at::Tensor &tensor = node->t(torch::jit::attr::value);
    // Packed (oneDNN) tensors have no storage.
    const void *begin = tensor.has_storage() ? tensor.const_data_ptr() : nullptr;
    if (begin == nullptr) begin = tensor.unsafeGetTensorImpl();
    if (seen.emplace(begin, tensor.numel()).second)
      sum += static_cast<uint64_t>(tensor.numel()) * tensor.element_size();
  }
}

uint64_t constant_bytes(const Block *block) {
  std::set<Place> seen;
  uint64_t sum = 0;
  add_constants(block, seen, sum);
  return sum;
}

}  // namespace lamina

extern "C" {

const char *lts_version(void) { return TORCH_VERSION; }
void lts_text_free(char *text) { std::free(text); }
const uint8_t *lts_bytes_data(const lts_bytes *bytes) {
  return reinterpret_cast<const uint8_t *>(bytes->data.data());
}
size_t lts_bytes_len(const lts_bytes *bytes) { return bytes->data.size(); }
void lts_bytes_free(lts_bytes *bytes) { delete bytes; }
void lts_outputs_free(lts_tensor **outputs) { std::free(outputs); }

}
