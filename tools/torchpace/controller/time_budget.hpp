// What is left of the time that a comparison may measure.
#pragma once

#include <cstddef>
#include <functional>

#include "results/results.hpp"
#include "support/process.hpp"

namespace torchpace::cli {

class TimeBudget {
 public:
  /// `plan.max_seconds` is the limit; `earlier_s` was measured by a run that this one continues.
  TimeBudget(PlanRecord& plan, double earlier_s) : plan_(plan), earlier_s_(earlier_s) {}

  double elapsed_s() const { return earlier_s_ + seconds_since(begin_); }
  double remaining_s() const { return plan_.max_seconds - elapsed_s(); }

  /// Files are made once and then found: what `make` takes is added to the limit.
  void exclude(const std::function<void()>& make);

  /// First sessions, whose number tells what is left where the number of rounds is given.
  void begin_sessions() { sessions_begin_ = Clock::now(); }
  void count_session() { ++sessions_done_; }
  void set_sessions_left(size_t count) { sessions_left_ = count; }
  void finish_first_session() { --sessions_left_; }
  size_t sessions_left() const { return sessions_left_; }

  /// What is left of the run, to be shown; below 0 when it is not known.
  double estimated_left_s() const;

 private:
  PlanRecord& plan_;
  double earlier_s_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point sessions_begin_{};
  size_t sessions_done_ = 0, sessions_left_ = 0;
};

}  // namespace torchpace::cli
