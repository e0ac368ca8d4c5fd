// Numbers in words. A number never shows a digit that its interval does not support.
#pragma once

#include <string>

#include "results/results.hpp"

namespace torchpace::cli {

/// A median and its interval as text in one unit, all with the same last place.
struct Shown {
  std::string median;    // 11.52 ms; n/a where it is not known
  std::string interval;  // [11.44, 11.57]; empty without bounds

  std::string both() const { return interval.empty() ? median : median + " " + interval; }
};

/// An interval in ns.
Shown show_duration(const Interval& time_ns);

/// `amount` per second from ns per step: `44.4k`; n/a where the amount is 0.
Shown show_rate(double amount, const Interval& step_ns, const std::string& unit = "");

/// `1.33x [1.31, 1.36]`. A bound just beside 1 keeps the digits that tell its side.
Shown show_ratio(const Interval& ratio);

/// A number alone, with so many significant digits; whole digits are kept, there is no exponent.
std::string show_number(double value, int digits = 2);

/// An amount with a prefix, three digits: `2.60 GFLOP`.
std::string show_amount(double value, const std::string& unit);

/// A share of 1, two digits: `62 %`.
std::string show_share(double share);

/// Bytes, three digits: `412 MiB`.
std::string show_bytes(double bytes);

/// One observed time, two digits: `3.3 s`, `440 ms`; minutes and seconds from 100 s on.
std::string show_seconds(double seconds);

/// An error or a tolerance: `2.4e-07`.
std::string show_error(double error);

/// Columns that the text takes on a terminal: two for letters of East Asian scripts.
size_t columns(const std::string& utf8);

}  // namespace torchpace::cli
