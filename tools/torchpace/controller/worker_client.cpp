#include "controller/worker_client.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace torchpace::cli {
namespace {

constexpr int kProtocol = 1;
constexpr double kStartFactor = 4;   // starting and loading, in units of the worker timeout
constexpr double kLateFactor = 20;   // an answer may take so many times what was expected
constexpr double kParitySteps = 10;  // of Adam, behind `write` and `check`

std::string shortened(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < ' '; }, ' ');
  return text.size() <= 1000 ? text : text.substr(0, 997) + "...";
}

/// One member of an answer, with a complaint that names the command.
class Answer {
 public:
  Answer(const Json& json, std::string command) : json_(&json), command_(std::move(command)) {}

  double number(const char* key) const { return get<double>(key, &Json::is_number, "a number"); }
  bool boolean(const char* key) const { return get<bool>(key, &Json::is_boolean, "true or false"); }
  /// NaN stands for null.
  double number_or_null(const char* key) const {
    return json_->contains(key) && (*json_)[key].is_null() ? kUnknown : number(key);
  }
  double number_or(const char* key, double fallback) const {
    return json_->contains(key) ? number_or_null(key) : fallback;
  }
  std::string text_or_empty(const char* key) const {
    return json_->contains(key) ? get<std::string>(key, &Json::is_string, "a string") : "";
  }
  std::vector<double> numbers(const char* key) const {
    if (!json_->contains(key) || !(*json_)[key].is_array()) fail(key, "a list of numbers");
    std::vector<double> values;
    for (const auto& item : (*json_)[key]) {
      if (!item.is_number() && !item.is_null()) fail(key, "a list of numbers");
      values.push_back(item.is_null() ? kUnknown : item.get<double>());
    }
    return values;
  }
  /// At least one, none of them negative.
  std::vector<double> times(const char* key) const {
    auto values = numbers(key);
    const bool plausible =
        std::all_of(values.begin(), values.end(), [](double t) { return t >= 0 && t < 1e18; });
    if (values.empty() || !plausible) fail(key, "a list of times");
    return values;
  }
  std::vector<double> numbers_or_none(const char* key) const {
    return json_->contains(key) ? numbers(key) : std::vector<double>{};
  }
  [[noreturn]] void fail(const char* key, const std::string& expected) const {
    const auto found = json_->contains(key)
                           ? (*json_)[key].dump(-1, ' ', false, Json::error_handler_t::replace)
                           : "none";
    throw WorkerFailure(
        shortened(fmt::format("answer to '{}': expected {} as '{}', found {}",
                              command_.substr(0, command_.find(' ')), expected, key, found)),
        Status::failed, true);
  }

 private:
  template <class T, class Test>
  T get(const char* key, Test test, const char* expected) const {
    if (!json_->contains(key) || !((*json_)[key].*test)()) fail(key, expected);
    return (*json_)[key].template get<T>();
  }

  const Json* json_;
  std::string command_;
};

}  // namespace

WorkerClient::WorkerClient(const WorkerSpec& spec, double worker_timeout_s)
    : runtime_(spec.runtime), worker_timeout_s_(worker_timeout_s) {
  try {
    process_ = std::make_unique<Process>(spec.command);
  } catch (const ProcessError& error) {
    throw WorkerFailure(error.what(), Status::failed, false);
  }
}

void WorkerClient::fail_dead(const std::string& what) {
  process_->kill();
  throw WorkerFailure(shortened(what + process_->death_notice()), Status::failed, false);
}

Json WorkerClient::read_answer(const std::string& command, double limit_s) {
  const auto word = command.substr(0, command.find(' '));
  Json json;
  try {
    const auto line = process_->read_line(in_seconds(limit_s));
    json = Json::parse(line, nullptr, false);
    if (!json.is_object()) {
      fail_dead(fmt::format("expected one line of JSON to '{}', found '{}'", word,
                            shortened(line.substr(0, 80))));
    }
  } catch (const ProcessError& error) {
    const bool hangs = process_->is_alive();
    if (hangs) process_->ask_where_it_is();
    const auto limit = hangs ? fmt::format(" ({:.0f} s)", limit_s) : "";
    fail_dead(fmt::format("{}: {}{}", word, error.what(), limit));
  }
  for (const auto& [key, status] :
       {std::pair{"error", Status::failed}, {"skipped", Status::skipped}}) {
    if (!json.contains(key)) continue;
    throw WorkerFailure(
        shortened(json[key].is_string() ? json[key].get<std::string>() : json[key].dump()), status,
        true);
  }
  return json;
}

void WorkerClient::send(const std::string& command, double limit_s) {
  try {
    process_->write_line(command, in_seconds(limit_s));
  } catch (const ProcessError& error) {
    fail_dead(fmt::format("{}: {}", command.substr(0, command.find(' ')), error.what()));
  }
}

Json WorkerClient::ask(const std::string& command, double limit_s) {
  process_->forget_errors();
  send(command, limit_s);
  return read_answer(command, limit_s);
}

double WorkerClient::limit_for(double steps, double step_s) const {
  return worker_timeout_s_ + kLateFactor * steps * step_s;
}

void WorkerClient::await_greeting() {
  const auto json = read_answer("start", kStartFactor * worker_timeout_s_);
  start_s_ = seconds_since(started_);
  const Answer answer(json, "start");
  if (const auto protocol = answer.number("protocol"); protocol != kProtocol) {
    fail_dead(
        fmt::format("speaks worker protocol {}, expected {}: rebuild it", protocol, kProtocol));
  }
  if (!json.contains("cases") || !json["cases"].is_array()) answer.fail("cases", "a list of names");
  for (const auto& name : json["cases"]) {
    if (!name.is_string()) answer.fail("cases", "a list of names");
    cases_.push_back(name.get<std::string>());
  }
}

bool WorkerClient::offers(const std::string& case_name, bool own_case) const {
  return std::any_of(cases_.begin(), cases_.end(), [&](const std::string& name) {
    return name == case_name || (name == "*" && !own_case);
  });
}

LoadAnswer WorkerClient::load(const std::string& settings_line, double compile_timeout_s) {
  begin_load(settings_line);
  return finish_load(compile_timeout_s);
}

void WorkerClient::begin_load(const std::string& settings_line) {
  process_->forget_errors();
  send("load " + settings_line, kStartFactor * worker_timeout_s_);
}

LoadAnswer WorkerClient::finish_load(double compile_timeout_s) {
  const auto json = read_answer("load", kStartFactor * worker_timeout_s_ + compile_timeout_s);
  const Answer answer(json, "load");
  return {.load_s = answer.number("load_s"),
          .compile_s = answer.number_or("compile_s", 0),
          .flops = answer.number_or("flops", 0),
          .items = answer.number_or("items", 0),
          .parameter_bytes = answer.number_or("parameter_bytes", 0),
          .minimum_bytes = answer.number_or("minimum_bytes", 0),
          .item = answer.text_or_empty("item"),
          .note = answer.text_or_empty("note")};
}

FirstAnswer WorkerClient::first(int steps) {
  const auto json = ask(fmt::format("first {}", steps), (kStartFactor + steps) * worker_timeout_s_);
  const Answer answer(json, "first");
  return {.first_step_s = answer.number("first_step_s"),
          .steps_s = answer.number_or("steps_s", kUnknown)};
}

Round WorkerClient::run(int samples, int warmup, int steps_per_sample, double step_s) {
  const auto command = steps_per_sample == 1
                           ? fmt::format("run {} {}", samples, warmup)
                           : fmt::format("run {} {} {}", samples, warmup, steps_per_sample);
  const auto json = ask(command, limit_for(warmup + 1.0 * samples * steps_per_sample, step_s));
  const Answer answer(json, "run");
  Round round;
  round.steps_per_sample = steps_per_sample;
  round.step_ns = answer.numbers("step_ns");
  round.device_ns = answer.numbers_or_none("device_ns");
  round.enqueue_ns = answer.numbers_or_none("enqueue_ns");
  round.page_faults = answer.number_or("page_faults", 0);
  round.involuntary_switches = answer.number_or("involuntary_switches", 0);
  const bool plausible = std::all_of(round.step_ns.begin(), round.step_ns.end(),
                                     [](double t) { return t > 0 && t < 1e18; });
  if (round.step_ns.size() != static_cast<size_t>(samples) || !plausible) {
    answer.fail("step_ns", fmt::format("{} positive numbers", samples));
  }
  return round;
}

void WorkerClient::write(const std::string& path, double step_s) {
  ask("write " + Settings::encode(path), limit_for(kParitySteps, step_s) * kStartFactor);
}

Parity WorkerClient::check(const std::string& reference, const std::string& golden, double step_s) {
  auto command = fmt::format("check {}", Settings::encode(reference));
  if (!golden.empty()) command += fmt::format(" {}", Settings::encode(golden));
  const auto json = ask(command, limit_for(kParitySteps, step_s) * kStartFactor);
  const Answer answer(json, "check");
  Parity parity;
  parity.passed = answer.boolean("passed");
  parity.max_abs_error = answer.number_or("max_abs_error", kUnknown);
  parity.tolerance = answer.number_or("tolerance", kUnknown);
  parity.rms_error = answer.number_or("rms_error", kUnknown);
  parity.rms_tolerance = answer.number_or("rms_tolerance", kUnknown);
  parity.worst = answer.text_or_empty("worst");
  parity.compared = static_cast<int>(answer.number_or("compared", 0));
  parity.note = answer.text_or_empty("note");
  parity.cosine = answer.number_or("cosine", kUnknown);
  parity.top1 = answer.number_or("top1", kUnknown);
  return parity;
}

std::vector<double> WorkerClient::losses(int steps, double step_s) {
  const auto json = ask(fmt::format("losses {}", steps), limit_for(steps, step_s) * kStartFactor);
  return Answer(json, "losses").numbers("losses");
}

std::map<std::string, double> WorkerClient::peaks() {
  const auto json = ask("memory", worker_timeout_s_);
  const Answer answer(json, "memory");
  return {{"resident", answer.number("resident_peak_bytes")},
          {"device_allocated", answer.number_or("device_allocated_peak_bytes", 0)},
          {"device_reserved", answer.number_or("device_reserved_peak_bytes", 0)},
          {"device_driver", answer.number_or("device_driver_bytes", 0)}};
}

Json WorkerClient::environment() { return ask("environment", worker_timeout_s_); }

std::map<std::string, std::vector<double>> WorkerClient::parts(int steps, double step_s) {
  const auto json = ask(fmt::format("parts {}", steps), limit_for(steps, step_s));
  const Answer answer(json, "parts");
  if (!json.contains("parts") || !json["parts"].is_object()) answer.fail("parts", "an object");
  const Answer parts(json["parts"], "parts");
  std::map<std::string, std::vector<double>> times_ns;
  for (const auto& [part, times] : json["parts"].items()) {
    if (!times.empty()) times_ns[part] = parts.times(part.c_str());
  }
  return times_ns;
}

Profile WorkerClient::operators(int steps, double step_s) {
  const auto json =
      ask(fmt::format("operators {}", steps), kStartFactor * limit_for(steps, step_s));
  const Answer answer(json, "operators");
  if (!json.contains("operators") || !json["operators"].is_array()) {
    answer.fail("operators", "a list of operators");
  }
  Profile profile;
  for (const auto& item : json["operators"]) {
    if (!item.is_object()) answer.fail("operators", "a list of operators");
    const Answer each(item, "operators");
    profile.operators.push_back({.name = each.text_or_empty("name"),
                                 .part = each.text_or_empty("part"),
                                 .calls = each.number("calls"),
                                 .outer_calls = each.number_or("outer_calls", kUnknown),
                                 .self_ns = each.number("self_ns"),
                                 .device_ns = each.number_or("device_ns", 0)});
  }
  profile.step_ns = answer.times("step_ns");
  profile.synchronizations = answer.number_or("synchronizations", 0);
  profile.compiled = json.contains("compiled") && answer.boolean("compiled");
  return profile;
}

DispatchCost WorkerClient::dispatch(int samples) {
  const auto json = ask(fmt::format("dispatch {}", samples), kStartFactor * worker_timeout_s_);
  const Answer answer(json, "dispatch");
  return {.operator_ns = answer.times("operator_ns"),
          .profiled_ns = answer.times("profiled_ns"),
          .profiled_self_ns = answer.times("profiled_self_ns")};
}

GemmPeak WorkerClient::gemm_peak(int size, int samples) {
  const auto json =
      ask(fmt::format("gemm_peak {} {}", size, samples), kStartFactor * worker_timeout_s_);
  return {.size = size, .ns = Answer(json, "gemm_peak").times("gemm_peak_ns")};
}

void WorkerClient::ask_to_quit() {
  try {
    process_->write_line("quit", in_seconds(1));
    process_->close_input();
  } catch (const ProcessError&) {
    process_->kill();
  }
}

void WorkerClient::quit() {
  if (process_->accepts_input()) ask_to_quit();
  try {
    process_->wait(in_seconds(5));
  } catch (const ProcessError&) {
    process_->kill();
  }
}

}  // namespace torchpace::cli
