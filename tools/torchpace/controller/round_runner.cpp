#include "controller/round_runner.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "controller/round_order.hpp"
#include "support/signals.hpp"
#include "torchpace/case_phase.hpp"

namespace torchpace::cli {
namespace {

constexpr double kBlock_s =
    0.025;  // short: what a neighbor does to the caches must meet all sides of a round
constexpr double kPairedStep_s = 0.05;  // two samples of steps up to here: a turn has its own cost
constexpr double kShortestSample_s = 50e-6;  // below, one step is too close to the clock's own cost
// Where events bound a sample, which costs 4 us in C++ and 5 in Python.
constexpr double kShortestSampleByEvents_s = 1e-3;
constexpr int kMostSamples = 250;      // of a block: bounds the size of results.json
constexpr double kWarmupShare = 0.15;  // of a block's steps
constexpr double kProbe_s = 0.5;       // steps of one probe
constexpr int kFewestProbed = 5;
constexpr int kMostProbed = 30;
constexpr int kDispatchSamples = 30;
constexpr int kGemmSamples = 5;
constexpr int kGemmSize = 1024, kGemmSizeOnDevice = 8192;  // large enough for the full rate

/// A further session of the case, or a further pair of the reference, in the same invocation.
void add_session(Invocation& all, const Invocation& session) {
  all.rounds.insert(all.rounds.end(), session.rounds.begin(), session.rounds.end());
  if (session.gemm_peak) all.gemm_peak = session.gemm_peak;
  if (session.probes) all.probes = session.probes;
}

bool takes_part(const std::vector<Participant>& participants, const std::string& runtime) {
  return std::any_of(participants.begin(), participants.end(), [&](const Participant& participant) {
    return participant.row->runtime == runtime && participant.row->status == Status::ok;
  });
}

void run_round(std::vector<Participant>& participants, const std::vector<size_t>& order,
               const BlockSize& block, int number, const std::function<double()>& core_latency_ns) {
  std::vector<std::pair<Participant*, Round>> measured;
  for (size_t place = 0; place < order.size(); ++place) {
    auto& participant = participants[order[place]];
    attempt(participant, [&](WorkerClient& client) {
      const double latency_ns = core_latency_ns ? core_latency_ns() : kUnknown;
      const ScopedResume running(client);
      auto round =
          client.run(block.samples, block.warmup, block.steps_per_sample, participant.step_s);
      round.core_latency_ns = latency_ns;
      round.round = number;
      round.position = static_cast<int>(place) + 1;
      measured.emplace_back(&participant, std::move(round));
    });
  }
  // Only here: a round that Ctrl-C cuts short is in no row.
  for (auto& [participant, round] : measured) {
    participant->invocation.rounds.push_back(std::move(round));
  }
}

/// What it does not answer costs its row nothing: the samples are there.
void probe(Participant& participant) {
  auto& probes = participant.invocation.probes.emplace();
  const double step_s = participant.step_s;
  const int steps =
      std::clamp(static_cast<int>(std::lround(kProbe_s / step_s)), kFewestProbed, kMostProbed);
  const auto ask = [&](const char* command, const std::function<void(WorkerClient&)>& question) {
    auto& client = participant.worker->client;
    if (!client) return;
    try {
      const ScopedResume running(*client);
      question(*client);
    } catch (const WorkerFailure& failure) {
      probes.unanswered[command] = failure.what();
      if (failure.alive) return;
      client.reset();
      participant.worker->death = failure.what();
    }
  };
  ask("parts", [&](WorkerClient& client) { probes.parts_ns = client.parts(steps, step_s); });
  ask("dispatch",
      [&](WorkerClient& client) { probes.dispatch = client.dispatch(kDispatchSamples); });
  ask("operators", [&](WorkerClient& client) { probes.profile = client.operators(steps, step_s); });
}

/// What a matrix product of the same dtype, device and threads reaches in this process. A worker of
/// the user's own need not answer: then no share of it is known.
void ask_gemm_peak(Participant& participant, bool on_device) {
  try {
    auto& client = *participant.worker->client;
    const ScopedResume running(client);
    participant.invocation.gemm_peak =
        client.gemm_peak(on_device ? kGemmSizeOnDevice : kGemmSize, kGemmSamples);
  } catch (const WorkerFailure& failure) {
    if (!failure.alive) fail(participant, failure);
  }
}

}  // namespace

BlockSize choose_block(const std::vector<double>& step_s, bool by_events) {
  double logs = 0;
  for (const double s : step_s) logs += std::log(s);
  const double middle_s = std::exp(logs / static_cast<double>(step_s.size()));
  const double fastest_s = *std::min_element(step_s.begin(), step_s.end());
  BlockSize block;
  const double shortest_s = by_events ? kShortestSampleByEvents_s : kShortestSample_s;
  block.steps_per_sample = static_cast<int>(std::ceil(shortest_s / fastest_s));
  block.samples =
      std::clamp(static_cast<int>(std::round(kBlock_s / middle_s / block.steps_per_sample)),
                 middle_s > kPairedStep_s ? 1 : 2, kMostSamples);
  const double steps = 1.0 * block.samples * block.steps_per_sample;
  block.warmup = std::max(1, static_cast<int>(std::round(kWarmupShare * steps)));
  return block;
}

SessionTime run_session(WorkerPool& pool, CaseResult& result, const Exported& files, int invocation,
                        const SessionRule& rule, std::mt19937_64& random,
                        const SessionHooks& hooks) {
  const auto begin = Clock::now();
  auto participants = pool.load(result, files, invocation);
  if (!takes_part(participants, result.reference)) return {};
  std::vector<double> step_s;
  for (const auto& participant : participants) step_s.push_back(participant.step_s);
  const auto device = result.settings.find("device");
  const bool on_device = device != result.settings.end() && is_cuda(device->second);
  const auto block =
      choose_block(step_s, on_device && !case_phase_named(result.phase).batch_of_one);

  int done = 0;
  const auto keep = [&] {
    for (auto& participant : participants) {
      if (done < kFewestRounds && rule.rounds == 0) continue;
      auto& all = participant.row->invocations;
      if (!all.empty() && all.back().invocation == invocation) {
        add_session(all.back(), participant.invocation);
      } else if (!participant.invocation.rounds.empty()) {
        all.push_back(participant.invocation);
      }
    }
  };
  const auto rounds_begin = Clock::now();
  const double before_s = seconds_since(begin);
  const double budget_s = std::min(before_s, rule.budget_s - before_s);
  try {
    std::vector<std::vector<size_t>> square;
    while (takes_part(participants, result.reference)) {
      const double round_s = done == 0 ? 0 : seconds_since(rounds_begin) / done;
      const bool in_time = done < kFewestRounds || seconds_since(rounds_begin) + round_s < budget_s;
      if (rule.rounds > 0 ? done == rule.rounds : !in_time) break;
      const auto row = static_cast<size_t>(done) % participants.size();
      if (row == 0) square = latin_square(participants.size(), random);
      run_round(participants, square[row], block, rule.first_round + done, hooks.core_latency_ns);
      ++done;
      if (hooks.after_round) hooks.after_round(done);
    }
  } catch (const Interrupted&) {
    keep();
    throw;
  }
  const double rounds_s = seconds_since(rounds_begin);
  for (auto& participant : participants) {
    if (participant.row->status != Status::ok) continue;
    if (rule.asks_gemm_peak && participant.row->runtime == result.reference && result.flops > 0) {
      ask_gemm_peak(participant, on_device);
    }
    if (rule.probed.contains(participant.row->runtime)) probe(participant);
  }
  keep();
  return {rounds_s, seconds_since(begin) - rounds_s};
}

}  // namespace torchpace::cli
