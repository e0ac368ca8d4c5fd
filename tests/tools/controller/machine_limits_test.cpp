#include "controller/machine_limits.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <set>
#include <thread>

#include "controller/affinity.hpp"

namespace torchpace::cli {
namespace {

const char* const kDtypes[] = {"float32", "float64"};

TEST(Limits, EveryLoopDoesTheMultiplyAddsThatItsTurnsSay) {
  for (const auto isa : supported_isas()) {
    for (const auto* dtype : kDtypes) {
      for (const int turns : {0, 1, 1000, 1 << 16}) {
        EXPECT_EQ(multiply_add(isa, dtype, turns), 1.0 * turns * multiply_adds_per_turn(isa, dtype))
            << to_string(isa) << " " << dtype << " " << turns;
      }
    }
  }
}

TEST(Limits, ATurnHasAsManyMultiplyAddsAsVectorsHaveNumbers) {
  for (const auto isa : supported_isas()) {
    // Counted by hand in the assembly of limits.cpp: 12 instructions of 8 floats for AVX2, 24 of 16
    // for AVX-512.
    const int count = multiply_adds_per_turn(isa, "float32");
    if (isa != Isa::baseline) {
      EXPECT_EQ(count, isa == Isa::avx2 ? 12 * 8 : 24 * 16);
    }
    EXPECT_EQ(count, 2 * multiply_adds_per_turn(isa, "float64"));
  }
}

TEST(Limits, TheBaselineIsAlwaysThereAndTheWidestComesFirst) {
  const auto isas = supported_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.back(), Isa::baseline);
  EXPECT_TRUE(std::is_sorted(isas.rbegin(), isas.rend()));
}

TEST(Limits, EveryLoopAddsAllWords) {
  alignas(64) uint64_t words[640];
  uint64_t expected = 0;
  for (size_t i = 0; i < std::size(words); ++i) expected += words[i] = ~0ull / (i + 1);
  for (const auto isa : supported_isas()) {
    EXPECT_EQ(sum_words(isa, words), expected) << to_string(isa);
    words[639] += 1;
    EXPECT_EQ(sum_words(isa, words), expected + 1) << to_string(isa);
    words[639] -= 1;
  }
}

TEST(Limits, WorkRunsOnAsManyBoundThreadsAsAsked) {
  const auto cpus = allowed_cpus();
  for (const int threads : {1, 2, 5}) {
    std::mutex mutex;
    std::set<std::thread::id> ids;
    std::set<int> used;
    const auto numbers = on_threads(threads, [&](Barrier& barrier) -> std::vector<double> {
      barrier.arrive_and_wait();  // passes only once all are there
      const std::lock_guard lock(mutex);
      ids.insert(std::this_thread::get_id());
      used.insert(sched_getcpu());
      return {1.0, 2.0};
    });
    ASSERT_EQ(numbers.size(), static_cast<size_t>(threads));
    EXPECT_EQ(numbers.front(), (std::vector<double>{1, 2}));
    EXPECT_EQ(ids.size(), static_cast<size_t>(threads));
    EXPECT_EQ(used.size(), std::min(cpus.size(), static_cast<size_t>(threads)));
  }
  EXPECT_EQ(allowed_cpus(), cpus) << "the caller keeps its processors";
}

TEST(Limits, OneThreadThatFailsMakesNoNumbersAndNoDeadlock) {
  std::atomic<int> count = 0;
  const auto numbers = on_threads(3, [&](Barrier& barrier) -> std::vector<double> {
    if (++count == 2) {
      barrier.arrive_and_drop();
      return {};
    }
    barrier.arrive_and_wait();
    return {1};
  });
  EXPECT_TRUE(numbers.empty());
}

TEST(Limits, MeasuringFillsInRatesAndKeepsBetterOnes) {
  Limits limits{.threads = 2, .isa = "", .fma_flops_per_s = {}, .read = {}};
  const Trials trials{.count = 2, .seconds = 0.001};
  EXPECT_TRUE(std::isnan(limits.flops_per_s("float32")));
  for (const auto* dtype : kDtypes) {
    measure_fma(limits, dtype, trials);
    EXPECT_GT(limits.flops_per_s(dtype), 0);
  }
  EXPECT_FALSE(limits.isa.empty());
  limits.fma_flops_per_s["float32"] = 1e30;
  measure_fma(limits, "float32", trials);
  EXPECT_EQ(limits.flops_per_s("float32"), 1e30);
  EXPECT_EQ(limits.fma_flops_per_s.size(), 2u);

  EXPECT_TRUE(std::isnan(limits.read_s(1, 1 << 20)));
  measure_read(limits, 1 << 20, trials);
  measure_read(limits, 100 << 10, trials);
  measure_read(limits, (1 << 20) + 4096, trials);  // the same size
  ASSERT_EQ(limits.read.size(), 2u);
  EXPECT_EQ(limits.read[0].bytes, 64 << 10);
  EXPECT_EQ(limits.read[1].bytes, 1 << 20);
  EXPECT_GT(limits.read[0].seconds, 0);
  limits.read[0].seconds = 1e-30;
  measure_read(limits, 64 << 10, trials);
  EXPECT_EQ(limits.read[0].seconds, 1e-30);
}

TEST(Limits, AWorkingSetStandsForTheSizesAboveIt) {
  EXPECT_EQ(measured_size(0), 32 << 10);
  EXPECT_EQ(measured_size((1 << 20) + 1), 1 << 20);
  EXPECT_EQ(measured_size((2 << 20) - 1), 1 << 20);
  EXPECT_EQ(measured_size(1e12), 256 << 20);
  const Limits limits{.threads = 1, .isa = "", .fma_flops_per_s = {}, .read = {{1 << 20, 1e-3}}};
  EXPECT_DOUBLE_EQ(limits.read_s(3 << 20, 3 << 19), 3e-3);  // training: moves twice its set
  EXPECT_TRUE(std::isnan(limits.read_s(3 << 20, 3 << 20)));
}

}  // namespace
}  // namespace torchpace::cli
