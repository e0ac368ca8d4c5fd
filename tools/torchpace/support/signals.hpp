// Ctrl-C and SIGTERM as something that can be waited for, so that no request to stop is lost
// between a look at a flag and the wait that follows it.
#pragma once

#include <stdexcept>

namespace torchpace::cli {

/// Thrown out of any wait when the user asked to stop.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("interrupted") {}
};

/// Installs the handlers for SIGINT, SIGTERM and SIGHUP. Ignores SIGPIPE and SIGXFSZ: a dead worker
/// or a file that may not grow is an error of one write, not the end of the program.
void handle_interrupts();

/// True once one of them has arrived.
bool interrupted();

/// Readable once interrupted; -1 before handle_interrupts().
int interrupt_fd();

/// Throws Interrupted as soon as one arrives.
void sleep_s(double seconds);

/// Forgets the request, so that results can still be written; a second Ctrl-C counts again.
void clear_interrupt();

}  // namespace torchpace::cli
