"""Horizontal bars, which cold start and memory share."""

import matplotlib.ticker

from torchpace.report.figures.style import STEPS, TEXT

THICK = 12
HEADING = 24
# Pixels of the ticks below a case's bars and of the room under them.
FOOT = 42


def groups_of(results, key, order):
    """[(case, measured rows that know `key`, the least by `order` first)]."""

    def has(row):
        return row[key] and row["status"] == "ok" and not row["copy_of"]

    groups = [(case, sorted(filter(has, case["runtimes"]), key=order)) for case in results["cases"]]
    return [(case, rows) for case, rows in groups if rows]


def present(results, key, name):
    """True if any row has a number above 0 under this name."""
    return any(row[key].get(name) for case in results["cases"] for row in case["runtimes"])


def bar_axes(pen, figure, place, most, unit):
    """Axes from 0 to `most` at (left, top, width, height), with ticks below."""
    axes = pen.axes(figure, *place)
    axes.set_ylim(place[3], 0)
    axes.set_yticks([])
    axes.set_xlim(0, 1.03 * most or 1)
    ticks = matplotlib.ticker.MaxNLocator(max(2, int(place[2] / 70)), steps=STEPS)
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(
        matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g} {unit}" if x else "0")
    )
    return axes


def stack(pen, axes, y, parts):
    """Bars end to end: (value, color)."""
    start = 0
    for value, color in parts:
        if value:
            axes.barh(y, value, THICK, left=start, color=color, edgecolor=pen.paper, linewidth=0.5)
            start += value


def write_row(pen, figure, name, columns, y, middle):
    """A row's name and what stands beside it, (x, text) each; on a phone above the bar."""
    if pen.is_wide:
        pen.text(figure, 12, middle, pen.fit(name, 166))
        for (x, text), end in zip(columns, [x for x, _ in columns[1:]] + [pen.width], strict=True):
            pen.text(figure, x, middle, pen.fit(text, end - x))
        return
    first, *others = [text for _, text in columns if text] or [""]
    name = pen.fit(name, 200)
    pen.text(figure, 8, y + 10, f"{name} · {pen.fit(first, 330 - 7 * len(name))}")
    if others:
        text = pen.fit(", ".join(others), 336, TEXT - 1)
        pen.text(figure, 8, y + 27, text, fontsize=TEXT - 1, color=pen.muted)


def bar_words(results, key, phrase):
    """All values of a kind in words."""
    parts = []
    for case in results["cases"]:
        for row in case["runtimes"]:
            said = [phrase(row, k) for k, v in row[key].items() if v is not None]
            if any(said) and not row["copy_of"]:
                parts.append(f"{case['case']}, {row['runtime']}: {', '.join(filter(None, said))}")
    return "; ".join(parts)
