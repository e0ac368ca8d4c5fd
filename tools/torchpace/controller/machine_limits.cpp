#include "controller/machine_limits.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <ctime>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

#include "controller/affinity.hpp"

namespace torchpace::cli {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr int kTurns = 1 << 16;              // between two looks at the clock: 0.1 ms
constexpr double kBytesOfATrial = 32 << 20;  // a thread reads at least: 0.3 ms from a cache
constexpr size_t kVectorsRead = 8;           // in flight; whole lines, each of its own stream
constexpr int kReadTrials = 10;              // a trial of a loop is as long as that of ten reads
constexpr size_t kBlockWords = 64;           // a thread's share is a multiple
constexpr double kSmallest = 32 << 10, kLargest = 256 << 20;  // working sets that are measured
constexpr size_t kIsasTried = 2;  // the widest instructions may lower the clock

/// Processor time of the calling thread: what others do on its core in the meantime is no limit of
/// the core.
double thread_s() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes), may_alias));
};

// The loops, once for each instruction set: what a function is compiled for is an attribute that
// no template can vary. Unrolled by a pack of indices, so that the accumulators stay in registers.
// No compiler can fold the loop: `multiplier` and `addend` come from a volatile number, and
// accumulators begin apart, since equal ones would become one.
#define TORCHPACE_LOOPS(Name, attributes, kVectorBytes, kVectors)                      \
  struct Name {                                                                        \
    static constexpr int kBytes = kVectorBytes, kAccumulators = kVectors;              \
    template <class T, size_t... kIndex>                                               \
    attributes static double multiply_add(int turns, std::index_sequence<kIndex...>) { \
      using Vector = typename VectorOf<T, kVectorBytes>::type;                         \
      volatile T one = 1;                                                              \
      const Vector multiplier = Vector{} + static_cast<T>(one);                        \
      const Vector addend = Vector{} + static_cast<T>(one);                            \
      Vector x[kVectors] = {Vector{} + static_cast<T>(kIndex)...};                     \
      for (int turn = 0; turn < turns; ++turn) {                                       \
        ((x[kIndex] = x[kIndex] * multiplier + addend), ...);                          \
      }                                                                                \
      double sum = 0;                                                                  \
      for (size_t lane = 0; lane < kVectorBytes / sizeof(T); ++lane) {                 \
        sum += ((static_cast<double>(x[kIndex][lane]) - kIndex) + ...);                \
      }                                                                                \
      return sum;                                                                      \
    }                                                                                  \
    template <size_t... kIndex>                                                        \
    attributes static uint64_t sum_words(std::span<const uint64_t> words,              \
                                         std::index_sequence<kIndex...>) {             \
      using Vector = typename VectorOf<uint64_t, kVectorBytes>::type;                  \
      const auto* vectors = reinterpret_cast<const Vector*>(words.data());             \
      const size_t count = words.size_bytes() / kVectorBytes;                          \
      Vector x[sizeof...(kIndex)] = {};                                                \
      constexpr size_t kLine = 64 / kVectorBytes;                                      \
      const size_t stream = count / (sizeof...(kIndex) / kLine);                       \
      for (size_t i = 0; i < stream; i += kLine) {                                     \
        ((x[kIndex] += vectors[kIndex / kLine * stream + i + kIndex % kLine]), ...);   \
      }                                                                                \
      uint64_t sum = 0;                                                                \
      for (size_t lane = 0; lane < kVectorBytes / sizeof(uint64_t); ++lane) {          \
        sum += (x[kIndex][lane] + ...);                                                \
      }                                                                                \
      return sum;                                                                      \
    }                                                                                  \
  };

// As many accumulators as hide the latency of a multiply-add (4 to 5 cycles, two to four begun in
// each) and as there are registers for.
#if defined(__x86_64__)
TORCHPACE_LOOPS(Baseline, , 16, 12)
TORCHPACE_LOOPS(Avx2, __attribute__((target("avx2,fma"))), 32, 12)
TORCHPACE_LOOPS(Avx512, __attribute__((target("avx512f"))), 64, 24)
#else
TORCHPACE_LOOPS(Baseline, , 16, 24)
#endif
#undef TORCHPACE_LOOPS

/// Calls `use` with the loops of an instruction set that this processor has.
template <class Use>
auto with_loops(Isa isa, const Use& use) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return use(Avx512());
  if (isa == Isa::avx2) return use(Avx2());
#else
  static_cast<void>(isa);
#endif
  return use(Baseline());
}

/// FLOP/s of one thread in each trial; 0 where the loop did not do what it should.
std::vector<double> multiply_add_rates(Isa isa, const std::string& dtype, const Trials& trials,
                                       Barrier& barrier) {
  const double expected = 1.0 * kTurns * multiply_adds_per_turn(isa, dtype);
  std::vector<double> rates;
  for (int trial = 0; trial < trials.count; ++trial) {
    barrier.arrive_and_wait();
    const double begin_s = thread_s();
    double done = 0;
    bool right = true;
    do {
      const double sum = multiply_add(isa, dtype, kTurns);
      right = right && sum == expected;
      done += sum;
    } while (thread_s() - begin_s < trials.seconds);
    rates.push_back(right ? 2 * done / (thread_s() - begin_s) : 0);
  }
  return rates;
}

/// Pages of their own, large ones where the system has them, of the node of the thread that writes
/// them first.
class Pages {
 public:
  explicit Pages(size_t words) : words_(words) {
    address_ = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address_ != MAP_FAILED) madvise(address_, bytes(), MADV_HUGEPAGE);
  }
  ~Pages() {
    if (address_ != MAP_FAILED) munmap(address_, bytes());
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  /// Empty where there is no memory.
  std::span<uint64_t> words() {
    return {static_cast<uint64_t*>(address_), address_ == MAP_FAILED ? 0 : words_};
  }

 private:
  size_t bytes() const { return words_ * sizeof(uint64_t); }

  size_t words_;
  void* address_;
};

/// Seconds that one thread needs to read its share once, in each trial.
std::vector<double> read_times(Isa isa, size_t words, const Trials& trials, Barrier& barrier) {
  Pages pages(words);
  const auto share = pages.words();
  if (share.empty()) {
    barrier.arrive_and_drop();
    return {};
  }
  uint64_t expected = 0;
  for (size_t i = 0; i < share.size(); ++i) expected += share[i] = i;
  const auto bytes = static_cast<double>(share.size_bytes());
  const int passes = std::max(1, static_cast<int>(kBytesOfATrial / bytes));
  std::vector<double> times;
  for (int trial = 0; trial < trials.count; ++trial) {
    barrier.arrive_and_wait();
    const double begin_s = thread_s();
    uint64_t wrong = 0;
    for (int pass = 0; pass < passes; ++pass) {
      wrong |= sum_words(isa, share) ^ expected;
      asm volatile("" ::: "memory");  // another pass reads again
    }
    const double seconds = thread_s() - begin_s;
    times.push_back(wrong == 0 ? seconds / passes : kUnknown);
  }
  return times;
}

}  // namespace

double Limits::flops_per_s(const std::string& dtype) const {
  const auto found = fma_flops_per_s.find(dtype);
  return found == fma_flops_per_s.end() ? kUnknown : found->second;
}

double Limits::read_s(double bytes, double working_set) const {
  const double size = measured_size(working_set);
  for (const auto& each : read) {
    if (each.bytes == size) return each.seconds * bytes / size;
  }
  return kUnknown;
}

double measured_size(double working_set) {
  const double size = std::clamp(working_set, kSmallest, kLargest);
  return static_cast<double>(std::bit_floor(static_cast<uint64_t>(size)));
}

void measure_fma(Limits& limits, const std::string& dtype, const Trials& trials) {
  // More threads than processors take turns.
  const auto cpus = static_cast<double>(allowed_cpus().size());
  const double share = std::min(1.0, cpus / limits.threads);
  auto isas = supported_isas();
  if (isas.size() > kIsasTried) isas.resize(kIsasTried);
  auto& best = limits.fma_flops_per_s[dtype];
  for (const auto isa : isas) {
    const auto rates = on_threads(limits.threads, [&](Barrier& barrier) {
      return multiply_add_rates(isa, dtype, trials, barrier);
    });
    for (int trial = 0; !rates.empty() && trial < trials.count; ++trial) {
      double sum = 0;
      for (const auto& thread : rates) sum += thread[static_cast<size_t>(trial)];
      if (sum * share <= best) continue;
      best = sum * share;
      limits.isa = to_string(isa);
    }
  }
  if (best == 0) limits.fma_flops_per_s.erase(dtype);
}

void measure_read(Limits& limits, double working_set, const Trials& trials) {
  const double size = measured_size(working_set);
  const auto blocks = static_cast<size_t>(size) / (kBlockWords * sizeof(uint64_t));
  const auto share =
      std::max<size_t>(1, blocks / static_cast<size_t>(limits.threads)) * kBlockWords;
  const auto isa = supported_isas().front();
  const Trials reads{.count = kReadTrials * trials.count, .seconds = trials.seconds};
  const auto times = on_threads(
      limits.threads, [&](Barrier& barrier) { return read_times(isa, share, reads, barrier); });
  double best = kUnknown;
  for (int trial = 0; !times.empty() && trial < reads.count; ++trial) {
    double longest = 0;
    for (const auto& thread : times)
      longest = std::fmax(longest, thread[static_cast<size_t>(trial)]);
    best = std::fmin(best, longest);
  }
  if (!(best > 0)) return;
  auto& read = limits.read;
  const auto place = std::find_if(read.begin(), read.end(),
                                  [&](const ReadTime& each) { return each.bytes >= size; });
  if (place == read.end() || place->bytes != size) {
    read.insert(place, {size, best});
  } else {
    place->seconds = std::min(place->seconds, best);
  }
}

std::vector<std::vector<double>> on_threads(
    int threads, const std::function<std::vector<double>(Barrier&)>& work) {
  const auto cpus = allowed_cpus();
  Barrier barrier(threads);
  std::vector<std::vector<double>> results(static_cast<size_t>(threads));
  std::vector<std::jthread> running;
  bool complete = true;
  for (size_t i = 0; i < results.size(); ++i) {
    try {
      running.emplace_back([&, i] {
        if (!cpus.empty()) bind_to(cpus[i % cpus.size()]);
        results[i] = work(barrier);
      });
    } catch (const std::system_error&) {
      barrier.arrive_and_drop();  // nobody waits for it
      complete = false;
    }
  }
  running.clear();  // joins
  const auto failed = [](const std::vector<double>& numbers) { return numbers.empty(); };
  if (!complete || std::any_of(results.begin(), results.end(), failed)) return {};
  return results;
}

const char* to_string(Isa isa) {
  if (isa == Isa::avx512) return "avx512";
  return isa == Isa::avx2 ? "avx2" : "baseline";
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas{Isa::baseline};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) isas.insert(isas.begin(), Isa::avx2);
  if (avx2 && __builtin_cpu_supports("avx512f")) isas.insert(isas.begin(), Isa::avx512);
#endif
  return isas;
}

int multiply_adds_per_turn(Isa isa, const std::string& dtype) {
  const int element = dtype == "float64" ? sizeof(double) : sizeof(float);
  return with_loops(isa, [&](auto loops) { return loops.kAccumulators * loops.kBytes / element; });
}

double multiply_add(Isa isa, const std::string& dtype, int turns) {
  return with_loops(isa, [&](auto loops) {
    constexpr std::make_index_sequence<loops.kAccumulators> indices;
    return dtype == "float64" ? loops.template multiply_add<double>(turns, indices)
                              : loops.template multiply_add<float>(turns, indices);
  });
}

uint64_t sum_words(Isa isa, std::span<const uint64_t> words) {
  return with_loops(isa, [&](auto loops) {
    return loops.sum_words(words, std::make_index_sequence<kVectorsRead>());
  });
}

}  // namespace torchpace::cli
