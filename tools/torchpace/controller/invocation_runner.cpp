#include "controller/invocation_runner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "controller/preflight.hpp"
#include "doctor/usable_resources.hpp"
#include "support/error.hpp"
#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

constexpr double kMemoryShare = 0.8;    // of what is available, for all workers together
constexpr double kRoundsShare = 0.35;   // of the time, at least, where invocations are chosen
constexpr int kFewestInvocations = 6;   // whose intervals are order statistics
constexpr double kCannotTakePart = -1;  // width of an interval

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

/// "cuda:1" as nvidia-smi names it, which knows nothing of CUDA_VISIBLE_DEVICES.
std::string smi_name(const std::string& device) {
  const auto colon = device.find(':');
  auto index = colon == std::string::npos ? "0" : device.substr(colon + 1);
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible == nullptr) return index;
  std::istringstream names(visible);
  std::string name;
  for (int left = std::stoi(index); left >= 0; --left) std::getline(names, name, ',');
  return names ? name : index;
}

/// What nvidia-smi says of one field of a CUDA device; unknown where it cannot be asked.
double ask_gpu(const std::string& device, const std::string& field) {
  if (!is_cuda(device)) return kUnknown;
  try {
    return std::stod(run_to_end({{"nvidia-smi", "-i", smi_name(device), "--query-gpu=" + field,
                                  "--format=csv,noheader,nounits"},
                                 {}},
                                30));
  } catch (const std::exception&) {
    return kUnknown;
  }
}

/// Memory that torch can have on the device; infinite where it cannot be asked.
double device_bytes(const std::string& device) {
  const double mebibytes = ask_gpu(device, "memory.free");
  return std::isnan(mebibytes) ? INFINITY : mebibytes * 1048576;
}

}  // namespace

int affordable_invocations(int asked, double budget_s, double invocation_s) {
  if (asked <= kFewestInvocations) return asked;
  for (const int count : {asked, 12, 9}) {
    if (count <= asked && count * invocation_s <= budget_s) return count;
  }
  return kFewestInvocations;
}

std::optional<size_t> next_session(const std::vector<double>& widths,
                                   const std::vector<int>& sessions) {
  const bool known =
      std::none_of(widths.begin(), widths.end(), [](double width) { return std::isnan(width); });
  std::optional<size_t> best;
  double most = 0;
  for (size_t i = 0; i < widths.size(); ++i) {
    if (widths[i] < 0) continue;
    const double need = (known || std::isinf(widths[i]) ? widths[i] : 1) / std::sqrt(sessions[i]);
    const bool less = need == most ? sessions[i] >= sessions[best.value_or(i)] : need < most;
    if (best && less) continue;
    best = i;
    most = need;
  }
  return best;
}

size_t InvocationRunner::parallel_loads() const {
  return static_cast<size_t>(usable_cores(run_.results.environment));
}

/// What an invocation takes besides its rounds, told from the preflight until one has been
/// measured.
double InvocationRunner::invocation_s() const {
  const auto groups_of = static_cast<double>(row_groups().size());
  if (fixed_s_ > 0) return fixed_s_ * groups_of;
  std::map<std::string, double> start_s;
  double session_s = 0;
  for (const auto& result : run_.results.cases) {
    for (const auto& row : result.runtimes) {
      if (row.status != Status::ok) continue;
      const auto& measured = row.is_copy() ? *result.find(row.copy_of) : row;
      for (const auto& [stage, seconds] : measured.cold_s) {
        if (stage == "start") {
          start_s[row.runtime] = seconds;
        } else if (stage != "tenth_step") {
          session_s += std::fmax(0, seconds);  // a worker of the user's own need not tell
        }
      }
    }
  }
  for (const auto& [runtime, seconds] : start_s) session_s += seconds;
  const auto at_once = std::min(parallel_loads(), std::max<size_t>(start_s.size(), 1));
  return session_s / static_cast<double>(at_once);
}

/// Chooses the number of invocations: fewer where starting and loading alone would not fit.
void InvocationRunner::plan_invocations(int done) {
  if (!run_.options.adapts_invocations || done >= kFewestInvocations) return;
  auto& plan = run_.results.plan;
  const auto before = plan.invocations;
  const double each_s = invocation_s();
  const double budget_s = run_.budget.remaining_s() * (1 - kRoundsShare) + done * each_s;
  plan.invocations = affordable_invocations(plan.invocations_asked, budget_s, each_s);
  if (plan.invocations == before) return;
  run_.progress.log(fmt::format("{} invocations: starting and loading takes {:.0f} s in each",
                                plan.invocations, each_s));
}

bool InvocationRunner::memory_is_short() const {
  const auto peak = [](const RuntimeResult& row, const char* kind) {
    const auto found = row.peak_bytes.find(kind);
    return found == row.peak_bytes.end() ? 0 : found->second;
  };
  double resident = 0, reserved = 0;
  for (const auto& result : run_.results.cases) {
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
  return resident > kMemoryShare * available_bytes(run_.results.environment) ||
         reserved > kMemoryShare * device_bytes(run_.options.plan.device);
}

/// The rows that are measured together: all, or (reference, one) pairs.
std::vector<std::vector<std::string>> InvocationRunner::row_groups() const {
  const auto& reference = run_.options.plan.reference;
  std::vector<std::string> all{reference};
  for (const auto& spec : run_.options.runtimes) {
    if (spec.runtime != reference) all.push_back(spec.runtime);
  }
  all.push_back(copy_name(reference));
  if (!run_.results.plan.pairs) return {all};
  std::vector<std::vector<std::string>> pairs;
  for (size_t i = 1; i < all.size(); ++i) pairs.push_back({reference, all[i]});
  return pairs;
}

bool InvocationRunner::is_done(const CaseResult& result, const std::vector<std::string>& rows,
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

std::vector<InvocationRunner::Group> InvocationRunner::missing_groups() {
  std::vector<Group> groups;
  const auto count = run_.results.cases.size();
  for (int invocation = 1; invocation <= run_.options.plan.invocations_asked; ++invocation) {
    for (const auto& rows : row_groups()) {
      Group group{invocation, rows, {}};
      for (size_t i = 0; i < count; ++i) {
        // Rotated: no case is always the first that a process sees.
        const auto index = (i + static_cast<size_t>(invocation - 1)) % count;
        if (!is_done(run_.results.cases[index], rows, invocation)) group.cases.push_back(index);
      }
      if (!group.cases.empty()) groups.push_back(std::move(group));
    }
  }
  return groups;
}

WorkerSpec InvocationRunner::spec_of(const std::string& row) const {
  const auto runtime =
      row == copy_name(run_.options.plan.reference) ? run_.options.plan.reference : row;
  for (auto spec : run_.options.runtimes) {
    if (spec.runtime != runtime) continue;
    spec.runtime = row;
    return spec;
  }
  throw Error(fmt::format("no runtime '{}'", runtime));
}

void InvocationRunner::run() {
  if (!run_.results.plan.pairs && memory_is_short()) {
    run_.results.plan.pairs = true;
    run_.results.warn(
        {"pairs", "warning",
         "all workers together need more than 80 % of the memory: they were measured as "
         "(reference, one) pairs",
         "", ""});
  }
  const auto groups = missing_groups();
  if (!groups.empty()) plan_invocations(groups.front().invocation - 1);
  run_.budget.begin_sessions();
  for (size_t i = 0; i < groups.size(); ++i) {
    const auto& group = groups[i];
    if (group.invocation > run_.results.plan.invocations) break;
    double left = 0;
    size_t sessions = 0;
    for (size_t j = i; j < groups.size(); ++j) {
      if (groups[j].invocation > run_.results.plan.invocations) break;
      sessions += groups[j].cases.size();
      ++left;
    }
    run_.budget.set_sessions_left(sessions);
    run_group(group, left);
    run_.save();
    plan_invocations(group.invocation);  // the first ones show what they cost
  }
}

/// The clock of a GPU just after the last rounds, while its workers still hold it: one that was
/// held back in a part of the run makes its invocations slower than the others.
void InvocationRunner::note_clock() {
  auto& clocks = run_.results.device_clocks_mhz;
  const double mhz = ask_gpu(run_.options.plan.device, "clocks.sm");
  if (std::isnan(mhz)) return;
  clocks.push_back(mhz);
  const auto [low, high] = std::minmax_element(clocks.begin(), clocks.end());
  if (*low >= 0.97 * *high) return;
  std::erase_if(run_.results.warnings, [](const Warning& w) { return w.code == "device-clock"; });
  run_.results.warn(
      {"device-clock", "warning",
       fmt::format("the clock of {} was {:.0f} to {:.0f} MHz after the rounds: it may "
                   "have been held back in a part of the run",
                   run_.options.plan.device, *low, *high),
       "", ""});
}

/// All cases once, and then, for as long as there is time, the one whose interval is widest.
void InvocationRunner::run_group(const Group& group, double groups_left) {
  const auto begin = Clock::now();
  const auto share_left_s = [&] {
    const double used_s = seconds_since(begin);
    return (run_.budget.remaining_s() + used_s) / groups_left - used_s;
  };
  const auto count = static_cast<double>(group.cases.size());
  std::vector<WorkerSpec> specs;
  for (const auto& row : group.rows) {
    // A runtime that failed everywhere would only take memory.
    const bool needed = std::any_of(group.cases.begin(), group.cases.end(), [&](size_t index) {
      const auto* found = run_.results.cases[index].find(row);
      return found != nullptr && found->status == Status::ok;
    });
    if (needed) specs.push_back(spec_of(row));
  }
  run_.progress.status(fmt::format("invocation {}/{}: starting {} workers", group.invocation,
                                   run_.results.plan.invocations, specs.size()),
                       run_.budget.estimated_left_s());
  WorkerPool pool(specs, {.worker_timeout_s = run_.options.worker_timeout_s,
                          .compile_s = run_.options.plan.compile_timeout,
                          .loads = parallel_loads()});
  std::vector<int> sessions(group.cases.size(), 1);
  std::vector<double> widths, session_s;
  fixed_s_ = seconds_since(begin);
  for (size_t i = 0; i < group.cases.size(); ++i) {
    const auto time = run_one_session(pool, group, group.cases[i], true,
                                      share_left_s() / (count - static_cast<double>(i)));
    widths.push_back(time.rounds_s > 0 ? width_of(run_.results.cases[group.cases[i]])
                                       : kCannotTakePart);
    session_s.push_back(time.fixed_s + time.rounds_s);
    fixed_s_ += time.fixed_s;
    run_.budget.finish_first_session();
  }
  while (run_.options.plan.rounds == 0) {
    const auto next = next_session(widths, sessions);
    if (!next || session_s[*next] > share_left_s()) break;
    const auto time = run_one_session(pool, group, group.cases[*next], false, share_left_s());
    if (time.rounds_s == 0) widths[*next] = kCannotTakePart;
    ++sessions[*next];
  }
  note_clock();
}

/// One load of a case with its rounds, which take as long as the load did, as far as the time goes;
/// then, with `probes`, what is asked for once in an invocation.
SessionTime InvocationRunner::run_one_session(WorkerPool& pool, const Group& group, size_t index,
                                              bool probes, double budget_s) {
  auto& result = run_.results.cases[index];
  const auto text = fmt::format("invocation {}/{}: {}", group.invocation,
                                run_.results.plan.invocations, result.name);
  run_.progress.status(text, run_.budget.estimated_left_s());
  const SessionRule rule{
      .rounds = run_.options.plan.rounds,
      .budget_s = budget_s,
      .first_round = next_round(*result.find(result.reference), group.invocation),
      .probed = probes ? run_.options.probed : std::set<std::string>{},
      .asks_gemm_peak = probes};
  const auto time =
      run_session(pool, result, run_.files[index], group.invocation, rule, random_,
                  {.core_latency_ns = run_.options.core_latency_ns, .after_round = [&](int rounds) {
                     run_.progress.update(fmt::format("{}, round {}", text, rounds),
                                          run_.budget.estimated_left_s());
                   }});
  run_.budget.count_session();
  return time;
}

}  // namespace torchpace::cli
