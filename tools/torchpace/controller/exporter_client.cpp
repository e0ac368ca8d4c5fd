#include "controller/exporter_client.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

/// Beyond the limit of a compile: the case's files come first, and killing the compilers last.
constexpr double kArtifactGrace_s = 600;
constexpr double kPutAway_s = 5;  // that ending may take: files half made, compilers, torch itself
/// How the exporter refers to the standard error that it shares with what it starts.
constexpr const char* kAbove = "; its output is above";

/// The status and the reason that an answer gives.
template <class Result>
void take_status(Result& result, const Json& json, const char* what) {
  for (const auto& [key, status] :
       {std::pair{"error", Status::failed}, {"skipped", Status::skipped}}) {
    if (!json.contains(key)) continue;
    result.status = status;
    const Json& text = json[key];
    result.reason =
        fmt::format("{}{}", what, text.is_string() ? text.get<std::string>() : text.dump());
  }
}

/// No interpreter, or none with torch: --python names another one.
bool is_of_installation(const std::string& death) {
  return death.starts_with("cannot run ") || death.find("ModuleNotFoundError") != std::string::npos;
}

}  // namespace

Settings Exported::settings_of(const std::string& runtime) const {
  auto result = settings;
  if (const auto found = artifacts.find(runtime); found != artifacts.end()) {
    result.set("artifact", found->second.path);
  }
  if (const auto found = own.find(runtime); found != own.end()) {
    for (const auto& [key, value] : found->second.values()) result.set(key, value);
  }
  return result;
}

Exporter::~Exporter() {
  if (!process_) return;
  try {
    process_->close_input();
    process_->wait(in_seconds(kPutAway_s));
  } catch (const std::exception&) {  // Ctrl-C, now or before
    process_->terminate(in_seconds(kPutAway_s));
  }
}

Json Exporter::ask(const std::string& line, double limit_s, const char* option) {
  if (!process_) process_ = std::make_unique<Process>(command_);
  process_->forget_errors();
  try {
    process_->write_line(line, in_seconds(limit_s));
    const auto answer = process_->read_line(in_seconds(limit_s));
    const auto json = Json::parse(answer, nullptr, false);
    if (json.is_object()) return json;
    throw ProcessError(fmt::format("expected one line of JSON, found '{}'", answer.substr(0, 200)));
  } catch (const ProcessError& error) {
    const bool hangs = process_->is_alive();
    if (hangs) process_->ask_where_it_is();
    process_->terminate(in_seconds(kPutAway_s));
    const auto text =
        fmt::format("{}{}{}", error.what(), hangs ? fmt::format(" ({} {:g})", option, limit_s) : "",
                    process_->death_notice());
    process_.reset();
    throw ProcessError(text);
  }
}

/// An answer can point at what only we have read.
void Exporter::complete(std::string& reason) {
  const auto at = reason.rfind(kAbove);
  if (at == std::string::npos) return;
  reason.replace(at, std::string(kAbove).size(), process_->death_notice());
}

Exported Exporter::export_case(const Case& item) {
  Exported result;
  result.settings = item.settings;
  Json json;
  try {
    json = ask(item.settings.line(), limit_s_, "--export-timeout");
  } catch (const ProcessError& error) {
    result.status = Status::failed;
    result.reason = fmt::format("export: {}", error.what());
    result.mendable = is_of_installation(error.what());
    return result;
  }
  take_status(result, json, "export: ");
  complete(result.reason);
  result.mendable = json.contains("mendable");
  for (const char* key : {"state", "golden", "tokens"}) {
    if (const auto path = json.value(key, ""); !path.empty()) result.settings.set(key, path);
  }
  const auto set = json.value("set", Json::object());
  for (const auto& [key, value] : set.items()) {
    result.settings.set(key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  const auto memory = json.value("memory", Json::object());
  for (const auto& [key, value] : memory.items()) {
    if (value.is_number()) result.memory_bytes[key] = value.get<double>();
  }
  result.note = json.value("note", "");
  result.no_golden = json.value("no_golden", "");
  return result;
}

Artifact Exporter::make_artifact(Settings settings, const std::string& kind, double limit_s) {
  Artifact result;
  result.kind = kind;
  settings.set("make", kind);
  settings.set("compile_timeout", fmt::format("{:g}", limit_s));
  try {
    const auto json = ask(settings.line(), limit_s + kArtifactGrace_s, "--compile-timeout");
    take_status(result, json, "");
    complete(result.reason);
    result.path = json.value("artifact", "");
    if (json.contains("compile_s") && json["compile_s"].is_number()) {
      result.compile_s = json["compile_s"].get<double>();
    }
    result.cached = json.value("cached", false);
    result.note = json.value("note", "");
    if (result.status == Status::ok && result.path.empty()) {
      result.status = Status::failed;
      result.reason = fmt::format("artifact {}: expected its path, found '{}'", kind, json.dump());
    }
  } catch (const ProcessError& error) {
    result.status = Status::failed;
    result.reason = fmt::format("artifact {}: the exporter: {}", kind, error.what());
  }
  return result;
}

}  // namespace torchpace::cli
