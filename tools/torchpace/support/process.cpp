#include "support/process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <thread>

#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

constexpr size_t kErrorBytesKept = 65536;
constexpr const char* kFramesBegin[] = {"Fatal Python error: ", "Stack (most recent call first)",
                                        "Current thread 0x"};
constexpr double kFrames_s = 1;  // that a program has to write where it is
constexpr size_t kErrorLinesShown = 3;
constexpr size_t kCodeShown = 160;
constexpr size_t kLineLimit = size_t{256} << 20;  // a worker gone mad must not eat our memory

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      throw ProcessError(fmt::format("no pipe for a child process: {}", std::strerror(errno)));
    }
    read_end = ends[0];
    write_end = ends[1];
  }
  ~Pipe() {
    if (read_end >= 0) close(read_end);
    if (write_end >= 0) close(write_end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int take_read() { return std::exchange(read_end, -1); }
  int take_write() { return std::exchange(write_end, -1); }
};

void close_fd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

std::vector<std::string> merged_environment(const std::map<std::string, std::string>& added) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (!added.contains(text.substr(0, text.find('=')))) result.push_back(text);
  }
  for (const auto& [key, value] : added) result.push_back(key + "=" + value);
  return result;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (auto& s : strings) result.push_back(s.data());
  result.push_back(nullptr);
  return result;
}

/// When memory ends, the kernel is to end a worker and not the controller or the user's shell.
void offer_to_the_kernel() {
  const int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (file < 0) return;
  [[maybe_unused]] const auto written = write(file, "1000", 4);
  close(file);
}

/// Runs in the child between fork and exec.
[[noreturn]] void become(std::vector<char*>& arguments, std::vector<char*>& environment,
                         const std::array<int, 3>& streams, pid_t parent, int failure) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died before the line above: then no signal would ever come.
  if (getppid() != parent) _exit(127);
  offer_to_the_kernel();
  for (int i = 0; i < 3; ++i) dup2(streams[static_cast<size_t>(i)], i);
  // Handlers vanish at exec, but ignored signals would be inherited.
  std::signal(SIGPIPE, SIG_DFL);
  std::signal(SIGXFSZ, SIG_DFL);
  execvpe(arguments[0], arguments.data(), environment.data());
  const int error = errno;
  [[maybe_unused]] const auto written = write(failure, &error, sizeof error);
  _exit(127);
}

int milliseconds_left(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<long long>(left, 0, 1'000'000));
}

/// The start of what faulthandler has written; the end where it has not.
size_t begin_of_frames(const std::string& errors) {
  size_t begin = errors.size();
  for (const char* text : kFramesBegin) begin = std::min(begin, errors.find(text));
  return begin;
}

bool is_of_the_user(const std::string& file) {
  const auto holds = [&](const char* part) { return file.find(part) != std::string::npos; };
  return !file.starts_with('<') && !holds("/site-packages/") && !holds("/dist-packages/") &&
         !holds("/python/torchpace/") && !holds("/lib/python3");
}

std::string line_of(const std::string& file, size_t number) {
  std::ifstream lines(file);
  std::string line;
  for (size_t i = 0; i < number; ++i) std::getline(lines, line);
  const auto begin = line.find_first_not_of(" \t");
  return !lines || begin == std::string::npos ? "" : line.substr(begin, kCodeShown);
}

}  // namespace

Clock::time_point in_seconds(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(std::min(seconds, 1e8)));
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string describe_status(int status) {
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    return fmt::format("killed by signal {} ({}){}", signal, strsignal(signal),
                       signal == SIGKILL ? ", perhaps out of memory" : "");
  }
  const int code = WEXITSTATUS(status);
  return code == 0 ? "" : fmt::format("exit code {}", code);
}

std::string place_of_frames(const std::string& errors) {
  static const std::regex kFrame("File \"([^\"]+)\", line ([0-9]+)");
  const auto begin = errors.begin() + static_cast<long>(begin_of_frames(errors));
  std::string innermost;  // what is told where none is the user's
  for (std::sregex_iterator frame(begin, errors.end(), kFrame), end; frame != end; ++frame) {
    const auto file = (*frame)[1].str(), line = (*frame)[2].str();
    const bool theirs = is_of_the_user(file);
    if (!theirs && !innermost.empty()) continue;
    const auto code = line_of(file, std::stoul(line));
    auto place = fmt::format(" at {}:{}{}{}", std::filesystem::path(file).filename().string(), line,
                             code.empty() ? "" : ": ", code);
    if (theirs) return place;
    innermost = std::move(place);
  }
  return innermost;
}

Process::Process(const Command& command) : name_(command.words.at(0)) { start(command); }

void Process::start(const Command& command) {
  Pipe in, out, err, failure;
  auto words = command.words;
  auto variables = merged_environment(command.environment);
  auto arguments = pointers(words);
  auto environment = pointers(variables);
  const pid_t parent = getpid();
  // fork and not posix_spawn, which cannot set PR_SET_PDEATHSIG. There is one thread here:
  // core_latency_ns has joined its other.
  pid_ = fork();
  if (pid_ < 0) throw ProcessError(fmt::format("cannot fork: {}", std::strerror(errno)));
  if (pid_ == 0) {
    become(arguments, environment, {in.read_end, out.write_end, err.write_end}, parent,
           failure.write_end);
  }
  setpgid(pid_, pid_);  // also here: whoever comes first, the group exists when start() returns
  close(failure.take_write());
  int error = 0;
  ssize_t got = 0;
  do {
    got = read(failure.read_end, &error, sizeof error);  // ends at exec, which closes the pipe
  } while (got < 0 && errno == EINTR);
  if (got == static_cast<ssize_t>(sizeof error)) {
    waitpid(pid_, nullptr, 0);
    throw ProcessError(fmt::format("cannot run '{}': {}", name_, std::strerror(error)));
  }
  in_ = in.take_write();
  out_ = out.take_read();
  err_ = err.take_read();
  for (const int fd : {in_, out_, err_}) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

Process::~Process() {
  kill();
  close_fd(in_);
  close_fd(out_);
  close_fd(err_);
}

void Process::kill() {
  if (reaped_ || pid_ < 0) return;
  // Before the child is reaped its number cannot be given to another process or group.
  ::kill(-pid_, SIGKILL);
  while (waitpid(pid_, &status_, 0) < 0 && errno == EINTR) {
  }
  reaped_ = true;
}

void Process::interrupt() {
  if (!reaped_) ::kill(-pid_, SIGINT);
}

void Process::terminate(Clock::time_point deadline) {
  if (reaped_ || pid_ < 0) return;
  close_input();
  ::kill(-pid_, SIGTERM);
  ::kill(-pid_, SIGCONT);
  while (!ended_without_reaping() && Clock::now() < deadline) {
    std::array<pollfd, 2> waits{{{out_, POLLIN, 0}, {err_, POLLIN, 0}}};
    poll(waits.data(), waits.size(), 10);
    if (waits[0].revents != 0) fill(out_, output_);
    if (waits[1].revents != 0) fill_errors();
    if (out_ < 0 && err_ < 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill();
}

void Process::ask_where_it_is() {
  if (reaped_) return;
  drain_errors();
  ::kill(-pid_, SIGUSR1);
  const auto deadline = in_seconds(kFrames_s);
  while (err_ >= 0 && Clock::now() < deadline) {
    pollfd wait{err_, POLLIN, 0};
    if (poll(&wait, 1, milliseconds_left(deadline)) > 0) fill_errors();
    if (errors_.find("_run_module_as_main", begin_of_frames(errors_)) != std::string::npos) return;
  }
}

int Process::exit_code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1; }

bool Process::ended_without_reaping() const {
  siginfo_t info{};
  return reaped_ ||
         (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
          info.si_pid == pid_);
}

void Process::stop() {
  if (reaped_) return;
  ::kill(-pid_, SIGSTOP);
  const auto deadline = in_seconds(1);
  siginfo_t info{};
  while (Clock::now() < deadline) {
    const auto options = WSTOPPED | WEXITED | WNOHANG | WNOWAIT;
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, options) != 0 || info.si_pid != 0) return;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void Process::resume() {
  if (!reaped_) ::kill(-pid_, SIGCONT);
}

void Process::close_input() { close_fd(in_); }

bool Process::fill(int& fd, std::string& buffer) {
  char bytes[65536];
  const auto got = read(fd, bytes, sizeof bytes);
  if (got > 0) buffer.append(bytes, static_cast<size_t>(got));
  if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) close_fd(fd);
  return got > 0;
}

bool Process::fill_errors() {
  const auto known = errors_.size();
  const bool filled = fill(err_, errors_);
  if (echoes_) std::fwrite(errors_.data() + known, 1, errors_.size() - known, stderr);
  if (errors_.size() > kErrorBytesKept) errors_.erase(0, errors_.size() - kErrorBytesKept);
  return filled;
}

void Process::pump(Clock::time_point deadline, bool writable) {
  std::array<pollfd, 4> waits{{{out_, POLLIN, 0},
                               {err_, POLLIN, 0},
                               {writable ? in_ : -1, POLLOUT, 0},
                               {interrupt_fd(), POLLIN, 0}}};
  const int ready = poll(waits.data(), waits.size(), milliseconds_left(deadline));
  if (interrupted()) throw Interrupted();
  if (ready <= 0) return;
  if (waits[0].revents != 0) fill(out_, output_);
  if (waits[1].revents != 0) {
    fill_errors();
  }
}

void Process::write_line(const std::string& line, Clock::time_point deadline) {
  std::string rest = line + "\n";
  while (!rest.empty()) {
    const auto written = in_ < 0 ? -1 : write(in_, rest.data(), rest.size());
    if (written > 0) {
      rest.erase(0, static_cast<size_t>(written));
    } else if (in_ < 0 || (errno != EAGAIN && errno != EINTR)) {
      throw ProcessError(how_it_ended());
    } else if (Clock::now() >= deadline) {
      throw ProcessError("did not read its input in time");
    } else {
      pump(deadline, true);
    }
  }
}

std::string Process::read_line(Clock::time_point deadline) {
  size_t searched = 0;
  for (;;) {
    const auto end = output_.find('\n', searched);
    if (end != std::string::npos) {
      auto line = output_.substr(0, end);
      output_.erase(0, end + 1);
      return line;
    }
    searched = output_.size();
    if (out_ < 0) throw ProcessError(how_it_ended());
    if (output_.size() > kLineLimit) throw ProcessError("wrote a line of more than 256 MiB");
    if (Clock::now() >= deadline) throw ProcessError("did not answer in time");
    pump(deadline, false);
  }
}

std::string Process::wait(Clock::time_point deadline) {
  while (!ended_without_reaping() && Clock::now() < deadline) {
    pump(std::min(deadline, in_seconds(out_ < 0 && err_ < 0 ? 0.005 : 0.05)), false);
  }
  const bool late = !ended_without_reaping();
  kill();  // also what the child may have left behind in its group
  return late ? "did not end in time" : describe_status(status_);
}

std::string Process::how_it_ended() {
  const auto words = wait(in_seconds(2));
  return words.empty() ? "ended with exit code 0 before it answered" : words;
}

void Process::drain_errors() {
  while (err_ >= 0 && fill_errors()) {
  }
}

void Process::forget_errors() {
  drain_errors();
  errors_.clear();
}

std::string Process::death_notice() {
  const auto tail = stderr_tail();
  return place_of_frames(errors_) + (tail.empty() ? "" : "; its last words: " + tail);
}

std::string Process::stderr_tail() {
  drain_errors();
  std::vector<std::string> lines(1);
  for (const char c : errors_.substr(0, begin_of_frames(errors_))) {
    if (c == '\n' || c == '\r') {
      if (!lines.back().empty()) lines.emplace_back();
    } else {
      lines.back() += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
  }
  if (lines.back().empty()) lines.pop_back();
  if (lines.size() > kErrorLinesShown) {
    lines.erase(lines.begin(), lines.end() - static_cast<long>(kErrorLinesShown));
  }
  return fmt::format("{}", fmt::join(lines, " | "));
}

std::string run_to_end(const Command& command, double limit_s) {
  Process process(command);
  process.close_input();
  const auto deadline = in_seconds(limit_s);
  std::string output;
  try {
    for (;;) output += process.read_line(deadline) + "\n";
  } catch (const ProcessError&) {
    output += process.take_rest();  // the end of the stream; how the program ended is asked below
  }
  const auto ending = process.wait(deadline);
  if (ending.empty()) return output;
  const auto tail = process.stderr_tail();
  throw ProcessError(
      fmt::format("{}: {}{}{}", command.words[0], ending, tail.empty() ? "" : ": ", tail));
}

}  // namespace torchpace::cli
