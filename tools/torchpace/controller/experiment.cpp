#include "controller/experiment.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <set>

#include "controller/core_latency.hpp"
#include "support/error.hpp"
#include "controller/preflight.hpp"
#include "support/signals.hpp"
#include "doctor/usable_resources.hpp"
#include "analysis/plausibility.hpp"
#include "controller/worker_pool.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kMemoryShare = 0.8;       // of what is available, for all workers together
constexpr double kValuesAtOnce = 1 << 30;  // bytes of values that wait for all runtimes' checks
constexpr double kRoundsShare = 0.35;      // of the time, at least, where invocations are chosen
constexpr int kFewestInvocations = 6;      // whose intervals are order statistics
constexpr double kCannotPlay = -1;         // width of an interval
constexpr double kWaitingShare = 0.25;     // of the time, at most, for the cores to come back
constexpr double kWaitingStep_s = 0.2;
constexpr double kLeastOfFixed = 2;  // a visit at least over its fixed costs, until one is measured

const Invocation* find_invocation(const RuntimeResult* row, int number) {
  if (row == nullptr) return nullptr;
  for (const auto& invocation : row->invocations) {
    if (invocation.invocation == number) return &invocation;
  }
  return nullptr;
}

int next_round(const RuntimeResult& reference, int invocation) {
  const auto* found = find_invocation(&reference, invocation);
  return found == nullptr || found->rounds.empty() ? 0 : found->rounds.back().round + 1;
}

/// The widest interval of a case's speedups, relative; NaN where there is none yet.
double width_of(const CaseResult& result) {
  double width = kUnknown;
  for (const auto& row : result.runtimes) {
    if (row.status != Status::ok || row.is_copy() || row.runtime == result.reference) continue;
    const auto& speedup = row.speedup.ratio;
    width = std::fmax(width, (speedup.high - speedup.low) / speedup.median);
  }
  return width;
}

/// Memory that torch can have on the device; infinite where it cannot be asked.
double device_bytes(const std::string& device) {
  if (!is_cuda(device)) return INFINITY;
  const auto colon = device.find(':');
  const auto index = colon == std::string::npos ? "0" : device.substr(colon + 1);
  try {
    const auto text = run_to_end(
        {{"nvidia-smi", "-i", index, "--query-gpu=memory.free", "--format=csv,noheader,nounits"},
         {}},
        30);
    return std::stod(text) * 1048576;  // MiB
  } catch (const std::exception&) {
    return INFINITY;
  }
}

}  // namespace

int affordable_invocations(int asked, double budget_s, double invocation_s) {
  if (asked <= kFewestInvocations) return asked;
  for (const int count : {asked, 12, 9}) {
    if (count <= asked && count * invocation_s <= budget_s) return count;
  }
  return kFewestInvocations;
}

std::optional<size_t> next_load(const std::vector<double>& widths, const std::vector<int>& loads) {
  const bool known =
      std::none_of(widths.begin(), widths.end(), [](double width) { return std::isnan(width); });
  std::optional<size_t> best;
  double most = 0;
  for (size_t i = 0; i < widths.size(); ++i) {
    if (widths[i] < 0) continue;
    const double need = (known || std::isinf(widths[i]) ? widths[i] : 1) / std::sqrt(loads[i]);
    const bool less = need == most ? loads[i] >= loads[best.value_or(i)] : need < most;
    if (best && less) continue;
    best = i;
    most = need;
  }
  return best;
}

CaseResult empty_result(const Case& item, const std::string& reference) {
  CaseResult result;
  result.name = item.name;
  result.family = item.family;
  result.phase = item.phase;
  result.settings = item.settings.values();
  result.reference = reference;
  return result;
}

void prepare_output(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  const auto probe = folder / ".torchpace-probe";
  const int file = error ? -1 : open(probe.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) {
    throw Error(fmt::format("--output {}: cannot be written: {}; choose another folder",
                            folder.string(), error ? error.message() : std::strerror(errno)));
  }
  close(file);
  unlink(probe.c_str());
}

void check_same_plan(const Results& earlier, const Results& now, const std::string& file) {
  const auto differ = [&](const std::string& what, const std::string& a, const std::string& b) {
    if (a == b) return;
    throw Error(fmt::format(
        "--resume: {} was measured with {} {}, now it is {}; use the same or another --output",
        file, what, a.empty() ? "none" : a, b.empty() ? "none" : b));
  };
  const auto &a = earlier.plan, &b = now.plan;
  differ("preset", a.preset, b.preset);
  differ("reference", a.reference, b.reference);
  differ("runtimes", fmt::format("{}", fmt::join(a.runtimes, ",")),
         fmt::format("{}", fmt::join(b.runtimes, ",")));
  differ("invocations", std::to_string(a.invocations_asked), std::to_string(b.invocations_asked));
  differ("rounds", std::to_string(a.rounds), std::to_string(b.rounds));
  differ("threads", std::to_string(a.threads), std::to_string(b.threads));
  differ("device", a.device, b.device);
  differ("dtype", a.dtype, b.dtype);
  differ("allocator", a.allocator, b.allocator);
  differ("seed", std::to_string(a.seed), std::to_string(b.seed));
  differ("text", a.text, b.text);
  const auto names = [](const Results& results) {
    std::string text;
    for (const auto& result : results.cases) text += (text.empty() ? "" : ",") + result.name;
    return text;
  };
  differ("cases", names(earlier), names(now));
  for (size_t i = 0; i < now.cases.size(); ++i) {
    differ("settings of " + now.cases[i].name, Json(earlier.cases[i].settings).dump(),
           Json(now.cases[i].settings).dump());
  }
}

Experiment::Experiment(ExperimentOptions options, Results& results, Progress& progress)
    : options_(std::move(options)),
      results_(results),
      progress_(progress),
      random_(static_cast<uint64_t>(options_.plan.seed)),
      earlier_s_(results.elapsed_s),
      cores_(options_.message_ns, all_message_ns(results)) {}

double Experiment::elapsed_s() const { return earlier_s_ + seconds_since(begin_); }

double Experiment::left_s() const {
  if (options_.plan.rounds == 0) return std::max(0.0, budget_left_s());
  if (loads_done_ == 0) return -1;
  const double spent_s = seconds_since(loads_begin_);
  return spent_s / static_cast<double>(loads_done_) * static_cast<double>(loads_left_);
}

bool Experiment::met_bad_input_only() const {
  return !files_.empty() && std::all_of(files_.begin(), files_.end(), [](const Exported& files) {
    return files.status == Status::failed && files.mendable;
  });
}

void Experiment::save() {
  results_.elapsed_s = elapsed_s();
  derive(results_);
  std::error_code ignored;  // removed while we measured: no reason to lose what there is
  fs::create_directories(options_.output, ignored);
  save_results(results_, options_.output / "results.json");
}

void Experiment::run() {
  results_.complete = false;
  give_folders();
  try {
    export_all();
    pass_gates();
    uncounted([&] { measure_limits(results_); });
    run_invocations();
    confirm_implausible(results_);
  } catch (const Interrupted&) {
    save();
    throw;
  }
  results_.complete = true;
  save();
}

/// What a worker or a compiler unpacks and leaves behind goes with the run.
void Experiment::give_folders() {
  const auto give = [&](Command& command, const std::string& name) {
    const auto folder = folder_.path() / name;
    fs::create_directory(folder);
    command.environment["TMPDIR"] = folder;
  };
  for (size_t i = 0; i < options_.runtimes.size(); ++i) {
    give(options_.runtimes[i].command, fmt::format("worker-{}", i));
  }
  for (size_t i = 0; i < options_.exporters.size(); ++i) {
    give(options_.exporters[i], fmt::format("export-{}", i));
  }
}

void Experiment::export_all() {
  std::vector<Exporter> exporters;
  for (const auto& command : options_.exporters) {
    exporters.emplace_back(command, options_.export_timeout_s);
  }
  export_cases(exporters);
  make_artifacts(exporters);
  uncounted([&] { exporters.clear(); });
}

void Experiment::export_cases(std::vector<Exporter>& exporters) {
  std::set<std::string> notes;  // said once, also where many cases have it
  std::vector<size_t> left_out;
  for (size_t i = 0; i < options_.cases.size(); ++i) {
    auto& files = files_.emplace_back();
    files.settings = options_.cases[i].settings;
    if (!options_.cases[i].own()) {
      uncounted([&] { export_case(i, exporters.front(), notes); });
    }
    for (const auto& spec : options_.runtimes) files.own[spec.runtime] = spec.settings;
    if (options_.cases[i].optional && files.status == Status::skipped) left_out.push_back(i);
  }
  leave_out(left_out);
}

/// Files are made once and then found: what that takes is not taken from the time of the rounds.
void Experiment::uncounted(const std::function<void()>& make) {
  const double begin_s = elapsed_s();
  make();
  results_.plan.max_seconds += elapsed_s() - begin_s;
}

void Experiment::export_case(size_t index, Exporter& exporter, std::set<std::string>& notes) {
  const auto& item = options_.cases[index];
  auto& result = results_.cases[index];
  progress_.note(fmt::format("weights and inputs of {}", item.name), left_s());
  auto& files = files_[index] = exporter.export_case(item);
  result.memory_bytes = files.memory_bytes;
  if (!files.note.empty()) {
    if (notes.insert(files.note).second) progress_.say(files.note);
    results_.warn({"export", "info", files.note, item.name, ""});
  }
  if (files.status == Status::ok) return;
  if (files.status == Status::skipped && item.optional) return;  // will be left out
  for (const auto& spec : options_.runtimes) {
    add_row(result, spec.runtime, files.status, files.reason);
  }
}

/// Cases that cannot be had and that the user did not name.
void Experiment::leave_out(const std::vector<size_t>& indices) {
  for (auto index = indices.rbegin(); index != indices.rend(); ++index) {
    const auto at = static_cast<long>(*index);
    const auto text =
        fmt::format("{} is left out: {}", options_.cases[*index].name, files_[*index].reason);
    progress_.say(text);
    results_.warn({"left-out", "info", text, "", ""});
    options_.cases.erase(options_.cases.begin() + at);
    files_.erase(files_.begin() + at);
    results_.cases.erase(results_.cases.begin() + at);
  }
}

void Experiment::add_row(CaseResult& result, const std::string& runtime, Status status,
                         const std::string& reason, const std::string& artifact) {
  if (result.find(runtime) != nullptr) return;
  RuntimeResult row;
  row.runtime = runtime;
  row.status = status;
  row.reason = reason;
  row.artifact = artifact;
  result.runtimes.push_back(std::move(row));
}

bool Experiment::needs_artifact(const CaseResult& result, const WorkerSpec& spec) const {
  const auto* row = result.find(spec.runtime);
  return !spec.artifact.empty() && (row == nullptr || row->status == Status::ok);
}

/// Each kind once for a case and an installation, whichever runtimes share it.
void Experiment::make_artifacts(std::vector<Exporter>& exporters) {
  for (size_t i = 0; i < options_.cases.size(); ++i) {
    for (const auto& spec : options_.runtimes) {
      if (options_.cases[i].own() || !needs_artifact(results_.cases[i], spec)) continue;
      uncounted([&] { make_artifact(i, spec, exporters.at(spec.exporter)); });
    }
  }
}

void Experiment::make_artifact(size_t index, const WorkerSpec& spec, Exporter& exporter) {
  auto& files = files_[index];
  const auto shared =
      std::find_if(options_.runtimes.begin(), options_.runtimes.end(), [&](const WorkerSpec& s) {
        return s.artifact == spec.artifact && s.exporter == spec.exporter &&
               files.artifacts.contains(s.runtime);
      });
  if (shared != options_.runtimes.end()) {
    files.artifacts[spec.runtime] = files.artifacts[shared->runtime];
  } else {
    const auto limit_s = options_.plan.compile_timeout;
    progress_.note(fmt::format("artifact {} of {}, {:g} s at most", spec.artifact,
                               options_.cases[index].name, limit_s),
                   left_s());
    files.artifacts[spec.runtime] = exporter.make_artifact(files.settings, spec.artifact, limit_s);
  }
  const auto& artifact = files.artifacts[spec.runtime];
  if (!artifact.note.empty()) {
    results_.warn({"artifact", "info", artifact.note, options_.cases[index].name, spec.runtime});
  }
  if (artifact.status == Status::ok) return;
  add_row(results_.cases[index], spec.runtime, artifact.status, artifact.reason, artifact.kind);
}

void Experiment::pass_gates() {
  size_t first = 0;
  double bytes = 0;
  for (size_t i = 0; i < files_.size(); ++i) {
    std::error_code ignored;
    const auto size = fs::file_size(files_[i].settings.get("golden", ""), ignored);
    bytes += ignored ? 0 : static_cast<double>(size);  // values are about as large
    if (bytes < kValuesAtOnce && i + 1 < files_.size()) continue;
    pass_gates(first, i + 1);
    first = i + 1;
    bytes = 0;
  }
}

/// Of some cases, whose values lie in the temporary folder meanwhile.
void Experiment::pass_gates(size_t first, size_t end) {
  std::vector<PreflightCase> cases;
  for (size_t i = first; i < end; ++i) {
    const auto& item = options_.cases[i];
    const auto curve = options_.curves.find(item.family);
    cases.push_back({.item = item,
                     .result = results_.cases[i],
                     .files = files_[i],
                     .values = folder_.path() / fmt::format("{}.pt", i),
                     .curve_steps = item.phase == "train" && curve != options_.curves.end()
                                        ? curve->second
                                        : 0});
  }
  Preflight preflight({.runtimes = options_.runtimes,
             .worker_timeout_s = options_.worker_timeout_s,
             .compile_timeout_s = options_.plan.compile_timeout,
             .before =
                 [&](const PreflightCase& preflight_case, const std::string& runtime) {
                   progress_.note(fmt::format("preflight: {} in {}", preflight_case.item.name, runtime),
                                  left_s());
                   cores_.ask();
                 },
             .after = [&] { save(); },
             .warn = [&](Warning warning) { results_.warn(std::move(warning)); }});
  preflight.pass(cases);
  for (const auto& preflight_case : cases) {
    std::error_code ignored;
    fs::remove(preflight_case.values, ignored);
  }
}

size_t Experiment::parallel_loads() const {
  return static_cast<size_t>(usable_cores(results_.environment));
}

/// What an invocation takes besides its rounds, told from the preflight until one has been measured.
double Experiment::invocation_s() const {
  const auto groups_of = static_cast<double>(groups().size());
  if (fixed_s_ > 0) return fixed_s_ * groups_of;
  std::map<std::string, double> start_s;
  double load_s = 0;
  for (const auto& result : results_.cases) {
    for (const auto& row : result.runtimes) {
      if (row.status != Status::ok) continue;
      const auto& measured = row.is_copy() ? *result.find(row.copy_of) : row;
      for (const auto& [stage, seconds] : measured.cold_s) {
        if (stage == "start") {
          start_s[row.runtime] = seconds;
        } else if (stage != "tenth_step") {
          load_s += std::fmax(0, seconds);  // a worker of the user's own need not tell
        }
      }
    }
  }
  for (const auto& [runtime, seconds] : start_s) load_s += seconds;
  return load_s / static_cast<double>(parallel_loads());
}

/// Chooses the number of invocations: fewer where starting and loading alone would not fit.
void Experiment::plan_invocations(int done) {
  if (!options_.adapts_invocations || done >= kFewestInvocations) return;
  auto& plan = results_.plan;
  const auto before = plan.invocations;
  const double each_s = invocation_s();
  const double budget_s = budget_left_s() * (1 - kRoundsShare) + done * each_s;
  plan.invocations = affordable_invocations(plan.invocations_asked, budget_s, each_s);
  if (plan.invocations == before) return;
  progress_.say(fmt::format("{} invocations: starting and loading takes {:.0f} s in each",
                            plan.invocations, each_s));
}

bool Experiment::memory_is_short() const {
  const auto peak = [](const RuntimeResult& row, const char* kind) {
    const auto found = row.peak_bytes.find(kind);
    return found == row.peak_bytes.end() ? 0 : found->second;
  };
  double resident = 0, reserved = 0;
  for (const auto& result : results_.cases) {
    double case_resident = 0, case_reserved = 0;
    for (const auto& row : result.runtimes) {
      if (row.status != Status::ok) continue;
      const auto& measured = row.is_copy() ? *result.find(row.copy_of) : row;
      case_resident += peak(measured, "resident");
      case_reserved += peak(measured, "device_reserved");
    }
    resident = std::max(resident, case_resident);
    reserved = std::max(reserved, case_reserved);
  }
  return resident > kMemoryShare * available_bytes(results_.environment) ||
         reserved > kMemoryShare * device_bytes(options_.plan.device);
}

/// The rows that are measured together: all, or (reference, one) pairs.
std::vector<std::vector<std::string>> Experiment::groups() const {
  const auto& reference = options_.plan.reference;
  std::vector<std::string> all{reference};
  for (const auto& spec : options_.runtimes) {
    if (spec.runtime != reference) all.push_back(spec.runtime);
  }
  all.push_back(copy_name(reference));
  if (!results_.plan.pairs) return {all};
  std::vector<std::vector<std::string>> pairs;
  for (size_t i = 1; i < all.size(); ++i) pairs.push_back({reference, all[i]});
  return pairs;
}

bool Experiment::is_done(const CaseResult& result, const std::vector<std::string>& rows,
                         int invocation) const {
  const auto* reference = result.find(result.reference);
  if (reference == nullptr || reference->status != Status::ok) return true;
  // Not the reference's own: in pairs it is there from the other pairs.
  return std::none_of(rows.begin() + 1, rows.end(),
                      [&](const std::string& name) {
                        const auto* row = result.find(name);
                        return row != nullptr && row->status == Status::ok;
                      }) ||
         std::any_of(rows.begin() + 1, rows.end(), [&](const std::string& name) {
           return find_invocation(result.find(name), invocation) != nullptr;
         });
}

std::vector<Experiment::Visit> Experiment::missing_visits() {
  std::vector<Visit> visits;
  const auto count = results_.cases.size();
  for (int invocation = 1; invocation <= options_.plan.invocations_asked; ++invocation) {
    for (const auto& rows : groups()) {
      Visit visit{invocation, rows, {}};
      for (size_t i = 0; i < count; ++i) {
        // Rotated: no case is always the first that a process sees.
        const auto index = (i + static_cast<size_t>(invocation - 1)) % count;
        if (!is_done(results_.cases[index], rows, invocation)) visit.cases.push_back(index);
      }
      if (!visit.cases.empty()) visits.push_back(std::move(visit));
    }
  }
  return visits;
}

WorkerSpec Experiment::spec_of(const std::string& row) const {
  const auto runtime = row == copy_name(options_.plan.reference) ? options_.plan.reference : row;
  for (auto spec : options_.runtimes) {
    if (spec.runtime != runtime) continue;
    spec.runtime = row;
    return spec;
  }
  throw Error(fmt::format("no runtime '{}'", runtime));
}

void Experiment::run_invocations() {
  if (!results_.plan.pairs && memory_is_short()) {
    results_.plan.pairs = true;
    results_.warn({"pairs", "warning",
                   "all workers together need more than 80 % of the memory: they were measured as "
                   "(reference, one) pairs",
                   "", ""});
  }
  const auto visits = missing_visits();
  if (!visits.empty()) plan_invocations(visits.front().invocation - 1);
  loads_begin_ = Clock::now();
  for (size_t i = 0; i < visits.size(); ++i) {
    const auto& visit = visits[i];
    if (visit.invocation > results_.plan.invocations) break;
    double left = 0;
    loads_left_ = 0;
    for (size_t j = i; j < visits.size(); ++j) {
      if (visits[j].invocation > results_.plan.invocations) break;
      loads_left_ += visits[j].cases.size();
      ++left;
    }
    run_visit(visit, left);
    save();
    plan_invocations(visit.invocation);  // the first ones show what they cost
  }
}

/// Whether the rounds of this visit have met the cores no farther apart than usual, often enough.
bool Experiment::met_cores_near(const Visit& visit, size_t index) const {
  const double usual_ns = cores_.usual_ns();
  for (size_t i = 1; i < visit.rows.size(); ++i) {  // not the reference, which plays in all pairs
    const auto* found =
        find_invocation(results_.cases[index].find(visit.rows[i]), visit.invocation);
    if (found == nullptr) continue;
    return std::count_if(found->rounds.begin(), found->rounds.end(), [&](const Round& round) {
             return !is_far(round.message_ns, usual_ns);
           }) >= kFewestRounds;
  }
  return true;
}

/// Waits while the cores are farther apart than usual, as far as `spare_s` goes. False where they
/// still are.
bool Experiment::await_cores(double spare_s) {
  if (options_.plan.rounds > 0) return true;
  double far_ns = cores_.far_ns();
  if (std::isnan(far_ns)) return true;
  double left_of_it_s =
      std::min(spare_s, kWaitingShare * results_.plan.max_seconds - results_.waited_s);
  if (left_of_it_s <= 0) return false;
  const auto text =
      fmt::format("waiting for the cores: a message between two takes {:.0f} ns, usually {:.0f}",
                  far_ns, cores_.usual_ns());
  progress_.note(text, left_s());
  while (!std::isnan(far_ns) && left_of_it_s > 0) {
    const auto begin = Clock::now();
    sleep_s(kWaitingStep_s);
    progress_.update(text, left_s());
    far_ns = cores_.far_ns();
    results_.waited_s += seconds_since(begin);
    left_of_it_s -= seconds_since(begin);
  }
  return std::isnan(far_ns);
}

/// All cases once, and then, for as long as there is time, the one whose interval is widest, first
/// of all those that have met the cores elsewhere only.
void Experiment::run_visit(const Visit& visit, double visits_left) {
  const auto begin = Clock::now();
  const double waited_before_s = results_.waited_s;
  // Waiting is taken from all visits alike.
  const auto used_s = [&] { return seconds_since(begin) - (results_.waited_s - waited_before_s); };
  const auto share_left_s = [&] { return (budget_left_s() + used_s()) / visits_left - used_s(); };
  const auto count = static_cast<double>(visit.cases.size());
  std::vector<WorkerSpec> specs;
  for (const auto& row : visit.rows) {
    // A runtime that failed everywhere would only take memory.
    const bool needed = std::any_of(visit.cases.begin(), visit.cases.end(), [&](size_t index) {
      const auto* found = results_.cases[index].find(row);
      return found != nullptr && found->status == Status::ok;
    });
    if (needed) specs.push_back(spec_of(row));
  }
  progress_.note(fmt::format("invocation {}/{}: starting {} workers", visit.invocation,
                             results_.plan.invocations, specs.size()),
                 left_s());
  Team team(specs, {.worker_timeout_s = options_.worker_timeout_s,
                    .compile_s = options_.plan.compile_timeout,
                    .loads = parallel_loads(),
                    .message_ns = [this] { return cores_.ask(); }});
  if (least_load_s_ == 0) {
    least_load_s_ = kLeastOfFixed * invocation_s() / (count * static_cast<double>(groups().size()));
  }
  const auto spare_s = [&] {
    return budget_left_s() - least_load_s_ * static_cast<double>(loads_left_);
  };
  std::vector<int> loads(visit.cases.size(), 1);
  std::vector<double> widths, load_s;
  fixed_s_ = seconds_since(begin);
  for (size_t i = 0; i < visit.cases.size(); ++i) {
    await_cores(spare_s());
    const auto time =
        play(team, visit, visit.cases[i], true, share_left_s() / (count - static_cast<double>(i)));
    widths.push_back(time.rounds_s > 0 ? width_of(results_.cases[visit.cases[i]]) : kCannotPlay);
    load_s.push_back(time.fixed_s + time.rounds_s);
    fixed_s_ += time.fixed_s;
    --loads_left_;
  }
  least_load_s_ = used_s() / count;
  while (options_.plan.rounds == 0) {
    auto needs = widths;
    std::vector<bool> probes(visit.cases.size());  // those of the first load were of far cores
    for (size_t i = 0; i < needs.size(); ++i) {
      probes[i] = needs[i] != kCannotPlay && !met_cores_near(visit, visit.cases[i]);
      if (probes[i]) needs[i] = INFINITY;
    }
    const auto next = next_load(needs, loads);
    if (!next || load_s[*next] > share_left_s()) break;
    // Where the cores do not come back, the time serves the visits to come.
    if (!await_cores(spare_s() - load_s[*next])) break;
    const auto time = play(team, visit, visit.cases[*next], probes[*next], share_left_s());
    if (time.rounds_s == 0) widths[*next] = kCannotPlay;
    ++loads[*next];
  }
}

/// One load of a case with its rounds, which take as long as the load did, as far as the time goes;
/// then, with `probes`, what is asked for once in an invocation.
LoadTime Experiment::play(Team& team, const Visit& visit, size_t index, bool probes,
                          double budget_s) {
  auto& result = results_.cases[index];
  const auto text =
      fmt::format("invocation {}/{}: {}", visit.invocation, results_.plan.invocations, result.name);
  progress_.note(text, left_s());
  const RoundRule rule{.rounds = options_.plan.rounds,
                       .budget_s = budget_s,
                       .first_round = next_round(*result.find(result.reference), visit.invocation),
                       .probed = probes ? options_.probed : std::set<std::string>{},
                       .multiplies = probes};
  const auto time = team.measure(
      result, files_[index], visit.invocation, rule, random_,
      [&](int rounds) { progress_.update(fmt::format("{}, round {}", text, rounds), left_s()); });
  ++loads_done_;
  return time;
}

}  // namespace torchpace::cli
