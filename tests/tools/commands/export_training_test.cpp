// `torchpace export-training` from the command line to the exit code, with a Python package that
// needs no torch.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "support/error.hpp"
#include "support/process.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

/// Says what it was asked, writes half a file, and finishes or waits for what comes.
constexpr auto kTraining = R"(
import pathlib, sys, time
print("progress " + " ".join(sys.argv[1:]), file=sys.stderr, flush=True)
half = pathlib.Path("half")
try:
    half.write_text("x")
    if "wait" in sys.argv: time.sleep(60)
finally:
    half.unlink()
if "bad" in sys.argv: sys.exit(2)
if "die" in sys.argv:
    import os
    os.kill(os.getpid(), 9)
pathlib.Path("out.pt2").write_text("whole")
)";

class ExportTraining : public testing::Test {
 protected:
  void SetUp() override {
    program_ = fs::read_symlink("/proc/self/exe").parent_path() / "torchpace";
    if (!fs::exists(program_)) GTEST_SKIP() << program_ << " is not built";
    auto name = (fs::temp_directory_path() / "torchpace-export-XXXXXX").string();
    folder_ = mkdtemp(name.data());
    write("package/torchpace/__init__.py", "");
    write("package/torchpace/aot/__init__.py", "");
    write("package/torchpace/aot/export_training.py", kTraining);
    write("package/torch/__init__.py", "");
    write("isolated", "#!/bin/sh\nexec python3 -I -S \"$@\"\n");  // sees no package at all
    fs::permissions(folder_ / "isolated", fs::perms::owner_all);
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
  }
  /// What it prints goes to standard output, so that it can be read as lines.
  Command command(const std::string& arguments, const std::string& python = "python3") const {
    return {
        {"sh", "-c",
         "cd '" + folder_.string() + "' && exec '" + program_.string() + "' export-training " +
             arguments + " 2>&1"},
        {{"TORCHPACE_PYTHON", python}, {"TORCHPACE_PYTHON_PATH", (folder_ / "package").string()}}};
  }
  void expect_error(const Command& command, int code, const std::string& part) const {
    Process process(command);
    std::string output;
    try {
      for (;;) output += process.read_line(in_seconds(30)) + '\n';
    } catch (const ProcessError&) {
    }
    process.wait(in_seconds(30));
    EXPECT_EQ(process.exit_code(), code);
    EXPECT_NE(output.find(part), std::string::npos) << output;
    EXPECT_EQ(std::count(output.begin(), output.end(), '\n'), 1) << output;
    EXPECT_FALSE(fs::exists(folder_ / "out.pt2") || fs::exists(folder_ / "half"));
  }

  fs::path program_, folder_;
};

TEST_F(ExportTraining, PassesOptionsAndProgressOn) {
  Process process(
      command("gptlite --size smoke --set layers=1 --set 'a=b c' --deterministic "
              "--weight-decay=-1 --compile-timeout 5 --out out.pt2"));
  EXPECT_EQ(process.read_line(in_seconds(30)),
            "progress gptlite --out=out.pt2 --size=smoke --set=layers=1 --set=a=b c "
            "--weight-decay=-1 --deterministic --compile-timeout=5");
  EXPECT_EQ(process.wait(in_seconds(30)), "");
  EXPECT_TRUE(fs::exists(folder_ / "out.pt2"));
}

TEST_F(ExportTraining, SaysInOneLineWhatIsMissing) {
  expect_error(command("gptlite --out out.pt2", "/nowhere/python"), kBadInput,
               "expected an interpreter '/nowhere/python', cannot run");
  expect_error(command("gptlite --out out.pt2", (folder_ / "isolated").string()), kBadInput,
               "expected torch in");
  expect_error(command("gptlite"), kBadInput, "--out is required");
  expect_error(command("--out out.pt2"), kBadInput, "TARGET is required");
  expect_error(command("gptlite --out out.pt2 --optimizer lion"), kBadInput, "lion");
  expect_error(command("gptlite --out out.pt2 --accumulate 1.5"), kBadInput,
               "--accumulate: expected an integer above 0, found '1.5'");
  fs::remove(folder_ / "package/torchpace/__init__.py");
  expect_error(command("gptlite --out out.pt2"), kBadInput, "TORCHPACE_PYTHON_PATH");
}

TEST_F(ExportTraining, EndsAsPythonEnds) {
  expect_error(command("bad --out out.pt2"), kBadInput, "progress bad");
  Process process(command("die --out out.pt2"));
  EXPECT_EQ(process.read_line(in_seconds(30)), "progress die --out=out.pt2");
  EXPECT_NE(process.read_line(in_seconds(30)).find("die: Python was killed by signal 9"),
            std::string::npos);
  process.wait(in_seconds(30));
  EXPECT_EQ(process.exit_code(), kCaseFailed);
}

TEST_F(ExportTraining, InterruptedItLeavesNothing) {
  Process process(command("wait --out out.pt2"));
  EXPECT_EQ(process.read_line(in_seconds(30)), "progress wait --out=out.pt2");
  const auto deadline = in_seconds(30);
  while (!fs::exists(folder_ / "half") && Clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  process.interrupt();
  EXPECT_EQ(process.read_line(in_seconds(30)), "torchpace: interrupted");
  process.wait(in_seconds(30));
  EXPECT_EQ(process.exit_code(), kInterrupted);
  EXPECT_FALSE(fs::exists(folder_ / "out.pt2") || fs::exists(folder_ / "half"));
}

}  // namespace
}  // namespace torchpace::cli
