"""What all pictures share: sizes, colors, axes, ticks, and how a figure becomes SVG.

All lengths are CSS pixels: a figure is made at 72 dots per inch, so one point is one pixel of the
page. SVG colors are the page's variables, so that one drawing serves light and dark.
"""

import contextlib
import io
import math
import re
import textwrap
import warnings
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.figure import Figure

WIDE = 960
NARROW = 350
TEXT = 12
# Height of a line of text.
LINE = 18
# Blue, vermilion, green, purple, amber, sky after Okabe & Ito 2008, for white paper.
SERIES = ("#0067a5", "#c8500a", "#007d5b", "#a8487f", "#9a6b00", "#2b86b8")
# Names are those of the page's variables; "faster" and "slower" are the colors of verdicts.
INKS = {
    "ink": "#1c2126",
    "muted": "#5b6570",
    "grid": "#dfe3e7",
    "band": "#dfe5ea",
    "paper": "#ffffff",
    "faster": "#0067a5",
    "slower": "#b4460a",
}
# Names of colors in the order of their stand-ins #fe0000, #fe0001, ... which become var(--name).
NAMES = (*INKS, *(f"series-{i}" for i in range(len(SERIES))))
STAND_INS = {name: f"#fe{i:04x}" for i, name in enumerate(NAMES)}
PAPER = INKS | {f"series-{i}": color for i, color in enumerate(SERIES)}

DASHES = ("-", (0, (4, 2.5)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
# Leading digits of ticks.
STEPS = (1, 2, 2.5, 5, 10)

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
    """The figure as an SVG element for a page: variables for colors, the page's font, own ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"\sid=\"(?![hmp][0-9a-f]{10})[^\"]*\"", "", svg)
    svg = re.sub(r"(id=\"|href=\"#|url\(#)(?=[hmp][0-9a-f]{10})", rf"\g<1>{name}-", svg)
    svg = re.sub(r" d=\"[^\"]*\"", lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", r"font-size: \2px; font-weight: \1", svg)
    svg = svg.replace("font-weight: ;", "").replace('font-weight: "', '"')
    for color, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{color})")
    head = re.match(r"<svg[^>]*>", svg)[0]
    box = re.search(r"viewBox=\"[^\"]*\"", head)[0]
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box}'
    )
    return f'{start} role="img" aria-label={quoteattr(alt)}>{svg[len(head) :]}'


class Pen:
    """Width, colors and the habits that all figures share."""

    def __init__(self, width, colors, runtimes):
        self.width = width
        self.colors = colors
        self.runtimes = runtimes
        self.is_wide = width == WIDE

    def __getattr__(self, name):
        return self.colors[name]

    def of(self, runtime):
        """Color of a runtime; the A/A copy has that of the reference."""
        return self.series(self.runtimes[runtime])

    def series(self, i):
        """The i-th color of a series, from the first on again after the last."""
        return self.colors[f"series-{i % len(SERIES)}"]

    def dashes(self, runtime):
        """Line style of a runtime, so that color is not all that tells them apart."""
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

    def wrap(self, text, pixels, size=TEXT):
        """The text in lines of about so many pixels."""
        return textwrap.wrap(text, max(12, int(pixels / (size * 0.56))))

    def lines(self, figure, y, lines):
        """Lines of muted text from height y on, each `LINE` pixels high."""
        for i, line in enumerate(lines):
            self.text(figure, 0, y + (i + 0.5) * LINE, line, color=self.muted, bbox=self.plate)

    @property
    def plate(self):
        """What keeps a grid from running through words."""
        return {"facecolor": self.paper, "edgecolor": "none", "pad": 2}

    def heading(self, figure, y, text):
        """A case's name, 24 pixels high."""
        text = self.fit(text, self.width - 8)
        self.text(figure, 0, y + 12, text, fontweight="bold", bbox=self.plate)

    def legend_columns(self, labels):
        """How many samples with these names fit beside one another."""
        widest = max(map(len, labels), default=1) * TEXT * 0.6 + 3.2 * TEXT
        return max(1, min(len(labels), int(self.width / widest)))

    def legend_height(self, labels):
        """Pixels that the legend takes."""
        return 20 * math.ceil(len(labels) / self.legend_columns(labels))

    def legend(self, figure, y, entries):
        """Samples and names at height y, from (handle) artists with labels; returns its height."""
        full = figure.get_size_inches() * 72
        labels = [entry.get_label() for entry in entries]
        figure.legend(
            handles=entries,
            loc="upper left",
            bbox_to_anchor=(0, 1 - y / full[1]),
            ncol=self.legend_columns(labels),
            frameon=False,
            labelcolor=self.ink,
            fontsize=TEXT,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.6,
            columnspacing=1.6,
        )
        return self.legend_height(labels)


def runtime_colors(results):
    """runtime -> index of its color, in the order of the plan."""
    order = dict.fromkeys(results["plan"]["runtimes"])
    for case in results["cases"]:
        order |= dict.fromkeys((case["reference"], *case["curves"]))
        order |= dict.fromkeys(r["runtime"] for r in case["runtimes"] if not r["copy_of"])
    colors = {name: i for i, name in enumerate(order)}
    for case in results["cases"]:
        for row in case["runtimes"]:
            if row["copy_of"]:
                colors[row["runtime"]] = colors.get(row["copy_of"], 0)
    return colors


def nice_ticks(low, high, candidates, pixels, gap=46):
    """Candidates within [low, high] on a logarithmic axis, at least `gap` pixels apart."""
    inside = [x for x in candidates if low <= x <= high]
    span = math.log(high / low)
    kept = [1] if 1 in inside else inside[:1]
    for x in sorted(inside, key=lambda x: abs(math.log(x))):
        if all(abs(math.log(x / y)) / span * pixels >= gap for y in kept):
            kept.append(x)
    return sorted(kept)
