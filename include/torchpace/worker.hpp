// Makes a program a worker of `torchpace compare`: it obeys the line protocol of
// docs/worker-protocol.md. Twin: python/torchpace/worker/__main__.py.
//
//   torchpace::Workload load(const torchpace::Settings&) { return {.step = [] { my_step(); }}; }
//   TORCHPACE_WORKER(load)
#pragma once

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <functional>
#include <iostream>
#include <string>
#include <system_error>
#include <utility>

#include "torchpace/detail/worker_commands.hpp"

namespace torchpace {

namespace detail {

/// The next command, "quit" at the end of input. Byte by byte: what a buffer held would be lost to
/// the process that reads after this one.
inline std::string read_command() {
  std::string line;
  for (char byte = 0;;) {
    if (read(STDIN_FILENO, &byte, 1) != 1) return line.empty() ? "quit" : line;
    if (byte != '\n') {
      line += byte;
    } else if (!line.empty()) {
      return line;
    }
  }
}

inline bool is_load(const std::string& line) { return line == "load" || line.starts_with("load "); }

/// Obeys a `load` and what follows it in a fork of this process as it is after its start, so that
/// no case finds the heap, the threads or the caches that another one left. Returns the command
/// that ended it. The fork ends with `unload`, since no destructor runs at _exit. A fork that dies
/// takes this process with it, in the same way.
inline std::string serve_case(std::string line,
                              const std::function<bool(const std::string&)>& respond,
                              const std::function<void()>& unload) {
  int pipe_ends[2];
  TORCH_CHECK(pipe(pipe_ends) == 0, "worker: no pipe can be made");
  const pid_t child = fork();
  TORCH_CHECK(child >= 0, "worker: no process can be made");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(pipe_ends[0]);
    bool heard = true;
    do {
      heard = respond(line);
      if (heard) line = read_command();
    } while (heard && line != "quit" && !is_load(line));
    unload();
    if (!heard) _exit(1);
    _exit(write(pipe_ends[1], line.data(), line.size()) == static_cast<ssize_t>(line.size()) ? 0
                                                                                             : 1);
  }
  close(pipe_ends[1]);
  std::string next;
  char buffer[4096];
  for (ssize_t count = 0; (count = read(pipe_ends[0], buffer, sizeof buffer)) > 0;) {
    next.append(buffer, static_cast<std::size_t>(count));
  }
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) {
    std::signal(WTERMSIG(status), SIG_DFL);
    std::raise(WTERMSIG(status));
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
  return next;
}

}  // namespace detail

/// Serves commands until `quit` or the end of input. Whatever else is printed to standard output
/// goes to standard error, so that no library can break the protocol. Returns the exit code. `load`
/// runs in a fork: it must not rely on threads or on a device that the program has used before.
inline int serve_worker(WorkerOptions options, std::function<Workload(const Settings&)> load) {
  std::FILE* out = fdopen(dup(STDOUT_FILENO), "w");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  at::set_num_interop_threads(1);
  detail::Worker worker(std::move(options), std::move(load));
  const auto say = [out](const std::string& line) {
    std::fputs((line + '\n').c_str(), out);
    return std::fflush(out) == 0;
  };
  const auto respond = [&](const std::string& line) { return say(worker.answer(line)); };
  if (!say(worker.greeting())) return 1;
  for (auto line = detail::read_command(); line != "quit";) {
    if (detail::is_load(line)) {
      line = detail::serve_case(line, respond, [&worker] { worker.unload(); });
    } else {
      if (!respond(line)) return 1;
      line = detail::read_command();
    }
  }
  return 0;
}

/// As serve_worker, with the options of the command line: `--slow FRACTION` (tests only).
inline int worker_main(int argc, char** argv, std::function<Workload(const Settings&)> load) {
  WorkerOptions options;
  for (int i = 1; i < argc; i += 2) {
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    const auto [end, error] =
        std::from_chars(value.data(), value.data() + value.size(), options.slow);
    if (std::string(argv[i]) != "--slow" || value.empty() || error != std::errc() ||
        end != value.data() + value.size()) {
      std::cerr << argv[0] << ": expected no options but --slow FRACTION, got '" << argv[i] << ' '
                << value << "'\n";
      return 2;
    }
  }
  return serve_worker(options, std::move(load));
}

}  // namespace torchpace

/// Defines main. `factory` takes the settings of a case and returns its Workload.
#define TORCHPACE_WORKER(factory) \
  int main(int argc, char** argv) { return torchpace::worker_main(argc, argv, factory); }
