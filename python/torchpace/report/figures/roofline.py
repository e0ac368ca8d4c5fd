"""How near each runtime comes to what the machine can do: a roofline for each case."""

import math

import matplotlib.ticker
from matplotlib.lines import Line2D

from torchpace.report import units
from torchpace.report.figures.step_times import decades
from torchpace.report.figures.style import TEXT, nice_ticks

TITLE = "Roofline"
CAPTION = (
    "Up: FLOP/s of a step. Across: its FLOPs over the bytes that it must read and write at least. "
    "The solid line is what the machine can do: it rises with the rate of memory reads of a "
    "working set of this size, up to the rate of multiply-adds in registers (the FMA peak). "
    "The percentage is the share of that line at the case's place; both axes are logarithmic."
)
# Pixels of a case's name, of the axis below, of a runtime's name, of the ticks to the left.
HEADING, FOOT, LABEL, LEFT = 26, 52, 16, 44
# An axis ends this factor beyond what it shows.
MARGIN = 2.5
LEAST_HEIGHT = 190


def draw(results, pen):
    """One panel a case, with a mark and a name for each runtime."""
    cases = [case for case in results["cases"] if marks(case)]
    if not cases:
        return None
    handles = [
        Line2D([], [], color=pen.ink, linewidth=2, label="memory reads, then FMA peak"),
        Line2D([], [], color=pen.muted, linestyle=(0, (4, 2.5)), label="GEMM peak"),
    ]
    legend = pen.legend_height([each.get_label() for each in handles]) + 14
    columns = 2 if pen.is_wide and len(cases) > 1 else 1
    width = (pen.width - 32 * (columns - 1)) / columns
    # A single case does not need all of a wide page.
    width = min(width, 600)
    words = [roofs_in_words(pen, case, width) for case in cases]
    heights = [
        HEADING + 16 * len(lines) + 8 + plot_height(case) + FOOT
        for case, lines in zip(cases, words, strict=True)
    ]
    grid = [heights[i : i + columns] for i in range(0, len(cases), columns)]
    figure = pen.figure(legend + sum(max(row) for row in grid))
    pen.legend(figure, 4, handles)
    top = legend
    for i, (case, lines) in enumerate(zip(cases, words, strict=True)):
        draw_case(pen, figure, case, lines, ((i % columns) * (width + 32), top, width))
        if i % columns == columns - 1:
            top += max(grid[i // columns])
    return figure


def marks(case):
    """[(FLOP/s, row)] of the rows that have a share of the limit, the fastest first; implausible
    rows lie above every roof.
    """
    if not case["flops"] or not case["minimum_bytes"] or not all(roofs(case)):
        return []
    rows = [
        (case["flops"] / row["step_ns"]["median"] * 1e9, row)
        for row in case["runtimes"]
        if row["limit_share"] and row["step_ns"]["median"]
        if not row["copy_of"] and not row["implausible"]
    ]
    return sorted(rows, key=lambda mark: -mark[0])


def roofs(case):
    """(FLOP/s, bytes/s) that the machine can do; None where it is not known."""
    return case["limit"].get("flops_per_s"), case["limit"].get("bytes_per_s")


def roofs_in_words(pen, case, width):
    """The measured roofs of a case, in lines of so many pixels."""
    peak, reads = roofs(case)
    parts = [f"FMA peak {units.rate(peak, 'FLOP/s')}"]
    if case["gemm_peak_flops_per_s"]:
        parts.append(f"GEMM peak {units.rate(case['gemm_peak_flops_per_s'], 'FLOP/s')}")
    parts.append(f"memory reads {units.rate(reads, 'B/s')}")
    return pen.wrap(", ".join(parts), width)


def plot_height(case):
    """Pixels of the axes: the names of all marks have room beside them."""
    return max(LEAST_HEIGHT, LABEL * len(marks(case)) + 8)


def draw_case(pen, figure, case, lines, place):
    """The panel of a case at (left, top, width)."""
    left, top, width = place
    pen.text(figure, left, top + HEADING / 2, pen.fit(case["case"], width), fontweight="bold")
    top += HEADING
    for line in lines:
        pen.text(figure, left, top + 8, line, color=pen.muted, fontsize=TEXT - 1)
        top += 16
    height = plot_height(case)
    names = 196 if pen.is_wide else 176
    size = (width - LEFT - names, height)
    axes = pen.axes(figure, left + LEFT, top + 8, *size)
    low, high = bounds(case)
    scale_axes(pen, axes, size, low, high)
    draw_roofs(pen, axes, case, low, high)
    draw_marks(pen, axes, case, size, names)


def bounds(case):
    """((lowest intensity, lowest FLOP/s), (highest, highest)) that the panel shows."""
    peak, reads = roofs(case)
    at, ridge = case["flops"] / case["minimum_bytes"], peak / reads
    rates = [rate for rate, _ in marks(case)]
    highest = max(peak, case["gemm_peak_flops_per_s"] or 0, *rates)
    lowest = min(*rates, peak / 10)
    start, end = min(at, ridge) / MARGIN, max(at, ridge) * MARGIN
    return (start, lowest / 1.6), (end, highest * 1.6)


def scale_axes(pen, axes, size, low, high):
    """Logarithmic axes with ticks as far apart as their words need."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.grid(axis="y", color=pen.grid, linewidth=1)
    scale, prefix = units.of_unit(high[1] / 1.6, units.RATES)
    # A label in the middle of its tick would be cut at the edge.
    edge = (high[0] / low[0]) ** (12 / size[0])
    inner = (low[0] * edge, high[0] / edge)
    across = nice_ticks(*inner, decades(*inner), size[0], gap=44)
    up = nice_ticks(
        low[1] / scale, high[1] / scale, decades(low[1] / scale, high[1] / scale), size[1], gap=30
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xticks(across, [f"{x:g}" for x in across])
    axes.set_yticks([y * scale for y in up], [f"{y:g}" for y in up])
    axes.set_xlabel(f"FLOP per byte (up: {prefix}FLOP/s)", color=pen.muted, fontsize=TEXT)


def draw_roofs(pen, axes, case, low, high):
    """Memory reads up to the ridge, the FMA peak beyond it, and the GEMM peak."""
    peak, reads = roofs(case)
    ridge = peak / reads
    axes.plot((low[0], ridge, high[0]), (low[0] * reads, peak, peak), color=pen.ink, linewidth=2)
    if gemm := case["gemm_peak_flops_per_s"]:
        # Left of where it meets the reads it is no roof.
        axes.plot(
            (max(low[0], gemm / reads), high[0]),
            (gemm, gemm),
            color=pen.muted,
            linewidth=1.5,
            linestyle=(0, (4, 2.5)),
        )
    at = case["flops"] / case["minimum_bytes"]
    axes.plot((at, at), (low[1], min(peak, at * reads)), color=pen.muted, linewidth=1)


def draw_marks(pen, axes, case, size, names):
    """A dot for each runtime at the case's intensity, with its name in a column to the right."""
    at = case["flops"] / case["minimum_bytes"]
    found = marks(case)
    low, high = axes.get_ylim()
    places = [math.log(rate / low) / math.log(high / low) for rate, _ in found]
    for (rate, row), beside in zip(found, spread(places, LABEL / size[1]), strict=True):
        color = pen.of(row["runtime"])
        axes.annotate(
            "",
            xy=(at, rate),
            xytext=(1 + 10 / size[0], beside),
            xycoords="data",
            textcoords="axes fraction",
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            annotation_clip=False,
        )
        axes.plot(at, rate, marker="o", markersize=7, color=color, markeredgecolor=pen.paper)
        share = row["text"]["limit"]
        name = pen.fit(row["runtime"], names - 24 - 8 * len(share))
        axes.text(
            1 + 14 / size[0],
            beside,
            f"{name} · {share}",
            transform=axes.transAxes,
            color=pen.ink,
            va="center",
            fontsize=TEXT - 0.5,
        )


def spread(places, gap):
    """The places, which fall from 1 to 0, moved as little as keeps them `gap` apart and inside."""
    groups = []  # [middle, members] of places that touch
    for place in places:
        groups.append([place, 1])
        while True:
            half = groups[-1][1] * gap / 2
            groups[-1][0] = min(max(groups[-1][0], half), 1 - half)
            if len(groups) < 2 or groups[-2][0] - groups[-2][1] * gap / 2 >= groups[-1][0] + half:
                break
            below, above = groups.pop(), groups.pop()
            members = below[1] + above[1]
            groups.append([(below[0] * below[1] + above[0] * above[1]) / members, members])
    return [
        middle + gap * ((members - 1) / 2 - i) for middle, members in groups for i in range(members)
    ]


def describe(results):
    """The shares of the limits in words."""
    parts = [
        f"{case['case']}, {case['display']['bound']}: "
        + ", ".join(f"{row['runtime']} {row['text']['limit']}" for _, row in marks(case))
        for case in results["cases"]
        if marks(case)
    ]
    return "Shares of what this machine can do. " + "; ".join(parts)
