"""A logarithmic axis of speedups, which two pictures share."""

import matplotlib.ticker

from torchpace.report.figures.style import nice_ticks
from torchpace.report.headline import compared

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05)
RATIOS += (1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500, 1000)


def ratio_bounds(cases):
    """Lowest and highest speedup of any interval, with a margin; None where there is none."""
    bounds = [
        interval[key]
        for case in cases
        for interval in (case["noise_floor"], *(r["speedup"] for r in compared(case)))
        for key in ("median", "low", "high")
        if interval[key] is not None and interval[key] > 0
    ]
    if not bounds:
        return None
    low, high = min(*bounds, 0.96), max(*bounds, 1.04)
    margin = (high / low) ** 0.04
    return low / margin, high * margin


def ratio_axes(pen, figure, left, top, width, height, bounds):
    """Axes with ticks above and below, their vertical unit a pixel from the top."""
    axes = pen.axes(figure, left, top, width, height)
    axes.set_xscale("log")
    axes.set_xlim(*bounds)
    axes.set_ylim(height, 0)
    ticks = nice_ticks(*bounds, RATIOS, width)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xticks(ticks, [f"{x:g}×" for x in ticks])
    axes.set_yticks([])
    axes.tick_params(labeltop=True)
    return axes


def draw_noise(pen, axes, noise, top, bottom):
    """The noise band behind one row, and the line of equal speed."""
    if noise["low"] is not None and noise["high"] is not None:
        band = (noise["low"], noise["high"])
        axes.fill_between(band, top, bottom, color=pen.band, linewidth=0)
    axes.plot((1, 1), (top, bottom), color=pen.muted, linewidth=1)


MARKERS = {"FASTER": ">", "SLOWER": "<", "SAME": "s", "REFERENCE": "|", "NONE": "|"}


def verdict_color(pen, verdict):
    """The page's color of a verdict."""
    names = {
        "FASTER": "faster",
        "SLOWER": "slower",
        "INVALID": "slower",
        "IMPLAUSIBLE": "slower",
        "SAME": "ink",
    }
    return pen.colors[names.get(verdict, "muted")]


def draw_interval(pen, axes, speedup, y):
    """A speedup with its interval and the verdict's mark; hollow where it is undecided."""
    color = verdict_color(pen, speedup["verdict"])
    if speedup["low"] is not None and speedup["high"] is not None:
        axes.plot((speedup["low"], speedup["high"]), (y, y), color=color, linewidth=2.5)
    axes.plot(
        speedup["median"],
        y,
        marker=MARKERS.get(speedup["verdict"], "o"),
        markersize=8,
        color=color,
        markerfacecolor=pen.paper if speedup["verdict"] == "UNSURE" else color,
        markeredgewidth=2,
    )
