// The program `torchpace`: compare, explain, run, export-training, list, report, doctor.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "commands/compare.hpp"
#include "plan/runtime_discovery.hpp"
#include "commands/doctor.hpp"
#include "support/error.hpp"
#include "commands/explain.hpp"
#include "commands/export_training.hpp"
#include "support/signals.hpp"
#include "commands/list.hpp"
#include "report/console_report.hpp"
#include "commands/run.hpp"
#include "support/console.hpp"
#include "analysis/regression_check.hpp"
#include "support/strings.hpp"

namespace {

using namespace torchpace::cli;

/// Files that we open must never become the standard streams of a child. Where there is no standard
/// output, writes to it fail and so are noticed.
void open_standard_streams() {
  for (int fd = 0; fd < 3; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_RDWR);
  }
}

/// `a,b` and repeated options alike.
void add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
              const std::string& help) {
  app.add_option_function<std::vector<std::string>>(
         name,
         [&values](const std::vector<std::string>& texts) {
           for (const auto& text : texts) {
             for (auto& part : split_list(text)) values.push_back(std::move(part));
           }
         },
         help)
      ->take_all()
      ->allow_extra_args(false);
}

/// Said in the help of what two commands have defaults of their own for.
struct Defaults {
  std::string invocations, max_seconds;
};

/// What says how to measure.
void add_measuring(CLI::App& app, CompareOptions& o, const Defaults& defaults) {
  app.option_defaults()->take_last();  // a script's options can be overridden by what follows
  app.add_option("--preset", o.preset, "smoke, quick or paper: size, invocations and time (quick)");
  app.add_option("--model", o.models,
                 "module:factory: a model of your own in place of the families; may be repeated. "
                 "FILE: TorchScript, an AOTInductor package or a program of torch.export.save; "
                 "several files are of one model, and their outputs must agree")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--input", o.inputs,
                 "of your models: 1x3x224x224:float32; repeated for several inputs")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--below", o.below,
                 "integer inputs of files are drawn uniform below this (rows of the first "
                 "embedding where the file tells, else 2)");
  add_list(app, "--torch", o.torch,
           "versions side by side, each in its own environment and build: 2.11.0,2.15.0");
  app.add_option("--worker", o.workers, "NAME=COMMAND: a worker of your own; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N (auto)");
  app.add_option("--dtype", o.dtype, "float32, bfloat16, float16 or float64 (float32)");
  app.add_option("--threads", o.threads,
                 "of every worker (OMP_NUM_THREADS, else physical cores that are ours)");
  app.add_option("--allocator", o.allocator, "of every worker: tuned, system or jemalloc (tuned)");
  app.add_option("--invocations", o.invocations,
                 fmt::format("fresh processes per runtime ({})", defaults.invocations));
  app.add_option("--rounds", o.rounds,
                 "turns per case and invocation (as many as the time allows)");
  app.add_option("--max-seconds", o.max_seconds,
                 fmt::format("time of measuring; making weights, golden values and artifacts is not "
                             "counted ({})",
                             defaults.max_seconds));
  app.add_option("--compile-timeout", o.compile_timeout,
                 "seconds that compiling one artifact may take (of the preset)");
  app.add_option("--export-timeout", o.export_timeout,
                 "seconds that weights, inputs and the float64 run of one case may take (600 for a "
                 "model of your own, else 3600)");
  app.add_option("--load-library", o.libraries,
                 "shared library of custom operators, FILE.so, loaded before anything else of a "
                 "case; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--delta", o.delta, "SAME means within 1 +- this (0.02)");
  app.add_option("--seed", o.seed, "of weights, inputs and the order of turns (0)");
  app.add_option("--output", o.output, "folder of results.json and the report (torchpace-report)");
  app.add_option("--cache", o.cache,
                 "folder of weights and inputs (TORCHPACE_CACHE, ~/.cache/torchpace)");
  app.add_option("--text", o.text, "train on this file instead of Shakespeare's plays");
  app.add_option("--python", o.python, "interpreter (TORCHPACE_PYTHON, .venv, python3)");
  app.add_option("--worker-timeout", o.worker_timeout_s,
                 "seconds until a silent worker counts as hung, at least (30)");
  app.add_flag("--resume", o.resume, "measure only what is missing in the output folder");
  app.add_flag("--no-html", o.no_html, "no report.html");
}

void add_compare(CLI::App& app, CompareOptions& o) {
  add_measuring(app, o,
                {.invocations = "of the preset",
                 .max_seconds = "of the preset, and more for each further runtime"});
  add_list(app, "--cases", o.cases, "names or patterns: gptlite_train,dnn_*/size:smoke (all)");
  app.add_option("--set", o.set, "axes: layers=64,batch=1:64*2; lists and ranges multiply out")
      ->take_all()
      ->allow_extra_args(false);
  add_list(app, "--runtimes", o.runtimes,
           "names or patterns: all, cpp-eager, py-* (of the preset: *-eager; paper: all)");
  app.add_option("--reference", o.reference,
                 "what speedups are over (py-eager, else the last worker)");
  app.add_option("--fail-on", o.fail_on,
                 "speedup<X: exit code 5 where a whole interval is below X");
}

void add_explain(CLI::App& app, ExplainOptions& o) {
  add_measuring(app, o.how,
                {.invocations = "of the preset, at most 6", .max_seconds = "half of the preset"});
  app.add_option("case", o.case_name, "gptlite_train/size:quick")->required();
  app.add_option("A", o.from, "runtime that the waterfall begins with")->required();
  app.add_option("B", o.to, "runtime that it ends with")->required();
}

void add_run(CLI::App& app, RunOptions& o) {
  app.option_defaults()->take_last();
  app.footer("Loading a file runs the code in it: run only what you would run as a program.");
  app.add_option("file", o.file, "TorchScript file (.pt) or AOTInductor package (.pt2)")
      ->required();
  app.add_option("--input", o.inputs,
                 "sizes and dtype of an input, 1x3x224x224:float32, and :channels_last behind it "
                 "for that memory format; repeat for several (what a package of torchpace says)")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--below", o.below, "integer inputs are drawn uniform below this (2)");
  app.add_option("--dynamic", o.dynamic, "first dimensions to try: 1:32*2 or 1,8,64");
  app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N (cpu)");
  app.add_option("--threads", o.threads, "of one call (what the package says, else torch's)");
  app.add_option("--streams", o.streams, "callers at the same time, for the throughput (1)");
  app.add_option("--seconds", o.seconds, "of each measurement, at most (5)");
  app.add_option("--torchscript", o.torchscript, "freeze, plain or optimize (freeze)");
  app.add_option("--compare", o.compare, "another file on the same inputs, outputs checked");
  app.add_option("--model-name", o.model_name,
                 "of a package that holds several models (model, or the only one)");
  app.add_option("--load-library", o.libraries,
                 "shared library of custom operators, FILE.so, loaded before the file; may be "
                 "repeated")
      ->take_all()
      ->allow_extra_args(false);
  app.add_flag("--json", o.json, "one line of JSON with every sample");
  app.add_option("--python", o.python,
                 "interpreter whose torch is loaded, if not the one of the build");
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

/// What is not given is not passed on: the defaults are those of python -m torchpace.aot.export_training.
void add_export_training(CLI::App& app, ExportTrainingOptions& o) {
  app.add_option("target", o.target, "a family of cases (torchpace list), or module:factory")
      ->required();
  const auto pass_on = [&](const std::string& name, const std::string& help) {
    const auto add = [&o, name](const std::string& value) {
      o.words.push_back(name + '=' + value);
    };
    return app.add_option_function<std::string>(name, add, help);
  };
  pass_on("--out", "the package to write, FILE.pt2")->required();
  pass_on("--size", "of a family (quick)");
  const auto add_settings = [&o](const std::vector<std::string>& settings) {
    for (const auto& setting : settings) o.words.push_back("--set=" + setting);
  };
  app.add_option_function<std::vector<std::string>>(
         "--set", add_settings, "KEY=VALUE of the family: layers=6, batch=16; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  pass_on("--input", "of a factory: 8x3x32x32:float32, several joined by ';'");
  pass_on("--path", "folder to import the factory from (this one)");
  pass_on("--device", "cpu, cuda or cuda:N (cpu)");
  const auto count = expecting<int>("an integer above 0", is_positive<int>);
  const auto number = expecting<double>("a number above 0", is_positive<double>);
  pass_on("--threads", "compiled in (torch's own choice)")->check(count);
  pass_on("--seed", "of the initial weights (0)")
      ->check(expecting<int64_t>("an integer", [](int64_t) { return true; }));
  pass_on("--optimizer", "adam, adamw or sgd (adam)")->check(one_of({"adam", "adamw", "sgd"}));
  pass_on("--weight-decay", "(0.01 for adamw, else 0)")
      ->check(expecting<double>("a number", [](double) { return true; }));
  pass_on("--clip-norm", "gradients are scaled down to this norm (no clipping)")->check(number);
  pass_on("--accumulate", "batches to one update (1)")->check(count);
  pass_on("--autocast", "none or bfloat16 (none)")->check(one_of({"none", "bfloat16"}));
  app.add_flag_callback(
      "--deterministic", [&o] { o.words.emplace_back("--deterministic"); },
      "runs repeat bit for bit");
  pass_on("--compile-timeout", "seconds that compiling may take (600)")->check(number);
  app.add_option("--python", o.python, "interpreter (TORCHPACE_PYTHON, .venv, python3)");
}

int report_files(const std::vector<std::string>& paths, const std::string& output,
                 const std::string& fail_on_text, const std::string& python) {
  std::optional<FailOn> fail_on;
  if (!fail_on_text.empty()) fail_on = parse_fail_on(fail_on_text);
  std::vector<NamedResults> files;
  for (const auto& path : paths) {
    files.push_back({path, load_results(path)});
    derive(files.back().results);
  }
  const bool color = isatty(STDOUT_FILENO) == 1;
  int worst = kOk;
  for (const auto& file : files) {
    print_report(file.results, std::cout, color);
    if (fail_on) {
      for (const auto& line : find_regressions(file.results, *fail_on).found) {
        say("regression: " + line);
        worst = kRegression;
      }
    }
  }
  if (files.size() > 1) print_side_by_side(files, std::cout, color);
  std::cout.flush();
  if (!output.empty()) {
    if (files.size() > 1) throw Error("--output: expected one file of results, found several");
    std::filesystem::create_directories(output);
    const auto page_source = std::filesystem::is_directory(paths[0])
                                 ? std::filesystem::path(paths[0]) / "results.json"
                                 : std::filesystem::path(paths[0]);
    write_markdown(files[0].results, std::filesystem::path(output) / "report.md");
    const auto page = make_html(find_installation(python), page_source, output);
    say(page.message);
    if (page.outcome == HtmlPage::Outcome::failed && worst == kOk) worst = kCaseFailed;
  }
  return worst;
}

void expect_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> commands;
  for (const auto* command : app.get_subcommands(nullptr)) commands.push_back(command->get_name());
  if (word.starts_with('-') || std::ranges::find(commands, word) != commands.end()) return;
  throw Error(fmt::format("expected a command, found '{}'{}", word, did_you_mean(word, commands)));
}

int run(int argc, char** argv) {
  CLI::App app(
      "Which way of running this PyTorch model is fastest on this machine, and by how much?");
  app.name("torchpace");
  app.set_version_flag("--version", "torchpace " TORCHPACE_VERSION);
  app.require_subcommand(1);

  CompareOptions options;
  for (int i = 1; i < argc; ++i) options.arguments.emplace_back(argv[i]);
  auto* compare_command =
      app.add_subcommand("compare", "measure runtimes side by side and judge them");
  add_compare(*compare_command, options);

  ExplainOptions explain_options{.case_name = "", .from = "", .to = "", .how = options};
  auto* explain_command =
      app.add_subcommand("explain", "say where the time goes between two runtimes on one case");
  add_explain(*explain_command, explain_options);

  RunOptions run_options;
  auto* run_command = app.add_subcommand("run", "time a .pt or .pt2 file; runs the code in it");
  add_run(*run_command, run_options);

  ExportTrainingOptions training_options;
  auto* training_command = app.add_subcommand(
      "export-training", "compile a whole training step into a package that C++ drives");
  add_export_training(*training_command, training_options);

  bool as_json = false;
  std::string python;
  auto* list_command = app.add_subcommand("list", "families, sizes, phases, presets and runtimes");
  list_command->add_flag("--json", as_json, "as JSON");
  list_command->add_option("--python", python, "interpreter");

  std::vector<std::string> paths;
  std::string output, fail_on, cache;
  auto* report_command = app.add_subcommand("report", "print what results.json files hold");
  report_command->add_option("results", paths, "folders or results.json files")->required();
  report_command->add_option("--output", output, "folder for report.md and report.html");
  report_command->add_option("--fail-on", fail_on,
                             "speedup<X: exit code 5 where a whole interval is below X");
  report_command->add_option("--python", python, "interpreter for report.html");

  auto* doctor_command = app.add_subcommand("doctor", "what this machine will do to the numbers");
  doctor_command->add_flag("--json", as_json, "as JSON");
  doctor_command->add_option("--python", python, "interpreter to look into");
  doctor_command->add_option("--cache", cache, "folder of weights and inputs");

  expect_command(app, argc > 1 ? argv[1] : "--help");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    return app.exit(wanted);
  } catch (const CLI::ParseError& error) {
    const auto command = app.get_subcommands();
    const auto of_command = command.empty() ? "" : command[0]->get_name() + ' ';
    say(fmt::format("{} (torchpace {}--help)", error.what(), of_command));
    return kBadInput;
  }
  if (*compare_command) return compare(options);
  if (*explain_command) return explain(explain_options);
  if (*run_command) return run_file(run_options);
  if (*training_command) return export_training(training_options);
  if (*list_command) return list(python, as_json);
  if (*report_command) return report_files(paths, output, fail_on, python);
  return run_doctor({.json = as_json,
                     .color = isatty(STDOUT_FILENO) == 1,
                     .python = find_installation(python).python,
                     .cache = cache_folder(cache)},
                    std::cout);
}

/// The exit code of what was asked for, said where there is an error.
int outcome(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    say(error.what());
    return error.exit_code();
  } catch (const Interrupted&) {
    say("interrupted");
    return kInterrupted;
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0) return kOk;  // which is judged at the end
    say(error.what());
    return kBadInput;
  }
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  handle_interrupts();
  const int code = outcome(argc, argv);
  if (!output_is_lost()) return code;
  say("standard output: expected a file or pipe that takes all, found one that does not; is the "
      "disk full?");
  return code == kOk ? kCaseFailed : code;
}
