#include "experiment.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "error.hpp"
#include "gate.hpp"
#include "interrupt.hpp"
#include "machine.hpp"
#include "team.hpp"
#include "words.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kMemoryShare = 0.8;  // of what is available, for all workers together

/// A folder that is gone when its owner is, however that ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    auto name = (fs::temp_directory_path() / "torchpace-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw Error(
          fmt::format("{}: no temporary folder can be made: {}", name, std::strerror(errno)));
    }
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

const Generation* find_generation(const RuntimeResult* row, int number) {
  if (row == nullptr) return nullptr;
  for (const auto& generation : row->generations) {
    if (generation.generation == number) return &generation;
  }
  return nullptr;
}

int next_round(const RuntimeResult& reference, int generation) {
  const auto* found = find_generation(&reference, generation);
  return found == nullptr || found->rounds.empty() ? 0 : found->rounds.back().round + 1;
}

/// Memory that torch can have on the device; infinite where it cannot be asked.
double device_bytes(const std::string& device) {
  if (!device.starts_with("cuda")) return INFINITY;
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
  differ("generations", std::to_string(a.generations), std::to_string(b.generations));
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
      earlier_s_(results.elapsed_s) {}

double Experiment::elapsed_s() const {
  return earlier_s_ + std::chrono::duration<double>(Clock::now() - begin_).count();
}

double Experiment::left_s() const {
  if (options_.plan.rounds == 0) return std::max(0.0, budget_left_s());
  if (turns_done_ == 0) return -1;
  const double spent_s = std::chrono::duration<double>(Clock::now() - turns_begin_).count();
  return spent_s / static_cast<double>(turns_done_) * static_cast<double>(turns_left_);
}

void Experiment::save() {
  results_.elapsed_s = elapsed_s();
  derive(results_);
  save_results(results_, options_.output / "results.json");
}

void Experiment::run() {
  results_.complete = false;
  try {
    export_all();
    pass_gates();
    run_generations();
  } catch (const Interrupted&) {
    save();
    throw;
  }
  results_.complete = true;
  save();
}

void Experiment::export_all() {
  std::unique_ptr<Exporter> exporter;
  std::set<std::string> notes;  // said once, also where many cases have it
  for (size_t i = 0; i < options_.cases.size(); ++i) {
    const auto& item = options_.cases[i];
    settings_.push_back(item.settings);
    if (item.own()) continue;
    progress_.note(fmt::format("weights and inputs of {}", item.name), left_s());
    if (!exporter) exporter = std::make_unique<Exporter>(options_.exporter);
    const auto exported = exporter->export_case(item);
    settings_.back() = exported.settings;
    if (!exported.note.empty() && notes.insert(exported.note).second) {
      progress_.say(exported.note);
      results_.warn({"export", "warning", exported.note, "", ""});
    }
    if (exported.status == Status::ok) continue;
    for (const auto& spec : options_.runtimes) {
      if (results_.cases[i].find(spec.runtime) != nullptr) continue;
      RuntimeResult row;
      row.runtime = spec.runtime;
      row.status = exported.status;
      row.reason = exported.reason;
      results_.cases[i].runtimes.push_back(std::move(row));
    }
  }
}

void Experiment::pass_gates() {
  const TemporaryFolder folder;
  for (size_t i = 0; i < options_.cases.size(); ++i) {
    const auto& item = options_.cases[i];
    const auto curve = options_.curves.find(item.family);
    const GateRequest request{
        .item = item,
        .settings = settings_[i],
        .values = folder.path() / fmt::format("{}.pt", i),
        .runtimes = options_.runtimes,
        .curve_steps = item.phase == "train" && curve != options_.curves.end() ? curve->second : 0,
        .patience_s = options_.patience_s};
    std::vector<Warning> warnings;
    const auto keep_warnings = [&] {
      for (auto& warning : warnings) results_.warn(std::move(warning));
    };
    try {
      pass_gate(results_.cases[i], warnings, request, [&](const std::string& runtime) {
        progress_.note(
            fmt::format("gate {}/{}: {} in {}", i + 1, options_.cases.size(), item.name, runtime),
            left_s());
      });
    } catch (const Interrupted&) {
      keep_warnings();
      throw;
    }
    keep_warnings();
    std::error_code ignored;
    fs::remove(request.values, ignored);
    save();
  }
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
                         int generation) const {
  const auto* reference = result.find(result.reference);
  if (reference == nullptr || reference->status != Status::ok) return true;
  // Not the reference's own: in pairs it is there from the other pairs.
  return std::none_of(rows.begin() + 1, rows.end(),
                      [&](const std::string& name) {
                        const auto* row = result.find(name);
                        return row != nullptr && row->status == Status::ok;
                      }) ||
         std::any_of(rows.begin() + 1, rows.end(), [&](const std::string& name) {
           return find_generation(result.find(name), generation) != nullptr;
         });
}

std::vector<Experiment::Visit> Experiment::missing_visits() {
  std::vector<Visit> visits;
  const auto count = results_.cases.size();
  for (int generation = 1; generation <= options_.plan.generations; ++generation) {
    for (const auto& rows : groups()) {
      Visit visit{generation, rows, {}};
      for (size_t i = 0; i < count; ++i) {
        // Rotated: no case is always the first that a process sees.
        const auto index = (i + static_cast<size_t>(generation - 1)) % count;
        if (!is_done(results_.cases[index], rows, generation)) visit.cases.push_back(index);
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

void Experiment::run_generations() {
  if (!results_.plan.pairs && memory_is_short()) {
    results_.plan.pairs = true;
    results_.warn({"pairs", "warning",
                   "all workers together need more than 80 % of the memory: they were measured as "
                   "(reference, one) pairs",
                   "", ""});
  }
  const auto visits = missing_visits();
  for (const auto& visit : visits) turns_left_ += visit.cases.size();
  turns_begin_ = Clock::now();
  for (size_t i = 0; i < visits.size(); ++i) {
    run_visit(visits[i], static_cast<double>(visits.size() - i - 1));
    save();
  }
}

void Experiment::run_visit(const Visit& visit, double later_visits) {
  std::vector<WorkerSpec> specs;
  for (const auto& row : visit.rows) {
    // A runtime that failed everywhere would only take memory.
    const bool needed = std::any_of(visit.cases.begin(), visit.cases.end(), [&](size_t index) {
      const auto* found = results_.cases[index].find(row);
      return found != nullptr && found->status == Status::ok;
    });
    if (needed) specs.push_back(spec_of(row));
  }
  const auto of_all = fmt::format("generation {}/{}", visit.generation, options_.plan.generations);
  progress_.note(fmt::format("{}: starting {} workers", of_all, specs.size()), left_s());
  const auto begin = Clock::now();
  Team team(specs, options_.patience_s);
  start_s_ = std::chrono::duration<double>(Clock::now() - begin).count();
  for (const size_t index : visit.cases) {
    auto& result = results_.cases[index];
    const auto* reference = result.find(result.reference);
    const auto text = fmt::format("{}: {}", of_all, result.name);
    progress_.note(text, left_s());
    const RoundRule rule{
        .rounds = options_.plan.rounds,
        .budget_s = (budget_left_s() - later_visits * start_s_) / static_cast<double>(turns_left_),
        .first_round = next_round(*reference, visit.generation)};
    team.measure(result, settings_[index], visit.generation, rule, random_, [&](int rounds) {
      progress_.update(fmt::format("{}, round {}", text, rounds), left_s());
    });
    ++turns_done_;
    --turns_left_;
  }
}

}  // namespace torchpace::cli
