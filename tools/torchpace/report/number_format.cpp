#include "report/number_format.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace torchpace::cli {
namespace {

constexpr int kDigitsAlone = 2;   // of a value with no interval to tell how many hold
constexpr int kDigitsAtMost = 4;  // of a median, however narrow its interval

struct Unit {
  double scale;
  const char* name;
};

constexpr std::array<Unit, 4> kTimes{{{1e9, " s"}, {1e6, " ms"}, {1e3, " µs"}, {1, " ns"}}};
constexpr std::array<Unit, 5> kSizes{
    {{0x1p40, "TiB"}, {0x1p30, "GiB"}, {0x1p20, "MiB"}, {0x1p10, "KiB"}, {1, "B"}}};
constexpr std::array<Unit, 6> kPrefixes{
    {{1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {1, ""}}};

/// The largest unit that is not above the value.
const Unit& unit_of(double value, std::span<const Unit> units) {
  for (const auto& unit : units) {
    if (std::abs(value) >= unit.scale) return unit;
  }
  return units.back();
}

int leading_place(double value) {
  return value == 0 ? 0 : static_cast<int>(std::floor(std::log10(std::abs(value))));
}

/// Exponent of ten of the last digit that the interval supports: the leading digit of the smaller
/// distance from the median to a bound.
int last_place(const Interval& interval) {
  const int leading = leading_place(interval.median);
  if (!interval.bounded()) return leading - kDigitsAlone + 1;
  const int least = leading - kDigitsAtMost + 1;
  const double below = interval.median - interval.low;
  const double above = interval.high - interval.median;
  double distance = std::min(below, above);
  if (distance <= 0) distance = std::max(below, above);
  return distance <= 0 ? least : std::max(least, leading_place(distance));
}

/// The value with its last digit at 10^place.
std::string rounded(double value, int place) {
  const double scale = std::pow(10.0, place);
  return fmt::format("{:.{}f}", std::nearbyint(value / scale) * scale, std::max(0, -place));
}

/// A bound at the median's place, but with at least one digit of its own and at most four.
std::string bound(double value, int place) {
  const int leading = leading_place(value);
  return rounded(value, std::min(std::max(place, leading - kDigitsAtMost + 1), leading));
}

/// A bound beside 1, with more digits where rounding would put it on 1.
std::string side_of_one(double value, int place) {
  auto text = bound(value, place);
  while (std::stod(text) == 1 && value != 1 && place > -kDigitsAtMost)
    text = rounded(value, --place);
  return text;
}

Interval scaled(const Interval& interval, double scale) {
  return {.median = interval.median / scale,
          .low = interval.low / scale,
          .high = interval.high / scale,
          .confidence = interval.confidence};
}

Shown show_in_units(const Interval& interval, std::span<const Unit> units,
                    const std::string& unit) {
  if (std::isnan(interval.median)) return {"n/a", ""};
  const auto& [scale, name] = unit_of(interval.median, units);
  const auto in_unit = scaled(interval, scale);
  const int place = last_place(in_unit);
  Shown shown{rounded(in_unit.median, place) + (unit.empty() ? "" : " ") + name + unit, ""};
  if (interval.bounded()) {
    shown.interval = fmt::format("[{}, {}]", bound(in_unit.low, place), bound(in_unit.high, place));
  }
  return shown;
}

}  // namespace

Shown show_duration(const Interval& time_ns) { return show_in_units(time_ns, kTimes, ""); }

Shown show_rate(double amount, const Interval& step_ns, const std::string& unit) {
  if (!(amount > 0) || !(step_ns.median > 0)) return {"n/a", ""};
  const Interval per_second{.median = amount * 1e9 / step_ns.median,
                            .low = amount * 1e9 / step_ns.high,
                            .high = amount * 1e9 / step_ns.low,
                            .confidence = step_ns.confidence};
  return show_in_units(per_second, kPrefixes, unit);
}

Shown show_ratio(const Interval& ratio) {
  if (std::isnan(ratio.median)) return {"n/a", ""};
  const int place = std::min(0, last_place(ratio));
  Shown shown{rounded(ratio.median, place) + "x", ""};
  if (ratio.bounded()) {
    shown.interval =
        fmt::format("[{}, {}]", side_of_one(ratio.low, place), side_of_one(ratio.high, place));
  }
  return shown;
}

std::string show_number(double value, int digits) {
  if (std::isnan(value)) return "n/a";
  if (value == 0) return "0";
  return rounded(value, std::min(0, leading_place(value) - digits + 1));
}

std::string show_amount(double value, const std::string& unit) {
  if (!(value > 0)) return "n/a";
  const auto& [scale, name] = unit_of(value, kPrefixes);
  return fmt::format("{} {}{}", show_number(value / scale, 3), name, unit);
}

std::string show_share(double share) {
  return std::isnan(share) ? "n/a" : show_number(100 * share) + " %";
}

std::string show_bytes(double bytes) {
  if (std::isnan(bytes)) return "n/a";
  const auto& [scale, name] = unit_of(bytes, kSizes);
  return fmt::format("{} {}", show_number(bytes / scale, 3), name);
}

std::string show_seconds(double seconds) {
  if (std::isnan(seconds)) return "n/a";
  if (seconds >= 100) {
    const auto whole = static_cast<long long>(seconds);
    return fmt::format("{} min {} s", whole / 60, whole % 60);
  }
  if (seconds <= 0) return "0 s";
  const auto& [scale, name] = unit_of(seconds * 1e9, kTimes);
  const double shown = seconds * 1e9 / scale;
  return rounded(shown, leading_place(shown) - kDigitsAlone + 1) + name;
}

std::string show_error(double error) {
  if (std::isnan(error)) return "n/a";
  return error == 0 ? "0" : fmt::format("{:.1e}", error);
}

size_t columns(const std::string& utf8) {
  size_t count = 0;
  for (size_t i = 0; i < utf8.size(); ++i) {
    const auto byte = static_cast<unsigned char>(utf8[i]);
    if ((byte & 0xC0) == 0x80) continue;
    // Letters from U+1100 take three bytes that start with E1 or more; wide ones lie in E3-ED, EF.
    const bool wide = (byte >= 0xE3 && byte <= 0xED) || byte == 0xEF || byte >= 0xF0;
    count += wide ? 2 : 1;
  }
  return count;
}

}  // namespace torchpace::cli
