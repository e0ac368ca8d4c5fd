// From probes to the waterfall: where the time goes between two runtimes (docs/explain.md).
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>

#include "analysis/analyze.hpp"
#include "analysis/operator_groups.hpp"
#include "results/results.hpp"
#include "torchpace/comparison.hpp"

namespace torchpace::cli {
namespace {

constexpr const char* kAllocator = "allocator";
constexpr const char* kDispatch = "dispatch";
constexpr const char* kHost = "host code between operators";
constexpr const char* kCompiled = "compiled code";
constexpr const char* kIdle = "device idle";
constexpr const char* kUnexplained = "unexplained";

constexpr std::array kOrder = {kAllocator,   kDispatch,   kMatrix,   kAttention,
                               kElementwise, kReductions, kCopies,   kOptimizer,
                               kOther,       kHost,       kCompiled, kIdle};
constexpr size_t kMostOperators = 10;

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

using ByInvocation = std::map<int, double>;

Interval over_invocations(const ByInvocation& values) {
  std::vector<double> all;
  for (const auto& [number, value] : values) all.push_back(value);
  return all.empty() ? Interval{} : invocation_interval(all);
}

/// `visit(invocation)` of each invocation that knows it; NaN: it does not.
template <class Visit>
ByInvocation each_invocation(const RuntimeResult* row, const Visit& visit) {
  ByInvocation values;
  if (row == nullptr || row->status != Status::ok) return values;
  for (const auto& invocation : row->invocations) {
    if (rounds_that_count(invocation).empty()) continue;
    const double value = visit(invocation);
    if (!std::isnan(value)) values[invocation.invocation] = value;
  }
  return values;
}

ByInvocation combined(const ByInvocation& a, const ByInvocation& b, const auto& operation) {
  ByInvocation values;
  for (const auto& [number, value] : a) {
    const auto other = b.find(number);
    if (other != b.end()) values[number] = operation(value, other->second);
  }
  return values;
}

ByInvocation difference(const ByInvocation& a, const ByInvocation& b) {
  return combined(a, b, std::minus<>());
}

double step_of(const Invocation& invocation) {
  std::vector<double> times;
  for (const auto& round : rounds_that_count(invocation)) {
    times.insert(times.end(), round.step_ns.begin(), round.step_ns.end());
  }
  return times.empty() ? kUnknown : median(times);
}

double device_step_of(const Invocation& invocation) {
  std::vector<double> times;
  for (const auto& round : rounds_that_count(invocation)) {
    times.insert(times.end(), round.device_ns.begin(), round.device_ns.end());
  }
  return times.empty() ? kUnknown : median(times);
}

double faults_of(const Invocation& invocation) {
  double steps = 0, faults = 0;
  for (const auto& round : rounds_that_count(invocation)) {
    steps += round.steps();
    faults += round.page_faults;
  }
  return steps > 0 ? faults / steps : kUnknown;
}

/// What one process spends a step, told from its profile.
struct Spent {
  std::map<std::string, double> bars;
  // (name, part, group) -> calls, time
  std::map<std::tuple<std::string, std::string, std::string>, std::pair<double, double>> operators;
};

bool on_device(const Profile& profile) {
  return std::any_of(profile.operators.begin(), profile.operators.end(),
                     [](const OperatorTime& time) { return time.device_ns > 0; });
}

double outer_calls(const OperatorTime& time) {
  return std::isnan(time.outer_calls) ? time.calls : time.outer_calls;
}

/// Times of kernels on the device; idle is what the device's own clock has besides them.
Spent spent_on_device(const Invocation& invocation, const Profile& profile) {
  Spent spent;
  double busy_ns = 0;
  for (const auto& time : profile.operators) {
    busy_ns += time.device_ns;
    const auto group = is_operator(time.name) ? group_of(time)
                       : profile.compiled     ? kCompiled
                                              : kOther;
    if (time.device_ns > 0) spent.bars[group] += time.device_ns;
    auto& [calls, time_ns] = spent.operators[{time.name, time.part, group}];
    calls += time.calls;
    time_ns += time.device_ns;
  }
  if (const double step_ns = device_step_of(invocation); !std::isnan(step_ns)) {
    spent.bars[kIdle] = step_ns - busy_ns;
  }
  return spent;
}

/// All parts together are the profiled step less what the profiler adds to each of its events.
Spent spent_on_host(const Profile& profile, const DispatchCost& cost) {
  const double empty_ns = median(cost.operator_ns);
  const double profiled_ns = median(cost.profiled_ns);
  const double self_ns = median(cost.profiled_self_ns);
  const double added_ns = profiled_ns - empty_ns;
  Spent spent;
  spent.bars[kDispatch] = 0;
  double& between = spent.bars[profile.compiled ? kCompiled : kHost];
  between = mean(profile.step_ns);
  for (const auto& time : profile.operators) {
    if (!is_operator(time.name)) {
      between -= time.calls * added_ns;
      continue;
    }
    const double outer = outer_calls(time);
    // What the profiler adds to a nested call lies in this operator or in the one around it.
    const double own_ns = time.self_ns - outer * self_ns - (time.calls - outer) * added_ns;
    between -= time.self_ns + outer * (profiled_ns - self_ns);
    spent.bars[kDispatch] += outer * empty_ns;
    const auto group = group_of(time);
    spent.bars[group] += own_ns;
    auto& [calls, time_ns] = spent.operators[{time.name, time.part, group}];
    calls += time.calls;
    time_ns += own_ns;
  }
  return spent;
}

/// Nothing where a probe that it needs has no answer.
std::optional<Spent> spent_of(const Invocation& invocation) {
  if (!invocation.probes || !invocation.probes->profile) return std::nullopt;
  const auto& profile = *invocation.probes->profile;
  if (on_device(profile)) return spent_on_device(invocation, profile);
  const auto& cost = invocation.probes->dispatch;
  if (profile.step_ns.empty() || !cost || cost->operator_ns.empty() || cost->profiled_ns.empty() ||
      cost->profiled_self_ns.empty()) {
    return std::nullopt;
  }
  return spent_on_host(profile, *cost);
}

using SpentByInvocation = std::map<int, Spent>;

SpentByInvocation spent_by(const RuntimeResult& row) {
  SpentByInvocation all;
  for (const auto& invocation : row.invocations) {
    if (rounds_that_count(invocation).empty()) continue;
    if (auto spent = spent_of(invocation)) all[invocation.invocation] = std::move(*spent);
  }
  return all;
}

std::string how(const std::string& bar, bool device) {
  if (bar == kDispatch) return "operators that the language calls times the cost of an empty one";
  if (bar == kHost) return "profiled step less the self times of its operators";
  if (bar == kCompiled && !device) {
    return "profiled step less the self times of its operators, of a runtime whose kernels are "
           "compiled into one piece";
  }
  if (bar == kIdle) return "step on the device's clock less the times of its kernels";
  return device ? "times of kernels on the device, of a profile"
                : "self times of a profile, without dispatch and profiler";
}

class Breakdown {
 public:
  explicit Breakdown(CaseResult& result)
      : result_(result),
        explanation_(*result.explanation),
        from_(result.find(explanation_.from)),
        to_(result.find(explanation_.to)) {}

  void analyze() {
    explanation_ = Explanation(explanation_.from, explanation_.to);
    for (const auto* row : {from_, to_}) {
      if (row != nullptr && row->status == Status::ok && !row->invocations.empty()) continue;
      const auto& name = row == from_ ? explanation_.from : explanation_.to;
      note(fmt::format("nothing can be explained: {} {}", name,
                       row == nullptr              ? "is not there"
                       : row->status != Status::ok ? "is " + std::string(to_string(row->status))
                                                   : "was not timed"));
      return;
    }
    explanation_.from_ns = from_->step_ns;
    explanation_.to_ns = to_->step_ns;
    from_step_ = each_invocation(from_, step_of);
    to_step_ = each_invocation(to_, step_of);
    const auto total = difference(from_step_, to_step_);
    explanation_.total_ns = over_invocations(total);
    // The waterfall begins and ends at the steps of the tables.
    explanation_.total_ns.median = from_->step_ns.median - to_->step_ns.median;
    add_allocator();
    add_profiles();
    add_unexplained(total);
    observe();
    note_unanswered();
  }

 private:
  void note(std::string text) {
    auto& notes = explanation_.notes;
    if (std::find(notes.begin(), notes.end(), text) == notes.end())
      notes.push_back(std::move(text));
  }

  /// The row of a runtime under a condition, `allocator:jemalloc`; null if it was not timed.
  const RuntimeResult* condition_row(const std::string& runtime,
                                     const std::string& condition) const {
    const auto* row = result_.find(runtime + "@" + condition);
    const bool timed = row != nullptr && row->status == Status::ok && !row->invocations.empty();
    return timed ? row : nullptr;
  }

  /// Conditions under which both were timed.
  std::vector<std::string> conditions() const {
    std::vector<std::string> found;
    for (const auto& row : result_.runtimes) {
      if (row.condition_of != explanation_.from) continue;
      const auto condition = row.runtime.substr(explanation_.from.size() + 1);
      if (condition_row(explanation_.from, condition) &&
          condition_row(explanation_.to, condition)) {
        found.push_back(condition);
      }
    }
    return found;
  }

  /// Both sides switch to the allocator that suits the pair best; the profiles are taken there, so
  /// that no page fault counts twice.
  void add_allocator() {
    std::string best;
    double best_ns = from_->step_ns.median + to_->step_ns.median;
    bool any = false;
    for (const auto& condition : conditions()) {
      if (!condition.starts_with("allocator:")) continue;
      any = true;
      const auto* from = condition_row(explanation_.from, condition);
      const auto* to = condition_row(explanation_.to, condition);
      const double both_ns = from->step_ns.median + to->step_ns.median;
      if (both_ns >= best_ns) continue;
      std::tie(best, best_ns, best_from_, best_to_) = std::tuple(condition, both_ns, from, to);
    }
    if (!any) return;
    if (best.empty()) {
      note("no bar for the allocator: no other one makes the steps shorter");
      return;
    }
    add_bar(kAllocator, difference(from_step_, each_invocation(best_from_, step_of)),
            difference(to_step_, each_invocation(best_to_, step_of)),
            fmt::format("what {} saves, in the same rounds", best.substr(best.find(':') + 1)));
  }

  void add_profiles() {
    const auto& from_row = best_from_ ? *best_from_ : *from_;
    const auto& to_row = best_to_ ? *best_to_ : *to_;
    const auto from = spent_by(from_row), to = spent_by(to_row);
    const bool device = is_on_device(from_row) || is_on_device(to_row);
    SpentByInvocation both_from, both_to;
    for (const auto& [number, spent] : from) {
      const auto other = to.find(number);
      if (other == to.end()) continue;
      both_from[number] = spent;
      both_to[number] = other->second;
    }
    if (both_from.empty()) return note("no bars of operators: they need the profiles of both");
    for (const char* bar : kOrder) {
      const auto amounts = [&](const SpentByInvocation& all) {
        ByInvocation values;
        for (const auto& [number, spent] : all) {
          const auto found = spent.bars.find(bar);
          values[number] = found == spent.bars.end() ? 0 : found->second;
        }
        return values;
      };
      const bool anywhere = has_bar(both_from, bar) || has_bar(both_to, bar);
      if (anywhere) add_bar(bar, amounts(both_from), amounts(both_to), how(bar, device));
    }
    compare_operators(both_from, both_to);
    observe_counts(from_row, to_row);
  }

  static bool is_on_device(const RuntimeResult& row) {
    return std::any_of(row.invocations.begin(), row.invocations.end(), [](const Invocation& g) {
      return g.probes && g.probes->profile && on_device(*g.probes->profile);
    });
  }

  static bool has_bar(const SpentByInvocation& all, const char* bar) {
    return std::any_of(all.begin(), all.end(),
                       [&](const auto& each) { return each.second.bars.contains(bar); });
  }

  void add_bar(const char* name, const ByInvocation& from, const ByInvocation& to,
               std::string text) {
    auto values = difference(from, to);
    explanation_.bars.push_back({.name = name,
                                 .ns = over_invocations(values),
                                 .from_ns = over_invocations(from).median,
                                 .to_ns = over_invocations(to).median,
                                 .how = std::move(text)});
    bars_.push_back(std::move(values));
  }

  /// So that the medians add up, it is what they leave of the total; the interval is that of what
  /// each invocation leaves.
  void add_unexplained(const ByInvocation& total) {
    auto left = total;
    for (const auto& bar : bars_) left = difference(left, bar);
    Bar unexplained{.name = kUnexplained,
                    .ns = over_invocations(left),
                    .from_ns = explanation_.from_ns.median,
                    .to_ns = explanation_.to_ns.median,
                    .how = "what the other bars leave"};
    auto& ns = unexplained.ns;
    ns.median = explanation_.total_ns.median;
    for (const auto& bar : explanation_.bars) {
      ns.median -= bar.ns.median;
      unexplained.from_ns -= bar.from_ns;
      unexplained.to_ns -= bar.to_ns;
    }
    // A sum of medians is not the median of sums.
    if (ns.bounded()) {
      ns.low = std::min(ns.low, ns.median);
      ns.high = std::max(ns.high, ns.median);
    }
    explanation_.bars.push_back(unexplained);
    const auto& all = explanation_.total_ns;
    const bool differs = !(all.low <= 0 && all.high >= 0) && all.median != 0;
    explanation_.explained = differs ? 1 - std::abs(ns.median / all.median) : kUnknown;
  }

  void compare_operators(const SpentByInvocation& from, const SpentByInvocation& to) {
    struct Values {
      std::vector<double> calls, ns;
    };
    using Key = std::tuple<std::string, std::string, std::string>;
    std::map<Key, std::array<Values, 2>> all;
    size_t side = 0;
    for (const auto* spent : {&from, &to}) {
      for (const auto& [number, each] : *spent) {
        for (const auto& [key, value] : each.operators) {
          all[key][side].calls.push_back(value.first);
          all[key][side].ns.push_back(value.second);
        }
      }
      ++side;
    }
    const auto middle = [](const std::vector<double>& values) {
      return values.empty() ? 0 : median(values);
    };
    for (const auto& [key, sides] : all) {
      explanation_.operators.push_back({.name = std::get<0>(key),
                                        .part = std::get<1>(key),
                                        .group = std::get<2>(key),
                                        .from_calls = middle(sides[0].calls),
                                        .to_calls = middle(sides[1].calls),
                                        .from_ns = middle(sides[0].ns),
                                        .to_ns = middle(sides[1].ns)});
    }
    auto& operators = explanation_.operators;
    std::stable_sort(operators.begin(), operators.end(), [](const auto& a, const auto& b) {
      return std::abs(a.from_ns - a.to_ns) > std::abs(b.from_ns - b.to_ns);
    });
    operators.resize(std::min(operators.size(), kMostOperators));
  }

  /// Left out where one side does not know it.
  void observe_values(const std::string& name, const std::string& unit, const ByInvocation& from,
                      const ByInvocation& to) {
    if (from.empty() || to.empty()) return;
    Observation seen{.name = name,
                     .unit = unit,
                     .from = over_invocations(from),
                     .to = over_invocations(to),
                     .ratio = {}};
    if (unit == "ns") {
      const auto logs = combined(from, to, [](double a, double b) { return std::log(a / b); });
      if (!logs.empty()) seen.ratio = exponential(over_invocations(logs));
    }
    explanation_.observations.push_back(std::move(seen));
  }

  void observe_probe(const std::string& name, const std::string& unit, const RuntimeResult& from,
                     const RuntimeResult& to, const auto& value_of) {
    const auto visit = [&](const Invocation& invocation) {
      return invocation.probes ? value_of(*invocation.probes) : kUnknown;
    };
    observe_values(name, unit, each_invocation(&from, visit), each_invocation(&to, visit));
  }

  /// Of the rows whose profiles are in the waterfall.
  void observe_counts(const RuntimeResult& from, const RuntimeResult& to) {
    const auto count = [&](const char* name, const auto& calls_of) {
      observe_probe(name, "count", from, to, [&](const Probes& probes) {
        if (!probes.profile) return kUnknown;
        double sum = 0;
        for (const auto& time : probes.profile->operators) {
          if (is_operator(time.name)) sum += calls_of(time);
        }
        return sum;
      });
    };
    count("operators", [](const OperatorTime& time) { return time.calls; });
    count("of these called by the language",
          [](const OperatorTime& time) { return time.outer_calls; });
    observe_probe("synchronizations", "count", from, to, [](const Probes& probes) {
      return probes.profile ? probes.profile->synchronizations : kUnknown;
    });
  }

  void observe() {
    auto counts = std::exchange(explanation_.observations, {});
    auto& seen = explanation_.observations;
    seen.push_back({.name = "step",
                    .unit = "ns",
                    .from = from_->step_ns,
                    .to = to_->step_ns,
                    .ratio = to_->speedup.ratio});
    for (const char* part : {"forward", "backward", "optimizer"}) {
      observe_probe(part, "ns", *from_, *to_, [&](const Probes& probes) {
        const auto found = probes.parts_ns.find(part);
        const bool known = found != probes.parts_ns.end() && !found->second.empty();
        return known ? median(found->second) : kUnknown;
      });
    }
    for (const auto& condition : conditions()) {
      observe_values("step @" + condition, "ns",
                     each_invocation(condition_row(explanation_.from, condition), step_of),
                     each_invocation(condition_row(explanation_.to, condition), step_of));
    }
    observe_probe("empty operator", "ns", *from_, *to_, [](const Probes& probes) {
      return probes.dispatch && !probes.dispatch->operator_ns.empty()
                 ? median(probes.dispatch->operator_ns)
                 : kUnknown;
    });
    seen.insert(seen.end(), counts.begin(), counts.end());
    observe_values("page faults", "count", each_invocation(from_, faults_of),
                   each_invocation(to_, faults_of));
  }

  void note_unanswered() {
    for (const auto* row : {from_, to_}) {
      for (const auto& invocation : row->invocations) {
        if (!invocation.probes) continue;
        for (const auto& [command, why] : invocation.probes->unanswered) {
          const auto text = why.starts_with(command) ? why : command + ": " + why;
          note(fmt::format("{} does not answer {}", row->runtime, text));
        }
      }
    }
  }

  CaseResult& result_;
  Explanation& explanation_;
  const RuntimeResult* from_;
  const RuntimeResult* to_;
  const RuntimeResult* best_from_ = nullptr;  // under a better allocator, if there is one
  const RuntimeResult* best_to_ = nullptr;
  ByInvocation from_step_, to_step_;
  std::vector<ByInvocation> bars_;  // of those in the explanation, in their order
};

}  // namespace

void analyze_breakdown(CaseResult& result) {
  if (result.explanation) Breakdown(result).analyze();
}

}  // namespace torchpace::cli
