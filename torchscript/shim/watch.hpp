// Observes the values of a graph in single forwards, and how they follow the batch and other free
// sizes.
#pragma once

#include "source.hpp"

#include <unordered_map>
#include <vector>

namespace lamina {

// A value at one time: the sizes of a tensor, a number (true is 1), a list of numbers, or the
// length of another list.
struct Sight {
  enum class Kind { kTensor, kNumber, kNumbers, kLength, kOther };
  Kind kind = Kind::kOther;
  std::vector<double> numbers;
  // For a tensor.
  std::optional<at::ScalarType> type;
};

// Each value's observations in order of execution, limited to the first.
using Sights = std::unordered_map<const Value *, std::vector<Sight>>;

// One forward of the analysed graph.
Sights watch(const lts_source &source, const std::vector<at::Tensor> &inputs);

// What follows a free size, found by judging each operation alone: comparing a few sizes would
// prove nothing about others.
struct Follows {
  // Why a trace would hold for one size only.
  std::optional<std::string> fixes_trace;
  // Conditions and lengths of loops that differ at another size.
  std::unordered_set<const Value *> conditions;
};

// Requests per free size.
constexpr size_t kSizes = 3;

// What follows the batch other than in proportion; `sights` are those of batches of
// 1, 2 and 3, or of fewer if the batch is not free.
Follows follow_batch(const std::shared_ptr<Graph> &graph, const std::vector<Sights> &sights);

// What follows the free dimension named `name` in any way; `sights` are those of three of its
// sizes.
Follows follow_size(const std::shared_ptr<Graph> &graph, const std::vector<Sights> &sights,
                    const std::string &name);

// What differs between requests beside the values' elements.
struct Unsteady {
  // Cuts with a value whose structure or size differs between requests, with the reason.
  std::map<size_t, std::string> cuts;
  // Whether anything differs, including types.
  bool may_differ = false;
};

Unsteady unsteady_cuts(lts_source &source, const Follows &follows, const Sights &sights);

}  // namespace lamina
