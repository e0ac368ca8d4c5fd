// results.json in memory: what `compare` measured and everything that is derived from it.
// The file's form is tools/torchpace/results/results.schema.json. NaN in memory is null in the
// file: not known.
#pragma once

#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <ranges>
#include <string>
#include <vector>

#include "controller/machine_limits.hpp"
#include "torchpace/statistics.hpp"  // Interval

namespace torchpace::cli {

using Json = nlohmann::ordered_json;
inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

/// Of the name of a device: cpu, cuda:0.
inline bool is_cuda(const std::string& device) { return device.starts_with("cuda"); }

struct Warning {
  std::string code;                  // stable word, e.g. page-faults-differ
  std::string severity = "warning";  // info, warning, error
  std::string text;
  std::string case_name;  // empty: of the whole run
  std::string runtime;    // empty: of the whole case
};

/// Rounds after a load, at least; an invocation with fewer usual ones is not usual
/// (exclude_rounds).
inline constexpr int kFewestRounds = 3;

/// One turn of one worker: the samples of a block. Times in ns per step.
struct Round {
  int round = 0;
  int position = 1;  // place in the order of this round, from 1
  int steps_per_sample = 1;
  std::vector<double> step_ns, device_ns, enqueue_ns;
  double page_faults = 0;             // of the whole block
  double involuntary_switches = 0;    // of the whole block
  double core_latency_ns = kUnknown;  // between two cores, just before the block (core_latency.hpp)
  bool excluded = false;              // derived: a vCPU had migrated; counts for nothing else

  double steps() const { return static_cast<double>(step_ns.size()) * steps_per_sample; }
};

/// One operator of a profiled step. Per step; times in ns.
struct OperatorTime {
  std::string name;               // aten::addmm
  std::string part;               // forward, backward, optimizer; empty where it is not known
  double calls = 0;               // all
  double outer_calls = kUnknown;  // those that no other operator makes
  double self_ns = 0;             // on the host, without the operators that it calls
  double device_ns = 0;           // of its kernels
};

struct Profile {
  std::vector<OperatorTime> operators;
  std::vector<double> step_ns;  // of the profiled steps
  double synchronizations = 0;  // of a step
  bool compiled = false;        // kernels run outside of operators
};

/// What one empty operator costs, in ns.
struct DispatchCost {
  std::vector<double> operator_ns, profiled_ns;  // without and with the profiler
  std::vector<double> profiled_self_ns;          // what the profiler then says
};

/// What a worker was asked besides its samples.
struct Probes {
  std::map<std::string, std::vector<double>> parts_ns;  // forward, backward, optimizer
  std::optional<Profile> profile;
  std::optional<DispatchCost> dispatch;
  std::map<std::string, std::string> unanswered;  // command -> why
};

/// Products of two matrices with `size` rows and columns, alone in a worker of the reference.
struct GemmPeak {
  int size = 0;
  std::vector<double> ns;

  double flops() const { return 2.0 * size * size * size; }
};

/// The limits of the machine for a case, and the shortest times that they allow a step.
struct StepLimit {
  double flops_per_s = kUnknown;  // FMA peak in the case's dtype
  double bytes_per_s = kUnknown;  // reads of a working set of its size
  double compute_ns = kUnknown;   // its FLOPs at that peak
  double memory_ns = kUnknown;    // its minimum bytes at that rate
  std::string bound;              // compute, memory: the longer one; empty if one is not known
};

/// What one process measured on one case.
struct Invocation {
  int invocation = 0;
  Json environment = Json::object();  // what differs from the runtime's environment
  std::vector<Round> rounds;
  std::optional<Probes> probes;
  std::optional<GemmPeak> gemm_peak;  // of the reference, where the FLOPs of a step are known
};

/// Those that are not excluded.
inline auto rounds_that_count(const Invocation& invocation) {
  return invocation.rounds | std::views::filter([](const Round& round) { return !round.excluded; });
}

struct Speedup {
  Interval ratio;  // reference time / runtime time
  std::string method;
  // FASTER SLOWER SAME UNSURE INVALID IMPLAUSIBLE APPROXIMATE REFERENCE NONE
  std::string verdict = "NONE";
  std::string advice;  // for UNSURE: what would resolve it
};

struct Parity {
  bool passed = false;
  double max_abs_error = kUnknown;
  double tolerance = kUnknown;
  double rms_error = kUnknown, rms_tolerance = kUnknown;  // for the reason alone: not in the file
  std::string worst;
  int compared = 0;
  std::string note;
  double cosine = kUnknown, top1 = kUnknown;  // of an approximate runtime (torchpace/parity.hpp)
};

enum class Status { ok, skipped, failed, invalid };
const char* to_string(Status status);

/// One runtime on one case: a row of every table.
struct RuntimeResult {
  std::string runtime;
  std::string copy_of;       // set on the A/A copy, whose name is the reference's with #2
  std::string condition_of;  // set on the same runtime under another condition: NAME@threads:1
  bool approximate = false;  // of a runtime whose errors no tolerance judges; counts nowhere
  Status status = Status::ok;
  std::string reason;  // one line; why the status is not ok
  std::optional<Parity> parity;
  std::map<std::string, double> cold_s;  // start, load, compile, first_step; tenth_step
  std::string artifact;                  // kind of the compiled file that it loads
  double compile_s = kUnknown;           // that making it took, with empty caches
  bool compile_cached = false;           // an earlier run made it
  // resident, device_allocated, device_reserved, device_driver of a fresh process
  std::map<std::string, double> peak_bytes;
  Json environment = Json::object();  // the worker's own, from the preflight
  std::vector<Invocation> invocations;

  // Derived by analyze().
  Interval step_ns;
  std::map<std::string, double> percentiles_ns;  // p50, p90, p99: those that the samples support
  int samples = 0;
  Speedup speedup;
  double gemm_peak_share = kUnknown;  // FLOP/s over those of a matrix product of this run
  double fma_peak_share = kUnknown;   // compute_ns of the limit over the step
  double bandwidth_share = kUnknown;  // memory_ns of the limit over the step
  double limit_share = kUnknown;      // the one of the two that bounds the case
  double device_ns = kUnknown;        // CUDA, of a step: between events; the host's gaps are in it
  double host_ns = kUnknown;          // CUDA, of a step: until it is enqueued
  double page_faults_per_step = kUnknown;
  double involuntary_switches_per_step = kUnknown;
  double cold_total_s = kUnknown;      // until the end of the first step
  double break_even_steps = kUnknown;  // infinite: never
  std::string implausible;             // why it cannot have done the work of its case
  std::vector<std::string> differs;    // keys of the environment; the speedup has a mark

  bool is_copy() const { return !copy_of.empty(); }
  bool is_condition() const { return !condition_of.empty(); }
};

/// A part of the difference between two runtimes: positive where `from` spends more.
struct Bar {
  std::string name;
  Interval ns;
  double from_ns = kUnknown, to_ns = kUnknown;  // what the two spend on it; their medians
  std::string how;                              // it was measured, in one line
};

/// Both sides beside each other.
struct Observation {
  std::string name;
  std::string unit;  // ns, count
  Interval from, to;
  Interval ratio;  // from / to, of times
};

struct OperatorDifference {
  std::string name, part, group;
  double from_calls = 0, to_calls = 0;  // of a step
  double from_ns = 0, to_ns = 0;        // of a step, without dispatch and profiler
};

/// Where the time goes between two runtimes. All but the names is derived.
struct Explanation {
  Explanation() = default;
  Explanation(std::string a, std::string b) : from(std::move(a)), to(std::move(b)) {}

  std::string from, to;
  Interval from_ns, to_ns;      // their steps
  Interval total_ns;            // from_ns - to_ns
  double explained = kUnknown;  // 1 - |unexplained / total|; NaN: nothing differs
  std::vector<Bar> bars;        // the last is the unexplained one; their medians add to the total's
  std::vector<Observation> observations;
  std::vector<OperatorDifference> operators;  // that differ most
  std::vector<std::string> notes;             // one line each: what is left out and why
};

/// The runtime with the highest speedup, and those whose intervals meet its own.
struct Fastest {
  std::string runtime;
  std::vector<std::string> equals;
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
  std::optional<Explanation> explanation;             // where `explain` asked for it

  // Derived by analyze().
  Interval noise_floor;                     // speedup of the A/A copy over the reference
  double gemm_peak_flops_per_s = kUnknown;  // median of the products of this run
  std::optional<StepLimit> limit;           // CPU: where any of it is known
  double excluded_share = 0;                // of its rounds
  bool mixed = false;              // rounds on migrated vCPUs count, since too few others are there
  std::optional<Fastest> fastest;  // where two runtimes or more have an interval
  std::vector<std::string>
      notes;  // lines below its table: invalid rows, what rows say of themselves

  const RuntimeResult* find(const std::string& runtime) const;
  RuntimeResult* find(const std::string& runtime);

  /// Whether the row's speedup counts: measured, not approximate, and neither it nor the reference
  /// is implausible.
  bool counts(const RuntimeResult& row) const;
};

/// Where the host kept the vCPUs, by the latency between two of them. Derived from
/// all rounds of a run.
struct Cores {
  double usual_ns = kUnknown;     // the median
  double migrated_ns = kUnknown;  // median of the rounds of another place; NaN where there are none
  double migrated_share = 0;      // of all
};

struct PlanRecord {
  std::vector<std::string> arguments;
  std::string preset;
  std::string reference;
  std::vector<std::string> runtimes;
  int invocations = 0;        // that the time allows
  int invocations_asked = 0;  // of those
  int rounds = 0;             // 0: as many as the time allows
  double max_seconds = 0;
  double compile_timeout = 0;  // seconds that making one artifact may take
  int threads = 0;
  std::string device;
  std::string dtype;
  std::string allocator;
  long long seed = 0;
  double delta = 0.02;       // SAME: both intervals within 1 +- delta
  double confidence = 0.95;  // of every interval
  std::string text;
  bool pairs = false;  // memory forced (reference, one) pairs instead of all at once
};

struct Results {
  std::string torchpace;  // version of the program that wrote the file
  std::string created;    // UTC, ISO 8601
  bool complete = false;
  double elapsed_s = 0;
  Cores cores;
  PlanRecord plan;
  Json environment = Json::object();      // of the machine
  std::optional<Limits> limits;           // of the machine, where a case needs them
  std::vector<double> device_clocks_mhz;  // CUDA: after the rounds of each invocation
  std::vector<Warning> warnings;
  std::vector<CaseResult> cases;

  /// Adds a warning unless one with the same code, case, runtime and text is there.
  void warn(Warning warning);
};

/// Whether a warning is a line below its case's table (CaseResult::notes), and nowhere else.
bool is_note(const Warning& warning);

Json to_json(const Results& results);
Json to_json(const Limits& limits);

/// Throws Error naming `source`, the JSON pointer, what was expected and what was found.
Results from_json(const Json& json, const std::string& source);

/// Reads a results.json, or the one in a folder. Derived numbers are not read: call analyze()
/// (analysis/analyze.hpp). Throws Error in one line.
Results load_results(const std::filesystem::path& path);

/// Writes to a temporary name beside `path`, syncs and renames: an old file stays whole until the
/// new one is. Throws Error in one line (disk full, no permission).
void save_json(const Json& json, const std::filesystem::path& path);

}  // namespace torchpace::cli
