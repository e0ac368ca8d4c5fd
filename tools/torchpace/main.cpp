// The program `torchpace`. What each command takes and does: commands/.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "commands/command.hpp"
#include "support/console.hpp"
#include "support/error.hpp"
#include "support/signals.hpp"
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

  CommandLine line{.arguments = {argv + 1, argv + argc}, .action = {}};
  register_compare(app, line);
  register_explain(app, line);
  register_run(app, line);
  register_export_training(app, line);
  register_list(app, line);
  register_report(app, line);
  register_doctor(app, line);

  expect_command(app, argc > 1 ? argv[1] : "--help");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    return app.exit(wanted);
  } catch (const CLI::ParseError& error) {
    const auto command = app.get_subcommands();
    const auto of_command = command.empty() ? "" : command[0]->get_name() + ' ';
    log(fmt::format("{} (torchpace {}--help)", error.what(), of_command));
    return kBadInput;
  }
  return line.action();
}

/// The exit code of what was asked for, said where there is an error.
int outcome(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    log(error.what());
    return error.exit_code();
  } catch (const Interrupted&) {
    log("interrupted");
    return kInterrupted;
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0) return kOk;  // which is judged at the end
    log(error.what());
    return kBadInput;
  }
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  handle_interrupts();
  const int code = outcome(argc, argv);
  if (!output_is_lost()) return code;
  log("standard output: expected a file or pipe that takes all, found one that does not; is the "
      "disk full?");
  return code == kOk ? kCaseFailed : code;
}
