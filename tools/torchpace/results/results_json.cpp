// Results <-> JSON, as tools/torchpace/results/results.schema.json says.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <initializer_list>

#include "results/results.hpp"
#include "support/error.hpp"
#include "torchpace/case_phase.hpp"

namespace torchpace::cli {
namespace {

constexpr int kSchema = 2;

/// A number of steps; infinite is `never`.
struct Steps {
  double count;
};

template <class T, class Struct>
concept Is = std::same_as<std::remove_const_t<T>, Struct>;

// The shape of each object, for both directions: `required` and `optional` members are written and
// read, `derived` ones only written, since analyze() gives them. `unless_empty`, `unless_unknown`:
// absent where empty or NaN; and `flag` and `derived_flag`, where false.

void describe(auto& io, Is<Interval> auto& interval) {
  io.derived("median", interval.median);
  io.derived("low", interval.low);
  io.derived("high", interval.high);
}

void describe(auto& io, Is<Round> auto& round) {
  io.required("round", round.round);
  io.required("position", round.position);
  io.optional("steps_per_sample", round.steps_per_sample);
  io.required("step_ns", round.step_ns);
  io.optional("device_ns", round.device_ns);
  io.optional("enqueue_ns", round.enqueue_ns);
  io.optional("page_faults", round.page_faults);
  io.optional("involuntary_switches", round.involuntary_switches);
  io.unless_unknown("core_latency_ns", round.core_latency_ns);
  io.derived_flag("excluded", round.excluded);
}

void describe(auto& io, Is<OperatorTime> auto& time) {
  io.required("name", time.name);
  io.optional("part", time.part);
  io.required("calls", time.calls);
  io.optional("outer_calls", time.outer_calls);
  io.required("self_ns", time.self_ns);
  io.optional("device_ns", time.device_ns);
}

void describe(auto& io, Is<Profile> auto& profile) {
  io.required("operators", profile.operators);
  io.required("step_ns", profile.step_ns);
  io.optional("synchronizations", profile.synchronizations);
  io.optional("compiled", profile.compiled);
}

void describe(auto& io, Is<DispatchCost> auto& cost) {
  io.required("operator_ns", cost.operator_ns);
  io.required("profiled_ns", cost.profiled_ns);
  io.required("profiled_self_ns", cost.profiled_self_ns);
}

void describe(auto& io, Is<Probes> auto& probes) {
  io.unless_empty("parts", probes.parts_ns);
  io.unless_empty("operators", probes.profile);
  io.unless_empty("dispatch", probes.dispatch);
  io.unless_empty("unanswered", probes.unanswered);
}

void describe(auto& io, Is<GemmPeak> auto& gemm_peak) {
  io.required("size", gemm_peak.size);
  io.required("ns", gemm_peak.ns);
}

void describe(auto& io, Is<Invocation> auto& invocation) {
  io.required("invocation", invocation.invocation);
  io.optional("environment", invocation.environment);
  io.required("rounds", invocation.rounds);
  io.unless_empty("probes", invocation.probes);
  io.unless_empty("gemm_peak", invocation.gemm_peak);
}

void describe(auto& io, Is<Parity> auto& parity) {
  io.required("passed", parity.passed);
  io.optional("max_abs_error", parity.max_abs_error);
  io.optional("tolerance", parity.tolerance);
  io.optional("worst", parity.worst);
  io.optional("compared", parity.compared);
  io.optional("note", parity.note);
  io.unless_unknown("cosine", parity.cosine);
  io.unless_unknown("top1", parity.top1);
}

void describe(auto& io, Is<Speedup> auto& speedup) {
  describe(io, speedup.ratio);
  io.derived("confidence", speedup.ratio.confidence);
  io.derived("method", speedup.method);
  io.derived("verdict", speedup.verdict);
  io.derived("advice", speedup.advice);
}

void describe(auto& io, Is<RuntimeResult> auto& row) {
  io.required("runtime", row.runtime);
  io.unless_empty("copy_of", row.copy_of);
  io.unless_empty("condition_of", row.condition_of);
  io.flag("approximate", row.approximate);
  io.required("status", row.status);
  io.required("reason", row.reason);
  io.derived("step_ns", row.step_ns);
  io.derived("percentiles_ns", row.percentiles_ns);
  io.derived("samples", row.samples);
  io.derived("speedup", row.speedup);
  io.derived("differs", row.differs);
  io.unless_empty("parity", row.parity);
  io.optional("cold_s", row.cold_s);
  io.derived("cold_total_s", row.cold_total_s);
  io.unless_empty("artifact", row.artifact);
  io.optional("compile_s", row.compile_s);
  io.optional("compile_cached", row.compile_cached);
  io.derived("break_even_steps", Steps{row.break_even_steps});
  io.derived_unless_empty("implausible", row.implausible);
  io.optional("peak_bytes", row.peak_bytes);
  io.derived("gemm_peak_share", row.gemm_peak_share);
  io.derived_unless_unknown("fma_peak_share", row.fma_peak_share);
  io.derived_unless_unknown("bandwidth_share", row.bandwidth_share);
  io.derived_unless_unknown("limit_share", row.limit_share);
  io.derived_unless_unknown("device_ns", row.device_ns);
  io.derived_unless_unknown("host_ns", row.host_ns);
  io.derived("page_faults_per_step", row.page_faults_per_step);
  io.derived("involuntary_switches_per_step", row.involuntary_switches_per_step);
  io.optional("environment", row.environment);
  io.optional("invocations", row.invocations);
}

void describe(auto& io, Is<Bar> auto& bar) {
  io.derived("name", bar.name);
  io.derived("ns", bar.ns);
  io.derived("from_ns", bar.from_ns);
  io.derived("to_ns", bar.to_ns);
  io.derived("how", bar.how);
}

void describe(auto& io, Is<Observation> auto& observation) {
  io.derived("name", observation.name);
  io.derived("unit", observation.unit);
  io.derived("from", observation.from);
  io.derived("to", observation.to);
  io.derived("ratio", observation.ratio);
}

void describe(auto& io, Is<OperatorDifference> auto& difference) {
  io.derived("name", difference.name);
  io.derived("part", difference.part);
  io.derived("group", difference.group);
  io.derived("from_calls", difference.from_calls);
  io.derived("to_calls", difference.to_calls);
  io.derived("from_ns", difference.from_ns);
  io.derived("to_ns", difference.to_ns);
}

void describe(auto& io, Is<Explanation> auto& explanation) {
  io.required("from", explanation.from);
  io.required("to", explanation.to);
  io.derived("from_ns", explanation.from_ns);
  io.derived("to_ns", explanation.to_ns);
  io.derived("total_ns", explanation.total_ns);
  io.derived("explained", explanation.explained);
  io.derived("bars", explanation.bars);
  io.derived("observations", explanation.observations);
  io.derived("operators", explanation.operators);
  io.derived("notes", explanation.notes);
}

void describe(auto& io, Is<Fastest> auto& fastest) {
  io.derived("runtime", fastest.runtime);
  io.derived("equals", fastest.equals);
}

void describe(auto& io, Is<StepLimit> auto& limit) {
  io.derived("flops_per_s", limit.flops_per_s);
  io.derived("bytes_per_s", limit.bytes_per_s);
  io.derived("compute_ns", limit.compute_ns);
  io.derived("memory_ns", limit.memory_ns);
  io.derived("bound", limit.bound);
}

void describe(auto& io, Is<CaseResult> auto& result) {
  io.required("case", result.name);
  io.required("family", result.family);
  auto phases = case_phase_names();
  phases.emplace_back("other");  // of workers that are not torchpace's
  io.word("phase", result.phase, phases);
  io.required("settings", result.settings);
  io.required("reference", result.reference);
  io.optional("flops", result.flops);
  io.optional("items", result.items);
  io.optional("item", result.item);
  io.optional("parameter_bytes", result.parameter_bytes);
  io.optional("minimum_bytes", result.minimum_bytes);
  io.optional("memory_bytes", result.memory_bytes);
  io.derived("noise_floor", result.noise_floor);
  io.derived("gemm_peak_flops_per_s", result.gemm_peak_flops_per_s);
  io.derived_unless_empty("limit", result.limit);
  io.derived("excluded_share", result.excluded_share);
  io.derived_flag("mixed", result.mixed);
  io.derived_unless_empty("fastest", result.fastest);
  io.derived("notes", result.notes);
  io.optional("curves", result.curves);
  io.required("runtimes", result.runtimes);
  io.unless_empty("explanation", result.explanation);
}

void describe(auto& io, Is<Cores> auto& cores) {
  io.derived("usual_ns", cores.usual_ns);
  io.derived("migrated_ns", cores.migrated_ns);
  io.derived("migrated_share", cores.migrated_share);
}

void describe(auto& io, Is<ReadTime> auto& read) {
  io.required("bytes", read.bytes);
  io.required("seconds", read.seconds);
}

void describe(auto& io, Is<Limits> auto& limits) {
  io.required("threads", limits.threads);
  io.required("isa", limits.isa);
  io.required("fma_flops_per_s", limits.fma_flops_per_s);
  io.required("read", limits.read);
}

void describe(auto& io, Is<PlanRecord> auto& plan) {
  io.required("arguments", plan.arguments);
  io.optional("preset", plan.preset);
  io.required("reference", plan.reference);
  io.required("runtimes", plan.runtimes);
  io.required("invocations", plan.invocations);
  io.optional("invocations_asked", plan.invocations_asked);
  io.optional("rounds", plan.rounds);
  io.required("max_seconds", plan.max_seconds);
  io.optional("compile_timeout", plan.compile_timeout);
  io.required("threads", plan.threads);
  io.required("device", plan.device);
  io.required("dtype", plan.dtype);
  io.required("allocator", plan.allocator);
  io.required("seed", plan.seed);
  io.required("delta", plan.delta);
  io.optional("confidence", plan.confidence);
  io.optional("text", plan.text);
  io.optional("pairs", plan.pairs);
}

void describe(auto& io, Is<Warning> auto& warning) {
  io.required("code", warning.code);
  io.word("severity", warning.severity, {"info", "warning", "error"});
  io.required("text", warning.text);
  io.unless_empty("case", warning.case_name);
  io.unless_empty("runtime", warning.runtime);
}

void describe(auto& io, Is<Results> auto& results) {
  io.required("torchpace", results.torchpace);
  io.required("created", results.created);
  io.required("complete", results.complete);
  io.optional("elapsed_s", results.elapsed_s);
  io.derived("cores", results.cores);
  io.required("plan", results.plan);
  io.required("environment", results.environment);
  io.unless_empty("limits", results.limits);
  io.unless_empty("device_clocks_mhz", results.device_clocks_mhz);
  io.required("warnings", results.warnings);
  io.required("cases", results.cases);
}

template <class T, class Io>
concept Described = requires(Io& io, T& value) {
  describe(io, value);
};

using Words = std::vector<std::string>;

/// Writes an object.
class Writer {
 public:
  explicit Writer(Json& json) : json_(json) {}

  void required(const char* key, const auto& value) { write(json_[key], value); }
  void optional(const char* key, const auto& value) { required(key, value); }
  void derived(const char* key, const auto& value) { required(key, value); }
  void word(const char* key, const std::string& value, const Words&) { required(key, value); }
  void flag(const char* key, bool value) {
    if (value) required(key, value);
  }
  void derived_flag(const char* key, bool value) { flag(key, value); }
  void derived_unless_empty(const char* key, const auto& value) { unless_empty(key, value); }
  void derived_unless_unknown(const char* key, double value) { unless_unknown(key, value); }
  void unless_unknown(const char* key, double value) {
    if (!std::isnan(value)) required(key, value);
  }
  void unless_empty(const char* key, const std::string& value) {
    if (!value.empty()) required(key, value);
  }
  template <class T>
  void unless_empty(const char* key, const std::map<std::string, T>& value) {
    if (!value.empty()) required(key, value);
  }
  void unless_empty(const char* key, const std::vector<double>& value) {
    if (!value.empty()) required(key, value);
  }
  template <class T>
  void unless_empty(const char* key, const std::optional<T>& value) {
    if (value) required(key, *value);
  }

 private:
  static void write(Json& json, const Described<Writer> auto& value) {
    json = Json::object();
    Writer members(json);
    describe(members, value);
  }
  static void write(Json& json, const Steps& steps) {
    if (std::isinf(steps.count))
      json = "never";
    else if (std::isnan(steps.count))
      json = nullptr;
    else
      json = static_cast<long long>(steps.count);
  }
  static void write(Json& json, Status status) { json = to_string(status); }
  template <Described<Writer> T>
  static void write(Json& json, const std::vector<T>& values) {
    json = Json::array();
    for (const auto& value : values) write(json.emplace_back(), value);
  }
  template <class T>
  static void write(Json& json, const T& value) {
    json = value;
  }

  Json& json_;
};

/// Reads an object; a place in the file, so that every complaint can name it.
class JsonReader {
 public:
  JsonReader(const Json& json, std::string source, std::string pointer = "")
      : json_(&json), source_(std::move(source)), pointer_(std::move(pointer)) {}

  [[noreturn]] void fail(const std::string& expected) const {
    auto found = json_->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (found.size() > 40) found = found.substr(0, 37) + "...";
    fail(expected, found);
  }

  /// Throws Error unless this is an object with `key`.
  JsonReader at(const char* key) const {
    if (!json_->is_object()) fail("an object");
    const auto found = json_->find(key);
    if (found == json_->end()) fail(fmt::format("a member '{}'", key), "none");
    return {*found, source_, pointer_ + "/" + key};
  }

  template <class Visit>
  void each(const Visit& visit) const {
    if (!json_->is_array()) fail("an array");
    for (size_t i = 0; i < json_->size(); ++i) {
      visit(JsonReader((*json_)[i], source_, fmt::format("{}/{}", pointer_, i)));
    }
  }

  /// Visits (key, place) of an object's members.
  template <class Visit>
  void members(const Visit& visit) const {
    if (!json_->is_object()) fail("an object");
    for (const auto& [key, value] : json_->items()) {
      visit(key, JsonReader(value, source_, pointer_ + "/" + key));
    }
  }

  void into(double& value) const {
    if (!json_->is_number() && !json_->is_null()) fail("a number");
    value = json_->is_null() ? kUnknown : json_->get<double>();
  }
  void into(long long& value) const {
    if (!json_->is_number_integer()) fail("an integer");
    value = json_->get<long long>();
  }
  void into(int& value) const {
    long long wide = 0;
    into(wide);
    value = static_cast<int>(wide);
  }
  void into(bool& value) const {
    if (!json_->is_boolean()) fail("true or false");
    value = json_->get<bool>();
  }
  void into(std::string& value) const {
    if (!json_->is_string()) fail("a string");
    value = json_->get<std::string>();
  }
  void into(Status& value) const {
    std::string word;
    into(word, {"ok", "skipped", "failed", "invalid"});
    for (const auto status : {Status::ok, Status::skipped, Status::failed, Status::invalid}) {
      if (word == to_string(status)) value = status;
    }
  }
  void into(std::string& value, const Words& words) const {
    into(value);
    if (std::find(words.begin(), words.end(), value) == words.end()) {
      fail(fmt::format("one of {}", fmt::join(words, ", ")));
    }
  }
  void into(Json& value) const {
    if (!json_->is_object()) fail("an object");
    value = *json_;
  }
  template <class T>
  void into(std::vector<T>& values) const {
    each([&](const JsonReader& item) { item.into(values.emplace_back()); });
  }
  template <class T>
  void into(std::map<std::string, T>& values) const {
    members([&](const auto& key, const JsonReader& item) { item.into(values[key]); });
  }

  template <class T>
  void into(std::optional<T>& value) const {
    into(value.emplace());
  }
  void into(Described<const JsonReader> auto& value) const { describe(*this, value); }

  void required(const char* key, auto& value) const { at(key).into(value); }
  /// A member that is absent leaves the value as it is.
  void optional(const char* key, auto& value) const {
    if (json_->contains(key)) required(key, value);
  }
  void unless_empty(const char* key, auto& value) const { optional(key, value); }
  void unless_unknown(const char* key, double& value) const { optional(key, value); }
  void word(const char* key, std::string& value, const Words& words) const {
    at(key).into(value, words);
  }
  void derived(const char*, const auto&) const {}
  void flag(const char* key, bool& value) const { optional(key, value); }
  void derived_flag(const char*, bool) const {}
  void derived_unless_empty(const char*, const auto&) const {}
  void derived_unless_unknown(const char*, double) const {}

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& found) const {
    throw Error(fmt::format("{}: {}: expected {}, found {}", source_,
                            pointer_.empty() ? "/" : pointer_, expected, found));
  }

  const Json* json_;
  std::string source_;
  std::string pointer_;
};

}  // namespace

Json to_json(const Results& results) {
  Json json = {{"schema", kSchema}};
  Writer writer(json);
  describe(writer, results);
  return json;
}

Json to_json(const Limits& limits) {
  Json json = Json::object();
  Writer writer(json);
  describe(writer, limits);
  return json;
}

Results from_json(const Json& json, const std::string& source) {
  const JsonReader root(json, source);
  if (const auto schema = root.at("schema"); json["schema"] != kSchema) {
    schema.fail(fmt::format("schema {} (another version of torchpace wrote this file)", kSchema));
  }
  Results results;
  describe(root, results);
  if (results.plan.invocations_asked == 0) {
    results.plan.invocations_asked = results.plan.invocations;
  }
  return results;
}

}  // namespace torchpace::cli
