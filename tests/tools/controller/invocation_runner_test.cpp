#include "controller/invocation_runner.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <vector>

namespace torchpace::cli {
namespace {

TEST(InvocationRunner, FewerInvocationsWhereStartingTakesTheTime) {
  EXPECT_EQ(affordable_invocations(9, 300, 10), 9);
  EXPECT_EQ(affordable_invocations(9, 80, 10), 6);  // 7 and 8 have no narrower interval than 6
  EXPECT_EQ(affordable_invocations(9, 1, 10), 6);   // never fewer
  EXPECT_EQ(affordable_invocations(20, 130, 10), 12);
  EXPECT_EQ(affordable_invocations(4, 1, 10), 4);  // asked for
}

TEST(InvocationRunner, TheNextSessionIsOfTheWidestInterval) {
  EXPECT_EQ(next_session({0.01, 0.05, 0.02}, {1, 1, 1}), 1u);
  EXPECT_EQ(next_session({0.01, 0.05, 0.03}, {1, 3, 1}), 2u);  // 0.05 / sqrt(3) < 0.03
  EXPECT_EQ(next_session({NAN, 0.05, 0.02}, {2, 2, 1}), 2u);   // alike until all are known
  EXPECT_EQ(next_session({NAN, NAN}, {1, 1}), 0u);
  EXPECT_EQ(next_session({-1, NAN}, {1, 9}), 1u);
  EXPECT_EQ(next_session({-1, -1}, {1, 1}), std::nullopt);
  EXPECT_EQ(next_session({0.01, INFINITY, 0.9}, {1, 5, 1}), 1u);  // before all others
  EXPECT_EQ(next_session({NAN, NAN, INFINITY}, {1, 1, 1}), 2u);
  EXPECT_EQ(next_session({INFINITY, INFINITY, INFINITY}, {2, 1, 2}), 1u);  // in turn
  std::vector<int> sessions(3, 1);
  for (int i = 0; i < 97; ++i) ++sessions[next_session({0.01, 0.02, 0.03}, sessions).value()];
  EXPECT_NEAR(sessions[1] / sessions[0], 4, 1);  // as the squares of the widths
  EXPECT_NEAR(sessions[2] / sessions[0], 9, 2);
}

}  // namespace
}  // namespace torchpace::cli
