"""The report's pictures: drawn once for a wide page, once for a phone, and as PNG.

A module a picture, each with `TITLE`, `CAPTION`, `draw(results, pen)`, which returns a figure or
None where there is nothing to draw, and `describe(results)`, the picture in words. What they share
is in `pen`.
"""

import io
from dataclasses import dataclass

from torchpace.report.figures import (
    cold,
    curves,
    fastest,
    memory,
    roofline,
    speedup,
    step_times,
    waterfall,
)
from torchpace.report.figures.style import (
    NARROW,
    PAPER,
    STAND_INS,
    WIDE,
    Pen,
    drawing,
    runtime_colors,
    svg_of,
)

PNG_DPI = 144
# In reading order.
PICTURES = (fastest, waterfall, speedup, roofline, cold, memory, curves, step_times)


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
    colors = runtime_colors(results)
    drawn = (draw_one(results, colors, module) for module in PICTURES)
    return [picture for picture in drawn if picture is not None]


def draw_one(results, colors, module):
    """Draws one picture in its three forms; None when there is nothing to draw."""
    name = module.__name__.rpartition(".")[2]
    alt = module.describe(results)
    svgs = []
    for width in (WIDE, NARROW):
        with drawing():
            figure = module.draw(results, Pen(width, STAND_INS, colors))
            if figure is None:
                return None
            svgs.append(svg_of(figure, f"{name}-{width}", alt))
    with drawing():
        buffer = io.BytesIO()
        module.draw(results, Pen(WIDE, PAPER, colors)).savefig(
            buffer, format="png", dpi=PNG_DPI, facecolor=PAPER["paper"], metadata={"Software": None}
        )
    return Picture(name, module.TITLE, module.CAPTION, alt, *svgs, buffer.getvalue())
