"""Every sample of every runtime as a dot."""

import math

import matplotlib.ticker

from torchpace.report import units
from torchpace.report.figures.style import STEPS, TEXT, nice_ticks

TITLE = "Step times"
CAPTION = (
    "Every sample that counts as a dot: across, the time of a step; down, in the order measured, "
    "one stripe per fresh process. The line is the median with its interval. Where a few samples "
    "lie far out, they are counted at the edge."
)
# Dots of one runtime on one case, and of the picture, beyond which only every n-th is drawn.
DOTS_AT_MOST = 1500
DOTS_OF_ALL = 40_000
DOTS_AT_LEAST = 150
# Pixels of a case's name, of a runtime's lane, and of the axis below.
HEADING, LANE, FOOT = 26, 58, 52


def draw(results, pen):
    """One panel a case; in it a lane a runtime, and in that a stripe an invocation."""
    cases = [case for case in results["cases"] if any(map(any, map(times, measured(case))))]
    if not cases:
        return None
    columns = 2 if pen.is_wide and len(cases) > 1 else 1
    heights = [HEADING + LANE * len(measured(case, copies=True)) + FOOT for case in cases]
    grid = [heights[i : i + columns] for i in range(0, len(cases), columns)]
    figure = pen.figure(sum(max(row) for row in grid))
    width = (pen.width - 32 * (columns - 1)) / columns
    lanes = sum(len(measured(case, copies=True)) for case in cases)
    share = min(DOTS_AT_MOST, max(DOTS_AT_LEAST, DOTS_OF_ALL // lanes))
    top = 0
    for i, case in enumerate(cases):
        left = (i % columns) * (width + 32)
        draw_samples(pen, figure, case, left, top, width, share)
        if i % columns == columns - 1:
            top += max(grid[i // columns])
    return figure


def measured(case, copies=False):
    """Rows with samples."""
    return [r for r in case["runtimes"] if r["status"] == "ok" and (copies or not r["copy_of"])]


def draw_samples(pen, figure, case, left, top, width, share):
    """The panel of a case, with at most `share` dots a runtime."""
    rows = measured(case, copies=True)
    pen.text(figure, left, top + HEADING / 2, pen.fit(case["case"], width), fontweight="bold")
    axes = pen.axes(figure, left + 8, top + HEADING, width - 16, LANE * len(rows))
    axes.set_yticks([])
    axes.set_ylim(LANE * len(rows), 0)
    lanes = [[x for invocation in times(row) for x in invocation] for row in rows]
    low = min(min(lane_ns) for lane_ns in lanes if lane_ns)
    high = window(lanes)
    is_log = high > 3 * low
    scale, unit = (1, "") if is_log else units.of_unit(low, units.TIMES)
    low, high = low / scale, high / scale
    if is_log:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.1, high * 1.1)
        # A label in the middle of its tick would be cut at the edge.
        edge = (high / low) ** (20 / width)
        ticks = nice_ticks(low * edge, high / edge, decades(low, high), width - 40, gap=64)
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.set_xticks(ticks, [tick_name(x) for x in ticks])
    else:
        margin = 0.05 * (high - low) or 0.05 * high
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(max(3, int(width / 90)), steps=STEPS)
        )
    axes.set_xlabel(f"{unit.strip() or 'time'} per step", color=pen.muted, fontsize=TEXT)
    for i, row in enumerate(rows):
        xs, ys, thinned = dots(row, share)
        y = i * LANE
        name = row["runtime"] + (" (A/A copy)" if row["copy_of"] else "")
        if thinned > 1:
            name += f", every {thinned}th sample"
        axes.plot(
            [x / scale for x in xs if x / scale <= high],
            [y + 20 + 26 * at for x, at in zip(xs, ys, strict=True) if x / scale <= high],
            linestyle="none",
            marker=",",
            color=pen.of(row["runtime"]),
        )
        replace_by_dots(axes.lines[-1], width - 16)
        if beyond := [x for x in lanes[i] if x / scale > high]:
            longest = units.time(max(beyond))
            axes.text(
                1,
                y + 50,
                f"{len(beyond)} beyond, to {longest} ▸",
                transform=axes.get_yaxis_transform(),
                color=pen.muted,
                ha="right",
                va="center",
                fontsize=TEXT - 1,
                bbox={"facecolor": pen.paper, "edgecolor": "none", "pad": 1},
            )
        median = row["step_ns"]
        if median["median"] is not None:
            bar = y + 50
            axes.plot(median["median"] / scale, bar, marker="|", markersize=9, color=pen.ink, mew=2)
            if median["low"] is not None and median["high"] is not None:
                ends = (median["low"] / scale, median["high"] / scale)
                axes.plot(ends, (bar, bar), color=pen.ink, linewidth=2)
        text = f"{pen.fit(name, width - 150)} · {row['text']['step']}"
        axes.text(
            0,
            y + 10,
            text,
            transform=axes.get_yaxis_transform(),
            color=pen.ink,
            va="center",
            fontsize=TEXT - 0.5,
        )


def window(lanes):
    """Right end of the axis in ns: where few samples would take most of it, they are counted at the
    edge instead. At least 95 % of every lane is inside.
    """
    lanes = [sorted(lane) for lane in lanes if lane]
    low, high = min(lane[0] for lane in lanes), max(lane[-1] for lane in lanes)
    inside = max(lane[int(0.95 * (len(lane) - 1))] for lane in lanes)
    end = inside + 0.4 * (inside - low)
    return end if end - low < 0.6 * (high - low) else high


def times(row):
    """Step times in ns, a list an invocation that has any, in the order measured: of the rounds
    that are not excluded.
    """
    invocations = [
        [
            x
            for turn in g["rounds"]
            if not turn.get("excluded")
            for x in turn["step_ns"]
            if x is not None and x > 0
        ]
        for g in row["invocations"]
    ]
    return [times for times in invocations if times]


def dots(row, at_most):
    """Samples of a row: times in ns, places in the order from 0 to 1, every how many."""
    invocations = times(row)
    thinned = max(1, math.ceil(sum(map(len, invocations)) / at_most))
    xs, ys = [], []
    for i, samples in enumerate(invocations):
        for j, x in enumerate(samples):
            if j % thinned == 0:
                xs.append(x)
                # A stripe takes 0.7 of its share, so that invocations are apart.
                ys.append((i + 0.7 * (j + 0.5) / len(samples)) / len(invocations))
    return xs, ys, thinned


def replace_by_dots(line, width):
    """Turns points into very short strokes with round ends: one path, a quarter of the bytes."""
    low, high = line.axes.get_xlim()
    is_log = line.axes.get_xscale() == "log"
    xs, ys = [], []
    for x, y in zip(*line.get_data(), strict=True):
        end = x * (high / low) ** (0.3 / width) if is_log else x + (high - low) * 0.3 / width
        xs += [x, end, math.nan]
        ys += [y, y, math.nan]
    line.set_data(xs, ys)
    line.set_marker("")
    line.set_linestyle("-")
    line.set_linewidth(2.2)
    line.set_solid_capstyle("round")
    line.set_alpha(0.75)


def decades(low, high):
    """1, 2, 5, 10, ... from below low to above high."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]


def tick_name(time_ns):
    """A tick with its unit, since a logarithmic axis spans several: `200 µs`."""
    scale, unit = units.of_unit(time_ns, units.TIMES)
    return f"{time_ns / scale:g}{unit}"


def describe(results):
    """The step times in words."""
    parts = [
        f"{case['case']}: "
        + ", ".join(f"{r['runtime']} {r['text']['step']}" for r in measured(case))
        for case in results["cases"]
        if measured(case)
    ]
    return "Times of all steps; medians with intervals are: " + "; ".join(parts)
