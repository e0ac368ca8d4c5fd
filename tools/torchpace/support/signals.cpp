#include "support/signals.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <csignal>

namespace torchpace::cli {
namespace {

volatile std::sig_atomic_t signal_arrived = 0;
int pipe_ends[2] = {-1, -1};

extern "C" void on_signal(int) {
  const int saved = errno;
  signal_arrived = 1;
  const char byte = 0;
  // A full pipe is readable already: nothing is lost when this write fails.
  [[maybe_unused]] const auto written = write(pipe_ends[1], &byte, 1);
  errno = saved;
}

}  // namespace

void handle_interrupts() {
  if (pipe_ends[0] < 0 && pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK) != 0) return;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGHUP, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

bool interrupted() { return signal_arrived != 0; }

int interrupt_fd() { return pipe_ends[0]; }

void sleep_s(double seconds) {
  pollfd wait{pipe_ends[0], POLLIN, 0};
  poll(&wait, 1, static_cast<int>(std::ceil(seconds * 1e3)));
  if (interrupted()) throw Interrupted();
}

void clear_interrupt() {
  signal_arrived = 0;
  char bytes[64];
  while (pipe_ends[0] >= 0 && read(pipe_ends[0], bytes, sizeof bytes) > 0) {
  }
}

}  // namespace torchpace::cli
