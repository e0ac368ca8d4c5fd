// One child process with pipes on its three streams, in its own process group, that dies with us.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace torchpace::cli {

using Clock = std::chrono::steady_clock;

struct Command {
  std::vector<std::string> words;                  // words[0] is looked up in PATH
  std::map<std::string, std::string> environment;  // added to ours; a value here wins
};

/// The child could not be started, ended, or did not answer in time. The text is one line.
struct ProcessError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Process {
 public:
  /// Starts the program. Throws ProcessError when it cannot be executed.
  explicit Process(const Command& command);

  /// Kills the whole group and reaps the child.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  /// Writes `line` and a newline. Throws ProcessError when the child has ended or does not read
  /// before the deadline, Interrupted on Ctrl-C.
  void write_line(const std::string& line, Clock::time_point deadline);

  /// The next line of standard output, without its newline. Throws as write_line does.
  std::string read_line(Clock::time_point deadline);

  /// What was read of standard output and is not yet taken as a line.
  std::string take_rest() { return std::exchange(output_, {}); }

  /// Closes standard input: most programs end then.
  void close_input();
  bool accepts_input() const { return in_ >= 0; }

  /// Waits for the child's end and returns its exit status in words, empty for exit code 0.
  /// Kills the group at the deadline. Throws Interrupted on Ctrl-C; the child runs on.
  std::string wait(Clock::time_point deadline);

  /// Of a child that `wait` saw end by itself; -1 where a signal ended it.
  int exit_code() const;

  /// From now on its standard error goes also to ours, or no more.
  void echo_errors(bool wanted) { echoes_ = wanted; }

  /// Ctrl-C for the whole group.
  void interrupt();

  /// Closes its input, asks the group to end (SIGTERM) so that it can put away what it has begun,
  /// and kills what is left at the deadline. Waits also after Ctrl-C.
  void terminate(Clock::time_point deadline);

  /// Asks a Python program of ours that hangs where it is (SIGUSR1), for death_notice(). Ends
  /// others.
  void ask_where_it_is();

  /// SIGSTOP to the group; returns when all threads of the child itself have stopped.
  void stop();
  void resume();
  void kill();

  /// The last lines of standard error on one line, empty when there were none. Without the frames
  /// of Python that faulthandler writes there.
  std::string stderr_tail();

  /// What to add to the way it ended: " at FILE:LINE: CODE" of the user's code, where Python has
  /// said it, then "; its last words: ..."; empty where nothing is known.
  std::string death_notice();

  /// What has been written on standard error so far belongs to something else.
  void forget_errors();

  /// False once the child was waited for or killed.
  bool is_alive() const { return !reaped_; }
  pid_t pid() const { return pid_; }

 private:
  void start(const Command& command);
  /// Drains the pipes until one has something, `writable` can be written, or the deadline.
  void pump(Clock::time_point deadline, bool writable);
  bool fill(int& fd, std::string& buffer);
  bool fill_errors();
  void drain_errors();
  bool ended_without_reaping() const;
  std::string how_it_ended();

  pid_t pid_ = -1;
  bool reaped_ = false, echoes_ = false;
  int status_ = 0;
  int in_ = -1, out_ = -1, err_ = -1;
  std::string output_, errors_;
  std::string name_;
};

/// Runs a program to its end and returns its standard output. Throws ProcessError with the exit
/// status and the last lines of standard error unless the exit code is 0.
std::string run_to_end(const Command& command, double limit_s);

/// "exit code 3", "killed by signal 9 (Killed), perhaps out of memory"; empty for success.
std::string describe_status(int wait_status);

/// " at FILE:LINE: CODE" of the innermost frame that faulthandler has written and that is neither
/// torch's, torchpace's nor Python's own; of the innermost of all where there is no such frame,
/// empty where there is none.
std::string place_of_frames(const std::string& errors);

Clock::time_point in_seconds(double seconds);

double seconds_since(Clock::time_point start);

}  // namespace torchpace::cli
