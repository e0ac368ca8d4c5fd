#include "torchpace/detail/other_load.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace torchpace::detail {
namespace {

/// The load that is seen `wall` seconds later, in which all programs took `all` and this one `own`.
OtherLoad watched(CpuSeconds& now, double wall, double all, double own) {
  now = {.wall = 100, .all = 50, .own = 20};
  OtherLoad load([&now] { return now; });
  now = {.wall = 100 + wall, .all = 50 + all, .own = 20 + own};
  return load;
}

TEST(OtherLoad, IsWhatIsNotOurs) {
  CpuSeconds now;
  EXPECT_DOUBLE_EQ(watched(now, 10, 25, 20).cores(), 0.5);
  EXPECT_DOUBLE_EQ(watched(now, 10, 19.9, 20).cores(), 0);  // ticks are coarse
  EXPECT_TRUE(std::isnan(watched(now, 0.01, 0.02, 0).cores()));
  EXPECT_TRUE(std::isnan(watched(now, 10, std::numeric_limits<double>::quiet_NaN(), 1).cores()));
}

TEST(OtherLoad, WarnsFromAFifthOfACore) {
  CpuSeconds now;
  EXPECT_EQ(watched(now, 10, 21.9, 20).warning(), "");
  EXPECT_EQ(watched(now, 0.01, 5, 0).warning(), "");
  EXPECT_EQ(watched(now, 10, 34, 20).warning().find("other programs kept 1.4 cores busy"), 0u);
}

TEST(OtherLoad, TheKernelTellsOurOwnTime) {
  const auto begin = cpu_seconds();
  double sum = 0;
  while (cpu_seconds().own - begin.own < 0.05) sum += std::sqrt(sum + 1);
  EXPECT_GT(sum, 0);
  EXPECT_GE(cpu_seconds().all, begin.all);
}

}  // namespace
}  // namespace torchpace::detail
