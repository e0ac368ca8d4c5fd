// Orders of n workers over n rounds in which each worker stands once in each place.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace torchpace::cli {

/// A random one: the cyclic square with its rows, columns and symbols shuffled.
/// square[round][place] is the worker.
inline std::vector<std::vector<size_t>> latin_square(size_t n, std::mt19937_64& random) {
  const auto shuffled = [&] {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), random);
    return order;
  };
  const auto rows = shuffled(), columns = shuffled(), symbols = shuffled();
  std::vector<std::vector<size_t>> square(n, std::vector<size_t>(n));
  for (size_t r = 0; r < n; ++r) {
    for (size_t c = 0; c < n; ++c) square[r][c] = symbols[(rows[r] + columns[c]) % n];
  }
  return square;
}

}  // namespace torchpace::cli
