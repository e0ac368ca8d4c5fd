#include "commands/export_training.hpp"

#include <fmt/format.h>

#include <memory>

#include "commands/command.hpp"
#include "plan/runtime_discovery.hpp"
#include "support/error.hpp"
#include "support/process.hpp"
#include "support/signals.hpp"
#include "torchpace/optim/algorithms.hpp"

namespace torchpace::cli {
namespace {

constexpr double kLookLimit_s = 120;    // Python from a cold disk is slow to start
constexpr double kForEver_s = 1e8;      // the limit is --compile-timeout, which Python keeps
constexpr double kPutAwayLimit_s = 10;  // after Ctrl-C: compilers killed, half a package removed

/// Refuses what would end as a page of Python: no interpreter, no package, no torch in it.
void check(const Installation& installation) {
  if (installation.package.empty()) {
    throw Error(
        "export-training: expected the Python package torchpace, found none; set "
        "TORCHPACE_PYTHON_PATH to the folder that holds torchpace/__init__.py");
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

/// Refuses what is no T for which `holds`. What it says of itself is for its error: in the help the
/// words of the option say it.
template <class T>
CLI::Validator expecting(const std::string& what, bool (*holds)(T)) {
  const auto refuse = [what, holds](const std::string& text) -> std::string {
    T value{};
    if (CLI::detail::lexical_cast(text, value) && holds(value)) return "";
    return fmt::format("expected {}, found '{}'", what, text);
  };
  return CLI::Validator(refuse, "");
}

template <class T>
bool is_positive(T value) {
  return value > 0;
}

CLI::Validator one_of(const std::vector<std::string>& words) {
  return CLI::IsMember(words).description("");
}

}  // namespace

int export_training(const ExportTrainingOptions& options) {
  const auto installation = find_installation(options.python);
  check(installation);
  auto words = options.words;
  words.insert(words.begin(), options.target);
  auto call = python_command(installation, "torchpace.aot.export_training", words);
  call.environment["PYTHONWARNINGS"] = "";  // =error would end it where torch itself warns
  Process python(call);
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

/// What is not given is not passed on: the defaults are those of Python's export_training.
void register_export_training(CLI::App& app, CommandLine& line) {
  auto& command = *app.add_subcommand(
      "export-training", "Compile a whole training step into a package that C++ drives");
  const auto options = std::make_shared<ExportTrainingOptions>();
  auto& o = *options;
  command.add_option("TARGET", o.target, "Family of cases (torchpace list), or MODULE:FACTORY")
      ->required();
  const auto pass_on = [&](const std::string& name, const std::string& type,
                           const std::string& help) {
    const auto add = [&o, name](const std::string& value) {
      o.words.push_back(name + '=' + value);
    };
    return command.add_option_function<std::string>(name, add, help)->type_name(type);
  };
  pass_on("--out", "FILE", "Package to write, FILE.pt2")->required();
  pass_on("--size", "NAME", "Size of a family (default: quick)");
  const auto add_settings = [&o](const std::vector<std::string>& settings) {
    for (const auto& setting : settings) o.words.push_back("--set=" + setting);
  };
  command
      .add_option_function<std::vector<std::string>>(
          "--set", add_settings, "Setting of the family: layers=6, batch=16; repeat for several")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
  pass_on("--input", "SPEC", "Inputs of a factory: 8x3x32x32:float32, several joined by ';'");
  pass_on("--path", "DIR", "Folder to import the factory from (default: this one)");
  pass_on("--device", "NAME", "Device: cpu, cuda or cuda:N (default: cpu)");
  const auto count = expecting<int>("an integer above 0", is_positive<int>);
  const auto number = expecting<double>("a number above 0", is_positive<double>);
  pass_on("--threads", "N", "Threads, which are compiled in (default: torch's own choice)")
      ->check(count);
  pass_on("--seed", "N", "Seed of the initial weights (default: 0)")
      ->check(expecting<int64_t>("an integer", [](int64_t) { return true; }));
  pass_on("--optimizer", "NAME", "Optimizer: adam, adamw or sgd (default: adam)")
      ->check(one_of(optimizer_algorithm_names()));
  pass_on("--weight-decay", "X", "Weight decay (default: 0.01 for adamw, else 0)")
      ->check(expecting<double>("a number", [](double) { return true; }));
  pass_on("--clip-norm", "X", "Norm that gradients are scaled down to (default: no clipping)")
      ->check(number);
  pass_on("--accumulate", "N", "Batches per update (default: 1)")->check(count);
  pass_on("--gemm", "NAME",
          "Matrix products of a float32 step on the CPU: torchpace or torch (default: torchpace "
          "where the processor suits them)");
  pass_on("--autocast", "NAME", "Autocast: none or bfloat16 (default: none)")
      ->check(one_of({"none", "bfloat16"}));
  command.add_flag_callback(
      "--deterministic", [&o] { o.words.emplace_back("--deterministic"); },
      "Make runs repeat bit for bit");
  pass_on("--compile-timeout", "S", "Time limit of compiling (default: 600)")->check(number);
  command
      .add_option("--python", o.python,
                  "Python interpreter (default: TORCHPACE_PYTHON, .venv, python3)")
      ->type_name("PATH");
  command.callback(
      [options, &line] { line.action = [options] { return export_training(*options); }; });
}

}  // namespace torchpace::cli
