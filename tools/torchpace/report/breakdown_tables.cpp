#include "report/breakdown_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/number_format.hpp"

namespace torchpace::cli {
namespace {

constexpr int kChartWidth = 32;
constexpr int kDigits = 3;  // of the larger of step and difference

/// All times of a waterfall in one unit and with the same last place, so that they can be added.
class Scale {
 public:
  explicit Scale(const Explanation& explanation) {
    const double step_ns = explanation.from_ns.median;
    for (const auto& [ns, name] : {std::pair{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}, {1.0, "ns"}}) {
      unit_ns_ = ns;
      unit_ = name;
      if (step_ns >= ns) break;
    }
    const double total = std::abs(explanation.total_ns.median) / unit_ns_;
    const int leading = total > 0 ? static_cast<int>(std::floor(std::log10(total))) : 0;
    places_ = std::clamp(kDigits - 1 - leading, 0, kDigits);
  }

  std::string show(double ns) const {
    return std::isnan(ns) ? "n/a" : fmt::format("{} {}", number(ns), unit_);
  }
  std::string show(const Interval& ns) const {
    if (!ns.bounded()) return show(ns.median);
    return fmt::format("{} [{}, {}]", show(ns.median), number(ns.low), number(ns.high));
  }

 private:
  std::string number(double ns) const {
    const auto text = fmt::format("{:.{}f}", ns / unit_ns_, places_);
    return std::stod(text) == 0 && text.front() == '-' ? text.substr(1) : text;
  }

  double unit_ns_ = 1;
  std::string unit_;
  int places_ = 0;
};

/// Draws from where the bars so far lead to where this one does. The axis does not begin at 0: it
/// spans what the bars reach.
class Chart {
 public:
  explicit Chart(const Explanation& explanation) : at_(explanation.from_ns.median) {
    low_ = high_ = at_;
    double at = at_;
    for (const auto& bar : explanation.bars) {
      at -= bar.ns.median;
      low_ = std::min(low_, at);
      high_ = std::max(high_, at);
    }
  }

  std::string step(double ns) const {
    return std::string(static_cast<size_t>(place(ns)), ' ') + "│";
  }

  std::string next(const Bar& bar) {
    const int begin = place(at_);
    at_ -= bar.ns.median;
    const int end = place(at_);
    auto text = std::string(static_cast<size_t>(std::min(begin, end)), ' ');
    const auto* block = bar.ns.median >= 0 ? "█" : "░";  // what B saves; what it spends more
    for (int i = 0; i < std::max(1, std::abs(end - begin)); ++i) text += block;
    return text;
  }

 private:
  int place(double ns) const {
    if (!(high_ > low_)) return 0;
    return static_cast<int>(std::lround((ns - low_) / (high_ - low_) * (kChartWidth - 1)));
  }

  double at_, low_ = 0, high_ = 0;
};

std::string note_of(const Explanation& explanation, const Scale& scale) {
  const auto& total = explanation.total_ns;
  auto text =
      fmt::format("{} takes {} less than {}", explanation.to, scale.show(total), explanation.from);
  if (total.median < 0) {
    text =
        fmt::format("{} takes {} more than {}", explanation.to,
                    scale.show({.median = -total.median, .low = -total.high, .high = -total.low}),
                    explanation.from);
  }
  if (std::isnan(explanation.explained)) {
    text += ": not significantly different from zero";
  } else {
    text += fmt::format("; the bars account for {:.0f} % of it",
                        std::max(0.0, 100 * explanation.explained));
  }
  for (const auto& note : explanation.notes) text += "; " + note;
  return text;
}

std::vector<std::vector<std::string>> waterfall_rows(const Explanation& explanation, Form form,
                                                     const Scale& scale) {
  Chart chart(explanation);
  const bool draws = form == Form::terminal;
  const auto last = [&](const std::string& drawn, const std::string& how) {
    return draws ? drawn : how;
  };
  std::vector<std::vector<std::string>> rows;
  const auto& [from, to] = std::pair{explanation.from_ns, explanation.to_ns};
  rows.push_back({"step of " + explanation.from, scale.show(from.median), "", "",
                  last(chart.step(from.median), "median of the rounds")});
  for (const auto& bar : explanation.bars) {
    rows.push_back({bar.name, scale.show(bar.from_ns), scale.show(bar.to_ns), scale.show(bar.ns),
                    last(chart.next(bar), bar.how)});
  }
  rows.push_back({"step of " + explanation.to, "", scale.show(to.median), "",
                  last(chart.step(to.median), "median of the rounds")});
  return rows;
}

Table waterfall(const Results& results, Form form) {
  Table table{.title = "why",
              .note =
                  "what each part costs a step; less is what the second runtime saves, in "
                  "brackets its interval over invocations",
              .head = {"part", "from", "to", "less", form == Form::terminal ? "" : "how"},
              .groups = {}};
  for (const auto& result : results.cases) {
    if (!result.explanation) continue;
    const auto& explanation = *result.explanation;
    const Scale scale(explanation);
    TableGroup group{
        .name = fmt::format("{}: {} -> {}", result.name, explanation.from, explanation.to),
        .note = "",
        .rows = {}};
    if (explanation.bars.empty()) {
      group.note = fmt::format("{}", fmt::join(explanation.notes, "; "));
    } else {
      group.note = note_of(explanation, scale);
      group.rows = waterfall_rows(explanation, form, scale);
    }
    table.groups.push_back(std::move(group));
  }
  return table;
}

std::string observed(const Observation& seen, const Interval& value) {
  if (seen.unit == "ns") return show_duration(value).both();
  const bool steady = value.low == value.high;
  return show_number(value.median, 3) +
         (steady || !value.bounded()
              ? ""
              : fmt::format(" [{}, {}]", show_number(value.low), show_number(value.high)));
}

Table beside(const Results& results) {
  Table table{.title = "beside it",
              .note =
                  "parts of the step timed apart, the same two under other conditions in the "
                  "same rounds, and counts of a step; speedup is from / to",
              .head = {"what", "from", "to", "speedup"},
              .groups = {}};
  for (const auto& result : results.cases) {
    if (!result.explanation || result.explanation->observations.empty()) continue;
    TableGroup group{.name = result.name, .note = "", .rows = {}};
    for (const auto& seen : result.explanation->observations) {
      group.rows.push_back({seen.name, observed(seen, seen.from), observed(seen, seen.to),
                            std::isnan(seen.ratio.median) ? "" : show_ratio(seen.ratio).both()});
    }
    table.groups.push_back(std::move(group));
  }
  return table;
}

Table operators(const Results& results) {
  Table table{.title = "operators",
              .note = "that differ most in time; per step, without dispatch and profiler",
              .head = {"operator", "part", "calls", "from", "to", "less"},
              .groups = {}};
  for (const auto& result : results.cases) {
    if (!result.explanation || result.explanation->operators.empty()) continue;
    const Scale scale(*result.explanation);
    TableGroup group{.name = result.name, .note = "", .rows = {}};
    for (const auto& each : result.explanation->operators) {
      group.rows.push_back({each.name, each.part,
                            fmt::format("{:g}, {:g}", each.from_calls, each.to_calls),
                            scale.show(each.from_ns), scale.show(each.to_ns),
                            scale.show(each.from_ns - each.to_ns)});
    }
    table.groups.push_back(std::move(group));
  }
  return table;
}

}  // namespace

std::vector<Table> explanation_tables(const Results& results, Form form) {
  return {waterfall(results, form), beside(results), operators(results)};
}

}  // namespace torchpace::cli
