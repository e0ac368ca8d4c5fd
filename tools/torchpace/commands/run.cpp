#include "commands/run.hpp"

#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <torchpace/settings.hpp>

#include "commands/command.hpp"
#include "plan/runtime_discovery.hpp"
#include "plan/sweep.hpp"
#include "support/error.hpp"
#include "support/files.hpp"
#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

/// 1,2,4 of 1:4*2.
std::string sizes_of(const std::string& spec) {
  std::string sizes;
  for (const auto& axis : parse_axes({"dynamic=" + spec})) {
    if (axis.key != "dynamic") throw Error("--dynamic: expected sizes, 1:32*2 or 1,8,64");
    for (const auto& value : axis.values) sizes += (sizes.empty() ? "" : ",") + value;
  }
  return sizes;
}

std::string checked_sizes(const std::string& spec) try {
  return sizes_of(spec);
} catch (const Error& error) {
  throw Error(fmt::format("--dynamic: expected sizes, 1:32*2 or 1,8,64, found '{}'", spec));
}

Settings settings_of(const RunOptions& o) {
  Settings settings{{"file", o.file}};
  std::string inputs;
  for (const auto& input : o.inputs) inputs += (inputs.empty() ? "" : ";") + input;
  const auto set = [&](const char* key, const std::string& value) {
    if (!value.empty()) settings.set(key, value);
  };
  set("input", inputs);
  set("below", o.below);
  set("device", o.device);
  set("threads", o.threads);
  set("streams", o.streams);
  set("seconds", o.seconds);
  set("torchscript", o.torchscript);
  set("compare", o.compare);
  set("model_name", o.model_name);
  set("libraries", paths_of_libraries(o.libraries));
  if (!o.dynamic.empty()) settings.set("dynamic", checked_sizes(o.dynamic));
  if (o.json) settings.set("json", "1");
  return settings;
}

/// Starts the program on our own streams and returns its wait status.
int run_to_status(Command command) {
  std::vector<char*> words;
  for (auto& word : command.words) words.push_back(word.data());
  words.push_back(nullptr);
  const pid_t parent = getpid(), child = fork();
  if (child < 0) throw Error(fmt::format("cannot fork: {}", std::strerror(errno)));
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    for (const auto& [key, value] : command.environment) setenv(key.c_str(), value.c_str(), 1);
    execv(words[0], words.data());
    _exit(127);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    if (interrupted()) kill(child, SIGKILL);
  }
  if (interrupted()) throw Interrupted();
  return status;
}

}  // namespace

int run_file(const RunOptions& options) {
  const auto installation = find_installation(options.python);
  std::error_code ignored;
  const auto program = fs::read_symlink("/proc/self/exe", ignored).parent_path() / "torchpace_run";
  if (!is_file(program)) {
    throw Error(
        fmt::format("run: expected the program {}, found none; build the target torchpace_run",
                    program.string()));
  }
  const auto settings = settings_of(options);
  const TemporaryFolder folder;
  auto command = torch_program(installation, program);
  command.environment["TMPDIR"] = folder.path();
  for (const auto& [key, value] : settings.values())
    command.words.push_back(key + '=' + Settings::encode(value));
  const int status = run_to_status(command);
  if (WIFSIGNALED(status)) {
    throw Error(
        fmt::format("{}: the loader died: signal {} ({}); expected a file that runs with these "
                    "inputs, make it again or give others with --input",
                    options.file, WTERMSIG(status), strsignal(WTERMSIG(status))),
        kCaseFailed);
  }
  if (WEXITSTATUS(status) == 127) {
    throw Error(fmt::format("{}: cannot be started; is LibTorch where it was at the build?",
                            program.string()),
                kCaseFailed);
  }
  return WEXITSTATUS(status);
}

void register_run(CLI::App& app, CommandLine& line) {
  auto& command =
      *app.add_subcommand("run", "Time a TorchScript or AOTInductor file; runs the code in it");
  command.option_defaults()->take_last();
  command.footer("Loading a file runs the code in it: run only what you would run as a program.");
  const auto o = std::make_shared<RunOptions>();
  const auto add = [&command](const char* name, std::string& value, const char* type,
                              const char* help) {
    command.add_option(name, value, help)->type_name(type);
  };
  command.add_option("FILE", o->file, "TorchScript file (.pt) or AOTInductor package (.pt2)")
      ->required();
  add_repeated(
      command, "--input", o->inputs, "SPEC",
      "Sizes and dtype of an input, 1x3x224x224:float32, with :channels_last behind it for "
      "that memory format; repeat for several (default: what a package of torchpace says)");
  add("--below", o->below, "N", "Exclusive upper bound of random integer inputs (default: 2)");
  add("--dynamic", o->dynamic, "SIZES", "First dimensions to try: 1:32*2 or 1,8,64");
  add("--device", o->device, "NAME", "Device: auto, cpu, cuda or cuda:N (default: cpu)");
  add("--threads", o->threads, "N",
      "Threads of one call (default: what the package says, else torch's)");
  add("--streams", o->streams, "N", "Concurrent callers, for the throughput (default: 1)");
  add("--seconds", o->seconds, "S", "Time limit of each measurement (default: 5)");
  add("--torchscript", o->torchscript, "MODE",
      "How TorchScript is prepared: freeze, plain or optimize (default: freeze)");
  add("--compare", o->compare, "FILE", "Another file on the same inputs; outputs are checked");
  add("--model-name", o->model_name, "NAME",
      "Model of a package that holds several (default: model, or the only one)");
  add_repeated(command, "--load-library", o->libraries, "FILE",
               "Shared library of custom operators, loaded before the file; repeat for several");
  command.add_flag("--json", o->json, "Print one line of JSON with every sample");
  add("--python", o->python, "PATH",
      "Python interpreter whose torch is loaded (default: that of the build)");
  command.callback([o, &line] { line.action = [o] { return run_file(*o); }; });
}

}  // namespace torchpace::cli
