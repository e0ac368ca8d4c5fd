// What can be run here: the C++ worker beside this program, the Python package, the user's own.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "controller/worker_client.hpp"

namespace torchpace::cli {

struct Installation {
  std::filesystem::path worker;   // torchpace_worker; empty if it is not beside this program
  std::filesystem::path package;  // the folder that holds torchpace/__init__.py; empty if not found
  std::string python;             // interpreter
};

/// Of the environment; empty where it is not set.
std::string variable(const char* name);

/// Removes from this program, and so from all that it starts, the variables that change what torch
/// compiles or how it runs it, and those by which Python takes warnings for errors. Returns those
/// that were there, NAME=VALUE.
std::vector<std::string> remove_compile_variables();

/// What OMP_NUM_THREADS asks for, on the outermost level; nullopt where it does not.
std::optional<int> threads_of_environment();

/// The files of --load-library as one value of a settings line: absolute paths, separated by
/// commas. Throws Error where one is none that can be read.
std::string paths_of_libraries(const std::vector<std::string>& files);

/// `python_option`: --python; else TORCHPACE_PYTHON, the tree's .venv, the one of the build,
/// python3. TORCHPACE_PYTHON_PATH names the package's folder. Throws Error when one that the user
/// named does not exist.
Installation find_installation(const std::string& python_option);

/// A Python program of the package: `python -m module arguments`.
Command python_command(const Installation& installation, const std::string& module,
                       const std::vector<std::string>& arguments);

/// A program of torchpace that needs LibTorch: one built on another machine finds it in whatever
/// Python holds it.
Command torch_program(const Installation& installation, const std::filesystem::path& program);

/// torchpace's runtimes: `cpp-*` and `py-*`. A side that cannot be asked says why in `problems`.
std::vector<WorkerSpec> discover_runtimes(const Installation& installation,
                                          std::vector<std::string>& problems);

/// NAME=COMMAND of --worker. Throws Error.
WorkerSpec own_worker(const std::string& text);

/// Throws Error where a key is none that a row may have of its own, or a value is none of its.
using ValueCheck = std::function<void(const std::string& key, const std::string& value)>;

/// The runtimes that patterns choose, `all` being every one. RUNTIME@KEY:VALUE is a row of its own
/// with this setting. Throws Error: exit code 2 for an unknown name, 4 for a pattern that matches
/// nothing.
std::vector<WorkerSpec> choose_runtimes(const std::vector<WorkerSpec>& known,
                                        const std::vector<std::string>& patterns,
                                        const std::vector<std::string>& problems,
                                        const ValueCheck& check);

struct EnvironmentOptions {
  int threads = 1;
  std::string allocator = "tuned";  // tuned, system, jemalloc
  bool binds_threads = false;       // each OpenMP thread to a core of its own
};

/// Variables that all workers get alike. Throws Error when jemalloc is not found.
std::map<std::string, std::string> common_environment(const EnvironmentOptions& options,
                                                      const Installation& installation);

/// Of these the ones that choose the allocator: tuned, system or jemalloc. Throws Error when
/// jemalloc is not found.
std::map<std::string, std::string> allocator_environment(const std::string& allocator);

}  // namespace torchpace::cli
