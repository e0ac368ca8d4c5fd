"""Speedups over the reference as a forest plot."""

import matplotlib.ticker

from torchpace.report import words
from torchpace.report.figures.pen import TEXT, nice_ticks

TITLE = "Speedup"
CAPTION = (
    "Each mark is a speedup over the reference, the line its interval. The grey band is the "
    "interval of the reference against a second copy of itself: what this machine calls different "
    "although nothing differs. Right of 1 is faster."
)
MARKERS = {"FASTER": ">", "SLOWER": "<", "SAME": "s", "REFERENCE": "|", "NONE": "|"}
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05)
RATIOS += (1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500, 1000)


def speedup_rows(case):
    """Rows of the forest plot: all but the reference and its copy."""
    return [r for r in case["runtimes"] if r["runtime"] != case["reference"] and not r["copy_of"]]


def verdict_text(row):
    """What stands beside a row."""
    if row["status"] != "ok":
        return row["status"] + (f": {row['reason']}" if row["reason"] else "")
    word = row["speedup"]["verdict"]
    return ("" if word == "NONE" else f"{word} ") + words.ratio(row["speedup"])


def draw(results, pen):
    """Forest plot on a logarithmic axis: one group per case, the noise band behind it."""
    cases = [case for case in results["cases"] if speedup_rows(case)]
    bounds = [
        interval[key]
        for case in cases
        for interval in (case["noise_floor"], *(r["speedup"] for r in speedup_rows(case)))
        for key in ("median", "low", "high")
        if interval[key] is not None and interval[key] > 0
    ]
    if not bounds:
        return None
    heading, step, gap, foot = 24, 24 if pen.is_wide else 40, 14, 42
    rows = sum(len(speedup_rows(case)) for case in cases)
    height = len(cases) * (heading + gap) + rows * step + foot
    left, right = (190, 290) if pen.is_wide else (8, 8)
    width = pen.width - left - right
    figure = pen.figure(height)
    axes = pen.axes(figure, left, 0, width, height - foot)
    low, high = min(*bounds, 0.96), max(*bounds, 1.04)
    margin = (high / low) ** 0.04
    low, high = low / margin, high * margin
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(height - foot, 0)
    ticks = nice_ticks(low, high, RATIOS, width)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xticks(ticks, [f"{x:g}×" for x in ticks])
    axes.set_yticks([])
    axes.grid(pen.is_wide, axis="x")
    axes.set_xlabel("speedup over the reference (logarithmic)", color=pen.muted, fontsize=TEXT)
    y = 0
    for case in cases:
        pen.text(
            figure,
            0,
            y + heading / 2,
            pen.fit(case["case"], pen.width - 8),
            fontweight="bold",
            # Keeps the grid from running through the words.
            bbox={"facecolor": pen.paper, "edgecolor": "none", "pad": 2},
        )
        y += heading
        for row in speedup_rows(case):
            # On a phone the words stand above the interval, and nothing runs through them.
            draw_noise(pen, axes, case["noise_floor"], y if pen.is_wide else y + step / 2, y + step)
            draw_speedup(pen, figure, axes, row, y, step, left)
            y += step
        y += gap
    return figure


def draw_noise(pen, axes, noise, top, bottom):
    """The noise band behind one row, and the line of equal speed."""
    if noise["low"] is not None and noise["high"] is not None:
        band = (noise["low"], noise["high"])
        axes.fill_between(band, top, bottom, color=pen.band, linewidth=0)
    axes.plot((1, 1), (top, bottom), color=pen.muted, linewidth=1)


def draw_speedup(pen, figure, axes, row, y, step, left):
    """One row of the forest plot: name, interval with the verdict's mark, words."""
    speedup = row["speedup"]
    words_beside = verdict_text(row)
    if pen.is_wide:
        middle = y + step / 2
        pen.text(figure, 12, middle, pen.fit(row["runtime"], left - 24))
        pen.text(
            figure,
            pen.width - 274,
            middle,
            pen.fit(words_beside, 274),
            color=pen.ink if row["status"] == "ok" else pen.muted,
        )
    else:
        middle = y + step * 0.74
        name = pen.fit(row["runtime"], 120)
        pen.text(
            figure, 8, y + step * 0.28, f"{name} · {pen.fit(words_beside, 318 - 7 * len(name))}"
        )
    if row["status"] != "ok" or speedup["median"] is None:
        return
    colour = pen.of(row["runtime"])
    if speedup["low"] is not None and speedup["high"] is not None:
        axes.plot((speedup["low"], speedup["high"]), (middle, middle), color=colour, linewidth=2.5)
    axes.plot(
        speedup["median"],
        middle,
        marker=MARKERS.get(speedup["verdict"], "o"),
        markersize=9,
        color=colour,
        markerfacecolor=pen.paper if speedup["verdict"] == "UNSURE" else colour,
        markeredgewidth=2,
    )


def describe(results):
    """The forest plot in words."""
    parts = [
        f"{case['case']}: "
        + ", ".join(f"{row['runtime']} {verdict_text(row)}" for row in speedup_rows(case))
        for case in results["cases"]
        if speedup_rows(case)
    ]
    return "Speedups over the reference. " + "; ".join(parts)
