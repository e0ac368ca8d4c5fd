#include "support/progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "support/console.hpp"

namespace torchpace::cli {
namespace {

std::string clock_time(double seconds) {
  const auto whole = static_cast<long>(std::max(0.0, seconds) + 0.5);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

size_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

Progress::Progress() : terminal_(isatty(STDERR_FILENO) == 1) {}

void Progress::clear() {
  if (std::exchange(shown_, false)) show_on_error("\r\x1b[K");
}

void Progress::show(const std::string& text, double left_s) {
  auto line = left_s < 0 ? text : fmt::format("{}, {} left", text, clock_time(left_s));
  last_ = Clock::now();
  if (!terminal_) {
    cli::log(line);
    return;
  }
  line.resize(std::min(line.size(), terminal_width() - 1));  // a wrapped line cannot be rewritten
  show_on_error("\r\x1b[K" + line);
  shown_ = true;
}

void Progress::status(const std::string& text, double left_s) { show(text, left_s); }

void Progress::update(const std::string& text, double left_s) {
  if (terminal_ && Clock::now() - last_ > std::chrono::milliseconds(100)) show(text, left_s);
}

void Progress::log(const std::string& text) {
  clear();
  cli::log(text);
}

}  // namespace torchpace::cli
