#include "controller/worker_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

constexpr double kSlowStep_s = 2;     // steps so slow are their own pilot
constexpr double kFastStep_s = 1e-3;  // three steps so fast tell little

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

}  // namespace

void fail(Participant& participant, const WorkerFailure& failure) {
  participant.row->status = failure.status;
  participant.row->reason =
      fmt::format("invocation {}: {}", participant.invocation.invocation, failure.what());
  if (failure.alive) return;
  participant.worker->client.reset();
  participant.worker->death_reported = true;
}

bool attempt(Participant& participant, const std::function<void(WorkerClient&)>& action) {
  if (participant.row->status != Status::ok) return false;
  try {
    action(*participant.worker->client);
    return true;
  } catch (const WorkerFailure& failure) {
    fail(participant, failure);
    return false;
  }
}

WorkerPool::WorkerPool(const std::vector<WorkerSpec>& workers, const WorkerLimits& limits)
    : limits_(limits) {
  const auto died = [](Worker& worker, const WorkerFailure& failure) {
    worker.client.reset();
    worker.death = failure.what();
  };
  for (const auto& spec : workers) {
    auto& worker = workers_.emplace_back();
    worker.runtime = spec.runtime;
    try {
      worker.client = std::make_unique<WorkerClient>(spec, limits.worker_timeout_s);
    } catch (const WorkerFailure& failure) {
      died(worker, failure);
    }
  }
  for (auto& worker : workers_) {
    if (!worker.client) continue;
    try {
      worker.client->await_greeting();
      worker.client->stop();
    } catch (const WorkerFailure& failure) {
      died(worker, failure);
    }
  }
}

WorkerPool::~WorkerPool() {
  try {
    for (auto& worker : workers_) {
      if (!worker.client) continue;
      worker.client->resume();
      worker.client->ask_to_quit();
    }
    for (auto& worker : workers_) {
      if (worker.client) worker.client->quit();
    }
  } catch (const Interrupted&) {
    workers_.clear();  // killed: the next wait of the caller notices the interrupt
  }
}

std::vector<Participant> WorkerPool::load(CaseResult& result, const Exported& files,
                                          int invocation) {
  std::vector<Participant> participants;
  for (auto& worker : workers_) {
    auto* row = result.find(worker.runtime);
    if (row == nullptr || row->status != Status::ok) continue;
    Participant participant{.worker = &worker, .row = row, .invocation = {}};
    participant.invocation.invocation = invocation;
    if (worker.client) {
      participants.push_back(std::move(participant));
    } else if (!std::exchange(worker.death_reported, true)) {
      fail(participant, {worker.death, Status::failed, false});
    }
  }
  load_all(participants, files);
  for (auto& participant : participants) {
    attempt(participant, [&](WorkerClient& client) {
      const ScopedResume running(client);
      participant.step_s = pilot_step_s(client, *participant.row);
    });
  }
  std::erase_if(participants, [](const Participant& p) { return p.row->status != Status::ok; });
  return participants;
}

/// A few at a time: nothing is timed while they do.
void WorkerPool::load_all(std::vector<Participant>& participants, const Exported& files) const {
  size_t begun = 0;
  for (size_t i = 0; i < participants.size(); ++i) {
    for (; begun < participants.size() && begun < i + limits_.loads; ++begun) {
      const auto& row = *participants[begun].row;
      const auto settings = files.settings_of(row.is_copy() ? row.copy_of : row.runtime);
      attempt(participants[begun], [&](WorkerClient& client) {
        client.resume();
        client.begin_load(settings.line());
      });
    }
    auto& participant = participants[i];
    attempt(participant, [&](WorkerClient& client) {
      client.finish_load(limits_.compile_s);
      participant.invocation.environment =
          differences(participant.row->environment, client.environment());
    });
    if (participant.worker->client) participant.worker->client->stop();
  }
}

}  // namespace torchpace::cli
