#include "support/console.hpp"

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace torchpace::cli {

void log(const std::string& text) noexcept {
  std::fputs("torchpace: ", stderr);
  std::fputs(text.c_str(), stderr);
  std::fputc('\n', stderr);
}

void show_on_error(const std::string& text) noexcept {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

bool output_is_lost() noexcept {
  const bool streamed = static_cast<bool>(std::cout.flush());
  if (streamed && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return false;
  // A pipe or socket whose other end is closed says so at once.
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  return poll(&output, 1, 0) != 1 || (output.revents & (POLLERR | POLLHUP)) == 0;
}

}  // namespace torchpace::cli
