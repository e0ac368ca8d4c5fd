#include "export_training.hpp"

#include <fmt/format.h>

#include "discovery.hpp"
#include "error.hpp"
#include "interrupt.hpp"
#include "process.hpp"

namespace torchpace::cli {
namespace {

constexpr double kLookLimit_s = 120;    // Python from a cold disk is slow to start
constexpr double kForEver_s = 1e8;      // the limit is --compile-limit, which Python keeps
constexpr double kPutAwayLimit_s = 10;  // after Ctrl-C: compilers killed, half a package removed

/// Refuses what would end as a page of Python: no interpreter, no package, no torch in it.
void check(const Installation& installation) {
  if (installation.package.empty()) {
    throw Error(
        "export-training: expected the Python package torchpace, found none; set "
        "TORCHPACE_PYTHON_PATH to the folder that holds torchpace/training.py");
  }
  constexpr int kNoTorch = 3;
  const auto code = fmt::format(
      "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torch') else {})", kNoTorch);
  const auto no_python = [&](const std::string& found) {
    return Error(
        fmt::format("export-training: expected an interpreter '{}', {}; name one with --python or "
                    "TORCHPACE_PYTHON",
                    installation.python, found));
  };
  try {
    auto command = python_command(installation, "", {});
    command.words = {installation.python, "-c", code};
    Process process(command);
    process.close_input();
    const auto ending = process.wait(in_seconds(kLookLimit_s));
    if (process.exit_code() == kNoTorch) {
      throw Error(fmt::format(
          "export-training: expected torch in {}, found none; name an interpreter that has it "
          "with --python or TORCHPACE_PYTHON",
          installation.python));
    }
    if (!ending.empty()) throw no_python(ending);
  } catch (const ProcessError& error) {
    throw no_python(error.what());
  }
}

/// Hands Ctrl-C on and waits: what Python says while it stops is of no use to the reader.
void stop(Process& python) {
  clear_interrupt();
  python.echo_errors(false);
  python.interrupt();
  python.wait(in_seconds(kPutAwayLimit_s));
}

}  // namespace

int export_training(const ExportTrainingOptions& options) {
  const auto installation = find_installation(options.python);
  check(installation);
  auto words = options.words;
  words.insert(words.begin(), options.target);
  auto command = python_command(installation, "torchpace.training", words);
  command.environment["PYTHONWARNINGS"] = "";  // =error would end it where torch itself warns
  Process python(command);
  python.close_input();
  python.echo_errors(true);
  std::string ending;
  try {
    ending = python.wait(in_seconds(kForEver_s));
  } catch (const Interrupted&) {
    stop(python);
    throw;
  }
  python.stderr_tail();  // passes on what was still in the pipe
  if (python.exit_code() < 0) {
    throw Error(fmt::format("export-training: {}: Python was {}", options.target, ending),
                kCaseFailed);
  }
  const int code = python.exit_code();
  if (code == kOk || code == kCaseFailed || code == kBadInput || code == kInterrupted) return code;
  throw Error(fmt::format("export-training: {}: Python ended with exit code {}, which something in "
                          "it asked for: does the factory call exit?",
                          options.target, code),
              kCaseFailed);
}

}  // namespace torchpace::cli
