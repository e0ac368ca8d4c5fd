// A session: one load of a case in all workers, and the rounds that follow it, in which they take
// turns.
#pragma once

#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "controller/worker_pool.hpp"

namespace torchpace::cli {

/// The size of a block: W unrecorded steps, then K samples of B steps.
struct BlockSize {
  int samples = 1;
  int warmup = 1;
  int steps_per_sample = 1;
};

/// One size for all workers, so that all do the same steps from the same state: about 25 ms of the
/// runtimes' middle step time.
BlockSize choose_block(const std::vector<double>& step_s, bool by_events);

/// When the rounds of a session end, and what is asked for after the last.
struct SessionRule {
  // Exactly so many; 0: until they have taken as long as what went before them, loading above all,
  // or all has taken `budget_s`; at least kFewestRounds.
  int rounds = 0;
  double budget_s = 0;
  int first_round = 0;           // number of the first
  std::set<std::string> probed;  // runtimes that are asked for probes
  bool asks_gemm_peak = true;    // the reference shows the rate of its matrix products
};

/// What a session took; nothing where the reference cannot take part.
struct SessionTime {
  double rounds_s = 0;
  double fixed_s = 0;  // loading and, after the rounds, probes
};

struct SessionHooks {
  std::function<double()> core_latency_ns;  // asked before each block; may be empty
  std::function<void(int)> after_round;     // with the number of rounds done
};

/// Adds an invocation, or rounds to one that is there, to each row that measured. On Ctrl-C keeps
/// the rounds that are whole and throws Interrupted.
SessionTime run_session(WorkerPool& pool, CaseResult& result, const Exported& files, int invocation,
                        const SessionRule& rule, std::mt19937_64& random,
                        const SessionHooks& hooks);

}  // namespace torchpace::cli
