// What the values of a graph are in single forwards, and how they follow the batch.
#pragma once

#include "source.hpp"

#include <unordered_map>
#include <vector>

namespace lamina {

// A value at one time: the sizes of a tensor, a number (true is 1), a list of numbers,
// or the length of another list.
struct Sight {
  enum class Kind { kTensor, kNumber, kNumbers, kLength, kOther };
  Kind kind = Kind::kOther;
  std::vector<double> numbers;
  // Of a tensor.
  std::optional<at::ScalarType> type;
};

// Each value's sights in the order of execution, of the first executions alone.
using Sights = std::unordered_map<const Value *, std::vector<Sight>>;

// One forward of the analysed graph.
Sights watch(const lts_source &source, const std::vector<at::Tensor> &inputs);

// What follows the batch in another way than in proportion, found by judging each
// operation alone: a comparison at a few batch sizes would prove nothing about others.
struct Batch {
  // Why a trace would hold for one batch size alone.
  std::optional<std::string> fixes_trace;
  // Conditions and lengths of loops that are others at another batch.
  std::unordered_set<const Value *> conditions;
};

// `sights` are those of batches of 1, 2 and 3; of fewer, where the batch is not free.
Batch follow_batch(const std::shared_ptr<Graph> &graph, const std::vector<Sights> &sights);

// What a request decides about beside what values hold.
struct Unsteady {
  // Cuts at which something crosses that is of another make or size for some requests, with
  // the reason.
  std::map<size_t, std::string> cuts;
  // Whether anything is, or is of another type.
  bool may_differ = false;
};

Unsteady unsteady_cuts(lts_source &source, const Batch &batch, const Sights &sights);

}  // namespace lamina
