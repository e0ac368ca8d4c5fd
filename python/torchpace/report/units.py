"""Units of axes and of a machine's facts. Numbers of tables are in the file as text."""

TIMES = ((1e9, " s"), (1e6, " ms"), (1e3, " µs"), (1, " ns"))
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
RATES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
NOT_KNOWN = "n/a"


def of_unit(value, units):
    """The largest unit that is not above the value: (scale, name)."""
    return next((unit for unit in units if abs(value) >= unit[0]), units[-1])


def time(time_ns):
    """`440 ms`, two digits."""
    scale, name = of_unit(time_ns, TIMES)
    return f"{float(f'{time_ns / scale:.2g}'):g}{name}"


def size(count):
    """`412 MiB`, three digits."""
    scale, name = of_unit(count, SIZES)
    return f"{float(f'{count / scale:.3g}'):g} {name}"


def rate(per_s, unit):
    """`134 GFLOP/s`, three digits."""
    scale, prefix = of_unit(per_s, RATES)
    return f"{float(f'{per_s / scale:.3g}'):g} {prefix}{unit}"
