// Results <-> JSON, as bench/results.schema.json says.
#include <fmt/format.h>

#include <algorithm>

#include "error.hpp"
#include "results.hpp"

namespace torchpace::cli {
namespace {

constexpr int kSchema = 1;

Json interval_json(const Interval& interval) {
  return {{"median", interval.median}, {"low", interval.low}, {"high", interval.high}};
}

Json round_json(const Round& round) {
  return {{"round", round.round},
          {"position", round.position},
          {"steps_per_sample", round.steps_per_sample},
          {"step_ns", round.step_ns},
          {"device_ns", round.device_ns},
          {"enqueue_ns", round.enqueue_ns},
          {"page_faults", round.page_faults},
          {"involuntary_switches", round.involuntary_switches}};
}

Json generation_json(const Generation& generation) {
  Json rounds = Json::array();
  for (const auto& round : generation.rounds) rounds.push_back(round_json(round));
  return {{"generation", generation.generation},
          {"environment", generation.environment},
          {"rounds", std::move(rounds)}};
}

Json parity_json(const Parity& parity) {
  return {{"passed", parity.passed},       {"max_abs_error", parity.max_abs_error},
          {"tolerance", parity.tolerance}, {"worst", parity.worst},
          {"compared", parity.compared},   {"note", parity.note}};
}

Json speedup_json(const Speedup& speedup) {
  Json json = interval_json(speedup.ratio);
  json["confidence"] = speedup.ratio.confidence;
  json["method"] = speedup.method;
  json["verdict"] = speedup.verdict;
  json["advice"] = speedup.advice;
  return json;
}

Json runtime_json(const RuntimeResult& row) {
  Json json = {{"runtime", row.runtime}};
  if (row.is_copy()) json["copy_of"] = row.copy_of;
  json["status"] = to_string(row.status);
  json["reason"] = row.reason;
  json["step_ns"] = interval_json(row.step_ns);
  json["percentiles_ns"] = row.percentiles_ns;
  json["samples"] = row.samples;
  json["speedup"] = speedup_json(row.speedup);
  if (row.parity) json["parity"] = parity_json(*row.parity);
  json["cold_s"] = row.cold_s;
  json["peak_bytes"] = row.peak_bytes;
  json["page_faults_per_step"] = row.page_faults_per_step;
  json["involuntary_switches_per_step"] = row.involuntary_switches_per_step;
  json["environment"] = row.environment;
  json["generations"] = Json::array();
  for (const auto& generation : row.generations) {
    json["generations"].push_back(generation_json(generation));
  }
  return json;
}

Json case_json(const CaseResult& result) {
  Json json = {{"case", result.name},
               {"family", result.family},
               {"phase", result.phase},
               {"settings", result.settings},
               {"reference", result.reference},
               {"flops", result.flops},
               {"items", result.items},
               {"item", result.item},
               {"parameter_bytes", result.parameter_bytes},
               {"minimum_bytes", result.minimum_bytes},
               {"noise_floor", interval_json(result.noise_floor)},
               {"curves", result.curves}};
  json["runtimes"] = Json::array();
  for (const auto& row : result.runtimes) json["runtimes"].push_back(runtime_json(row));
  return json;
}

Json plan_json(const PlanRecord& plan) {
  return {{"arguments", plan.arguments},
          {"preset", plan.preset},
          {"reference", plan.reference},
          {"runtimes", plan.runtimes},
          {"generations", plan.generations},
          {"rounds", plan.rounds},
          {"max_seconds", plan.max_seconds},
          {"threads", plan.threads},
          {"device", plan.device},
          {"dtype", plan.dtype},
          {"allocator", plan.allocator},
          {"seed", plan.seed},
          {"delta", plan.delta},
          {"text", plan.text},
          {"pairs", plan.pairs}};
}

Json warning_json(const Warning& warning) {
  Json json = {{"code", warning.code}, {"severity", warning.severity}, {"text", warning.text}};
  if (!warning.case_name.empty()) json["case"] = warning.case_name;
  if (!warning.runtime.empty()) json["runtime"] = warning.runtime;
  return json;
}

/// A place in the file, so that every complaint can name it.
class Place {
 public:
  Place(const Json& json, std::string source, std::string pointer = "")
      : json_(&json), source_(std::move(source)), pointer_(std::move(pointer)) {}

  [[noreturn]] void fail(const std::string& expected) const {
    auto found = json_->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (found.size() > 40) found = found.substr(0, 37) + "...";
    fail(expected, found);
  }

  bool has(const char* key) const { return json_->contains(key); }

  /// Throws Error unless this is an object with `key`.
  Place at(const char* key) const {
    if (!json_->is_object()) fail("an object");
    const auto found = json_->find(key);
    if (found == json_->end()) fail(fmt::format("a member '{}'", key), "none");
    return {*found, source_, pointer_ + "/" + key};
  }

  template <class Visit>
  void each(const Visit& visit) const {
    if (!json_->is_array()) fail("an array");
    for (size_t i = 0; i < json_->size(); ++i) {
      visit(Place((*json_)[i], source_, fmt::format("{}/{}", pointer_, i)));
    }
  }

  /// Visits (key, place) of an object's members.
  template <class Visit>
  void members(const Visit& visit) const {
    if (!json_->is_object()) fail("an object");
    for (const auto& [key, value] : json_->items()) {
      visit(key, Place(value, source_, pointer_ + "/" + key));
    }
  }

  std::string text() const {
    if (!json_->is_string()) fail("a string");
    return json_->get<std::string>();
  }
  std::string one_of(const std::vector<std::string>& words) const {
    auto word = text();
    if (std::find(words.begin(), words.end(), word) == words.end()) {
      fail(fmt::format("one of {}", fmt::join(words, ", ")));
    }
    return word;
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
  void into(std::string& value) const { value = text(); }
  void into(Json& value) const {
    if (!json_->is_object()) fail("an object");
    value = *json_;
  }
  template <class T>
  void into(std::vector<T>& values) const {
    each([&](const Place& item) { item.into(values.emplace_back()); });
  }
  template <class T>
  void into(std::map<std::string, T>& values) const {
    members([&](const auto& key, const Place& item) { item.into(values[key]); });
  }

  template <class T>
  void require(const char* key, T& value) const {
    at(key).into(value);
  }
  /// A member that is absent leaves the value as it is.
  template <class T>
  void read(const char* key, T& value) const {
    if (has(key)) require(key, value);
  }

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& found) const {
    throw Error(fmt::format("{}: {}: expected {}, found {}", source_,
                            pointer_.empty() ? "/" : pointer_, expected, found));
  }

  const Json* json_;
  std::string source_;
  std::string pointer_;
};

Round read_round(const Place& place) {
  Round round;
  place.require("round", round.round);
  place.require("position", round.position);
  place.require("step_ns", round.step_ns);
  place.read("steps_per_sample", round.steps_per_sample);
  place.read("device_ns", round.device_ns);
  place.read("enqueue_ns", round.enqueue_ns);
  place.read("page_faults", round.page_faults);
  place.read("involuntary_switches", round.involuntary_switches);
  return round;
}

Generation read_generation(const Place& place) {
  Generation generation;
  place.require("generation", generation.generation);
  place.read("environment", generation.environment);
  place.at("rounds").each([&](const Place& p) { generation.rounds.push_back(read_round(p)); });
  return generation;
}

Parity read_parity(const Place& place) {
  Parity parity;
  place.require("passed", parity.passed);
  place.read("max_abs_error", parity.max_abs_error);
  place.read("tolerance", parity.tolerance);
  place.read("worst", parity.worst);
  place.read("compared", parity.compared);
  place.read("note", parity.note);
  return parity;
}

Status read_status(const Place& place) {
  const auto word = place.one_of({"ok", "skipped", "failed", "invalid"});
  for (const auto status : {Status::ok, Status::skipped, Status::invalid}) {
    if (word == to_string(status)) return status;
  }
  return Status::failed;
}

RuntimeResult read_runtime(const Place& place) {
  RuntimeResult row;
  place.require("runtime", row.runtime);
  row.status = read_status(place.at("status"));
  place.require("reason", row.reason);
  place.read("copy_of", row.copy_of);
  if (place.has("parity")) row.parity = read_parity(place.at("parity"));
  place.read("cold_s", row.cold_s);
  place.read("peak_bytes", row.peak_bytes);
  place.read("environment", row.environment);
  if (place.has("generations")) {
    place.at("generations").each([&](const Place& p) {
      row.generations.push_back(read_generation(p));
    });
  }
  return row;
}

CaseResult read_case(const Place& place) {
  CaseResult result;
  place.require("case", result.name);
  place.require("family", result.family);
  result.phase = place.at("phase").one_of({"train", "inference", "latency", "other"});
  place.require("settings", result.settings);
  place.require("reference", result.reference);
  place.read("flops", result.flops);
  place.read("items", result.items);
  place.read("item", result.item);
  place.read("parameter_bytes", result.parameter_bytes);
  place.read("minimum_bytes", result.minimum_bytes);
  place.read("curves", result.curves);
  place.at("runtimes").each([&](const Place& p) { result.runtimes.push_back(read_runtime(p)); });
  return result;
}

PlanRecord read_plan(const Place& place) {
  PlanRecord plan;
  place.require("arguments", plan.arguments);
  place.read("preset", plan.preset);
  place.require("reference", plan.reference);
  place.require("runtimes", plan.runtimes);
  place.require("generations", plan.generations);
  place.read("rounds", plan.rounds);
  place.require("max_seconds", plan.max_seconds);
  place.require("threads", plan.threads);
  place.require("device", plan.device);
  place.require("dtype", plan.dtype);
  place.require("allocator", plan.allocator);
  place.require("seed", plan.seed);
  place.require("delta", plan.delta);
  place.read("text", plan.text);
  place.read("pairs", plan.pairs);
  return plan;
}

Warning read_warning(const Place& place) {
  Warning warning;
  place.require("code", warning.code);
  warning.severity = place.at("severity").one_of({"info", "warning", "error"});
  place.require("text", warning.text);
  place.read("case", warning.case_name);
  place.read("runtime", warning.runtime);
  return warning;
}

}  // namespace

Json to_json(const Results& results) {
  Json json = {{"schema", kSchema},
               {"torchpace", results.torchpace},
               {"created", results.created},
               {"complete", results.complete},
               {"elapsed_s", results.elapsed_s},
               {"plan", plan_json(results.plan)},
               {"environment", results.environment}};
  json["warnings"] = Json::array();
  for (const auto& warning : results.warnings) json["warnings"].push_back(warning_json(warning));
  json["cases"] = Json::array();
  for (const auto& result : results.cases) json["cases"].push_back(case_json(result));
  return json;
}

Results from_json(const Json& json, const std::string& source) {
  const Place root(json, source);
  if (const auto schema = root.at("schema"); json["schema"] != kSchema) {
    schema.fail(fmt::format("schema {} (another version of torchpace wrote this file)", kSchema));
  }
  Results results;
  root.require("torchpace", results.torchpace);
  root.require("created", results.created);
  root.require("complete", results.complete);
  root.read("elapsed_s", results.elapsed_s);
  results.plan = read_plan(root.at("plan"));
  root.require("environment", results.environment);
  root.at("warnings").each([&](const Place& p) { results.warnings.push_back(read_warning(p)); });
  root.at("cases").each([&](const Place& p) { results.cases.push_back(read_case(p)); });
  return results;
}

}  // namespace torchpace::cli
