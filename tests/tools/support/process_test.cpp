#include "support/process.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

Command shell(const std::string& script) { return {{"sh", "-c", script}, {}}; }

size_t open_files() {
  return static_cast<size_t>(std::distance(fs::directory_iterator("/proc/self/fd"), {}));
}

/// True once the process is gone or only its exit status is left.
bool is_gone(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const auto end = text.rfind(')');
  return !file || end == std::string::npos || text[end + 2] == 'Z';
}

bool soon(const std::function<bool()>& holds) {
  const auto deadline = in_seconds(10);
  while (!holds()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

std::string error_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const ProcessError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Process, SpeaksLines) {
  Process process({{"cat"}, {}});
  process.write_line("one", in_seconds(10));
  process.write_line("two", in_seconds(10));
  EXPECT_EQ(process.read_line(in_seconds(10)), "one");
  EXPECT_EQ(process.read_line(in_seconds(10)), "two");
  process.close_input();
  EXPECT_EQ(process.wait(in_seconds(10)), "");
}

TEST(Process, ALineLargerThanAPipePasses) {
  Process process({{"cat"}, {}});
  const std::string line(3'000'000, 'x');
  std::string answer;
  // cat writes while we write: a reader that did not drain would wait for ever.
  process.write_line(line, in_seconds(20));
  EXPECT_EQ(process.read_line(in_seconds(20)), line);
}

TEST(Process, MissesItsDeadline) {
  Process process(shell("sleep 100"));
  const auto begin = Clock::now();
  EXPECT_NE(error_of([&] { process.read_line(in_seconds(0.05)); }).find("in time"),
            std::string::npos);
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(30));
}

TEST(Process, SaysHowItEnded) {
  EXPECT_EQ(Process(shell("exit 3")).wait(in_seconds(10)), "exit code 3");
  const auto killed = Process(shell("kill -9 $$")).wait(in_seconds(10));
  EXPECT_NE(killed.find("killed by signal 9"), std::string::npos);
  EXPECT_NE(killed.find("out of memory"), std::string::npos);
  EXPECT_EQ(Process(shell("sleep 100")).wait(in_seconds(0.05)), "did not end in time");
  Process quiet(shell("exit 0"));
  EXPECT_NE(error_of([&] { quiet.read_line(in_seconds(10)); }).find("exit code 0"),
            std::string::npos);
}

TEST(Process, CannotRunWhatIsNotThere) {
  EXPECT_NE(error_of([] {
              Process({{"/no/such/program"}, {}});
            }).find("No such file"),
            std::string::npos);
}

TEST(Process, KeepsTheLastLinesOfStandardError) {
  // Far more than a pipe holds: a parent that did not drain it would block the child.
  Process process(
      shell("i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; echo done"));
  EXPECT_EQ(process.read_line(in_seconds(30)), "done");
  EXPECT_EQ(process.wait(in_seconds(30)), "");
  EXPECT_EQ(process.stderr_tail(), "line 19997 | line 19998 | line 19999");
}

TEST(Process, PassesItsEnvironment) {
  Command command = shell("echo $TORCHPACE_TEST_A $HOME");
  command.environment = {{"TORCHPACE_TEST_A", "a b"}, {"HOME", "/elsewhere"}};
  EXPECT_EQ(Process(command).read_line(in_seconds(10)), "a b /elsewhere");
}

TEST(Process, StopsAndResumesItsGroup) {
  Process process(shell("while read line; do echo $line; done"));
  process.write_line("1", in_seconds(10));
  EXPECT_EQ(process.read_line(in_seconds(10)), "1");
  process.stop();
  process.write_line("2", in_seconds(10));
  EXPECT_NE(error_of([&] { process.read_line(in_seconds(0.1)); }).find("in time"),
            std::string::npos);
  process.resume();
  EXPECT_EQ(process.read_line(in_seconds(10)), "2");
}

TEST(Process, KillsWhatItsChildStarted) {
  pid_t grandchild = 0;
  {
    Process process(shell("sleep 1000 & echo $!; wait"));
    grandchild = std::stoi(process.read_line(in_seconds(10)));
    EXPECT_FALSE(is_gone(grandchild));
  }
  EXPECT_TRUE(soon([&] { return is_gone(grandchild); }));
}

TEST(Process, LeavesNoFilesAndNoZombies) {
  const auto before = open_files();
  const auto count = shell("ls /proc/self/fd | wc -l");  // what a child of ours has open
  const auto alone = Process(count).read_line(in_seconds(10));
  for (int i = 0; i < 20; ++i) {
    Process a(shell("cat"));
    // A second child must not hold the pipe ends of the first.
    EXPECT_EQ(Process(count).read_line(in_seconds(10)), alone);
    a.close_input();
    EXPECT_EQ(a.wait(in_seconds(10)), "");
  }
  EXPECT_EQ(open_files(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Process, DiesWithItsController) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t controller = fork();
  if (controller == 0) {
    Process worker({{"sleep", "1000"}, {}});
    worker.stop();  // stopped ones too
    const pid_t pid = worker.pid();
    [[maybe_unused]] const auto written = write(ends[1], &pid, sizeof pid);
    ::kill(getpid(), SIGKILL);
  }
  pid_t worker = 0;
  ASSERT_EQ(read(ends[0], &worker, sizeof worker), static_cast<ssize_t>(sizeof worker));
  waitpid(controller, nullptr, 0);
  EXPECT_TRUE(soon([&] { return is_gone(worker); }));
  close(ends[0]);
  close(ends[1]);
}

TEST(Process, TerminatesWhatCanPutAwayAndKillsWhatDoesNotEnd) {
  const auto file = fs::temp_directory_path() / ("torchpace-put-away-" + std::to_string(getpid()));
  Process tidy(
      shell("trap 'touch " + file.string() + "; exit' TERM; echo; while :; do sleep 0.01; done"));
  tidy.read_line(in_seconds(10));
  tidy.terminate(in_seconds(10));
  EXPECT_TRUE(fs::remove(file));
  EXPECT_FALSE(tidy.is_alive());
  Process deaf(shell("trap '' TERM; echo; while :; do sleep 1; done"));
  deaf.read_line(in_seconds(10));
  deaf.terminate(in_seconds(0.05));
  EXPECT_FALSE(deaf.is_alive());
}

TEST(Process, IsTheKernelsFirstChoiceWhenMemoryEnds) {
  Process process(shell("cat /proc/self/oom_score_adj"));
  EXPECT_EQ(process.read_line(in_seconds(10)), "1000");
}

TEST(Process, KnowsThePlaceInTheUsersCodeOfTheFramesOfPython) {
  const auto file =
      fs::temp_directory_path() / ("torchpace_place_" + std::to_string(getpid()) + ".py");
  std::ofstream(file) << "def make():\n    return boom()\n";
  const auto errors =
      "a warning\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most "
      "recent call first):\n  File \"/x/lib/python3.11/ctypes/__init__.py\", line 5 in a\n"
      "  File \"/x/site-packages/torch/nn.py\", line 7 in call\n  File \"" +
      file.string() +
      "\", line 2 in make\n  File \"/t/python/torchpace/exporter/__main__.py\", line "
      "9 in main\n\nExtension modules: numpy (total: 1)\n";
  EXPECT_EQ(place_of_frames(errors), " at " + file.filename().string() + ":2: return boom()");
  EXPECT_EQ(place_of_frames("File \"/a.py\", line 1"), "");
  EXPECT_EQ(place_of_frames("Fatal Python error: x\n  File \"/lib/python3.11/a.py\", line 5 in a\n"
                            "  File \"/lib/python3.11/b.py\", line 6 in b"),
            " at a.py:5")
      << "the innermost, where none is the user's";
  fs::remove(file);
}

TEST(Process, SaysItsLastWordsWithoutTheFramesOfPython) {
  Process process(
      shell("echo old >&2; read x; echo new >&2; echo 'Fatal Python error: Aborted' >&2; "
            "echo '  File \"/no/m.py\", line 3 in f' >&2; kill -6 $$"));
  process.write_line("", in_seconds(10));
  process.wait(in_seconds(10));
  EXPECT_EQ(process.death_notice(), " at m.py:3; its last words: old | new");
  process.forget_errors();
  EXPECT_EQ(process.death_notice(), "");
}

TEST(Process, AnInterruptEndsTheWait) {
  handle_interrupts();
  Process process(shell("sleep 1000"));
  ::kill(getpid(), SIGINT);
  EXPECT_THROW(process.read_line(in_seconds(60)), Interrupted);
  clear_interrupt();
  EXPECT_NE(error_of([&] { process.read_line(in_seconds(0.01)); }).find("in time"),
            std::string::npos);
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

TEST(RunToEnd, ReturnsAllOfStandardOutput) {
  EXPECT_EQ(run_to_end(shell("echo a; printf b"), 10), "a\nb");
  EXPECT_EQ(run_to_end(shell("true"), 10), "");
  const auto error = error_of([] { run_to_end(shell("echo why >&2; exit 4"), 10); });
  EXPECT_EQ(error, "sh: exit code 4: why");
  EXPECT_NE(error_of([] { run_to_end(shell("sleep 100"), 0.05); }).find("in time"),
            std::string::npos);
}

}  // namespace
}  // namespace torchpace::cli
