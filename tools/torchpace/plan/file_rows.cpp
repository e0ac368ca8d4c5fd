#include "plan/file_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "support/error.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

/// Without what stands behind '@': a version of torch, a mode.
std::string base_of(const std::string& row) { return row.substr(0, row.find('@')); }

bool has_row(const std::vector<WorkerSpec>& rows, const std::string& name) {
  return std::any_of(rows.begin(), rows.end(),
                     [&](const WorkerSpec& row) { return row.runtime == name; });
}

/// What loads a file of this kind, in the words of --runtimes.
std::vector<std::string> loaders_of(ModelFile::Kind kind) {
  if (kind == ModelFile::Kind::torchscript) return {"*-torchscript"};
  if (kind == ModelFile::Kind::package) return {"*-aot"};
  return {"py-eager", "py-compile:*", "*-torchscript", "*-aot"};
}

/// A pattern for rows, `cpp-torchscript:FILE@freeze`, without what only rows of files have.
std::string without_file(const std::string& pattern, const std::vector<ModelFile>& files) {
  const auto base = base_of(pattern);
  for (const auto& file : files) {
    if (base.ends_with(":" + file.name)) return base.substr(0, base.size() - file.name.size() - 1);
  }
  return base;
}

/// The row of a file in a runtime, in one mode of TorchScript; nothing where the runtime does not
/// load it. Plain is what loading alone gives, and has no name of its own.
std::optional<WorkerSpec> row_of(const WorkerSpec& runtime, const ModelFile& file, bool alone,
                                 const std::string& mode) {
  const bool is_script = runtime.artifact == "torchscript";
  const bool loads = file.is_program() ||
                     (is_script && file.kind == ModelFile::Kind::torchscript) ||
                     (runtime.artifact == "aot" && file.kind == ModelFile::Kind::package);
  if (!loads) return std::nullopt;
  auto row = runtime;
  if (!alone) row.runtime.insert(base_of(row.runtime).size(), ":" + file.name);
  if (!file.is_program()) {
    row.artifact.clear();  // the file itself: nothing is made
    row.settings.set("artifact", file.path);
    row.settings.set("stamp", file.stamp);
  }
  if (is_script) {
    row.settings.set("torchscript", mode);
    if (mode != "plain") row.runtime += "@" + mode;
  }
  return row;
}

/// Whether --runtimes asks for a row: by its own name, by that of its file, or by its runtime's.
bool asks_for(const std::vector<std::string>& patterns, const std::string& row,
              const std::string& runtime) {
  return patterns.empty() ||
         std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
           return pattern == "all" || matches(pattern, row) || matches(pattern, base_of(row)) ||
                  matches(pattern, runtime);
         });
}

}  // namespace

std::vector<std::string> runtimes_of(const std::vector<ModelFile>& files,
                                     const std::vector<std::string>& patterns) {
  std::vector<std::string> found;
  for (const auto& pattern : patterns) found.push_back(without_file(pattern, files));
  if (!found.empty()) return found;
  for (const auto& file : files) {
    for (const auto& pattern : loaders_of(file.kind)) found.push_back(pattern);
  }
  return found;
}

std::vector<WorkerSpec> file_rows(const std::vector<ModelFile>& files,
                                  std::vector<WorkerSpec> runtimes,
                                  const std::vector<std::string>& modes,
                                  const std::vector<std::string>& patterns) {
  std::stable_partition(runtimes.begin(), runtimes.end(),
                        [](const WorkerSpec& s) { return s.runtime.starts_with("py-"); });
  auto in_order = files;
  std::stable_partition(in_order.begin(), in_order.end(),
                        [](const ModelFile& file) { return file.is_program(); });
  std::vector<WorkerSpec> rows;
  for (const auto& file : in_order) {
    for (const auto& mode : modes) {
      for (const auto& runtime : runtimes) {
        auto row = row_of(runtime, file, files.size() == 1, mode);
        if (row && !has_row(rows, row->runtime) &&
            asks_for(patterns, row->runtime, runtime.runtime))
          rows.push_back(std::move(*row));
      }
    }
  }
  if (!rows.empty()) return rows;
  throw Error(
      fmt::format("--runtimes: expected one that loads {}, of {}, found {}", files.front().path,
                  fmt::join(loaders_of(files.front().kind), ", "), fmt::join(patterns, ", ")),
      kNothingMatched);
}

std::string file_reference(const std::string& option, const std::vector<ModelFile>& files,
                           const std::vector<WorkerSpec>& rows) {
  if (option.empty()) {
    const auto eager = std::find_if(rows.begin(), rows.end(), [](const WorkerSpec& row) {
      return row.runtime.starts_with("py-eager");  // of a program: as of any other model
    });
    return (eager == rows.end() ? rows.front() : *eager).runtime;
  }
  for (const auto& file : files) {
    if (file.name != option) continue;
    for (const auto& row : rows) {
      if (files.size() == 1 || base_of(row.runtime).ends_with(":" + file.name)) return row.runtime;
    }
  }
  for (const auto& row : rows) {
    if (row.runtime == option) return option;
  }
  for (const auto& row : rows) {
    if (row.runtime.starts_with(option + ":") || row.runtime.starts_with(option + "@"))
      return row.runtime;
  }
  std::vector<std::string> names;
  for (const auto& file : files) names.push_back(file.name);
  for (const auto& row : rows) names.push_back(row.runtime);
  throw Error(fmt::format("--reference: '{}' is neither a file nor a row{}", option,
                          did_you_mean(option, names)));
}

}  // namespace torchpace::cli
