// The workers of one invocation: a fresh process per runtime, of which one runs at a time.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "controller/exporter_client.hpp"
#include "controller/worker_client.hpp"

namespace torchpace::cli {

/// The size of a block: W unrecorded steps, then K samples of B steps.
struct BlockSize {
  int samples = 1;
  int warmup = 1;
  int steps_per_sample = 1;
};

/// One size for all workers, so that all do the same steps from the same state: about 25 ms of the
/// runtimes' middle step time.
BlockSize choose_block(const std::vector<double>& step_s);

/// When the rounds of a case end.
struct RoundRule {
  // Exactly so many; 0: until they have taken as long as what went before them, loading above all,
  // or all has taken `budget_s`; at least kFewestRounds.
  int rounds = 0;
  double budget_s = 0;
  int first_round = 0;  // number of the first
  // After the last:
  std::set<std::string> probed;  // runtimes that are asked for probes
  bool multiplies = true;        // the reference shows the rate of its matrix products
};

/// What one load of a case took; nothing where the reference cannot play.
struct LoadTime {
  double rounds_s = 0;
  double fixed_s = 0;  // loading and, after the rounds, probes
};

struct TeamLimits {
  double worker_timeout_s = 30;
  double compile_s = 0;                // that a load may take besides
  size_t loads = 1;                    // at the same time
  std::function<double()> message_ns;  // where the cores are, asked before each block; may be empty
};

class Team {
 public:
  /// Starts all workers at once, waits for their greetings and stops them. One that does not start
  /// is missing from what follows; its first case says why.
  Team(const std::vector<WorkerSpec>& workers, const TeamLimits& limits);

  /// Lets them quit.
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// Loads the case in all workers whose row is ok and takes turns. Adds an invocation, or rounds to
  /// one that is there, to each row that measured; a worker that fails makes its row failed. Calls
  /// `after_round` with the number of rounds done. On Ctrl-C keeps the rounds that are whole and
  /// throws Interrupted.
  LoadTime measure(CaseResult& result, const Exported& files, int invocation, const RoundRule& rule,
                   std::mt19937_64& random, const std::function<void(int)>& after_round);

 private:
  struct Member {
    std::string runtime;
    std::unique_ptr<WorkerClient> client;  // null once it has died
    std::string death;                     // why
    bool death_told = false;
  };
  struct Player {
    Member* member;
    RuntimeResult* row;
    Invocation invocation;
    double step_s = 0;
  };

  void fail(Member& member, RuntimeResult& row, const WorkerFailure& failure, int invocation);
  std::vector<Player> prepare(CaseResult& result, const Exported& files, int invocation);
  void load(std::vector<Player>& players, const Exported& files);
  bool attempt(Player& player, const std::function<void(WorkerClient&)>& action);
  void play_round(std::vector<Player>& players, const std::vector<size_t>& order,
                  const BlockSize& block, int number);
  void probe(Player& player);
  void multiply(Player& player, bool on_device);
  bool plays(const std::vector<Player>& players, const std::string& runtime) const;

  TeamLimits limits_;
  std::vector<Member> members_;
};

}  // namespace torchpace::cli
