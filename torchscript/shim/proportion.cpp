// Finds numbers and branches that follow the batch or another free size, and whether in proportion.
// A trace has the numbers of one size; those proportional to the batch can be made to follow.

#include "watch.hpp"

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <cmath>

namespace aten = c10::aten;
namespace prim = c10::prim;

namespace lamina {
namespace {

enum class How {
  kNothing,     // the same at any batch
  kProportion,  // a number times the batch
  kOtherwise,
};

struct Mark {
  How follows = How::kNothing;
  // Node where it stopped being proportional.
  const Node *origin = nullptr;
};

const Mark kFree{};
const Mark kInProportion{How::kProportion, nullptr};

Mark otherwise(const Node *origin) { return {How::kOtherwise, origin}; }

// Merges the marks of elements of one list, each free or proportional by itself.
Mark worse(const Mark &a, const Mark &b) {
  return static_cast<int>(a.follows) >= static_cast<int>(b.follows) ? a : b;
}

// Merges the marks of two branches.
Mark either(const Mark &a, const Mark &b, const Node *node) {
  return a.follows == b.follows ? a : otherwise(node);
}

bool is_free(const Mark &mark) { return mark.follows == How::kNothing; }
bool is_proportional(const Mark &mark) { return mark.follows == How::kProportion; }

bool named(const Node *node, const std::unordered_set<std::string> &names) {
  return names.count(node->kind().toQualString()) > 0;
}

// Whether a value is or holds a tensor.
bool holds_tensor(const c10::TypePtr &type) {
  if (type->kind() == c10::TypeKind::TensorType) return true;
  for (const c10::TypePtr &inner : type->containedTypes())
    if (holds_tensor(inner)) return true;
  return false;
}

bool is_comparison(const Node *node) {
  return node->kind() == aten::eq || node->kind() == aten::ne || node->kind() == aten::lt ||
         node->kind() == aten::le || node->kind() == aten::gt || node->kind() == aten::ge;
}

class Follower {
 public:
  // `size` is its name in reasons; what is proportional to it counts as such only if `proportion`
  // is set.
  Follower(const std::shared_ptr<Graph> &graph, const std::vector<Sights> &sights,
           std::string size, bool proportion)
      : sights_(sights), aliases_(graph), size_(std::move(size)), proportion_(proportion) {
    visit(graph->block());
  }

  Follows take() { return std::move(follows_); }

 private:
  // --- observations ---

  const std::vector<Sight> *seen(const Value *value, size_t run = 0) const {
    auto found = sights_[run].find(value);
    bool usable = found != sights_[run].end() && !found->second.empty();
    return usable ? &found->second : nullptr;
  }

  // A number that was the same every time within a run.
  std::optional<double> number(const Value *value, size_t run = 0) const {
    const auto *sights = seen(value, run);
    if (sights == nullptr) return std::nullopt;
    for (const Sight &sight : *sights)
      if (sight.kind != Sight::Kind::kNumber || sight.numbers != sights->front().numbers)
        return std::nullopt;
    return sights->front().numbers[0];
  }

  // How an observed number follows the batch, as far as three sizes show.
  Mark by_sights(const Value *value, size_t place, const Node *node) const {
    const auto *one = seen(value, 0), *two = seen(value, 1), *three = seen(value, 2);
    if (one == nullptr || two == nullptr || three == nullptr || one->size() != two->size() ||
        one->size() != three->size())
      return otherwise(node);
    std::optional<Mark> mark;
    for (size_t i = 0; i < one->size(); ++i) {
      const auto &a = (*one)[i].numbers, &b = (*two)[i].numbers, &c = (*three)[i].numbers;
      if (place >= a.size() || place >= b.size() || place >= c.size()) return otherwise(node);
      Mark here = otherwise(node);
      if (a[place] == b[place] && a[place] == c[place]) here = kFree;
      else if (proportion_ && b[place] == 2 * a[place] && c[place] == 3 * a[place]) here = kInProportion;
      mark = mark.has_value() ? either(*mark, here, node) : here;
    }
    return *mark;
  }

  // --- marks ---

  Mark of(const Value *value) const {
    auto found = marks_.find(value);
    return found == marks_.end() ? kFree : found->second;
  }

  void mark(const Value *value, const Mark &mark) { marks_[value] = mark; }

  size_t rank(const Value *tensor) const {
    const auto *sights = seen(tensor);
    return sights == nullptr ? 0 : sights->front().numbers.size();
  }

  Mark size(const Value *tensor, int64_t dim, const Node *node) const {
    int64_t count = static_cast<int64_t>(rank(tensor));
    if (dim < 0) dim += count;
    if (dim < 0 || dim >= count || irregular_.count(tensor) > 0) return otherwise(node);
    return by_sights(tensor, static_cast<size_t>(dim), node);
  }

  Mark sizes(const Value *tensor, const Node *node) const {
    Mark all = kFree;
    for (size_t i = 0; i < rank(tensor); ++i)
      all = worse(all, size(tensor, static_cast<int64_t>(i), node));
    return seen(tensor) == nullptr ? otherwise(node) : all;
  }

  Mark elements(const Value *tensor, const Node *node) const {
    size_t following = 0;
    for (size_t i = 0; i < rank(tensor); ++i) {
      Mark mark = size(tensor, static_cast<int64_t>(i), node);
      if (mark.follows == How::kOtherwise) return mark;
      following += is_proportional(mark) ? 1 : 0;
    }
    if (seen(tensor) == nullptr || following > 1) return otherwise(node);
    return following == 0 ? kFree : kInProportion;
  }

  // Marks per item of a list or tuple whose making is visible.
  std::optional<std::vector<Mark>> items(const Value *list) const {
    const Node *node = list->node();
    std::vector<Mark> marks;
    if (node->kind() == prim::TupleConstruct || node->kind() == prim::ListConstruct) {
      if (aliases_.hasWriters(list)) return std::nullopt;
      for (const Value *input : node->inputs()) marks.push_back(of(input));
      return marks;
    }
    if (node->kind() == prim::Constant) {
      const auto *sights = seen(list);
      if (sights == nullptr) return std::nullopt;
      marks.resize(sights->front().numbers.size());
      return marks;
    }
    if (node->kind() != aten::size || node->inputs().size() != 1) return std::nullopt;
    for (size_t i = 0; i < rank(node->input()); ++i)
      marks.push_back(size(node->input(), static_cast<int64_t>(i), node));
    return marks;
  }

  // --- rules ---

  // Whether `a` compared with `b` gives the same result at any batch from 1 on. `x` and `y` are
  // their values at batch 1.
  static bool is_decided(c10::Symbol how, const Mark &a, double x, const Mark &b, double y) {
    if (is_free(a) && is_free(b)) return true;
    if (is_proportional(a) && is_proportional(b)) return true;
    if (a.follows == How::kOtherwise || b.follows == How::kOtherwise) return false;
    if (is_free(a)) {
      static const std::unordered_map<c10::Symbol, c10::Symbol> turned = {
          {aten::lt, aten::gt}, {aten::le, aten::ge}, {aten::gt, aten::lt}, {aten::ge, aten::le}};
      auto found = turned.find(how);
      return is_decided(found == turned.end() ? how : found->second, b, y, a, x);
    }
    // x, 2x, 3x, … against y.
    if (x <= 0) return false;
    if (how == aten::lt || how == aten::ge) return x >= y;
    return x > y;
  }

  Mark compare(const Node *node) const {
    const Value *a = node->input(0), *b = node->input(1);
    auto many = items(a), others = items(b);
    if (many.has_value() && others.has_value()) {
      if (many->size() != others->size()) return kFree;
      const auto *left = seen(a), *right = seen(b);
      if (left == nullptr || right == nullptr || left->size() != 1 || right->size() != 1)
        return otherwise(node);
      for (size_t i = 0; i < many->size(); ++i) {
        if (i >= left->front().numbers.size() || i >= right->front().numbers.size() ||
            !is_decided(aten::eq, (*many)[i], left->front().numbers[i], (*others)[i],
                        right->front().numbers[i]))
          return otherwise(node);
      }
      return kFree;
    }
    auto x = number(a), y = number(b);
    bool decided = x.has_value() && y.has_value() && is_decided(node->kind(), of(a), *x, of(b), *y);
    return decided ? kFree : otherwise(node);
  }

  Mark arithmetic(const Node *node) const {
    Mark a = of(node->input(0)), b = node->inputs().size() > 1 ? of(node->input(1)) : kFree;
    if (a.follows == How::kOtherwise) return a;
    if (b.follows == How::kOtherwise) return b;
    auto x = number(node->input(0));
    auto y = node->inputs().size() > 1 ? number(node->input(1)) : std::nullopt;
    bool both = is_proportional(a) && is_proportional(b);
    bool known = x.has_value() && y.has_value();
    auto name = std::string(node->kind().toUnqualString());
    if (name == "neg") return a;
    if (name == "mul") return both ? otherwise(node) : kInProportion;
    if (name == "add" || name == "sub") {
      bool nothing = known && ((is_free(a) && *x == 0) || (is_free(b) && *y == 0));
      if (!both && !nothing) return otherwise(node);
      return by_sights(node->output(), 0, node);
    }
    if (name == "div" || name == "truediv") {
      if (both) return kFree;
      return is_proportional(a) ? kInProportion : otherwise(node);
    }
    if (name == "floordiv") {
      if (both) return kFree;
      bool whole = known && is_proportional(a) && *y != 0 && std::fmod(*x, *y) == 0;
      return whole ? kInProportion : otherwise(node);
    }
    if (name == "remainder") {
      bool nothing = known && is_proportional(a) && *y != 0 && std::fmod(*x, *y) == 0;
      return nothing ? kFree : otherwise(node);
    }
    if (name == "max" || name == "min") {
      if (both) return kInProportion;
      if (!known) return otherwise(node);
      double following = is_proportional(a) ? *x : *y, fixed = is_proportional(a) ? *y : *x;
      if (following < fixed || following <= 0) return otherwise(node);
      return name == "max" ? kInProportion : kFree;
    }
    return otherwise(node);
  }

  // A proportional or free number stays so if only its type changes.
  Mark converted(const Node *node) const {
    Mark a = of(node->input(0));
    if (node->kind() == aten::Int && is_proportional(a)) {
      auto x = number(node->input(0));
      return x.has_value() && *x == std::floor(*x) ? a : otherwise(node);
    }
    if (node->kind() == aten::Bool && is_proportional(a)) {
      auto x = number(node->input(0));
      return x.has_value() && *x > 0 ? kFree : otherwise(node);
    }
    return a;
  }

  Mark picked(const Node *node) const {
    Mark all = of(node->input(0));
    auto index = number(node->input(1));
    auto each = items(node->input(0));
    if (each.has_value() && index.has_value()) {
      auto at = static_cast<int64_t>(*index);
      if (at < 0) at += static_cast<int64_t>(each->size());
      if (at >= 0 && at < static_cast<int64_t>(each->size()))
        return (*each)[static_cast<size_t>(at)];
    }
    return is_proportional(all) ? by_sights(node->output(), 0, node) : all;
  }

  // How a number, a list or another value other than a tensor follows.
  Mark judged(const Node *node, size_t output) const {
    static const std::unordered_set<std::string> kSteady = {
        "aten::dim", "aten::is_floating_point", "aten::is_complex", "aten::is_signed",
        "aten::get_device", "aten::element_size", "aten::result_type", "prim::dtype",
        "prim::device", "prim::layout", "prim::type", "prim::is_cuda", "prim::is_cpu",
        "prim::is_sparse", "prim::is_mkldnn", "prim::is_quantized", "prim::is_nested",
        "prim::is_meta", "prim::requires_grad", "prim::Uninitialized"};
    static const std::unordered_set<std::string> kChoices = {
        "aten::__is__", "aten::__isnot__", "prim::isinstance", "aten::__contains__", "aten::keys"};
    static const std::unordered_set<std::string> kArithmetic = {
        "aten::neg", "aten::mul", "aten::add", "aten::sub", "aten::div", "aten::floordiv",
        "aten::remainder", "prim::max", "prim::min"};
    static const std::unordered_set<std::string> kConversions = {
        "aten::Int", "aten::Float", "aten::Bool", "aten::ScalarImplicit", "aten::IntImplicit",
        "aten::FloatImplicit", "prim::unchecked_cast", "aten::_unwrap_optional"};
    if (node->inputs().empty() || named(node, kSteady)) return kFree;
    const Value *first = node->input(0);
    if (named(node, kChoices)) {
      for (const Value *input : node->inputs())
        if (chosen_.count(input) > 0) return otherwise(node);
      if (node->kind() != aten::__contains__) return kFree;
      return worse(of(first), of(node->input(1))).follows == How::kNothing || holds_tensor(first->type())
                 ? kFree
                 : otherwise(node);
    }
    if (is_tensor(first)) {
      if (node->kind() == aten::size && node->inputs().size() == 1) return sizes(first, node);
      if (node->kind() == aten::size) {
        auto dim = number(node->input(1));
        return dim.has_value() ? size(first, static_cast<int64_t>(*dim), node) : otherwise(node);
      }
      if (node->kind() == aten::len) return size(first, 0, node);
      if (node->kind() == aten::numel) return elements(first, node);
      if (node->kind() == aten::stride || node->kind() == aten::storage_offset ||
          node->kind() == aten::is_contiguous)
        return is_free(sizes(first, node)) ? kFree : otherwise(node);
    }
    if (node->kind() == aten::len) {
      if (items(first).has_value()) return kFree;
      if (chosen_.count(first) > 0 || irregular_.count(first) > 0) return otherwise(node);
      return is_free(of(first)) ? kFree : by_sights(node->output(output), 0, node);
    }
    bool all_free = true;
    for (const Value *input : node->inputs()) all_free &= is_free(of(input));
    if (all_free) return kFree;
    if (named(node, kConversions)) return converted(node);
    if (node->kind() == aten::__getitem__ && node->inputs().size() == 2) return picked(node);
    if (node->kind() == prim::ListUnpack || node->kind() == prim::TupleUnpack) {
      auto each = items(first);
      if (each.has_value() && output < each->size()) return (*each)[output];
      return is_proportional(of(first)) ? by_sights(node->output(output), 0, node) : of(first);
    }
    if (node->kind() == prim::ListConstruct || node->kind() == prim::TupleConstruct ||
        node->kind() == prim::DictConstruct) {
      Mark all = kFree;
      for (const Value *input : node->inputs()) all = worse(all, of(input));
      return all;
    }
    bool numbers = true;
    for (const Value *input : node->inputs()) numbers &= !holds_tensor(input->type());
    if (numbers && is_comparison(node) && node->inputs().size() == 2) return compare(node);
    if (numbers && named(node, kArithmetic) && node->inputs().size() <= 2) return arithmetic(node);
    for (const Value *input : node->inputs())
      if (of(input).follows == How::kOtherwise) return of(input);
    return otherwise(node);
  }

  // Whether `node`'s output may have other sizes at batches not observed: it takes a fixed number
  // of rows, if there are so many.
  bool takes_some_rows(const Node *node) const {
    static const std::unordered_set<std::string> kParts = {
        "aten::slice", "aten::split", "aten::tensor_split", "aten::chunk", "aten::unsafe_split",
        "aten::unsafe_chunk", "aten::split_with_sizes", "aten::unbind"};
    if (!named(node, kParts) || node->inputs().empty() || !is_tensor(node->input(0))) return false;
    const Value *tensor = node->input(0);
    const bool slices = node->kind() == aten::slice;
    const bool unbinds = node->kind() == aten::unbind;
    const size_t place = slices || unbinds ? 1 : 2;
    auto dim = node->inputs().size() > place ? number(node->input(place)) : std::nullopt;
    if (!dim.has_value()) return true;
    if (is_free(size(tensor, static_cast<int64_t>(*dim), node))) return false;
    if (!slices || node->inputs().size() < 5) return true;
    auto start = number(node->input(2));
    bool from_begin = node->input(2)->mustBeNone() || (start.has_value() && *start == 0);
    auto end = number(node->input(3));
    constexpr double kEver = 2147483647;
    bool to_end = node->input(3)->mustBeNone() || is_proportional(of(node->input(3))) ||
                  (end.has_value() && *end >= kEver);
    return !from_begin || !to_end;
  }

  // --- the walk ---

  void visit(const Block *block) {
    for (const Node *node : block->nodes()) visit(node);
  }

  void visit(const Node *node) {
    if (node->kind() == prim::If) return branch(node);
    if (node->kind() == prim::Loop) return loop(node);
    for (const Block *inner : node->blocks()) visit(inner);
    bool irregular = takes_some_rows(node);
    bool chosen = false;
    Mark of_tensor = kFree;
    for (const Value *input : node->inputs()) {
      const Mark mark = of(input);
      if (!is_free(mark)) of_tensor = otherwise(mark.origin == nullptr ? node : mark.origin);
      irregular |= irregular_.count(input) > 0;
      chosen |= chosen_.count(input) > 0;
      if (mark.follows == How::kOtherwise && !holds_tensor(input->type())) {
        irregular = true;
        baked(node, mark);
      }
    }
    const c10::FunctionSchema *schema = node->maybeSchema();
    bool writes = schema != nullptr && schema->is_mutable() && !node->inputs().empty();
    if (writes && !is_tensor(node->input(0)) && !is_free(of_tensor)) {
      mark(node->input(0), of_tensor);
      if (irregular) irregular_.insert(node->input(0));
    }
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      const Value *output = node->output(i);
      mark(output, holds_tensor(output->type()) ? of_tensor : judged(node, i));
      if (irregular && holds_tensor(output->type())) irregular_.insert(output);
      if (chosen && !is_tensor(output) && holds_tensor(output->type())) chosen_.insert(output);
    }
  }

  // A tensor operation reads a number that a trace would fix.
  void baked(const Node *node, const Mark &mark) {
    bool computes = node->outputs().empty() && node->kind() != prim::RaiseException;
    for (const Value *output : node->outputs()) computes |= holds_tensor(output->type());
    if (!computes || follows_.fixes_trace.has_value()) return;
    follows_.fixes_trace = "a number depends on " + size_ + by(mark) +
                            (proportion_ ? " in another way than in proportion" : "");
  }

  static std::string by(const Mark &mark) {
    if (mark.origin == nullptr) return "";
    return std::string(" (") + mark.origin->kind().toQualString() + ')';
  }

  // The branches taken at batch 1 to 3; both if unknown.
  std::pair<bool, bool> ways(const Value *condition) const {
    bool first = false, second = false;
    for (size_t run = 0; run < sights_.size(); ++run) {
      const auto *sights = seen(condition, run);
      if (sights == nullptr) continue;
      if (sights->size() > 32) return {true, true};
      for (const Sight &sight : *sights)
        (sight.numbers.empty() || sight.numbers[0] != 0 ? first : second) = true;
    }
    return {first, second};
  }

  void branch(const Node *node) {
    const Mark condition = of(node->input());
    bool follows = !is_free(condition);
    auto [first, second] = ways(node->input());
    if (follows) {
      first = second = true;
      follows_.conditions.insert(node->input());
      if (!follows_.fixes_trace.has_value())
        follows_.fixes_trace = "a branch depends on " + size_ + by(condition);
    }
    if (first) visit(node->blocks()[0]);
    if (second) visit(node->blocks()[1]);
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      const Value *output = node->output(i);
      const Value *left = node->blocks()[0]->outputs()[i], *right = node->blocks()[1]->outputs()[i];
      if (follows) {
        chosen_.insert(output);
        irregular_.insert(output);
        mark(output, otherwise(condition.origin == nullptr ? node : condition.origin));
        continue;
      }
      for (const auto &[way, taken] : {std::pair(left, first), std::pair(right, second)}) {
        if (!taken) continue;
        if (chosen_.count(way) > 0) chosen_.insert(output);
        if (irregular_.count(way) > 0) irregular_.insert(output);
      }
      mark(output, first && second ? either(of(left), of(right), node) : of(first ? left : right));
    }
  }

  void loop(const Node *node) {
    const Block *body = node->blocks()[0];
    for (size_t i = 0; i + 1 < body->inputs().size(); ++i) {
      const Value *initial = node->input(i + 2);
      mark(body->inputs()[i + 1], of(initial));
      if (chosen_.count(initial) > 0) chosen_.insert(body->inputs()[i + 1]);
      if (irregular_.count(initial) > 0) irregular_.insert(body->inputs()[i + 1]);
    }
    // Marks only rise: free, proportional, otherwise.
    bool runs = false;
    for (size_t run = 0; run < sights_.size(); ++run) runs |= seen(body->inputs()[0], run) != nullptr;
    for (int round = 0; runs && round < 4; ++round) {
      visit(body);
      bool changed = false;
      for (size_t i = 0; i + 1 < body->inputs().size(); ++i) {
        const Value *carried = body->inputs()[i + 1], *next = body->outputs()[i + 1];
        const Mark joined = either(of(carried), of(next), node);
        changed |= joined.follows != of(carried).follows;
        mark(carried, joined);
        if (chosen_.count(next) > 0) changed |= chosen_.insert(carried).second;
        if (irregular_.count(next) > 0) changed |= irregular_.insert(carried).second;
      }
      if (!changed) break;
    }
    Mark length = worse(worse(of(node->input(0)), of(node->input(1))), of(body->outputs()[0]));
    bool follows = !is_free(length);
    if (follows) {
      follows_.conditions.insert({node->input(0), node->input(1), body->outputs()[0]});
      if (!follows_.fixes_trace.has_value())
        follows_.fixes_trace = "the length of a loop depends on " + size_ + by(length);
    }
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      const Value *output = node->output(i), *carried = body->inputs()[i + 1];
      mark(output, follows ? otherwise(node) : of(carried));
      if (follows || chosen_.count(carried) > 0) chosen_.insert(output);
      if (follows || irregular_.count(carried) > 0) irregular_.insert(output);
    }
  }

  const std::vector<Sights> &sights_;
  torch::jit::AliasDb aliases_;
  std::unordered_map<const Value *, Mark> marks_;
  // Values chosen, or grown, by a condition that follows the batch.
  std::unordered_set<const Value *> chosen_;
  // Tensors whose sizes at batches of 1 to 3 do not predict others.
  std::unordered_set<const Value *> irregular_;
  // Name of the free size.
  std::string size_;
  bool proportion_;
  Follows follows_;
};

}  // namespace

Follows follow_batch(const std::shared_ptr<Graph> &graph, const std::vector<Sights> &sights) {
  if (sights.size() < kSizes) return {};
  return Follower(graph, sights, "the size of the batch", /*proportion=*/true).take();
}

Follows follow_size(const std::shared_ptr<Graph> &graph, const std::vector<Sights> &sights,
                    const std::string &name) {
  return Follower(graph, sights, "the size `" + name + '`', /*proportion=*/false).take();
}

}  // namespace lamina
