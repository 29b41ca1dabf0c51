// Values of any type as tensors. On the wire between blocks everything is a
// tensor; nodes inside the blocks take other values apart and put them
// together again, and vanish where blocks are merged.
#pragma once

#include "common.hpp"

#include <optional>
#include <vector>

namespace lamina {

// How a value was made up when it was seen.
struct Layout {
  enum class Kind {
    kTensor,  // one tensor; of complex numbers as pairs of real ones
    kInt,     // INT64 [1]
    kFloat,   // FP64 [1]
    kBool,    // BOOL [1]
    kInts,    // INT64 [n], n at least 1; so are the next two
    kFloats,  // FP64 [n]
    kBools,   // BOOL [n]
    kNone,    // nothing
    kTuple,   // its fields; so are the next two
    kList,
    kDict,
    kOther,  // cannot be sent
  };
  Kind kind = Kind::kOther;
  std::vector<Layout> fields;
  // Of a dictionary's entries, or of a named tuple's fields.
  std::vector<std::string> names;
  // Of one tensor. Complex numbers are sent with a last dimension of two, which is in the
  // shape; the type is their own.
  uint64_t bytes = 0;
  std::optional<at::ScalarType> type;
  std::vector<int64_t> shape;
  bool is_complex = false;
  // Of one tensor: its dimensions from the outermost in memory to the innermost,
  // where that is not their own order.
  std::vector<int64_t> order;
  // What was seen, for small whole numbers alone: they may be sizes, and a
  // warm-up with zeros would fail.
  std::optional<std::vector<int64_t>> example;
};

// Whether values of this type may be made of what can be sent.
bool is_transportable(const c10::TypePtr &type);

Layout observe(const c10::IValue &value);

// Takes over orders in memory of the same values seen once more: at batch 1 an
// order may not show.
void take_orders(std::vector<Layout> &layouts, const std::vector<Layout> &seen);

// JSON: `Layout` in ffi.rs.
std::string to_json(const Layout &layout);

// One JSON value per tensor of the layout: its example or null.
void add_examples(const Layout &layout, std::vector<std::string> &examples);

// Number of tensors.
size_t width(const Layout &layout);

// What a block must make sure of before it sends a value as it was seen.
struct Doubts {
  // Whether it is None, how many items it has and under which keys.
  bool make = true;
  // The type and rank of a tensor.
  bool type = false;
};

// Appends nodes that take `value` apart, and adds its tensors to `wires`. They raise
// where it is not made up as the layout says: the blocks would go on with another value.
void encode(Graph &graph, const Layout &layout, Value *value, std::vector<Value *> &wires,
            const Doubts &doubts);

// A value as messages call it.
std::string called(const Value *value);

// Appends nodes that make a value of `type` again from the tensors at `wires`,
// which moves behind them.
Value *decode(Graph &graph, const Layout &layout, c10::TypePtr type, Value *const *&wires);

// Removes nodes that make a value again from tensors that it was taken apart
// into, where nothing writes to either.
void remove_codecs(const std::shared_ptr<Graph> &graph);

// What `encode` would give, for values that no graph takes apart.
void flatten(const c10::IValue &value, std::vector<at::Tensor> &tensors);

}  // namespace lamina
