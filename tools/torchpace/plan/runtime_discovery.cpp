#include "plan/runtime_discovery.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>
#include <sstream>

#include "support/error.hpp"
#include "support/files.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kListLimit_s = 120;  // Python from a cold disk is slow to start

/// The beginnings of what torch's compilers and its JIT read.
constexpr const char* kCompileVariables[] = {
    "TORCHDYNAMO_",    "TORCH_DYNAMO_",   "TORCH_COMPILE_",      "TORCHINDUCTOR_",
    "TORCH_INDUCTOR_", "AOT_INDUCTOR_",   "AOTINDUCTOR_",        "AOTI_",
    "PYTORCH_JIT",     "PYTORCH_NVFUSER", "PYTORCH_TENSOREXPR_", "PYTHONWARNINGS"};

fs::path program_folder() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/exe", ignored).parent_path();
}

/// The Python package that was installed with this program; empty where it runs from its build.
fs::path installed_package() {
  const auto folder = program_folder() / "../share/torchpace/python";
  return is_file(folder / "torchpace/__init__.py") ? fs::canonical(folder) : fs::path();
}

/// The nearest folder above the program that is a source tree of torchpace; empty for an installed
/// program, which needs none.
fs::path source_tree() {
  if (!installed_package().empty()) return {};
  for (auto folder = program_folder(); !folder.empty(); folder = folder.parent_path()) {
    if (is_file(folder / "python/torchpace/__init__.py")) return folder;
    if (folder == folder.root_path()) break;
  }
#ifdef TORCHPACE_SOURCE_DIR
  if (is_file(fs::path(TORCHPACE_SOURCE_DIR) / "python/torchpace/__init__.py")) {
    return TORCHPACE_SOURCE_DIR;
  }
#endif
  return {};
}

fs::path find_package(const fs::path& tree) {
  if (const auto named = variable("TORCHPACE_PYTHON_PATH"); !named.empty()) {
    if (is_file(fs::path(named) / "torchpace/__init__.py")) return fs::absolute(named);
    throw Error(fmt::format(
        "TORCHPACE_PYTHON_PATH: expected a folder with torchpace/__init__.py, found '{}'", named));
  }
  return tree.empty() ? installed_package() : tree / "python";
}

std::string find_python(const std::string& option, const fs::path& tree) {
  if (!option.empty()) return option;
  if (const auto named = variable("TORCHPACE_PYTHON"); !named.empty()) return named;
  if (const auto own = tree / ".venv/bin/python"; !tree.empty() && is_file(own)) return own;
#ifdef TORCHPACE_DEFAULT_PYTHON
  if (is_file(TORCHPACE_DEFAULT_PYTHON)) return TORCHPACE_DEFAULT_PYTHON;
#endif
  return "python3";
}

/// torch/lib of an interpreter, found without importing torch, which takes seconds. Empty if none.
fs::path find_torch_libs(const std::string& python) {
  const std::string code =
      "import importlib.util as u\n"
      "s = u.find_spec('torch')\n"
      "print(list(s.submodule_search_locations)[0] if s else '')";
  try {
    const auto lines = split_list(run_to_end({{python, "-c", code}, {}}, kListLimit_s), '\n');
    return lines.empty() ? fs::path() : fs::path(lines.back()) / "lib";
  } catch (const ProcessError&) {
    return {};
  }
}

/// Asks a worker program for its runtimes: {"runtimes": [{"name", "description"}]}, or a line each.
void list_runtimes(const Command& program, std::vector<WorkerSpec>& found) {
  auto list = program;
  list.words.push_back("--list");
  std::istringstream lines(run_to_end(list, kListLimit_s));
  for (std::string line; std::getline(lines, line);) {
    const auto json = Json::parse(line, nullptr, false);
    if (!json.is_object()) continue;
    for (const auto& entry : json.value("runtimes", Json::array({json}))) {
      WorkerSpec spec;
      spec.runtime = entry.value("name", entry.value("runtime", ""));
      spec.description = entry.value("description", "");
      spec.artifact = entry.value("artifact", "");
      spec.approximate = entry.value("approximate", false);
      spec.absent = entry.value("absent", "");
      spec.command = program;
      spec.command.words.insert(spec.command.words.end(), {"--runtime", spec.runtime});
      if (!spec.runtime.empty()) found.push_back(spec);
    }
  }
}

/// The C++ runtimes of other engines, each in a worker of its own that is built where its engine is
/// found.
struct Engine {
  const char* name;
  const char* title;
  const char* advice;
};
constexpr Engine kEngines[] = {
    {"openvino", "OpenVINO", "pip install openvino, then scripts/setup.sh builds it"},
    {"onnxruntime", "ONNX Runtime's C++ headers",
     "unpack a release of it, then cmake -D TORCHPACE_ONNXRUNTIME_INCLUDE=DIR build/release"},
};

/// `worker`: the program of the other runtimes, beside which the engines' lie.
void list_engines(const Command& worker, std::vector<WorkerSpec>& found) {
  for (const auto& engine : kEngines) {
    WorkerSpec spec;
    spec.runtime = fmt::format("cpp-{}", engine.name);
    spec.description = "an engine other than PyTorch, in C++";
    auto program = worker;
    program.words.front() += fmt::format("_{}", engine.name);
    if (!is_file(program.words.front())) {
      spec.absent = fmt::format("built without {}: {}", engine.title, engine.advice);
      found.push_back(spec);
      continue;
    }
    try {
      list_runtimes(program, found);
    } catch (const ProcessError& error) {
      spec.absent = fmt::format("its worker does not start: {}", error.what());
      found.push_back(spec);
    }
  }
}

/// A C++ runtime whose artifact Python cannot make here is absent for the same reason.
void mark_without_maker(std::vector<WorkerSpec>& found) {
  std::map<std::string, std::string> reasons;  // kind of artifact -> why it cannot be made
  for (const auto& spec : found) {
    if (spec.runtime.starts_with("py-") && !spec.artifact.empty())
      reasons.try_emplace(spec.artifact, spec.absent);
  }
  for (auto& spec : found) {
    const auto reason = reasons.find(spec.artifact);
    if (reason != reasons.end() && spec.absent.empty()) spec.absent = reason->second;
  }
}

std::string prepended(const std::string& first, const char* name) {
  const auto rest = variable(name);
  return rest.empty() ? first : first + ":" + rest;
}

std::vector<std::string> names_of(const std::vector<WorkerSpec>& specs) {
  std::vector<std::string> names;
  for (const auto& spec : specs) names.push_back(spec.runtime);
  return names;
}

std::string find_jemalloc() {
  std::vector<std::string> folders = split_list(variable("LD_LIBRARY_PATH"), ':');
  for (const char* folder : {"/usr/local/lib", "/usr/lib/x86_64-linux-gnu",
                             "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"}) {
    folders.emplace_back(folder);
  }
  for (const auto& folder : folders) {
    if (const auto path = fs::path(folder) / "libjemalloc.so.2"; is_file(path)) return path;
  }
  throw Error(
      "--allocator jemalloc: expected libjemalloc.so.2 in the usual folders or "
      "LD_LIBRARY_PATH, found none; install libjemalloc2");
}

}  // namespace

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> remove_compile_variables() {
  const auto is_one = [](const std::string& name) {
    // How many processes compile, or where, is the user's to say.
    if (name == "TORCHINDUCTOR_COMPILE_THREADS") return false;
    return std::any_of(std::begin(kCompileVariables), std::end(kCompileVariables),
                       [&](const char* prefix) { return name.starts_with(prefix); });
  };
  std::vector<std::string> found;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (is_one(text.substr(0, text.find('=')))) found.push_back(text);
  }
  for (const auto& text : found) unsetenv(text.substr(0, text.find('=')).c_str());
  std::sort(found.begin(), found.end());
  return found;
}

std::optional<int> threads_of_environment() {
  const auto text = variable("OMP_NUM_THREADS");
  int value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool ends = stop == text.data() + text.size() || *stop == ',';
  return error == std::errc() && ends && value > 0 ? std::optional(value) : std::nullopt;
}

std::string paths_of_libraries(const std::vector<std::string>& files) {
  std::string paths;
  for (const auto& file : files) {
    const auto refuse = [&](const std::string& expected) {
      throw Error(fmt::format("--load-library: expected {}, found '{}'", expected, file));
    };
    if (!is_file(file) || access(file.c_str(), R_OK) != 0)
      refuse("a shared library (.so) that can be read");
    const auto path = fs::absolute(file).lexically_normal().string();
    if (path.find(',') != std::string::npos) refuse("a path without a comma");
    paths += (paths.empty() ? "" : ",") + path;
  }
  return paths;
}

Installation find_installation(const std::string& python_option) {
  const auto tree = source_tree();
  Installation found;
  found.package = find_package(tree);
  found.python = find_python(python_option, tree);
  if (const auto worker = program_folder() / "torchpace_worker"; is_file(worker))
    found.worker = worker;
  try {
    if (!python_option.empty()) run_to_end({{found.python, "-c", ""}, {}}, kListLimit_s);
  } catch (const ProcessError& error) {
    throw Error(fmt::format("--python: expected an interpreter, {}", error.what()));
  }
  return found;
}

Command python_command(const Installation& installation, const std::string& module,
                       const std::vector<std::string>& arguments) {
  Command command{{installation.python, "-m", module}, {}};
  command.words.insert(command.words.end(), arguments.begin(), arguments.end());
  if (!installation.package.empty()) {
    command.environment["PYTHONPATH"] = prepended(installation.package, "PYTHONPATH");
  }
  return command;
}

Command torch_program(const Installation& installation, const fs::path& program) {
  Command command{{program}, {}};
  if (const auto libs = find_torch_libs(installation.python); !libs.empty()) {
    command.environment["LD_LIBRARY_PATH"] = prepended(libs, "LD_LIBRARY_PATH");
  }
  return command;
}

std::vector<WorkerSpec> discover_runtimes(const Installation& installation,
                                          std::vector<std::string>& problems) {
  std::vector<WorkerSpec> found;
  if (installation.worker.empty()) {
    problems.push_back("no C++ runtimes: torchpace_worker is not beside this program, build it");
  } else {
    const auto program = torch_program(installation, installation.worker);
    try {
      list_runtimes(program, found);
      list_engines(program, found);
    } catch (const ProcessError& error) {
      problems.push_back(fmt::format("no C++ runtimes: {}", error.what()));
    }
  }
  if (installation.package.empty()) {
    problems.push_back(
        "no Python runtimes: expected the folder of torchpace/__init__.py, set "
        "TORCHPACE_PYTHON_PATH");
  } else {
    try {
      list_runtimes(python_command(installation, "torchpace.worker", {}), found);
    } catch (const ProcessError& error) {
      problems.push_back(fmt::format("no Python runtimes: {}", error.what()));
    }
  }
  mark_without_maker(found);
  return found;
}

WorkerSpec own_worker(const std::string& text) {
  const auto equals = text.find('=');
  const auto name = text.substr(0, equals);
  if (equals == std::string::npos || name.empty() ||
      name.find_first_of("#,* ") != std::string::npos) {
    throw Error(fmt::format("--worker: expected NAME=COMMAND, found '{}'", text));
  }
  const auto words = split_words(text.substr(equals + 1));
  if (words.empty()) throw Error(fmt::format("--worker: expected a command after '{}='", name));
  WorkerSpec spec;
  spec.runtime = name;
  spec.command.words = words;
  spec.description = text.substr(equals + 1);
  spec.is_external = true;
  return spec;
}

namespace {

/// What stands behind a runtime's name in --runtimes, @KEY:VALUE, each as a setting.
Settings settings_behind(const std::string& pattern, const ValueCheck& check) {
  Settings settings;
  for (const auto& part : split_list(pattern.substr(pattern.find('@') + 1), '@')) {
    const auto colon = part.find(':');
    if (colon == std::string::npos || colon == 0 || colon + 1 == part.size()) {
      throw Error(fmt::format("--runtimes: expected RUNTIME@KEY:VALUE, found '{}'", pattern));
    }
    const auto key = part.substr(0, colon), value = part.substr(colon + 1);
    check(key, value);
    settings.set(key, value);
  }
  return settings;
}

/// The known runtimes of `RUNTIME@KEY:VALUE`, each a row of its own with these settings; nothing
/// where the pattern is none or names a row that is known, such as a version of torch's.
std::vector<WorkerSpec> with_settings(const std::vector<WorkerSpec>& known,
                                      const std::string& pattern, const ValueCheck& check) {
  const auto at = pattern.find('@');
  if (at == std::string::npos || pattern.find(':', at) == std::string::npos) return {};
  std::vector<WorkerSpec> rows;
  for (auto spec : known) {
    if (!matches(pattern.substr(0, at), spec.runtime)) continue;
    spec.settings = settings_behind(pattern, check);
    spec.runtime += pattern.substr(at);
    rows.push_back(std::move(spec));
  }
  return rows;
}

}  // namespace

std::vector<WorkerSpec> choose_runtimes(const std::vector<WorkerSpec>& known,
                                        const std::vector<std::string>& patterns,
                                        const std::vector<std::string>& problems,
                                        const ValueCheck& check) {
  const auto names = names_of(known);
  const auto why = problems.empty() ? "" : fmt::format(" ({})", fmt::join(problems, "; "));
  std::vector<WorkerSpec> chosen;
  for (const auto& pattern : patterns) {
    auto rows = with_settings(known, pattern, check);
    bool matched = !rows.empty();
    for (auto& row : rows) chosen.push_back(std::move(row));
    for (const auto& spec : known) {
      if (pattern != "all" && !matches(pattern, spec.runtime)) continue;
      matched = true;
      const auto same = [&](const WorkerSpec& s) { return s.runtime == spec.runtime; };
      if (std::none_of(chosen.begin(), chosen.end(), same)) chosen.push_back(spec);
    }
    if (matched) continue;
    if (pattern == "all" || !is_pattern(pattern)) {
      throw Error(fmt::format("--runtimes: unknown runtime '{}'{}{}", pattern,
                              did_you_mean(pattern, names), why));
    }
    throw Error(fmt::format("--runtimes: '{}' matches nothing; there are {}{}", pattern,
                            fmt::join(names, ", "), why),
                kNothingMatched);
  }
  return chosen;
}

std::map<std::string, std::string> common_environment(const EnvironmentOptions& options,
                                                      const Installation& installation) {
  const auto threads = std::to_string(options.threads);
  std::map<std::string, std::string> result = {
      {"OMP_NUM_THREADS", threads},
      {"MKL_NUM_THREADS", threads},
      {"PYTHONHASHSEED", "0"},
      // Counting devices leaves CUDA uninitialized, which a fork would lose.
      {"PYTORCH_NVML_BASED_CUDA_CHECK", "1"}};
  if (!installation.package.empty()) {
    result["PYTHONPATH"] = prepended(installation.package, "PYTHONPATH");
  }
  // Unbound, threads of one process now and then meet on a core or wake each other from sleep: the
  // same step of 64 small layers takes 0.34 or 0.63 ms for seconds on end, one worker apart from
  // another.
  if (options.binds_threads && std::getenv("OMP_PROC_BIND") == nullptr) {
    result["OMP_PROC_BIND"] = "true";
  }
  result.merge(allocator_environment(options.allocator));
  return result;
}

std::map<std::string, std::string> allocator_environment(const std::string& allocator) {
  // The largest threshold that glibc accepts: tensors come from the heap, and freed heap stays.
  if (allocator == "tuned") {
    return {{"MALLOC_MMAP_THRESHOLD_", "33554432"}, {"MALLOC_TRIM_THRESHOLD_", "1073741824"}};
  }
  if (allocator == "jemalloc") return {{"LD_PRELOAD", prepended(find_jemalloc(), "LD_PRELOAD")}};
  return {};
}

}  // namespace torchpace::cli
