// Encodes values of any type as tensors. Between blocks only tensors are sent; nodes inside the
// blocks take other values apart and rebuild them, and disappear when blocks are merged.
#pragma once

#include "common.hpp"

#include <optional>
#include <vector>

namespace lamina {

// Structure of an observed value.
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
  // Keys of a dictionary, or field names of a named tuple.
  std::vector<std::string> names;
  // For one tensor. Complex numbers are sent with a last dimension of two, which is part of the
  // shape; the type is the complex one.
  uint64_t bytes = 0;
  std::optional<at::ScalarType> type;
  std::vector<int64_t> shape;
  bool is_complex = false;
  // For one tensor: its dimensions from the outermost in memory to the innermost, if they are not
  // in order.
  std::vector<int64_t> order;
  // The observed value, only for small integers: they may be sizes, and a warm-up with zeros would
  // fail.
  std::optional<std::vector<int64_t>> example;
};

// Whether values of this type may consist of parts that can be sent.
bool is_transportable(const c10::TypePtr &type);

Layout observe(const c10::IValue &value);

// Adopts the memory orders of a second observation of the same values: at batch 1 an order may not
// show.
void take_orders(std::vector<Layout> &layouts, const std::vector<Layout> &seen);

// JSON: `Layout` in ffi.rs.
std::string to_json(const Layout &layout);

// One JSON value per tensor of the layout: its example or null.
void add_examples(const Layout &layout, std::vector<std::string> &examples);

// Number of tensors.
size_t width(const Layout &layout);

// Checks that a block must make before it sends a value in its observed layout.
struct Doubts {
  // Whether it is None, its number of items, and their keys.
  bool make = true;
  // The type and rank of a tensor.
  bool type = false;
};

// Appends nodes that take `value` apart, and adds its tensors to `wires`. They raise if the value
// does not match the layout: the blocks would go on with another value.
void encode(Graph &graph, const Layout &layout, Value *value, std::vector<Value *> &wires,
            const Doubts &doubts);

// Name of a value in messages.
std::string called(const Value *value);

// Appends nodes that rebuild a value of `type` from the tensors at `wires`, and advances `wires`
// past them.
Value *decode(Graph &graph, const Layout &layout, c10::TypePtr type, Value *const *&wires);

// Removes nodes that rebuild a value from the tensors it was taken apart into, if nothing writes to
// either.
void remove_codecs(const std::shared_ptr<Graph> &graph);

// The tensors that `encode` would give, for values outside a graph.
void flatten(const c10::IValue &value, std::vector<at::Tensor> &tensors);

}  // namespace lamina
