"""Where the time goes between two runtimes: a waterfall from A's step to B's."""

import matplotlib.ticker

from torchpace.report import units
from torchpace.report.figures.bars import THICK
from torchpace.report.figures.style import LINE, STEPS

TITLE = "Where the time goes"
CAPTION = (
    "From a step of the first runtime at the top to one of the second at the bottom. Each bar "
    "begins where the one above it ends: to the left what the second runtime saves there, to the "
    "right what it spends more; the line is the interval. What the measured parts leave is "
    "unexplained. The axis does not begin at 0."
)
HEADING = 24
FOOT = 42
WORDS = 200


def explained(results):
    """Cases that have a waterfall."""
    return [
        case
        for case in results["cases"]
        if case["explanation"]
        and case["explanation"]["from_ns"]["median"] is not None
        and case["explanation"]["to_ns"]["median"] is not None
    ]


def bars_of(explanation):
    """The bars that have a median."""
    return [bar for bar in explanation["bars"] if bar["ns"]["median"] is not None]


def draw(results, pen):
    """A waterfall a case; None where nothing was explained."""
    cases = explained(results)
    if not cases:
        return None
    step = 24 if pen.is_wide else 40
    notes = [notes_of(case["explanation"], pen) for case in cases]
    heights = [
        HEADING + step * (len(bars_of(case["explanation"])) + 2) + FOOT + LINE * len(lines) + 12
        for case, lines in zip(cases, notes, strict=True)
    ]
    figure = pen.figure(sum(heights))
    top = 0
    for case, lines, height in zip(cases, notes, heights, strict=True):
        pen.heading(figure, top, case["case"])
        draw_case(pen, figure, case["explanation"], top + HEADING, step)
        pen.lines(figure, top + height - 12 - LINE * len(lines), lines)
        top += height
    return figure


def notes_of(explanation, pen):
    """What the bars explain and what is left out, in lines."""
    texts = [explained_words(explanation), *explanation["notes"]]
    return [line for text in texts for line in pen.wrap(text, pen.width)]


def explained_words(explanation):
    """`The measured parts explain 95 % of the difference.`, empty where that is not known."""
    share = explanation["explained"]
    if share is None:
        return ""
    if share < 0:
        return "The measured parts do not add up to the difference."
    return f"The measured parts explain {100 * share:.0f} % of the difference."


def draw_case(pen, figure, explanation, top, step):
    """The two steps and the bars between them."""
    bars = bars_of(explanation)
    left = 230 if pen.is_wide else 24
    width = pen.width - left - (WORDS if pen.is_wide else 16)
    scale, unit = units.of_unit(explanation["from_ns"]["median"], units.TIMES)
    place = (left, top, width, step * (len(bars) + 2))
    axes = step_axes(pen, figure, place, bounds(explanation), scale, unit)
    at = explanation["from_ns"]["median"]
    draw_total(pen, figure, axes, explanation, "from", top, step, 0)
    for i, bar in enumerate(bars, start=1):
        y = step * i
        middle = y + (step / 2 if pen.is_wide else step - 9)
        ends = sorted((at, at - bar["ns"]["median"]))
        color = bar_color(pen, bar)
        if pen.is_wide:  # on a phone it would run through the words
            axes.plot((at / scale,) * 2, (middle - step, middle), color=pen.muted, linewidth=0.7)
        axes.barh(
            middle,
            (ends[1] - ends[0]) / scale,
            THICK,
            left=ends[0] / scale,
            color=color,
        )
        interval = [bar["ns"][key] for key in ("low", "high")]
        if None not in interval:  # too few invocations have none
            draw_line(pen, axes, [at - end for end in interval], middle, scale)
        write(pen, figure, bar["name"], bar["text"], top + y, top + middle)
        at -= bar["ns"]["median"]
    draw_total(pen, figure, axes, explanation, "to", top, step, step * (len(bars) + 1))


def draw_total(pen, figure, axes, explanation, end, top, step, y):
    """The step of one of the two runtimes: a mark with its interval."""
    interval, name = explanation[f"{end}_ns"], explanation[end]
    scale, _ = units.of_unit(explanation["from_ns"]["median"], units.TIMES)
    middle = y + (step / 2 if pen.is_wide else step - 9)
    color = pen.of(name) if name in pen.runtimes else pen.ink
    if interval["low"] is not None and interval["high"] is not None:
        ends = (interval["low"] / scale, interval["high"] / scale)
        axes.plot(ends, (middle, middle), color=color, linewidth=2.5)
    axes.plot(interval["median"] / scale, middle, marker="D", markersize=8, color=color)
    write(pen, figure, name, explanation["text"][end], top + y, top + middle)


def write(pen, figure, name, number, y, middle):
    """A row's name and number, beside its bar; on a phone above it."""
    if pen.is_wide:
        pen.text(figure, 12, middle, pen.fit(name, 210))
        pen.text(figure, pen.width - WORDS + 16, middle, number)
        return
    pen.text(figure, 8, y + 12, pen.fit(name, 330 - 6.5 * len(number)))
    pen.text(figure, pen.width, y + 12, number, ha="right")


def draw_line(pen, axes, ends, y, scale):
    """The interval of a bar's end."""
    axes.plot([x / scale for x in ends], (y, y), color=pen.ink, linewidth=1.5)


def bar_color(pen, bar):
    """That of a verdict: saved or spent; muted where the interval does not tell or nothing does."""
    ns = bar["ns"]
    undecided = ns["low"] is None or ns["high"] is None or ns["low"] <= 0 <= ns["high"]
    if bar["name"] == "unexplained" or undecided:
        return pen.muted
    return pen.faster if ns["median"] > 0 else pen.slower


def bounds(explanation):
    """Least and most of all that is drawn, with a margin, in ns."""
    marks = [
        explanation[end][key] for end in ("from_ns", "to_ns") for key in ("median", "low", "high")
    ]
    at = explanation["from_ns"]["median"]
    for bar in bars_of(explanation):
        marks += [at - x for x in bar["ns"].values() if x is not None]
        at -= bar["ns"]["median"]
    marks = [mark for mark in marks if mark is not None]
    margin = 0.04 * (max(marks) - min(marks)) or 0.01 * max(marks)
    return min(marks) - margin, max(marks) + margin


def step_axes(pen, figure, place, ends, scale, unit):
    """Axes of step times at (left, top, width, height), with ticks below."""
    axes = pen.axes(figure, *place)
    axes.set_ylim(place[3], 0)
    axes.set_yticks([])
    axes.set_xlim(*(end / scale for end in ends))
    ticks = matplotlib.ticker.MaxNLocator(max(2, int(place[2] / 80)), steps=STEPS)
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}{unit}"))
    axes.grid(pen.is_wide, axis="x")
    return axes


def describe(results):
    """The waterfalls in words."""
    parts = []
    for case in explained(results):
        explanation = case["explanation"]
        said = [f"{bar['name']} {bar['text']}" for bar in bars_of(explanation)]
        ends = [f"{explanation[k]} {explanation['text'][k]}" for k in ("from", "to")]
        parts.append(f"{case['case']}, from {ends[0]} to {ends[1]}: {', '.join(said)}")
    return "Where the time of a step goes between two runtimes. " + "; ".join(parts)
