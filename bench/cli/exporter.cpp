#include "exporter.hpp"

#include <fmt/format.h>

#include "error.hpp"

namespace torchpace::cli {
namespace {

/// Weights and truth of the largest cases take minutes on a small machine.
constexpr double kExportLimit_s = 3600;
/// Beyond the limit of a compile: the case's files come first, and killing the compilers last.
constexpr double kArtifactGrace_s = 600;

/// The status and the reason that an answer gives.
template <class Result>
void take_status(Result& result, const Json& json, const char* what) {
  for (const auto& [key, status] :
       {std::pair{"error", Status::failed}, {"skipped", Status::skipped}}) {
    if (!json.contains(key)) continue;
    result.status = status;
    result.reason = fmt::format("{}{}", what, json.value(key, ""));
  }
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

Json Exporter::ask(const std::string& line, double limit_s) {
  if (!process_) process_ = std::make_unique<Process>(command_);
  try {
    process_->write_line(line, in_seconds(limit_s));
    const auto answer = process_->read_line(in_seconds(limit_s));
    const auto json = Json::parse(answer, nullptr, false);
    if (json.is_object()) return json;
    throw ProcessError(fmt::format("expected one line of JSON, found '{}'", answer.substr(0, 200)));
  } catch (const ProcessError& error) {
    process_->kill();
    const auto tail = process_->stderr_tail();
    process_.reset();
    throw ProcessError(fmt::format("{}{}{}", error.what(), tail.empty() ? "" : ": ", tail));
  }
}

Exported Exporter::export_case(const Case& item) {
  Exported result;
  result.settings = item.settings;
  Json json;
  try {
    json = ask(item.settings.line(), kExportLimit_s);
  } catch (const ProcessError& error) {
    throw Error(fmt::format("the export of {} failed: {}", item.name, error.what()));
  }
  take_status(result, json, "export: ");
  for (const char* key : {"state", "truth", "tokens"}) {
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
  return result;
}

Artifact Exporter::make_artifact(Settings settings, const std::string& kind, double limit_s) {
  Artifact result;
  result.kind = kind;
  settings.set("make", kind);
  settings.set("compile_limit", fmt::format("{:g}", limit_s));
  try {
    const auto json = ask(settings.line(), limit_s + kArtifactGrace_s);
    take_status(result, json, "");
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
    result.reason = fmt::format("artifact {}: the exporter {}", kind, error.what());
  }
  return result;
}

}  // namespace torchpace::cli
