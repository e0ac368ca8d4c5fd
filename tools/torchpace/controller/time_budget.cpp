#include "controller/time_budget.hpp"

#include <algorithm>

namespace torchpace::cli {

void TimeBudget::exclude(const std::function<void()>& make) {
  const double begin_s = elapsed_s();
  make();
  plan_.max_seconds += elapsed_s() - begin_s;
}

double TimeBudget::estimated_left_s() const {
  if (plan_.rounds == 0) return std::max(0.0, remaining_s());
  if (sessions_done_ == 0) return -1;
  const double spent_s = seconds_since(sessions_begin_);
  return spent_s / static_cast<double>(sessions_done_) * static_cast<double>(sessions_left_);
}

}  // namespace torchpace::cli
