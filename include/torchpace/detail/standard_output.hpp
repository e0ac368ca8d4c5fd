// Whether what a program printed has arrived: on a full disk the stream alone knows that it has
// not.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace torchpace {

inline constexpr char kLostOutput[] =
    "standard output: expected a file or pipe that takes all, found one that does not; is the disk "
    "full?";

/// Writes out what the streams of standard output still hold, and says whether anything was lost:
/// not where its reader has gone, such as `head`, which has what it wanted.
inline bool output_is_lost() noexcept {
  const bool streamed = std::cout.flush().good();
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && streamed) return false;
  // A pipe or socket whose other end is closed says so at once.
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  return poll(&output, 1, 0) != 1 || (output.revents & (POLLERR | POLLHUP)) == 0;
}

}  // namespace torchpace
