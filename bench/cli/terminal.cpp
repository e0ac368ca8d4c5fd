#include "terminal.hpp"

#include <cstdio>
#include <iostream>

#include "error.hpp"

namespace torchpace::cli {

void say(const std::string& text) noexcept {
  std::fputs("torchpace: ", stderr);
  std::fputs(text.c_str(), stderr);
  std::fputc('\n', stderr);
}

void show_on_error(const std::string& text) noexcept {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

void expect_written() {
  const bool streamed = static_cast<bool>(std::cout.flush());
  if (streamed && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw Error(
      "standard output: expected a file or pipe that takes all, found one that does not; "
      "is the disk full?",
      kCaseFailed);
}

}  // namespace torchpace::cli
