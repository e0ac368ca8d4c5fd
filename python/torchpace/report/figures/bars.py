"""Horizontal bars by case, which cold start and memory share."""

import matplotlib.ticker
from matplotlib.patches import Patch

from torchpace.report.figures.pen import SERIES, STEPS, TEXT


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


def bar_words(results, key, phrase):
    """All values of a kind in words."""
    parts = []
    for case in results["cases"]:
        for row in case["runtimes"]:
            said = [phrase(k, v) for k, v in row[key].items()]
            if any(said) and not row["copy_of"]:
                parts.append(f"{case['case']}, {row['runtime']}: {', '.join(filter(None, said))}")
    return "; ".join(parts)
