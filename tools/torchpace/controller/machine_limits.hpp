// What this machine can do at most: multiply-adds per second, and reads of memory, measured with
// as many bound threads as a worker has. Free of torch.
#pragma once

#include <barrier>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace torchpace::cli {

/// Reading `bytes` once when they are read again and again: from a cache where they fit.
struct ReadTime {
  double bytes = 0;
  double seconds = 0;
};

struct Limits {
  int threads = 1;
  std::string isa;                                // instructions of the fastest multiply-add loop
  std::map<std::string, double> fma_flops_per_s;  // dtype -> rate of all threads together
  std::vector<ReadTime> read;                     // in ascending order of bytes

  /// NaN where the rate was not measured.
  double flops_per_s(const std::string& dtype) const;
  /// Time to read `bytes` that belong to a working set of that size; NaN where it was not measured.
  double read_s(double bytes, double working_set) const;
};

/// Several short trials, of which the best counts: others use the machine too.
struct Trials {
  int count = 4;
  double seconds = 0.02;  // of one trial of multiply-adds
};

/// float32 or float64: measures the rate of a loop in registers, by the two widest instruction sets
/// that this processor has. Keeps a faster rate that is there.
void measure_fma(Limits& limits, const std::string& dtype, const Trials& trials = {});

/// Measures the time to read a working set, of which each thread reads its share. Keeps a shorter
/// time that is there.
void measure_read(Limits& limits, double working_set, const Trials& trials = {});

/// The size that stands for a working set, so that many cases need few measurements: the power of 2
/// below, within [32 KiB, 256 MiB]. A smaller set is never read slower.
double measured_size(double working_set);

/// What `work` returns in each of `threads` threads, which are bound to the first processors of
/// this process, as OpenMP binds a worker's: one number per trial. The barrier is for all of them.
/// Empty where not all threads can be had or one returns nothing.
using Barrier = std::barrier<>;
std::vector<std::vector<double>> on_threads(
    int threads, const std::function<std::vector<double>(Barrier&)>& work);

/// The instruction sets that the loops are compiled for.
enum class Isa { baseline, avx2, avx512 };
const char* to_string(Isa isa);

/// Those that this processor has, the widest first.
std::vector<Isa> supported_isas();

/// Multiply-adds in one turn of the loop: independent vectors times the numbers in one.
int multiply_adds_per_turn(Isa isa, const std::string& dtype);

/// Runs the loop, in which every accumulator becomes x * 1 + 1. Returns by how much their sum has
/// grown: the number of multiply-adds that were done. At most 2^23 turns (float32 counts so far).
double multiply_add(Isa isa, const std::string& dtype, int turns);

/// The sum of the words, modulo 2^64; their number is a multiple of 64, the first is aligned to 64
/// bytes.
uint64_t sum_words(Isa isa, std::span<const uint64_t> words);

}  // namespace torchpace::cli
