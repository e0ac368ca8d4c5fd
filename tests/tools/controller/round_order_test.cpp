#include "controller/round_order.hpp"

#include <gtest/gtest.h>

#include <set>

namespace torchpace::cli {
namespace {

TEST(LatinSquare, EachWorkerStandsOnceInEachPlaceAndRound) {
  std::mt19937_64 random(1);
  for (size_t n = 1; n <= 9; ++n) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      const auto square = latin_square(n, random);
      ASSERT_EQ(square.size(), n);
      for (size_t i = 0; i < n; ++i) {
        std::set<size_t> row, column;
        for (size_t j = 0; j < n; ++j) {
          row.insert(square[i][j]);
          column.insert(square[j][i]);
        }
        EXPECT_EQ(row.size(), n);
        EXPECT_EQ(column.size(), n);
        EXPECT_LT(*row.rbegin(), n);
      }
    }
  }
}

TEST(LatinSquare, IsAnotherEachTimeAndTheSameFromTheSameSeed) {
  std::mt19937_64 a(7), b(7);
  EXPECT_EQ(latin_square(5, a), latin_square(5, b));
  std::set<std::vector<std::vector<size_t>>> seen;
  for (int i = 0; i < 50; ++i) seen.insert(latin_square(3, a));
  EXPECT_EQ(seen.size(), 12u);  // all Latin squares of order 3
}

}  // namespace
}  // namespace torchpace::cli
