"""Speedups of every runtime over the reference as a forest plot, the fastest first."""

from torchpace.report.figures.ratios import (
    draw_interval,
    draw_noise,
    ratio_axes,
    ratio_bounds,
    verdict_color,
)
from torchpace.report.figures.style import LINE, TEXT
from torchpace.report.headline import broken, compared, fastest

TITLE = "Speedup of every runtime"
CAPTION = (
    "Each mark is a speedup over the reference, the line its interval; the fastest stands first, "
    "in bold with all that are not significantly different from it. The grey band is the interval "
    "of the reference against a second copy of itself: what this machine calls different although "
    "nothing differs. Right of 1 is faster."
)
WORDS = 300
# Pixels above the first case, for the ticks.
HEAD = 22


def sections(results):
    """[(case, rows measured, (row, word, why) that count nowhere, line on those skipped)]."""
    found = []
    for case in results["cases"]:
        wrong = broken(case)
        if compared(case) or wrong:
            found.append((case, in_order(case), wrong, "; ".join(case["display"]["skipped"])))
    return found


def in_order(case):
    """Rows with a speedup and the reference, the fastest first."""
    reference = [
        r
        for r in case["runtimes"]
        if r["runtime"] == case["reference"] and r["status"] == "ok" and not r["implausible"]
    ]
    rows = compared(case) + reference
    return sorted(rows, key=lambda r: -1 if r in reference else -r["speedup"]["median"])


def draw(results, pen):
    """One group per case on a logarithmic axis, the noise band behind it."""
    groups = sections(results)
    bounds = ratio_bounds([case for case, *_ in groups])
    if bounds is None:
        return None
    notes = notes_below(results, pen)
    step, gap = (24, 18) if pen.is_wide else (40, 18)
    skips = [pen.wrap(text, pen.width) for *_, text in groups]
    heights = [
        24 + step * (len(rows) + len(wrong)) + LINE * len(lines) + gap
        for (_, rows, wrong, _), lines in zip(groups, skips, strict=True)
    ]
    foot = 24
    figure = pen.figure(HEAD + sum(heights) + foot + LINE * len(notes))
    left = 190 if pen.is_wide else 80
    width = pen.width - left - (WORDS if pen.is_wide else 8)
    axes = ratio_axes(pen, figure, left, HEAD, width, sum(heights), bounds)
    axes.grid(pen.is_wide, axis="x")
    top = HEAD
    for (case, rows, wrong, _), lines, height in zip(groups, skips, heights, strict=True):
        pen.heading(figure, top, case["case"])
        y = top + 24
        leader, near = fastest(case)
        for row in rows:
            # On a phone the words stand above the interval, and nothing runs through them.
            band = y - HEAD + (0 if pen.is_wide else step / 2)
            draw_noise(pen, axes, case["noise_floor"], band, y - HEAD + step)
            draw_row(pen, figure, axes, row, y, step, case, row is leader or row in near)
            y += step
        for row, word, why in wrong:
            draw_broken(pen, figure, (row["runtime"], word, why), y, step, left)
            y += step
        pen.lines(figure, y, lines)
        top += height
    pen.lines(figure, top + foot, notes)
    return figure


def notes_below(results, pen):
    """Lines under the picture: what no case has, and what the mark means."""
    texts = [f"{line}." for line in results["display"]["left_out"]]
    return [
        line
        for text in texts + results["display"]["footnotes"]
        for line in pen.wrap(text, pen.width)
    ]


def draw_row(pen, figure, axes, row, y, step, case, leads):
    """One row: name, interval with the verdict's mark, verdict and speedup in words."""
    is_reference = row["runtime"] == case["reference"]
    verdict = "reference" if is_reference else row["speedup"]["verdict"].replace("NONE", "")
    number = f"noise {case['display']['noise']}" if is_reference else row["text"]["speedup"]
    color = pen.muted if is_reference else verdict_color(pen, row["speedup"]["verdict"])
    weight = "bold" if leads else "normal"
    if pen.is_wide:
        middle, right = y + step / 2, pen.width - WORDS + 16
        pen.text(figure, 12, middle, pen.fit(row["runtime"], 166), fontweight=weight)
        pen.text(figure, right, middle, verdict, color=color, fontweight="bold")
        pen.text(figure, right + 80, middle, number, fontweight=weight)
    else:
        top, middle = y + step * 0.28, y + step * 0.74
        number = pen.fit(number, 200)
        name = pen.fit(row["runtime"], 332 - 7 * len(number))
        pen.text(figure, 8, top, name, fontweight=weight)
        pen.text(figure, pen.width, top, number, fontweight=weight, ha="right")
        pen.text(figure, 8, middle, verdict, color=color, fontweight="bold", fontsize=TEXT - 1)
    if not is_reference:
        draw_interval(pen, axes, row["speedup"], middle - HEAD)


def draw_broken(pen, figure, said, y, step, left):
    """A row without a speedup that should have had one: what it is, and why."""
    runtime, word, why = said
    if pen.is_wide:
        pen.text(figure, 12, y + step / 2, pen.fit(runtime, left - 24))
        text = pen.fit(f"{word}: {why}", pen.width - left - 12)
        pen.text(figure, left, y + step / 2, text, color=pen.slower, bbox=pen.plate)
    else:
        name, reason = pen.fit(runtime, 240), pen.fit(why, pen.width, TEXT - 1)
        pen.text(figure, 8, y + step * 0.28, f"{name} · {word}", color=pen.slower)
        pen.text(figure, 8, y + step * 0.72, reason, color=pen.muted, fontsize=TEXT - 1)


def describe(results):
    """The forest plot in words."""
    parts = []
    for case, rows, wrong, skipped in sections(results):
        said = [
            f"{row['runtime']} {row['speedup']['verdict']} {row['text']['speedup']}"
            for row in rows
            if row["runtime"] != case["reference"]
        ]
        said += [f"{row['runtime']} {word} ({why})" for row, word, why in wrong]
        parts.append(f"{case['case']}: " + ", ".join([*said, *filter(None, [skipped])]))
    return "Speedups over the reference. " + "; ".join(parts)
