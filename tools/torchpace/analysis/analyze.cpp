// From raw samples to every number that is printed. The statistics are those of comparison.hpp.
#include "analysis/analyze.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "analysis/plausibility.hpp"
#include "analysis/step_limit.hpp"
#include "results/results.hpp"
#include "torchpace/comparison.hpp"

namespace torchpace::cli {
namespace {

constexpr const char* kImplausible = "IMPLAUSIBLE";      // verdict
constexpr const char* kApproximate = "APPROXIMATE";      // verdict
constexpr const char* kImplausibleCode = "implausible";  // of a warning
constexpr double kFaultRatio = 10;        // page faults per step that differ more than this
constexpr double kRareBlocks = 0.01;      // that met a migrated vCPU, of all: not worth a word
constexpr double kFewFaultsPerStep = 10;  // and are more than this are pointed at

/// Keys of a worker's environment that differ between languages by nature.
const std::set<std::string> kMayDiffer = {"language", "compiler", "build_type", "python"};

/// Keys that make a comparison unfair where they differ: such a row has a mark.
const std::set<std::string> kMustAgree = {"dtype",   "autocast",  "tf32", "memory_format",
                                          "threads", "optimizer", "gemm"};

/// Median step time of each round that counts, by its number.
std::map<int, double> block_medians(const Invocation& invocation) {
  std::map<int, double> medians;
  for (const auto& round : rounds_that_count(invocation)) {
    if (!round.step_ns.empty()) medians[round.round] = median(round.step_ns);
  }
  return medians;
}

const Invocation* same_invocation(const RuntimeResult& row, int number) {
  for (const auto& invocation : row.invocations) {
    if (invocation.invocation == number) return &invocation;
  }
  return nullptr;
}

/// The invocation's log ratio: the median over the rounds that both measured. Empty if none.
std::vector<double> paired_ratios(const Invocation& reference, const Invocation& runtime) {
  const auto ours = block_medians(runtime);
  std::vector<double> reference_ns, runtime_ns;
  for (const auto& [round, time_ns] : block_medians(reference)) {
    const auto found = ours.find(round);
    if (found == ours.end()) continue;
    reference_ns.push_back(time_ns);
    runtime_ns.push_back(found->second);
  }
  return round_log_ratios(reference_ns, runtime_ns);
}

}  // namespace

std::vector<double> invocation_log_ratios(const RuntimeResult& reference,
                                          const RuntimeResult& row) {
  std::vector<double> logs;
  for (const auto& invocation : row.invocations) {
    const auto* other = same_invocation(reference, invocation.invocation);
    if (other == nullptr) continue;
    const auto ratios = paired_ratios(*other, invocation);
    if (!ratios.empty()) logs.push_back(median(ratios));
  }
  return logs;
}

namespace {

Speedup speedup_over(const RuntimeResult& reference, const RuntimeResult& row, double confidence) {
  const auto logs = invocation_log_ratios(reference, row);
  Speedup speedup;
  if (logs.empty()) return speedup;
  speedup.ratio = speedup_interval(logs, confidence);
  speedup.method = speedup_method(logs.size(), confidence);
  return speedup;
}

/// Step time with its interval over invocations, for the same reason as the speedup's.
Interval step_time(const RuntimeResult& row, double confidence) {
  std::vector<double> logs;
  for (const auto& invocation : row.invocations) {
    std::vector<double> times;
    for (const auto& round : rounds_that_count(invocation)) {
      times.insert(times.end(), round.step_ns.begin(), round.step_ns.end());
    }
    if (!times.empty()) logs.push_back(std::log(median(times)));
  }
  return logs.empty() ? Interval{} : speedup_interval(logs, confidence);
}

/// Percentiles of single steps; a sample of several steps is a mean and has lost its tail.
void analyze_percentiles(RuntimeResult& row, double confidence) {
  std::vector<double> times;
  row.samples = 0;
  for (const auto& invocation : row.invocations) {
    for (const auto& round : rounds_that_count(invocation)) {
      row.samples += static_cast<int>(round.step_ns.size());
      if (round.steps_per_sample != 1) continue;
      times.insert(times.end(), round.step_ns.begin(), round.step_ns.end());
    }
  }
  row.percentiles_ns.clear();
  const auto ordered = sorted(times);
  for (const int percent : {50, 90, 99}) {
    if (const auto p = percentile_of_sorted(ordered, percent / 100.0, confidence)) {
      row.percentiles_ns[fmt::format("p{}", percent)] = p->median;
    }
  }
}

/// Medians of a device's steps and of what the host needs to enqueue them; unknown on the CPU.
void analyze_device(RuntimeResult& row) {
  std::vector<double> device_ns, host_ns;
  for (const auto& invocation : row.invocations) {
    for (const auto& round : rounds_that_count(invocation)) {
      device_ns.insert(device_ns.end(), round.device_ns.begin(), round.device_ns.end());
      host_ns.insert(host_ns.end(), round.enqueue_ns.begin(), round.enqueue_ns.end());
    }
  }
  row.device_ns = device_ns.empty() ? kUnknown : median(device_ns);
  row.host_ns = host_ns.empty() ? kUnknown : median(host_ns);
}

void analyze_counts(RuntimeResult& row) {
  double steps = 0, faults = 0, switches = 0;
  for (const auto& invocation : row.invocations) {
    for (const auto& round : rounds_that_count(invocation)) {
      steps += round.steps();
      faults += round.page_faults;
      switches += round.involuntary_switches;
    }
  }
  row.page_faults_per_step = steps > 0 ? faults / steps : kUnknown;
  row.involuntary_switches_per_step = steps > 0 ? switches / steps : kUnknown;
}

/// FLOP/s of the matrix products that the reference's workers were asked for.
double gemm_peak_rate(const CaseResult& result) {
  std::vector<double> rates;
  if (const auto* reference = result.find(result.reference)) {
    for (const auto& invocation : reference->invocations) {
      if (!invocation.gemm_peak || rounds_that_count(invocation).empty()) continue;
      for (const double ns : invocation.gemm_peak->ns) {
        rates.push_back(invocation.gemm_peak->flops() / ns * 1e9);
      }
    }
  }
  return rates.empty() ? kUnknown : median(rates);
}

void judge_row(CaseResult& result, RuntimeResult& row, double delta) {
  if (row.status == Status::invalid) {
    row.speedup.verdict = to_string(Verdict::kInvalid);
  } else if (!row.implausible.empty()) {
    row.speedup.verdict = kImplausible;
  } else if (row.runtime == result.reference) {
    row.speedup.verdict = "REFERENCE";
  } else if (row.approximate && !std::isnan(row.speedup.ratio.median)) {
    row.speedup.verdict = kApproximate;
  } else if (result.counts(row) && !row.is_copy() && !std::isnan(row.speedup.ratio.median)) {
    row.speedup.verdict = to_string(judge(row.speedup.ratio, result.noise_floor, delta));
    row.speedup.advice = advice(row.speedup.ratio, result.noise_floor, delta);
  }
}

/// The same thing said alike: workers of several languages write numbers, switches and paths in
/// their own way.
std::string comparable(const std::string& key, const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  if (!value.is_string()) return value.dump();
  const auto text = value.get<std::string>();
  if (text == "true" || text == "false") return text == "true" ? "on" : "off";
  if (key == "torch") return text.substr(0, text.find('+'));  // 2.11.0+cpu: the build's name
  return text.substr(text.rfind('/') + 1);
}

/// Keys of the environment that both know and that differ by more than their spelling.
std::vector<std::string> differences(const RuntimeResult& reference, const RuntimeResult& row) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : row.environment.items()) {
    const auto other = reference.environment.find(key);
    if (kMayDiffer.contains(key) || other == reference.environment.end()) continue;
    if (key == "torch" && row.runtime.find('@') != std::string::npos) continue;  // asked for
    const auto ours = comparable(key, value), theirs = comparable(key, *other);
    if (ours != theirs && !ours.empty() && !theirs.empty()) keys.push_back(key);
  }
  return keys;
}

double seconds(const RuntimeResult& row, const char* stage, double otherwise) {
  const auto found = row.cold_s.find(stage);
  return found == row.cold_s.end() ? otherwise : found->second;
}

/// Steps after which what the row costs more before its first step ends is earned back. Unknown
/// where the interval of the speedup holds 1: then nobody knows that anything is earned.
double break_even(const RuntimeResult& reference, const RuntimeResult& row) {
  const auto cost_s = [](const RuntimeResult& r) {
    return r.cold_total_s + (std::isnan(r.compile_s) ? 0 : r.compile_s);
  };
  const double extra_s = cost_s(row) - cost_s(reference);
  const auto& ratio = row.speedup.ratio;
  const double gain_s = reference.step_ns.median * 1e-9 * (1 - 1 / ratio.median);
  if (std::isnan(extra_s) || std::isnan(gain_s)) return kUnknown;
  if (extra_s <= 0) return 0;
  if (ratio.low <= 1 && ratio.high >= 1) return kUnknown;
  return gain_s > 0 ? std::ceil(extra_s / gain_s) : INFINITY;
}

/// Keys of the environment in which a row differs unfairly.
std::vector<std::string> unfair_keys(const RuntimeResult* reference, const RuntimeResult& row) {
  if (reference == nullptr || &row == reference) return {};
  if (row.is_copy() || row.status != Status::ok) return {};
  auto keys = differences(*reference, row);
  std::erase_if(keys, [](const std::string& key) { return !kMustAgree.contains(key); });
  return keys;
}

void analyze_break_even(const CaseResult& result, RuntimeResult& row) {
  const auto* reference = result.find(result.reference);
  row.break_even_steps = kUnknown;
  if (reference == nullptr || &row == reference || row.is_copy() || !result.counts(row)) return;
  row.break_even_steps = break_even(*reference, row);
}

/// What the reference's speedup over itself may be: 1, and all that its own copy was measured at. A
/// row inside of that is not faster.
Interval reference_interval(const CaseResult& result) {
  const auto& noise = result.noise_floor;
  if (!noise.bounded()) return {.median = 1, .low = 1, .high = 1, .confidence = 1};
  return {.median = 1,
          .low = std::min(1.0, noise.low),
          .high = std::max(1.0, noise.high),
          .confidence = noise.confidence};
}

void find_fastest(CaseResult& result) {
  struct Entry {
    const RuntimeResult* row;
    Interval ratio;
  };
  std::vector<Entry> entries;
  for (const auto& row : result.runtimes) {
    if (!result.counts(row) || row.is_copy() || row.is_condition()) continue;
    const bool is_reference = row.runtime == result.reference;
    const auto ratio = is_reference ? reference_interval(result) : row.speedup.ratio;
    if (!std::isnan(ratio.low) && !std::isnan(ratio.high)) entries.push_back({&row, ratio});
  }
  result.fastest.reset();
  if (entries.size() < 2) return;
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.ratio.median > b.ratio.median; });
  const auto& best = entries.front();
  auto& fastest = result.fastest.emplace(best.row->runtime);
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].ratio.high < best.ratio.low) continue;
    fastest.equals.push_back(entries[i].row->runtime);
  }
}

/// Texts with the rows that they are true of, in the order in which they came.
class RowsByText {
 public:
  void add(const std::string& runtime, const std::string& text) {
    const auto same = [&](const auto& group) { return group.second == text; };
    auto found = std::find_if(groups_.begin(), groups_.end(), same);
    if (found == groups_.end()) found = groups_.insert(found, {{}, text});
    auto& names = found->first;
    if (!runtime.empty() && std::find(names.begin(), names.end(), runtime) == names.end()) {
      names.push_back(runtime);
    }
  }

  /// A line each; a text that is part of another one is said there.
  void append_to(std::vector<std::string>& lines) const {
    for (const auto& [names, text] : groups_) {
      const auto holds = [&](const auto& other) {
        return other.second.size() > text.size() && other.second.find(text) != std::string::npos;
      };
      if (std::any_of(groups_.begin(), groups_.end(), holds)) continue;
      const auto rows = fmt::format("{}", fmt::join(names, ", "));
      lines.push_back(rows.empty() ? text : rows + ": " + text);
    }
  }

 private:
  std::vector<std::pair<std::vector<std::string>, std::string>> groups_;
};

/// The lines below the case's table, one for all rows of which the same is true.
void collect_notes(CaseResult& result, const std::vector<Warning>& warnings) {
  RowsByText broken, said;
  for (const auto& row : result.runtimes) {
    if (row.is_copy()) continue;
    if (row.status == Status::invalid) broken.add(row.runtime, "invalid: " + row.reason);
    if (!row.implausible.empty()) broken.add(row.runtime, "implausible: " + row.implausible);
    if (row.approximate && row.status == Status::ok)
      said.add(row.runtime,
               "approximate: no tolerance judges the error, and no ranking, mean or --fail-on "
               "counts the speedup");
  }
  bool has_golden = true;
  for (const auto& warning : warnings) {
    if (!is_note(warning) || warning.case_name != result.name) continue;
    said.add(warning.runtime, warning.text);
    has_golden = has_golden && warning.code != "no-golden";
  }
  for (const auto& row : result.runtimes) {
    // Without a golden run every row says so, and the case has said it.
    if (!has_golden || !row.parity || !row.parity->passed || row.parity->note.empty()) continue;
    said.add(row.runtime, row.parity->note);
  }
  result.notes.clear();
  broken.append_to(result.notes);
  said.append_to(result.notes);
}

void analyze_case(Results& results, CaseResult& result) {
  const auto* reference = result.find(result.reference);
  result.noise_floor = {};
  result.gemm_peak_flops_per_s = gemm_peak_rate(result);
  result.limit = step_limit(results, result);
  for (auto& row : result.runtimes) {
    row.step_ns = step_time(row, results.plan.confidence);
    analyze_percentiles(row, results.plan.confidence);
    analyze_counts(row);
    analyze_device(row);
    row.gemm_peak_share =
        result.flops > 0 ? result.flops / row.step_ns.median * 1e9 / result.gemm_peak_flops_per_s
                         : kUnknown;
    row.cold_total_s = seconds(row, "start", kUnknown) + seconds(row, "load", kUnknown) +
                       seconds(row, "compile", 0) + seconds(row, "first_step", kUnknown);
    const bool usable = row.status == Status::ok && reference != nullptr && &row != reference;
    row.speedup = usable ? speedup_over(*reference, row, results.plan.confidence) : Speedup{};
    if (row.is_copy()) result.noise_floor = row.speedup.ratio;
  }
  for (auto& row : result.runtimes) {
    row.differs = unfair_keys(reference, row);
    row.implausible = implausible(results, result, row);
    analyze_shares(results, result, row);
  }
  for (auto& row : result.runtimes) {
    judge_row(result, row, results.plan.delta);
    analyze_break_even(result, row);
  }
  find_fastest(result);
  collect_notes(result, results.warnings);
}

/// A row of another condition differs on purpose; its name says in what.
bool is_asked_for(const RuntimeResult& row, const std::string& key) {
  return row.is_condition() &&
         row.runtime.compare(row.condition_of.size(), key.size() + 2, "@" + key + ":") == 0;
}

void warn_of_unequal(std::vector<Warning>& warnings, const CaseResult& result,
                     const RuntimeResult& reference, const RuntimeResult& row) {
  for (const auto& key : differences(reference, row)) {
    if (is_asked_for(row, key)) continue;
    warnings.push_back(
        {.code = "unequal-" + key,
         .text = fmt::format("{} runs with {} = {}, the reference {} with {}{}", row.runtime, key,
                             comparable(key, row.environment.at(key)), reference.runtime,
                             comparable(key, reference.environment.at(key)),
                             kMustAgree.contains(key) ? ": marked *" : ""),
         .case_name = result.name,
         .runtime = row.runtime});
  }
}

void warn_of_faults(std::vector<Warning>& warnings, const CaseResult& result,
                    const RuntimeResult& reference, const RuntimeResult& row,
                    const std::string& allocator) {
  if (row.is_condition()) return;  // one of them is the rerun that the warning asks for
  const auto [less, more] = std::minmax(row.page_faults_per_step, reference.page_faults_per_step);
  if (!(more > kFewFaultsPerStep && more > kFaultRatio * less)) return;
  warnings.push_back(
      {.code = "page-faults-differ",
       .text =
           fmt::format("{} takes {:.3g} page faults a step, the reference {} {:.3g}: part of the "
                       "difference may be the heap; rerun with --allocator {} to tell",
                       row.runtime, row.page_faults_per_step, reference.runtime,
                       reference.page_faults_per_step, allocator == "tuned" ? "jemalloc" : "tuned"),
       .case_name = result.name,
       .runtime = row.runtime});
}

void warn_of_implausible(std::vector<Warning>& warnings, const CaseResult& result) {
  for (const auto& row : result.runtimes) {
    if (row.implausible.empty()) continue;
    warnings.push_back({.code = kImplausibleCode,
                        .text = row.runtime + ": " + row.implausible,
                        .case_name = result.name,
                        .runtime = row.runtime});
  }
}

/// The host migrated vCPUs: what that did to the numbers.
void warn_of_cores(std::vector<Warning>& warnings, const Results& results) {
  const auto& cores = results.cores;
  if (std::isnan(cores.usual_ns) || cores.migrated_share < kRareBlocks) return;
  warnings.push_back(
      {"vcpus-migrated", "info",
       fmt::format("the host migrates vCPUs: core-to-core latency was {:.0f} ns in {:.2g} % of the "
                   "blocks, {:.0f} ns usually; rounds with such blocks are in results.json and "
                   "excluded from the tables",
                   cores.migrated_ns, 100 * cores.migrated_share, cores.usual_ns),
       "", ""});
  for (const auto& result : results.cases) {
    if (!result.mixed) continue;
    warnings.push_back({"vcpus-mixed", "warning",
                        "too few invocations ran without a migrated vCPU, so rounds that met one "
                        "count too: take more --invocations or a longer --max-seconds",
                        result.name, ""});
  }
}

bool is_derived(const Warning& warning) {
  return warning.code == kImplausibleCode || warning.code.starts_with("unequal-") ||
         warning.code == "page-faults-differ" || warning.code.starts_with("vcpus-");
}

/// One warning where many cases say the same.
void add_grouped(Results& results, const std::vector<Warning>& warnings) {
  std::map<std::pair<std::string, std::string>, size_t> times;
  for (const auto& w : warnings) ++times[{w.code, w.text}];
  for (auto warning : warnings) {
    if (times[{warning.code, warning.text}] > 1) warning.case_name.clear();
    results.warn(std::move(warning));
  }
}

}  // namespace

void analyze(Results& results) {
  std::erase_if(results.warnings, is_derived);
  exclude_rounds(results);
  std::vector<Warning> found;
  warn_of_cores(found, results);
  for (auto& result : results.cases) {
    analyze_case(results, result);
    analyze_breakdown(result);
    warn_of_implausible(found, result);
    const auto* reference = result.find(result.reference);
    if (reference == nullptr) continue;
    for (const auto& row : result.runtimes) {
      if (&row == reference || row.status != Status::ok || row.is_copy()) continue;
      warn_of_unequal(found, result, *reference, row);
      warn_of_faults(found, result, *reference, row, results.plan.allocator);
    }
  }
  add_grouped(results, found);
}

}  // namespace torchpace::cli
