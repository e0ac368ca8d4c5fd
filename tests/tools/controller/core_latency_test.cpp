#include "controller/core_latency.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <cmath>

namespace torchpace::cli {
namespace {

TEST(Cores, AMessageTakesNanoseconds) {
  cpu_set_t before, after;
  sched_getaffinity(0, sizeof before, &before);
  double ns = core_latency_ns(64);
  sched_getaffinity(0, sizeof after, &after);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "one CPU: there is no other to send a message to";
  // Not known while another program has one of the two CPUs.
  for (int tries = 0; std::isnan(ns) && tries < 500; ++tries) ns = core_latency_ns(64);
  if (std::isnan(ns)) GTEST_SKIP() << "other programs keep the CPUs busy";
  EXPECT_GT(ns, 1);
  EXPECT_LT(ns, 1e8);  // an interrupted reading is not the median
}

TEST(Cores, OneThreadHasNoOther) {
  EXPECT_TRUE(std::isnan(core_latency_ns(1)));
  EXPECT_TRUE(std::isnan(core_latency_ns(0)));
}

TEST(Cores, OneCpuHasNoOther) {
  cpu_set_t before, one;
  sched_getaffinity(0, sizeof before, &before);
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  sched_setaffinity(0, sizeof one, &one);
  EXPECT_TRUE(std::isnan(core_latency_ns(2)));
  sched_setaffinity(0, sizeof before, &before);
}

TEST(Cores, AFactorOfTwoIsAnotherPlace) {
  EXPECT_TRUE(same_place(60, 70));
  EXPECT_TRUE(same_place(119, 60));
  EXPECT_FALSE(same_place(60, 270));
  EXPECT_FALSE(same_place(270, 60));
  EXPECT_FALSE(same_place(60, NAN));
}

}  // namespace
}  // namespace torchpace::cli
