#include "controller/worker_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "support/signals.hpp"
#include "controller/round_order.hpp"

namespace torchpace::cli {
namespace {

constexpr double kBlock_s =
    0.025;  // short: what a neighbor does to the caches must meet all sides of a round
constexpr double kPairedStep_s = 0.05;  // two samples of steps up to here: a turn has its own cost
constexpr double kShortestSample_s = 50e-6;  // below, one step is too close to the clock's own cost
constexpr int kMostSamples = 250;            // of a block: bounds the size of results.json
constexpr double kWarmupShare = 0.15;        // of a block's steps
constexpr double kSlowStep_s = 2;            // steps so slow are their own pilot
constexpr double kFastStep_s = 1e-3;         // three steps so fast tell little
constexpr double kProbe_s = 0.5;             // steps of one probe
constexpr int kFewestProbed = 5;
constexpr int kMostProbed = 30;
constexpr int kDispatchSamples = 30;
constexpr int kMatmulSamples = 5;
constexpr int kMatmulSize = 1024, kMatmulSizeOnDevice = 8192;  // large enough for the full rate

/// Lets a stopped worker run for a scope.
class Awake {
 public:
  explicit Awake(WorkerClient& client) : client_(client) { client_.resume(); }
  ~Awake() { client_.stop(); }
  Awake(const Awake&) = delete;
  Awake& operator=(const Awake&) = delete;

 private:
  WorkerClient& client_;
};

double fastest_step_s(const RuntimeResult& row) {
  double fastest_ns = INFINITY;
  for (const auto& invocation : row.invocations) {
    for (const auto& round : invocation.rounds) {
      for (const double ns : round.step_ns) fastest_ns = std::min(fastest_ns, ns);
    }
  }
  return fastest_ns * 1e-9;
}

/// The first steps after a load. Returns the fastest that is known: what others do on this machine
/// must not make all blocks too short.
double pilot_step_s(WorkerClient& client, const RuntimeResult& row) {
  if (!row.invocations.empty()) {
    const double known_s = fastest_step_s(row);
    client.run(1, known_s > kSlowStep_s ? 0 : 1, 1, known_s);
    return known_s;
  }
  const auto cold = row.cold_s.find("first_step");
  const double first_step_s = cold == row.cold_s.end() ? 1 : cold->second;
  const auto step_s = [&](int samples, int warmup, double expected_s) {
    const auto step_ns = client.run(samples, warmup, 1, expected_s).step_ns;
    return *std::min_element(step_ns.begin(), step_ns.end()) * 1e-9;
  };
  if (first_step_s > kSlowStep_s) return step_s(1, 0, first_step_s);
  const double rough_s = step_s(3, 1, first_step_s);
  return rough_s < kFastStep_s ? step_s(50, 10, rough_s) : rough_s;
}

/// The entries of `now` that are not so in `before`.
Json differences(const Json& before, const Json& now) {
  Json result = Json::object();
  for (const auto& [key, value] : now.items()) {
    if (!before.contains(key) || before.at(key) != value) result[key] = value;
  }
  return result;
}

/// A further load of the case, or a further pair of the reference, in the same invocation.
void add_load(Invocation& all, const Invocation& load) {
  all.rounds.insert(all.rounds.end(), load.rounds.begin(), load.rounds.end());
  if (load.matmul) all.matmul = load.matmul;
  if (load.probes) all.probes = load.probes;
}

}  // namespace

BlockSize choose_block(const std::vector<double>& step_s) {
  double logs = 0;
  for (const double s : step_s) logs += std::log(s);
  const double middle_s = std::exp(logs / static_cast<double>(step_s.size()));
  const double fastest_s = *std::min_element(step_s.begin(), step_s.end());
  BlockSize block;
  block.steps_per_sample = static_cast<int>(std::ceil(kShortestSample_s / fastest_s));
  block.samples =
      std::clamp(static_cast<int>(std::round(kBlock_s / middle_s / block.steps_per_sample)),
                 middle_s > kPairedStep_s ? 1 : 2, kMostSamples);
  const double steps = 1.0 * block.samples * block.steps_per_sample;
  block.warmup = std::max(1, static_cast<int>(std::round(kWarmupShare * steps)));
  return block;
}

Team::Team(const std::vector<WorkerSpec>& workers, const TeamLimits& limits) : limits_(limits) {
  const auto died = [](Member& member, const WorkerFailure& failure) {
    member.client.reset();
    member.death = failure.what();
  };
  for (const auto& spec : workers) {
    auto& member = members_.emplace_back();
    member.runtime = spec.runtime;
    try {
      member.client = std::make_unique<WorkerClient>(spec, limits.worker_timeout_s);
    } catch (const WorkerFailure& failure) {
      died(member, failure);
    }
  }
  for (auto& member : members_) {
    if (!member.client) continue;
    try {
      member.client->await_greeting();
      member.client->stop();
    } catch (const WorkerFailure& failure) {
      died(member, failure);
    }
  }
}

Team::~Team() {
  try {
    for (auto& member : members_) {
      if (!member.client) continue;
      member.client->resume();
      member.client->ask_to_quit();
    }
    for (auto& member : members_) {
      if (member.client) member.client->quit();
    }
  } catch (const Interrupted&) {
    members_.clear();  // killed: the next wait of the caller notices the interrupt
  }
}

void Team::fail(Member& member, RuntimeResult& row, const WorkerFailure& failure, int invocation) {
  row.status = failure.status;
  row.reason = fmt::format("invocation {}: {}", invocation, failure.what());
  if (failure.alive) return;
  member.client.reset();
  member.death_told = true;
}

/// False when it failed, which its row says.
bool Team::attempt(Player& player, const std::function<void(WorkerClient&)>& action) {
  if (player.row->status != Status::ok) return false;
  try {
    action(*player.member->client);
    return true;
  } catch (const WorkerFailure& failure) {
    fail(*player.member, *player.row, failure, player.invocation.invocation);
    return false;
  }
}

/// Loads the case in all workers, a few at a time: nothing is timed while they do.
void Team::load(std::vector<Player>& players, const Exported& files) {
  size_t begun = 0;
  for (size_t i = 0; i < players.size(); ++i) {
    for (; begun < players.size() && begun < i + limits_.loads; ++begun) {
      const auto& row = *players[begun].row;
      const auto settings = files.settings_of(row.is_copy() ? row.copy_of : row.runtime);
      attempt(players[begun], [&](WorkerClient& client) {
        client.resume();
        client.begin_load(settings.line());
      });
    }
    auto& player = players[i];
    attempt(player, [&](WorkerClient& client) {
      client.finish_load(limits_.compile_s);
      player.invocation.environment = differences(player.row->environment, client.environment());
    });
    if (player.member->client) player.member->client->stop();
  }
}

std::vector<Team::Player> Team::prepare(CaseResult& result, const Exported& files, int invocation) {
  std::vector<Player> players;
  for (auto& member : members_) {
    auto* row = result.find(member.runtime);
    if (row == nullptr || row->status != Status::ok) continue;
    if (member.client) {
      players.push_back({.member = &member, .row = row, .invocation = {}});
      players.back().invocation.invocation = invocation;
    } else if (!std::exchange(member.death_told, true)) {
      fail(member, *row, {member.death, Status::failed, false}, invocation);
    }
  }
  load(players, files);
  for (auto& player : players) {
    attempt(player, [&](WorkerClient& client) {
      const Awake awake(client);
      player.step_s = pilot_step_s(client, *player.row);
    });
  }
  std::erase_if(players, [](const Player& p) { return p.row->status != Status::ok; });
  return players;
}

bool Team::plays(const std::vector<Player>& players, const std::string& runtime) const {
  return std::any_of(players.begin(), players.end(), [&](const Player& player) {
    return player.row->runtime == runtime && player.row->status == Status::ok;
  });
}

void Team::play_round(std::vector<Player>& players, const std::vector<size_t>& order,
                      const BlockSize& block, int number) {
  std::vector<std::pair<Player*, Round>> played;
  for (size_t place = 0; place < order.size(); ++place) {
    auto& player = players[order[place]];
    attempt(player, [&](WorkerClient& client) {
      const double message_ns = limits_.message_ns ? limits_.message_ns() : kUnknown;
      const Awake awake(client);
      auto round = client.run(block.samples, block.warmup, block.steps_per_sample, player.step_s);
      round.message_ns = message_ns;
      round.round = number;
      round.position = static_cast<int>(place) + 1;
      played.emplace_back(&player, std::move(round));
    });
  }
  // Only here: a round that Ctrl-C cuts short is in no row.
  for (auto& [player, round] : played) player->invocation.rounds.push_back(std::move(round));
}

/// What it does not answer costs its row nothing: the samples are there.
void Team::probe(Player& player) {
  auto& probes = player.invocation.probes.emplace();
  const int steps = std::clamp(static_cast<int>(std::lround(kProbe_s / player.step_s)),
                               kFewestProbed, kMostProbed);
  const auto ask = [&](const char* command, const std::function<void(WorkerClient&)>& question) {
    auto& client = player.member->client;
    if (!client) return;
    try {
      const Awake awake(*client);
      question(*client);
    } catch (const WorkerFailure& failure) {
      probes.unanswered[command] = failure.what();
      if (failure.alive) return;
      client.reset();
      player.member->death = failure.what();
    }
  };
  ask("parts", [&](WorkerClient& client) { probes.parts_ns = client.parts(steps, player.step_s); });
  ask("dispatch",
      [&](WorkerClient& client) { probes.dispatch = client.dispatch(kDispatchSamples); });
  ask("operators",
      [&](WorkerClient& client) { probes.profile = client.operators(steps, player.step_s); });
}

/// What a matrix product of the same dtype, device and threads reaches in this process. A worker of
/// the user's own need not answer: then no share of it is known.
void Team::multiply(Player& player, bool on_device) {
  try {
    auto& client = *player.member->client;
    const Awake awake(client);
    player.invocation.matmul =
        client.matmul(on_device ? kMatmulSizeOnDevice : kMatmulSize, kMatmulSamples);
  } catch (const WorkerFailure& failure) {
    if (!failure.alive) fail(*player.member, *player.row, failure, player.invocation.invocation);
  }
}

LoadTime Team::measure(CaseResult& result, const Exported& files, int invocation,
                       const RoundRule& rule, std::mt19937_64& random,
                       const std::function<void(int)>& after_round) {
  const auto begin = Clock::now();
  auto players = prepare(result, files, invocation);
  if (!plays(players, result.reference)) return {};
  std::vector<double> step_s;
  for (const auto& player : players) step_s.push_back(player.step_s);
  const auto block = choose_block(step_s);

  int done = 0;
  const auto keep = [&] {
    for (auto& player : players) {
      if (done < kFewestRounds && rule.rounds == 0) continue;
      auto& all = player.row->invocations;
      if (!all.empty() && all.back().invocation == invocation) {
        add_load(all.back(), player.invocation);
      } else if (!player.invocation.rounds.empty()) {
        all.push_back(player.invocation);
      }
    }
  };
  const auto rounds_begin = Clock::now();
  const double before_s = seconds_since(begin);
  const double budget_s = std::min(before_s, rule.budget_s - before_s);
  try {
    std::vector<std::vector<size_t>> square;
    while (plays(players, result.reference)) {
      const double round_s = done == 0 ? 0 : seconds_since(rounds_begin) / done;
      const bool in_time = done < kFewestRounds || seconds_since(rounds_begin) + round_s < budget_s;
      if (rule.rounds > 0 ? done == rule.rounds : !in_time) break;
      const auto row = static_cast<size_t>(done) % players.size();
      if (row == 0) square = latin_square(players.size(), random);
      play_round(players, square[row], block, rule.first_round + done);
      after_round(++done);
    }
  } catch (const Interrupted&) {
    keep();
    throw;
  }
  const double rounds_s = seconds_since(rounds_begin);
  const auto device = result.settings.find("device");
  const bool on_device = device != result.settings.end() && is_cuda(device->second);
  for (auto& player : players) {
    if (player.row->status != Status::ok) continue;
    if (rule.multiplies && player.row->runtime == result.reference && result.flops > 0) {
      multiply(player, on_device);
    }
    if (rule.probed.contains(player.row->runtime)) probe(player);
  }
  keep();
  return {rounds_s, seconds_since(begin) - rounds_s};
}

}  // namespace torchpace::cli
