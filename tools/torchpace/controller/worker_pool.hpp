// The workers of one invocation: a fresh process per runtime, all stopped but the one that runs.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "controller/exporter_client.hpp"
#include "controller/worker_client.hpp"

namespace torchpace::cli {

struct WorkerLimits {
  double worker_timeout_s = 30;
  double compile_s = 0;  // that a load may take besides
  size_t loads = 1;      // at the same time
};

struct Worker {
  std::string runtime;
  std::unique_ptr<WorkerClient> client;  // null once it has died
  std::string death;                     // why
  bool death_reported = false;
};

/// A worker that has loaded the case of a session, and the row that its rounds are for.
struct Participant {
  Worker* worker = nullptr;
  RuntimeResult* row = nullptr;
  Invocation invocation;  // what this session adds
  double step_s = 0;
};

class WorkerPool {
 public:
  /// Starts all workers at once, waits for their greetings and stops them. One that does not start
  /// is missing from what follows; its first case says why.
  WorkerPool(const std::vector<WorkerSpec>& workers, const WorkerLimits& limits);

  /// Lets them quit.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// Loads the case in all workers whose row is ok, a few at a time, and times their first steps. A
  /// worker that fails makes its row failed.
  std::vector<Participant> load(CaseResult& result, const Exported& files, int invocation);

 private:
  void load_all(std::vector<Participant>& participants, const Exported& files) const;

  WorkerLimits limits_;
  std::vector<Worker> workers_;
};

/// Asks a participant's worker. False where its row is no longer ok, or where it failed, which its
/// row then says.
bool attempt(Participant& participant, const std::function<void(WorkerClient&)>& action);

/// Makes the row failed for what its worker did.
void fail(Participant& participant, const WorkerFailure& failure);

}  // namespace torchpace::cli
