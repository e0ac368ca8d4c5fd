// One line on standard error that says what is being done and how long it will take.
#pragma once

#include <string>

#include "support/process.hpp"

namespace torchpace::cli {

class Progress {
 public:
  /// On a terminal the line is rewritten; else every status is a line of its own and updates are
  /// not shown.
  Progress();
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// A new thing is done. `left_s` below 0: not known.
  void status(const std::string& text, double left_s = -1);

  /// More of the same thing: rewrites the line, at most ten times a second.
  void update(const std::string& text, double left_s);

  /// A line that stays.
  void log(const std::string& text);

  void clear();

 private:
  void show(const std::string& text, double left_s);

  bool terminal_;
  bool shown_ = false;
  Clock::time_point last_{};
};

}  // namespace torchpace::cli
