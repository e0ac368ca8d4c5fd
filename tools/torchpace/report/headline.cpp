#include "report/headline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/number_format.hpp"
#include "report/text_table.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

constexpr double kQuotableWidth = 0.05;  // of the A/A interval
constexpr const char* kVerdicts[] = {"FASTER", "SLOWER",  "SAME",
                                     "UNSURE", "INVALID", "IMPLAUSIBLE"};

/// Names of all runtimes but the reference, copies, conditions and approximate ones, in the order
/// in which they come.
std::vector<std::string> compared(const Results& results) {
  std::vector<std::string> names;
  for (const auto& result : results.cases) {
    for (const auto& row : result.runtimes) {
      const bool known = std::find(names.begin(), names.end(), row.runtime) != names.end();
      const bool judged = !row.is_copy() && !row.is_condition() && !row.approximate &&
                          row.runtime != result.reference;
      if (!known && judged) names.push_back(row.runtime);
    }
  }
  return names;
}

/// A line for each runtime with the geometric mean of its speedups, and one for those that were not
/// measured on every case.
std::vector<std::string> mean_lines(const Results& results) {
  const auto folded = folded_rows(results);
  std::vector<std::string> lines, partial;
  for (const auto& runtime : compared(results)) {
    if (is_folded(folded, runtime)) continue;
    double logs = 0;
    const bool everywhere =
        std::all_of(results.cases.begin(), results.cases.end(), [&](const CaseResult& result) {
          const auto* row = result.find(runtime);
          const bool counts =
              row != nullptr && result.counts(*row) && !std::isnan(row->speedup.ratio.median);
          if (counts) logs += std::log(row->speedup.ratio.median);
          return counts;
        });
    if (!everywhere) {
      partial.push_back(runtime);
      continue;
    }
    const double mean = std::exp(logs / static_cast<double>(results.cases.size()));
    lines.push_back(fmt::format("{}: geometric mean of {} speedups {}", runtime,
                                results.cases.size(), show_ratio(Interval{.median = mean}).median));
  }
  if (!partial.empty()) {
    lines.push_back(fmt::format("no geometric mean of {}: no speedup that counts on every case",
                                fmt::join(partial, ", ")));
  }
  return lines;
}

/// Whether the run may be quoted; empty where it may. A reference that differs from its own copy
/// by chance differs from others by chance.
std::string noise_text(const Results& results) {
  const CaseResult* widest = nullptr;
  long count = 0;
  const auto width = [](const CaseResult& result) {
    return result.noise_floor.bounded() ? result.noise_floor.relative_width() : 0;
  };
  for (const auto& result : results.cases) {
    if (width(result) <= kQuotableWidth) continue;
    ++count;
    if (widest == nullptr || width(result) > width(*widest)) widest = &result;
  }
  if (widest == nullptr) return "";
  return fmt::format(
      "Too noisy to quote: the A/A interval of {} of {} is wider than {:g} % ({}: {}). Stop other "
      "programs (torchpace doctor names them) or take more --invocations.",
      count, counted(std::ssize(results.cases), "case"), 100 * kQuotableWidth, widest->name,
      show_share(width(*widest)));
}

/// How many verdicts may be wrong by chance; empty where there is none.
std::string chance_text(const Results& results) {
  long judged = 0;
  for (const auto& result : results.cases) {
    for (const auto& row : result.runtimes) {
      if (result.counts(row) && !row.is_copy() && row.runtime != result.reference &&
          row.speedup.ratio.bounded()) {
        ++judged;
      }
    }
  }
  if (judged == 0) return "";
  const double wrong = static_cast<double>(judged) * (1 - results.plan.confidence);
  return fmt::format("{} at {:g} % confidence: {} may miss the true speedup by chance",
                     counted(judged, "interval"), 100 * results.plan.confidence,
                     wrong < 1 ? std::string("less than one") : fmt::format("about {:.0f}", wrong));
}

/// `a, b and c`.
std::string joined(const std::vector<std::string>& parts) {
  if (parts.size() < 2) return parts.empty() ? "" : parts.front();
  const std::vector<std::string> first(parts.begin(), parts.end() - 1);
  return fmt::format("{} and {}", fmt::join(first, ", "), parts.back());
}

/// `cpp-eager 1.33x [1.31, 1.36] and py-aot 1.1x [1.0, 1.2]`; the reference has its name.
std::string listed(const std::vector<const RuntimeResult*>& rows) {
  std::vector<std::string> parts;
  for (const auto* row : rows) {
    const bool known = !std::isnan(row->speedup.ratio.median);
    parts.push_back(row->runtime + (known ? " " + speedup_text(*row) : ""));
  }
  return joined(parts);
}

/// `Approximate: py-int8 1.33x [1.31, 1.36] (cos 0.9998, top-1 99.1 %).`; empty where none was
/// measured.
std::string approximate_text(const CaseResult& result) {
  std::vector<std::string> parts;
  for (const auto& row : result.runtimes) {
    if (row.speedup.verdict != "APPROXIMATE" || row.is_condition()) continue;
    const auto error = approximation_text(row);
    parts.push_back(row.runtime + " " + speedup_text(row) +
                    (error.empty() ? "" : fmt::format(" ({})", error)));
  }
  return parts.empty() ? "" : fmt::format("Approximate: {}.", joined(parts));
}

/// The rows of `names`.
std::vector<const RuntimeResult*> rows_of(const CaseResult& result,
                                          const std::vector<std::string>& names) {
  std::vector<const RuntimeResult*> rows;
  for (const auto& name : names) {
    if (const auto* row = result.find(name)) rows.push_back(row);
  }
  return rows;
}

std::string value_text(const Json& environment, const std::string& key) {
  const auto found = environment.find(key);
  if (found == environment.end() || found->is_null() || *found == "") return "n/a";
  return found->is_string() ? found->get<std::string>() : found->dump();
}

}  // namespace

std::string speedup_text(const RuntimeResult& row) {
  const auto shown = show_ratio(row.speedup.ratio);
  return Shown{shown.median + (row.differs.empty() ? "" : "*"), shown.interval}.both();
}

std::vector<const RuntimeResult*> ranking(const CaseResult& result) {
  std::vector<const RuntimeResult*> rows;
  for (const auto& row : result.runtimes) {
    if (result.counts(row) && !row.is_copy() && !row.is_condition() &&
        row.runtime != result.reference && !std::isnan(row.speedup.ratio.median)) {
      rows.push_back(&row);
    }
  }
  std::stable_sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) {
    return a->speedup.ratio.median > b->speedup.ratio.median;
  });
  return rows;
}

Headline headline(const CaseResult& result, double delta) {
  std::vector<std::string> implausible;
  for (const auto& row : result.runtimes) {
    if (!row.implausible.empty() && !row.is_copy()) implausible.push_back(row.runtime);
  }
  auto uncounted = implausible.empty() ? "" : fmt::format("Implausible: {}.", joined(implausible));
  if (const auto text = approximate_text(result); !text.empty())
    uncounted += (uncounted.empty() ? "" : " ") + text;
  const auto rows = ranking(result);
  if (rows.empty()) {
    return {
        "",
        uncounted.empty() ? "Nothing to compare: only the reference ran." : "Nothing to compare.",
        uncounted};
  }
  const auto near = result.fastest ? rows_of(result, result.fastest->equals)
                                   : std::vector<const RuntimeResult*>{};
  const auto leader = result.fastest ? result.fastest->runtime : "";
  const std::pair<const char*, std::string> groups[] = {
      {"FASTER", "Also faster"},
      {"SLOWER", leader.empty() ? "Slower than " + result.reference : "Slower"},
      {"SAME", fmt::format("The same as {} within {:g} %", result.reference, 100 * delta)},
      {"UNSURE", "Undecided"},
      {"NONE", "No verdict"}};
  std::vector<std::string> sentences;
  for (const auto& [verdict, title] : groups) {
    std::vector<const RuntimeResult*> group;
    for (const auto* row : rows) {
      const bool named =
          row->runtime == leader || std::find(near.begin(), near.end(), row) != near.end();
      if (!named && row->speedup.verdict == verdict) group.push_back(row);
    }
    if (!group.empty()) sentences.push_back(fmt::format("{}: {}.", title, listed(group)));
  }
  if (!uncounted.empty()) sentences.push_back(uncounted);
  const auto others = fmt::format("{}", fmt::join(sentences, " "));
  if (leader.empty()) return {"", others, ""};
  auto sentence = leader == result.reference
                      ? std::string("(the reference) is fastest.")
                      : fmt::format("is fastest: {} the speed of {}.",
                                    speedup_text(*result.find(leader)), result.reference);
  if (!near.empty()) {
    sentence +=
        fmt::format(" Not significantly different from {}: the intervals overlap.", listed(near));
  }
  return {leader, sentence, others};
}

std::string fastest_text(const CaseResult& result) {
  if (!result.fastest) return "";
  const auto& [runtime, equals] = *result.fastest;
  const auto& row = *result.find(runtime);
  const auto speedup =
      runtime == result.reference ? std::string(" (the reference)") : ", " + speedup_text(row);
  return runtime + speedup +
         (equals.empty()
              ? ""
              : fmt::format("; not significantly different from {}", fmt::join(equals, ", ")));
}

std::vector<std::pair<std::string, int>> tally(const Results& results) {
  std::vector<std::pair<std::string, int>> counts;
  for (const char* word : kVerdicts) {
    int count = 0;
    for (const auto& result : results.cases) {
      for (const auto& row : result.runtimes) {
        count += row.speedup.verdict == word && !row.is_copy() && !row.is_condition();
      }
    }
    if (count > 0) counts.emplace_back(word, count);
  }
  return counts;
}

std::vector<std::string> summary_lines(const Results& results) {
  std::vector<std::string> lines, verdicts;
  if (auto text = noise_text(results); !text.empty()) lines.push_back(std::move(text));
  for (const auto& [word, count] : tally(results)) {
    verdicts.push_back(fmt::format("{} {}", word, count));
  }
  lines.push_back(
      fmt::format("{}: {}", counted(std::ssize(results.cases), "case"),
                  verdicts.empty() ? "no verdict" : fmt::format("{}", fmt::join(verdicts, ", "))));
  if (auto text = chance_text(results); !text.empty()) lines.push_back(std::move(text));
  if (results.cases.size() < 2) return lines;
  for (auto& line : mean_lines(results)) lines.push_back(std::move(line));
  return lines;
}

std::vector<std::string> footnotes(const Results& results) {
  std::vector<std::pair<std::string, std::vector<std::string>>> lines;
  for (const auto& result : results.cases) {
    const auto* reference = result.find(result.reference);
    for (const auto& row : result.runtimes) {
      for (const auto& key : row.differs) {
        const auto line = fmt::format(
            "{} = {}, {} with {}", key, value_text(row.environment, key), result.reference,
            reference == nullptr ? "n/a" : value_text(reference->environment, key));
        auto found = std::find_if(lines.begin(), lines.end(),
                                  [&](const auto& each) { return each.first == line; });
        if (found == lines.end()) found = lines.insert(found, {line, {}});
        auto& names = found->second;
        if (std::find(names.begin(), names.end(), row.runtime) == names.end()) {
          names.push_back(row.runtime);
        }
      }
    }
  }
  std::vector<std::string> texts;
  for (const auto& [line, names] : lines) {
    texts.push_back(fmt::format("* {} ran with {}", joined(names), line));
  }
  return texts;
}

bool has_several(const Results& results) { return compared(results).size() > 1; }

}  // namespace torchpace::cli
