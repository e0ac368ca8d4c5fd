// The error of the command line: one line for the reader and the exit code that it means.
#pragma once

#include <stdexcept>
#include <string>

namespace torchpace::cli {

/// Exit codes of the program (docs/design.md). Where several hold: 2, 3, 1, 5.
enum Exit : int {
  kOk = 0,
  kCaseFailed = 1,
  kBadInput = 2,
  kParityFailed = 3,
  kNothingMatched = 4,
  kRegression = 5,
  kSkipped = 77,
  kInterrupted = 130,
};

/// Thrown for whatever ends the program early. The text is one line: expected, found, what to do.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& text, int exit_code = kBadInput)
      : std::runtime_error(text), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

}  // namespace torchpace::cli
