// The controller's side of the worker protocol (docs/worker-protocol.md).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "results/results.hpp"
#include "support/process.hpp"
#include "torchpace/settings.hpp"

namespace torchpace::cli {

/// How to start the worker of one runtime.
struct WorkerSpec {
  std::string runtime;
  Command command;
  std::string description;   // one line
  bool is_external = false;  // given with --worker
  std::string artifact;      // kind of the compiled file that it loads; empty: none
  bool approximate = false;  // its errors are reported and no tolerance judges them
  std::string absent;        // why it cannot run here; empty: it can
  size_t exporter = 0;       // which of the experiment's makes that
  std::string condition_of;  // the runtime that this one is under another condition; empty: none
  Settings settings;         // that it loads in place of the case's
};

/// A worker could not do what it was asked. The text is one line and becomes the row's reason.
struct WorkerFailure : std::runtime_error {
  WorkerFailure(const std::string& reason, Status row_status, bool worker_alive)
      : std::runtime_error(reason), status(row_status), alive(worker_alive) {}
  Status status;
  bool alive;  // false: ended, killed, or too late to be trusted with another command
};

struct LoadAnswer {
  double load_s = 0, compile_s = 0;
  double flops = 0, items = 0, parameter_bytes = 0, minimum_bytes = 0;
  std::string item, note;
};

struct FirstAnswer {
  double first_step_s = 0;
  double steps_s = kUnknown;  // until all steps are done; not every worker tells
};

class WorkerClient {
 public:
  /// Starts the process and returns at once. `worker_timeout_s`: the shortest deadline of an
  /// answer; starting and loading have four times as long. Throws WorkerFailure.
  WorkerClient(const WorkerSpec& spec, double worker_timeout_s);

  /// Each throws WorkerFailure when the worker answers with an error, dies or is late, and
  /// Interrupted on Ctrl-C. `step_s`: what a step is expected to take, for the deadline.
  void await_greeting();
  /// `compile_timeout_s`: what compiling may take besides.
  LoadAnswer load(const std::string& settings_line, double compile_timeout_s = 0);
  /// The halves of load(): several workers can load at once.
  void begin_load(const std::string& settings_line);
  LoadAnswer finish_load(double compile_timeout_s = 0);
  FirstAnswer first(int steps);
  /// Steps in W unrecorded and K recorded samples of B steps.
  Round run(int samples, int warmup, int steps_per_sample, double step_s);
  void write(const std::string& path, double step_s);
  Parity check(const std::string& reference, const std::string& golden, double step_s);
  std::vector<double> losses(int steps, double step_s);
  std::map<std::string, double> peaks();
  Json environment();
  /// What `explain` asks besides: K steps with their parts timed apart, K steps under a profiler,
  /// K samples of an empty operator.
  std::map<std::string, std::vector<double>> parts(int steps, double step_s);
  Profile operators(int steps, double step_s);
  DispatchCost dispatch(int samples);

  /// Products of two matrices with `size` rows and columns, each timed alone.
  GemmPeak gemm_peak(int size, int samples);

  /// Ends the worker: quit, and the kill of its group when it does not obey in 5 s.
  void quit();
  /// The first half of quit(): several workers can end at once.
  void ask_to_quit();

  void stop() { process_->stop(); }
  void resume() { process_->resume(); }

  /// Seconds from the start of the process to its greeting.
  double start_s() const { return start_s_; }
  /// Whether the greeting names this case, or all of torchpace's own.
  bool offers(const std::string& case_name, bool own_case) const;
  const std::vector<std::string>& cases() const { return cases_; }
  const std::string& runtime() const { return runtime_; }

 private:
  void send(const std::string& command, double limit_s);
  Json ask(const std::string& command, double limit_s);
  Json read_answer(const std::string& command, double limit_s);
  [[noreturn]] void fail_dead(const std::string& what);
  double limit_for(double steps, double step_s) const;

  std::string runtime_;
  double worker_timeout_s_;
  Clock::time_point started_ = Clock::now();
  double start_s_ = 0;
  std::unique_ptr<Process> process_;
  std::vector<std::string> cases_;
};

/// Lets a stopped worker run for a scope.
class ScopedResume {
 public:
  explicit ScopedResume(WorkerClient& client) : client_(client) { client_.resume(); }
  ~ScopedResume() { client_.stop(); }
  ScopedResume(const ScopedResume&) = delete;
  ScopedResume& operator=(const ScopedResume&) = delete;

 private:
  WorkerClient& client_;
};

}  // namespace torchpace::cli
