#include "exporter.hpp"

#include <fmt/format.h>

#include "error.hpp"

namespace torchpace::cli {
namespace {

/// Weights and truth of the largest cases take minutes on a small machine.
constexpr double kExportLimit_s = 3600;

}  // namespace

Exporter::Exporter(const Command& command) {
  try {
    process_ = std::make_unique<Process>(command);
  } catch (const ProcessError& error) {
    throw Error(fmt::format("the export cannot be started: {}", error.what()));
  }
}

Exported Exporter::export_case(const Case& item) {
  Exported result{.settings = item.settings, .note = "", .reason = ""};
  Json json;
  try {
    process_->write_line(item.settings.line(), in_seconds(kExportLimit_s));
    const auto line = process_->read_line(in_seconds(kExportLimit_s));
    json = Json::parse(line, nullptr, false);
    if (!json.is_object()) throw ProcessError("expected one line of JSON, found '" + line + "'");
  } catch (const ProcessError& error) {
    const auto tail = process_->stderr_tail();
    throw Error(fmt::format("the export of {} failed: {}{}{}", item.name, error.what(),
                            tail.empty() ? "" : ": ", tail));
  }
  for (const auto& [key, status] :
       {std::pair{"error", Status::failed}, {"skipped", Status::skipped}}) {
    if (!json.contains(key)) continue;
    result.status = status;
    result.reason = fmt::format("export: {}", json.value(key, ""));
  }
  for (const char* key : {"state", "truth", "tokens"}) {
    if (const auto path = json.value(key, ""); !path.empty()) result.settings.set(key, path);
  }
  result.note = json.value("note", "");
  return result;
}

}  // namespace torchpace::cli
