// results.json in memory: what `compare` measured and everything that is derived from it.
// The file's form is bench/results.schema.json. NaN in memory is null in the file: not known.
#pragma once

#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "torchpace/statistics.hpp"  // Interval

namespace torchpace::cli {

using Json = nlohmann::ordered_json;
inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct Warning {
  std::string code;                  // stable word, e.g. page-faults-differ
  std::string severity = "warning";  // info, warning, error
  std::string text;
  std::string case_name;  // empty: of the whole run
  std::string runtime;    // empty: of the whole case
};

/// One turn of one worker: the samples of a block. Times in ns per step.
struct Round {
  int round = 0;
  int position = 1;  // place in the order of this round, from 1
  int steps_per_sample = 1;
  std::vector<double> step_ns, device_ns, enqueue_ns;
  double page_faults = 0;           // of the whole block
  double involuntary_switches = 0;  // of the whole block

  double steps() const { return static_cast<double>(step_ns.size()) * steps_per_sample; }
};

/// What one process measured on one case.
struct Generation {
  int generation = 0;
  Json environment = Json::object();  // what differs from the runtime's environment
  std::vector<Round> rounds;
};

struct Speedup {
  Interval ratio;  // reference time / runtime time
  std::string method;
  std::string verdict = "NONE";  // FASTER SLOWER SAME UNSURE INVALID REFERENCE NONE
  std::string advice;            // for UNSURE: what would settle it
};

struct Parity {
  bool passed = false;
  double max_abs_error = kUnknown;
  double tolerance = kUnknown;
  std::string worst;
  int compared = 0;
  std::string note;
};

enum class Status { ok, skipped, failed, invalid };
const char* to_string(Status status);

/// One runtime on one case: a row of every table.
struct RuntimeResult {
  std::string runtime;
  std::string copy_of;  // set on the A/A copy, whose name is the reference's with #2
  Status status = Status::ok;
  std::string reason;  // one line; why the status is not ok
  std::optional<Parity> parity;
  std::map<std::string, double> cold_s;  // start, load, compile, first_step; tenth_step
  std::string artifact;                  // kind of the compiled file that it loads
  double compile_s = kUnknown;           // that making it took, with empty caches
  bool compile_cached = false;           // an earlier run made it
  // resident, device_allocated, device_reserved, device_driver of a fresh process
  std::map<std::string, double> peak_bytes;
  Json environment = Json::object();  // the worker's own, from the gate
  std::vector<Generation> generations;

  // Derived by derive().
  Interval step_ns;
  std::map<std::string, double> percentiles_ns;  // p50, p90, p99: those that the samples support
  int samples = 0;
  Speedup speedup;
  double page_faults_per_step = kUnknown;
  double involuntary_switches_per_step = kUnknown;
  double cold_total_s = kUnknown;      // until the end of the first step
  double break_even_steps = kUnknown;  // infinite: never
  std::vector<std::string> differs;    // keys of the environment; the speedup has a mark

  bool is_copy() const { return !copy_of.empty(); }
};

struct CaseResult {
  std::string name;                             // dnn_deep_train/size:quick/batch:64
  std::string family;                           // dnn_deep; empty for a worker's own case
  std::string phase;                            // train, inference, latency, other
  std::map<std::string, std::string> settings;  // a settings line as a dictionary
  std::string reference;
  double flops = 0;  // of one step; 0: unknown
  double items = 0;  // of one step
  std::string item;  // tokens, samples
  double parameter_bytes = 0;
  double minimum_bytes = 0;
  // parameters, gradients, optimizer, activations: counted, not measured
  std::map<std::string, double> memory_bytes;
  std::map<std::string, std::vector<double>> curves;  // runtime -> training losses in nats
  std::vector<RuntimeResult> runtimes;                // in the order of the plan, the A/A copy last

  Interval noise_floor;  // derived: speedup of the A/A copy over the reference

  const RuntimeResult* find(const std::string& runtime) const;
  RuntimeResult* find(const std::string& runtime);
};

struct PlanRecord {
  std::vector<std::string> arguments;
  std::string preset;
  std::string reference;
  std::vector<std::string> runtimes;
  int generations = 0;        // that the time allows
  int generations_asked = 0;  // of those
  int rounds = 0;             // 0: as many as the time allows
  double max_seconds = 0;
  double compile_limit = 0;  // seconds that making one artifact may take
  int threads = 0;
  std::string device;
  std::string dtype;
  std::string allocator;
  long long seed = 0;
  double delta = 0.02;  // SAME: both intervals within 1 +- delta
  std::string text;
  bool pairs = false;  // memory forced (reference, one) pairs instead of all at once
};

struct Results {
  std::string torchpace;  // version of the program that wrote the file
  std::string created;    // UTC, ISO 8601
  bool complete = false;
  double elapsed_s = 0;
  PlanRecord plan;
  Json environment = Json::object();  // of the machine
  std::vector<Warning> warnings;
  std::vector<CaseResult> cases;

  /// Adds a warning unless one with the same code, case, runtime and text is there.
  void warn(Warning warning);
};

/// Computes every derived number, verdict and derived warning from the raw samples. Idempotent.
void derive(Results& results);

Json to_json(const Results& results);

/// Throws Error naming `source`, the JSON pointer, what was expected and what was found.
Results from_json(const Json& json, const std::string& source);

/// Reads a results.json, or the one in a folder. Derived numbers are not read: call derive().
/// Throws Error in one line.
Results load_results(const std::filesystem::path& path);

/// Writes to a temporary name beside `path`, syncs and renames: an old file stays whole until the
/// new one is. Throws Error in one line (disk full, no permission).
void save_results(const Results& results, const std::filesystem::path& path);

}  // namespace torchpace::cli
