// Heads of a model with several exits.
#pragma once

#include "common.hpp"

#include <optional>
#include <unordered_set>
#include <vector>

namespace lamina {

// Per output but the last, the nodes that neither the last output nor an earlier one needs, in
// program order. Each head is moved up to right after the value that it reads, unless a write
// forbids that.
std::vector<std::vector<Node *>> bring_up_heads(const std::shared_ptr<Graph> &graph);

// Outside values that the nodes read.
std::vector<const Value *> read_from_outside(const std::vector<Node *> &nodes);

// The stage whose weights a node reads; the SDK's models keep stage `i` as the submodule
// `stages.i`, and freezing names constants by their path.
std::optional<size_t> stage_of(const Node *node);

}  // namespace lamina
