"""Numbers in words: no digit is shown that its interval does not support.

Twin: tools/torchpace/report/number_format.cpp.
"""

import math

NOT_KNOWN = "n/a"
TIMES = ((1e9, " s"), (1e6, " ms"), (1e3, " µs"), (1, " ns"))
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
RATES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
# A value alone, with no interval to tell how many digits hold.
DIGITS_ALONE = 2
DIGITS_AT_MOST = 4


def last_place(interval):
    """Exponent of ten of the last digit that the interval supports.

    That is the leading digit of the smaller distance from the median to a bound: at most four
    digits of the median, and two where there is no interval.
    """
    median, low, high = interval["median"], interval["low"], interval["high"]
    leading = math.floor(math.log10(abs(median))) if median else 0
    if low is None or high is None:
        return leading - DIGITS_ALONE + 1
    distances = [d for d in (median - low, high - median) if d > 0]
    least = leading - DIGITS_AT_MOST + 1
    return max(least, math.floor(math.log10(min(distances)))) if distances else least


def bound(value, place):
    """A bound at the median's place, but with at least one digit of its own and at most four."""
    leading = math.floor(math.log10(abs(value))) if value else 0
    return rounded(value, min(max(place, leading - DIGITS_AT_MOST + 1), leading))


def rounded(value, place):
    """`value` as text, its last digit at 10**place."""
    return f"{round(value / 10.0**place) * 10.0**place:.{max(0, -place)}f}"


def of_unit(value, units):
    """The largest unit that is not above the value: (scale, name)."""
    return next((unit for unit in units if abs(value) >= unit[0]), units[-1])


def with_interval(interval, units):
    """`11.52 ms [11.44, 11.57]`; without bounds `12 ms`; `n/a` without a median."""
    median = interval["median"]
    if median is None:
        return NOT_KNOWN
    scale, name = of_unit(median, units)
    shown = {k: None if interval[k] is None else interval[k] / scale for k in interval}
    place = last_place(shown)
    text = rounded(shown["median"], place) + name
    if shown["low"] is None or shown["high"] is None:
        return text
    return f"{text} [{bound(shown['low'], place)}, {bound(shown['high'], place)}]"


def duration(interval):
    """An interval in ns."""
    return with_interval({k: interval[k] for k in ("median", "low", "high")}, TIMES)


def rate(amount, interval, unit):
    """Amount per second from an interval in ns per step; `n/a` where the amount is unknown."""
    if not amount or interval["median"] is None:
        return NOT_KNOWN
    inverse = {"median": "median", "low": "high", "high": "low"}
    per_second = {k: interval[v] and amount * 1e9 / interval[v] for k, v in inverse.items()}
    space = " " if unit else ""
    return with_interval(per_second, [(scale, space + prefix + unit) for scale, prefix in RATES])


def share(value):
    """A share of 1, two digits: `62 %`."""
    return NOT_KNOWN if value is None else f"{plain(100 * value)} %"


def side_of_one(value, place):
    """A ratio at `place`, with more digits where rounding would put it on 1 and it is not there."""
    text = bound(value, place)
    while float(text) == 1 and value != 1 and place > -DIGITS_AT_MOST:
        place -= 1
        text = rounded(value, place)
    return text


def ratio(interval, mark=""):
    """`1.33× [1.31, 1.36]`. A bound just beside 1 keeps the digits that tell its side."""
    median, low, high = interval["median"], interval["low"], interval["high"]
    if median is None:
        return NOT_KNOWN
    place = min(0, last_place(interval))
    if low is None or high is None:
        return f"{rounded(median, place)}×{mark}"
    return (
        f"{rounded(median, place)}×{mark} [{side_of_one(low, place)}, {side_of_one(high, place)}]"
    )


def size(count):
    """Bytes with three digits: `412 MiB`."""
    if count is None:
        return NOT_KNOWN
    scale, name = of_unit(count, SIZES)
    return f"{plain(count / scale, 3)} {name}"


def plain(value, digits=DIGITS_ALONE):
    """A number with so many significant digits, never in exponent form; whole digits are kept."""
    if value is None:
        return NOT_KNOWN
    if value == 0:
        return "0"
    leading = math.floor(math.log10(abs(value)))
    return rounded(value, min(0, leading - digits + 1))


def seconds(value):
    """One observed time, two digits: `3.3 s`, `440 ms`; whole seconds and minutes from 100 s on."""
    if value is None:
        return NOT_KNOWN
    if value >= 100:
        return f"{int(value) // 60} min {int(value) % 60} s"
    if value <= 0:
        return "0 s"
    scale, name = of_unit(value * 1e9, TIMES)
    shown = value * 1e9 / scale
    return f"{rounded(shown, math.floor(math.log10(shown)) - DIGITS_ALONE + 1)}{name}"


def error_of(value):
    """A parity error or a tolerance: `2.4e-07`."""
    if value is None:
        return NOT_KNOWN
    return "0" if value == 0 else f"{value:.1e}"


def break_even(steps):
    """When a runtime has earned back what it costs before its first step."""
    if steps is None:
        return NOT_KNOWN
    if steps == "never":
        return "never earned back"
    return f"earned back after {steps:,.0f} steps" if steps else "earned back at once"
