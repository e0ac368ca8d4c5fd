#include "controller/round_runner.hpp"

#include <gtest/gtest.h>

namespace torchpace::cli {
namespace {

TEST(Blocks, ASampleIsLongAgainstTheCostOfItsClock) {
  EXPECT_EQ(choose_block({20e-6, 10e-6}, /*by_events=*/false).steps_per_sample, 5);
  EXPECT_EQ(choose_block({20e-6, 10e-6}, /*by_events=*/true).steps_per_sample, 100);
  for (const bool by_events : {false, true}) {
    EXPECT_EQ(choose_block({3e-3, 2e-3}, by_events).steps_per_sample, 1) << by_events;
    EXPECT_EQ(choose_block({3e-3, 2e-3}, by_events).samples, 10) << by_events;
  }
}

}  // namespace
}  // namespace torchpace::cli
