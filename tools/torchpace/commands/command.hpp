// The commands of the program: each file here registers one, and says what it does when it is
// chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace torchpace::cli {

/// What the chosen command does: returns the exit code, throws Error or Interrupted.
using Action = std::function<int()>;

/// What every command is registered with: its callback sets `action`; `arguments` are recorded with
/// what is measured.
struct CommandLine {
  std::vector<std::string> arguments;
  Action action;
};

void register_compare(CLI::App& app, CommandLine& line);
void register_explain(CLI::App& app, CommandLine& line);
void register_run(CLI::App& app, CommandLine& line);
void register_export_training(CLI::App& app, CommandLine& line);
void register_list(CLI::App& app, CommandLine& line);
void register_report(CLI::App& app, CommandLine& line);
void register_doctor(CLI::App& app, CommandLine& line);

/// An option that may be repeated: each takes one text, as it is.
void add_repeated(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                  const std::string& type, const std::string& help);

/// An option that may be repeated and takes lists: `a,b`.
void add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
              const std::string& type, const std::string& help);

}  // namespace torchpace::cli
