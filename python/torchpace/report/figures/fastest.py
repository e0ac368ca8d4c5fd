"""The answer at a glance: one row a case with its fastest runtime."""

from torchpace.report.figures.ratios import draw_interval, draw_noise, ratio_axes, ratio_bounds
from torchpace.report.headline import compared, fastest, joined

TITLE = "Fastest on each case"
CAPTION = (
    "The mark with the line is the fastest runtime's speedup over the reference with its interval; "
    "small dots are the other runtimes; the grey band is this machine's noise."
)
WORDS = 430


def draw(results, pen):
    """One row a case; None for a single case, which the forest plot shows as well."""
    cases = [case for case in results["cases"] if compared(case)]
    if len(cases) < 2:
        return None
    step = 44 if pen.is_wide else 96
    head, foot = 22, 24
    notes = [line for text in results["display"]["footnotes"] for line in pen.wrap(text, pen.width)]
    height = step * len(cases)
    figure = pen.figure(head + height + foot + 18 * len(notes))
    left = 230 if pen.is_wide else 8
    width = pen.width - left - (WORDS if pen.is_wide else 8)
    bounds = ratio_bounds(cases)
    axes = ratio_axes(pen, figure, left, head, width, height, bounds)
    axes.grid(pen.is_wide, axis="x")
    for i, case in enumerate(cases):
        y = i * step
        middle = y + (step / 2 if pen.is_wide else step - 14)
        draw_noise(pen, axes, case["noise_floor"], middle - 11, middle + 11)
        draw_case(pen, axes, case, middle)
        write_case(pen, figure, case, head + y, step)
    pen.lines(figure, head + height + foot, notes)
    return figure


def draw_case(pen, axes, case, y):
    """Dots of all runtimes, and the leader's interval above them."""
    leader, _ = fastest(case)
    others = [row["speedup"]["median"] for row in compared(case) if row is not leader]
    axes.plot(
        others, [y] * len(others), linestyle="none", marker="o", markersize=5, color=pen.muted
    )
    if leader and leader["runtime"] != case["reference"]:
        draw_interval(pen, axes, leader["speedup"], y)


def headline(case):
    """(what leads, how sure that is)."""
    reference = case["reference"]
    leader, near = fastest(case)
    if leader is None:
        return "no runtime is significantly faster", f"than {reference}"
    names = [row["runtime"] for row in near]
    if len(names) > 2:
        names[1:] = [f"{len(names) - 1} more"]
    certainty = (
        f"not significantly different from {joined(names)}"
        if names
        else "significantly faster than all others"
    )
    if leader["runtime"] == reference:
        return f"{reference}, the reference", certainty
    return f"{leader['runtime']} {leader['text']['speedup']}", certainty


def write_case(pen, figure, case, y, step):
    """The case's name and its answer."""
    answer, certainty = headline(case)
    weight = "bold" if fastest(case)[0] else "normal"
    if pen.is_wide:
        right = pen.width - WORDS + 16
        pen.text(figure, 0, y + step / 2, pen.fit(case["case"], 225))
        pen.text(figure, right, y + step * 0.3, pen.fit(answer, WORDS - 8), fontweight=weight)
        text = pen.fit(certainty, WORDS - 16)
        pen.text(figure, right, y + step * 0.7, text, color=pen.muted)
    else:
        pen.text(figure, 0, y + 16, pen.fit(case["case"], pen.width), color=pen.muted)
        pen.text(figure, 0, y + 35, pen.fit(answer, pen.width), fontweight=weight)
        pen.text(figure, 0, y + 53, pen.fit(certainty, pen.width), color=pen.muted)


def describe(results):
    """The answers in words."""
    parts = [
        f"{case['case']}: " + ", ".join(headline(case))
        for case in results["cases"]
        if compared(case)
    ]
    return "Fastest runtime of each case. " + "; ".join(parts)
