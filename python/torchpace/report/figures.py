"""The report's pictures: drawn once for a wide page, once for a phone, and as PNG.

All lengths are CSS pixels: a figure is made at 72 dots per inch, so one point is one pixel of the
page. SVG colours are the page's variables, so that one drawing serves light and dark.
"""

import contextlib
import io
import math
import re
import warnings
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from torchpace.report import words

WIDE = 960
NARROW = 350
TEXT = 12
PNG_DPI = 144
# Dots of one runtime on one case beyond which only every n-th is drawn.
DOTS_AT_MOST = 1500

# Blue, vermilion, green, purple, amber, sky after Okabe & Ito 2008, for white paper.
SERIES = ("#0067a5", "#c8500a", "#007d5b", "#a8487f", "#9a6b00", "#2b86b8")
INKS = {
    "ink": "#1c2126",
    "muted": "#5b6570",
    "grid": "#dfe3e7",
    "band": "#dfe5ea",
    "paper": "#ffffff",
}
# Names of colours in the order of their stand-ins #fe0000, #fe0001, ... which become var(--name).
NAMES = (*INKS, *(f"series-{i}" for i in range(len(SERIES))))
STAND_INS = {name: f"#fe{i:04x}" for i, name in enumerate(NAMES)}
PAPER = INKS | {f"series-{i}": colour for i, colour in enumerate(SERIES)}

MARKERS = {"FASTER": ">", "SLOWER": "<", "SAME": "s", "REFERENCE": "|", "NONE": "|"}
DASHES = ("-", (0, (4, 2.5)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
STAGES = {"start": "start", "load": "load", "build": "build", "first_step": "first step"}
MEMORY = {
    "resident": "resident",
    "device_allocated": "device, allocated",
    "device_reserved": "device, reserved",
}
# Leading digits of ticks.
STEPS = (1, 2, 2.5, 5, 10)
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05)
RATIOS += (1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Picture:
    """One picture of the report."""

    name: str
    title: str
    caption: str
    alt: str
    wide: str
    narrow: str
    png: bytes


def draw_all(results):
    """The pictures that the results have something for, in reading order."""
    colours = runtime_colours(results)
    drawn = (
        picture(results, colours, *parts)
        for parts in (
            (
                "speedup",
                "Speedup",
                speedup_figure,
                "Each mark is a speedup over the reference, the line its interval. The grey band "
                "is the interval of the reference against a second copy of itself: what this "
                "machine calls different although nothing differs. Right of 1 is faster.",
                speedup_alt,
            ),
            (
                "step_times",
                "Step times",
                step_times_figure,
                "Every sample as a dot: across, the time of a step; down, in the order measured, "
                "one stripe per fresh process. The line is the median with its interval. Where a "
                "few samples lie far out, they are counted at the edge.",
                step_times_alt,
            ),
            (
                "curves",
                "Training losses",
                curves_figure,
                "Losses of the runtimes on the same batches from the same start; below, the "
                "distance to the reference. ln V is the loss of a uniform guess.",
                curves_alt,
            ),
            (
                "cold",
                "Cold start",
                cold_figure,
                "One fresh process each, until its first step is done.",
                cold_alt,
            ),
            (
                "memory",
                "Peak memory",
                memory_figure,
                "Peak of one fresh process each, runtime and libraries included.",
                memory_alt,
            ),
        )
    )
    return [one for one in drawn if one is not None]


def picture(results, colours, name, title, draw, caption, alt):
    """Draws one picture in its three forms; None when there is nothing to draw."""
    svgs = []
    for width in (WIDE, NARROW):
        with drawing():
            figure = draw(results, Pen(width, STAND_INS, colours))
            if figure is None:
                return None
            svgs.append(svg_of(figure, f"{name}-{width}", alt(results)))
    with drawing():
        buffer = io.BytesIO()
        draw(results, Pen(WIDE, PAPER, colours)).savefig(
            buffer, format="png", dpi=PNG_DPI, facecolor=PAPER["paper"], metadata={"Software": None}
        )
    return Picture(name, title, caption, alt(results), *svgs, buffer.getvalue())


SETTINGS = {
    "font.size": TEXT,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "torchpace",
    # A runtime may be named $x$.
    "text.parse_math": False,
    # Simplifying would drop the short strokes that stand for dots.
    "path.simplify": False,
}


@contextlib.contextmanager
def drawing():
    """Settings of matplotlib while a picture is drawn; silent on letters that its font lacks."""
    with warnings.catch_warnings(), matplotlib.rc_context(SETTINGS):
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def svg_of(figure, name, alt):
    """The figure as an SVG element for a page: variables for colours, the page's font, own ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"\sid=\"(?![mp][0-9a-f]{10})[^\"]*\"", "", svg)
    svg = re.sub(r"(id=\"|href=\"#|url\(#)(?=[mp][0-9a-f]{10})", rf"\g<1>{name}-", svg)
    svg = re.sub(r" d=\"[^\"]*\"", lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", r"font-size: \2px; font-weight: \1", svg)
    svg = svg.replace("font-weight: ;", "").replace('font-weight: "', '"')
    for colour, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{colour})")
    head = re.match(r"<svg[^>]*>", svg)[0]
    box = re.search(r"viewBox=\"[^\"]*\"", head)[0]
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box}'
    )
    return f'{start} role="img" aria-label={quoteattr(alt)}>{svg[len(head) :]}'


class Pen:
    """Width, colours and the habits that all figures share."""

    def __init__(self, width, colours, runtimes):
        self.width = width
        self.colours = colours
        self.runtimes = runtimes
        self.is_wide = width == WIDE

    def __getattr__(self, name):
        return self.colours[name]

    def of(self, runtime):
        """Colour of a runtime; the A/A copy has that of the reference."""
        return self.colours[f"series-{self.runtimes[runtime] % len(SERIES)}"]

    def dashes(self, runtime):
        """Line style of a runtime, so that colour is not all that tells them apart."""
        return DASHES[self.runtimes[runtime] % len(DASHES)]

    def figure(self, height):
        """An empty figure of so many pixels."""
        return Figure(figsize=(self.width / 72, height / 72), dpi=72)

    def axes(self, figure, left, top, width, height):
        """Axes at a place counted in pixels from the upper left corner, with nothing but a grid."""
        full = figure.get_size_inches() * 72
        axes = figure.add_axes(
            (left / full[0], 1 - (top + height) / full[1], width / full[0], height / full[1])
        )
        axes.set_facecolor("none")
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0, colors=self.muted, labelsize=TEXT - 1, pad=4)
        axes.grid(axis="x", color=self.grid, linewidth=1)
        axes.set_axisbelow(True)
        return axes

    def text(self, figure, x, y, text, **style):
        """Text at a place counted in pixels from the upper left corner."""
        full = figure.get_size_inches() * 72
        style = {"color": self.ink, "fontsize": TEXT, "va": "center"} | style
        figure.text(x / full[0], 1 - y / full[1], text, **style)

    def fit(self, text, pixels, size=TEXT):
        """The text, shortened in the middle to about so many pixels."""
        room = max(6, int(pixels / (size * 0.6)))
        if len(text) <= room:
            return text
        return text[: room - room // 3 - 1] + "…" + text[len(text) - room // 3 :]

    def legend(self, figure, y, entries):
        """A row of samples and names at height y, from (handle) artists with labels."""
        full = figure.get_size_inches() * 72
        figure.legend(
            handles=entries,
            loc="upper left",
            bbox_to_anchor=(0, 1 - y / full[1]),
            ncol=len(entries) if self.is_wide else 1,
            frameon=False,
            labelcolor=self.ink,
            fontsize=TEXT,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.6,
            columnspacing=1.6,
        )
        return 20 if self.is_wide else 20 * len(entries)


def runtime_colours(results):
    """runtime -> index of its colour, in the order of the plan."""
    order = dict.fromkeys(results["plan"]["runtimes"])
    for case in results["cases"]:
        order |= dict.fromkeys((case["reference"], *case["curves"]))
        order |= dict.fromkeys(r["runtime"] for r in case["runtimes"] if not r["copy_of"])
    colours = {name: i for i, name in enumerate(order)}
    for case in results["cases"]:
        for row in case["runtimes"]:
            if row["copy_of"]:
                colours[row["runtime"]] = colours.get(row["copy_of"], 0)
    return colours


def measured(case, copies=False):
    """Rows with samples."""
    return [r for r in case["runtimes"] if r["status"] == "ok" and (copies or not r["copy_of"])]


def nice_ticks(low, high, candidates, pixels, gap=46):
    """Candidates within [low, high] on a logarithmic axis, at least `gap` pixels apart."""
    inside = [x for x in candidates if low <= x <= high]
    span = math.log(high / low)
    kept = [1] if 1 in inside else inside[:1]
    for x in sorted(inside, key=lambda x: abs(math.log(x))):
        if all(abs(math.log(x / y)) / span * pixels >= gap for y in kept):
            kept.append(x)
    return sorted(kept)


# Speedup


def speedup_rows(case):
    """Rows of the forest plot: all but the reference and its copy."""
    return [r for r in case["runtimes"] if r["runtime"] != case["reference"] and not r["copy_of"]]


def verdict_text(row):
    """What stands beside a row."""
    if row["status"] != "ok":
        return row["status"] + (f": {row['reason']}" if row["reason"] else "")
    word = row["speedup"]["verdict"]
    return ("" if word == "NONE" else f"{word} ") + words.ratio(row["speedup"])


def speedup_figure(results, pen):
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


def speedup_alt(results):
    """The forest plot in words."""
    parts = [
        f"{case['case']}: "
        + ", ".join(f"{row['runtime']} {verdict_text(row)}" for row in speedup_rows(case))
        for case in results["cases"]
        if speedup_rows(case)
    ]
    return "Speedups over the reference. " + "; ".join(parts)


# Step times


def step_times_figure(results, pen):
    """One panel a case; in it a lane a runtime, and in that a stripe a generation."""
    cases = [case for case in results["cases"] if any(map(any, map(times, measured(case))))]
    if not cases:
        return None
    columns = 2 if pen.is_wide and len(cases) > 1 else 1
    lane, heading, foot = 58, 26, 52
    heights = [heading + lane * len(measured(case, copies=True)) + foot for case in cases]
    grid = [heights[i : i + columns] for i in range(0, len(cases), columns)]
    figure = pen.figure(sum(max(row) for row in grid))
    width = (pen.width - 32 * (columns - 1)) / columns
    top = 0
    for i, case in enumerate(cases):
        left = (i % columns) * (width + 32)
        draw_samples(pen, figure, case, left, top, width, heading, lane)
        if i % columns == columns - 1:
            top += max(grid[i // columns])
    return figure


def draw_samples(pen, figure, case, left, top, width, heading, lane):
    """The panel of a case."""
    rows = measured(case, copies=True)
    pen.text(figure, left, top + heading / 2, pen.fit(case["case"], width), fontweight="bold")
    axes = pen.axes(figure, left + 8, top + heading, width - 16, lane * len(rows))
    axes.set_yticks([])
    axes.set_ylim(lane * len(rows), 0)
    lanes = [[x for generation in times(row) for x in generation] for row in rows]
    low = min(min(lane_ns) for lane_ns in lanes if lane_ns)
    high = window(lanes)
    is_log = high > 3 * low
    scale, unit = (1, "") if is_log else words.of_unit(low, words.TIMES)
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
        xs, ys, thinned = dots(row)
        y = i * lane
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
            longest = words.seconds(max(beyond) / 1e9)
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
        text = f"{pen.fit(name, width - 150)} · {words.duration(median)}"
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
    """Step times in ns, a list a generation, in the order measured."""
    return [
        [x for turn in g["rounds"] for x in turn["step_ns"] if x is not None and x > 0]
        for g in row["generations"]
    ]


def dots(row):
    """Samples of a row: times in ns, places in the order from 0 to 1, every how many."""
    generations = times(row)
    thinned = max(1, math.ceil(sum(map(len, generations)) / DOTS_AT_MOST))
    xs, ys = [], []
    for i, samples in enumerate(generations):
        for j, x in enumerate(samples):
            if j % thinned == 0:
                xs.append(x)
                # A stripe takes 0.7 of its share, so that generations are apart.
                ys.append((i + 0.7 * (j + 0.5) / len(samples)) / len(generations))
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
    scale, unit = words.of_unit(time_ns, words.TIMES)
    return f"{time_ns / scale:g}{unit}"


def step_times_alt(results):
    """The step times in words."""
    parts = [
        f"{case['case']}: "
        + ", ".join(f"{r['runtime']} {words.duration(r['step_ns'])}" for r in measured(case))
        for case in results["cases"]
        if measured(case)
    ]
    return "Times of all steps; medians with intervals are: " + "; ".join(parts)


# Training losses


def curves_figure(results, pen):
    """Losses above, distance to the reference's losses below, a row a case."""
    cases = [c for c in results["cases"] if any(known(losses) for losses in c["curves"].values())]
    if not cases:
        return None
    heading, tall, short, foot = 26, 230, 120, 56
    legends = [legend_of_curves(pen, case) for case in cases]
    rows = [20 if pen.is_wide else 20 * len(entries) for entries in legends]
    apart = [len(case["curves"]) > 1 and case["reference"] in case["curves"] for case in cases]
    panel = [tall + foot + (short + foot if both else 0) for both in apart]
    figure = pen.figure(sum(heading + 24 + r + p for r, p in zip(rows, panel, strict=True)))
    top = 0
    left, width = 52, pen.width - 52 - 16
    for case, entries, legend, both in zip(cases, legends, rows, apart, strict=True):
        pen.text(figure, 0, top + heading / 2, pen.fit(case["case"], pen.width), fontweight="bold")
        top += heading
        pen.legend(figure, top, entries)
        top += legend + 24
        axes = pen.axes(figure, left, top, width, tall)
        draw_losses(pen, axes, case)
        top += tall + foot
        if both:
            below = pen.axes(figure, left, top, width, short)
            draw_distances(pen, below, case)
            below.set_xlim(axes.get_xlim())
            top += short + foot
    return figure


def known(losses):
    """Losses that are numbers."""
    return [x for x in losses if x is not None]


def legend_of_curves(pen, case):
    """One sample of each curve; the first is the widest, since equal curves cover each other."""
    return [
        Line2D([], [], label=pen.fit(name, 280), **curve_style(pen, i, name))
        for i, name in enumerate(case["curves"])
    ]


def curve_style(pen, i, name):
    """The first curve is broad and pale, those above it thin."""
    if i == 0:
        return {"color": pen.of(name), "linewidth": 5, "alpha": 0.35, "solid_capstyle": "round"}
    return {"color": pen.of(name), "linewidth": 1.6, "linestyle": pen.dashes(name)}


def draw_losses(pen, axes, case):
    """All curves of a case with the line of a uniform guess."""
    axes.grid(axis="y", color=pen.grid, linewidth=1)
    for i, (name, losses) in enumerate(case["curves"].items()):
        losses = [math.nan if x is None else x for x in losses]
        axes.plot(range(1, len(losses) + 1), losses, **curve_style(pen, i, name))
    vocabulary = case["settings"].get("vocabulary", "")
    if vocabulary.isdigit() and int(vocabulary) > 1:
        uniform = math.log(int(vocabulary))
        axes.axhline(uniform, color=pen.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"ln {vocabulary} = {uniform:.2f}: a uniform guess",
            (1, uniform),
            xycoords=("axes fraction", "data"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            color=pen.muted,
            fontsize=TEXT - 1,
            bbox={"facecolor": pen.paper, "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
        axes.set_ylim(top=max(axes.get_ylim()[1], uniform + 0.06 * uniform))
    label_steps(pen, axes, "loss, nats")


def draw_distances(pen, axes, case):
    """Distance of each curve to the reference's, logarithmic; zeros have no place on it."""
    axes.grid(axis="y", color=pen.grid, linewidth=1)
    reference = case["curves"][case["reference"]]
    least = math.inf
    for name, losses in case["curves"].items():
        if name == case["reference"]:
            continue
        apart = [
            math.nan if None in pair else abs(pair[0] - pair[1])
            for pair in zip(losses, reference, strict=False)
        ]
        apart = [x if x > 0 else math.nan for x in apart]
        least = min([least, *(x for x in apart if x > 0)])
        axes.plot(
            range(1, len(apart) + 1),
            apart,
            color=pen.of(name),
            linewidth=1.2,
            marker="o",
            markersize=2,
        )
    if least < math.inf:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(numticks=5))
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no difference", transform=axes.transAxes, color=pen.muted, ha="center")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:.0e}"))
    label_steps(pen, axes, "|difference|, nats")


def label_steps(pen, axes, what):
    """Names of the axes; that of the vertical one lies above it."""
    axes.set_xlabel("training step", color=pen.muted, fontsize=TEXT)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True, steps=STEPS))
    axes.annotate(
        what,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        ha="left",
        va="bottom",
        color=pen.muted,
        fontsize=TEXT,
    )


def curves_alt(results):
    """The curves in words."""
    parts = []
    for case in results["cases"]:
        for name, losses in case["curves"].items():
            if numbers := known(losses):
                parts.append(
                    f"{case['case']}, {name}: from {numbers[0]:.3f} to {numbers[-1]:.3f} nats "
                    f"in {len(losses)} steps"
                )
    return "Training losses. " + "; ".join(parts)


# Cold start and memory: horizontal bars


def cold_figure(results, pen):
    """Stacked bars: the stages of a fresh process up to its first step."""
    known_stages = [*STAGES]
    for case in results["cases"]:
        for row in case["runtimes"]:
            known_stages += [name for name in row["cold_s"] if name not in known_stages]
    used = [s for s in known_stages if any(present(results, "cold_s", s))]
    if not used:
        return None

    def parts(row):
        return [row["cold_s"].get(stage) or 0 for stage in used]

    names = [STAGES.get(stage, stage) for stage in used]
    return bars(
        results, pen, "cold_s", parts, names, lambda values: words.seconds(sum(values)), "seconds"
    )


def memory_figure(results, pen):
    """Bars side by side in one row: resident, and on a device what was allocated and reserved."""
    used = [kind for kind in MEMORY if any(present(results, "peak_bytes", kind))]
    if not used:
        return None

    def parts(row):
        return [(row["peak_bytes"].get(kind) or 0) / 2**20 for kind in used]

    def text(values):
        return ", ".join(words.size(v * 2**20) for v in values if v)

    names = [MEMORY[kind] for kind in used]
    return bars(results, pen, "peak_bytes", parts, names, text, "MiB", stacked=False)


def present(results, key, name):
    """Values of a named number over all rows."""
    return [row[key].get(name) for case in results["cases"] for row in case["runtimes"]]


def bars(results, pen, key, parts, names, text, unit, stacked=True):
    """Horizontal bars by case; `parts` gives a row's values, `text` what stands beside."""
    cases = [
        (c, [r for r in c["runtimes"] if r[key] and not r["copy_of"]]) for c in results["cases"]
    ]
    cases = [(case, rows) for case, rows in cases if rows]
    heading, gap, foot = 24, 12, 42
    bar = 12 if stacked or len(names) == 1 else 6 * len(names)
    step = bar + 12 if pen.is_wide else bar + 26
    handles = [
        Patch(facecolor=pen.colours[f"series-{i}"], label=name) for i, name in enumerate(names)
    ]
    legend = 0 if len(names) == 1 else (26 if pen.is_wide else 20 * len(names) + 6)
    body = sum(heading + step * len(rows) + gap for _, rows in cases)
    figure = pen.figure(legend + body + foot)
    if legend:
        pen.legend(figure, 0, handles)
    left, right = (190, 170) if pen.is_wide else (8, 8)
    axes = pen.axes(figure, left, legend, pen.width - left - right, body)
    axes.set_ylim(body, 0)
    axes.set_yticks([])
    totals = [sum(parts(r)) if stacked else max(parts(r)) for _, rows in cases for r in rows]
    axes.set_xlim(0, 1.03 * max(totals) or 1)
    axes.xaxis.set_major_locator(
        matplotlib.ticker.MaxNLocator(7 if pen.is_wide else 4, steps=STEPS)
    )
    axes.set_xlabel(unit, color=pen.muted, fontsize=TEXT)
    y = 0
    for case, rows in cases:
        pen.text(
            figure,
            0,
            legend + y + heading / 2,
            pen.fit(case["case"], pen.width - 8),
            fontweight="bold",
            bbox={"facecolor": pen.paper, "edgecolor": "none", "pad": 2},
        )
        y += heading
        for row in rows:
            values = parts(row)
            name, beside = row["runtime"], text(values)
            if pen.is_wide:
                middle = y + step / 2
                pen.text(figure, 12, legend + middle, pen.fit(name, left - 24))
                pen.text(
                    figure, pen.width - right + 12, legend + middle, pen.fit(beside, right - 12)
                )
            else:
                middle = y + step - 4 - bar / 2
                beside = f"{pen.fit(name, 200)} · {beside}"
                pen.text(figure, 8, legend + y + 11, pen.fit(beside, 336))
            draw_bars(pen, axes, values, middle, bar, stacked)
            y += step
        y += gap
    return figure


def draw_bars(pen, axes, values, middle, height, stacked):
    """The bars of one row, end to end or one below the other."""
    start = 0
    for i, value in enumerate(values):
        place, thick = middle, height
        if not stacked:
            thick = height / len(values)
            place = middle + (i - (len(values) - 1) / 2) * thick
        axes.barh(
            place,
            value,
            thick,
            left=start if stacked else 0,
            color=pen.colours[f"series-{i % len(SERIES)}"],
            edgecolor=pen.paper,
            linewidth=1,
        )
        start += value


def cold_alt(results):
    """Cold starts in words."""
    return "Cold start of a fresh process. " + bar_words(
        results, "cold_s", lambda k, v: f"{STAGES.get(k, k)} {words.seconds(v)}"
    )


def memory_alt(results):
    """Peak memory in words."""
    return "Peak memory of a fresh process. " + bar_words(
        results, "peak_bytes", lambda k, v: f"{MEMORY.get(k, k)} {words.size(v)}" if v else ""
    )


def bar_words(results, key, phrase):
    """All values of a kind in words."""
    parts = []
    for case in results["cases"]:
        for row in case["runtimes"]:
            said = [phrase(k, v) for k, v in row[key].items()]
            if any(said) and not row["copy_of"]:
                parts.append(f"{case['case']}, {row['runtime']}: {', '.join(filter(None, said))}")
    return "; ".join(parts)
