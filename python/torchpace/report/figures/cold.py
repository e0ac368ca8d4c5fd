"""Cold start: the stages of a fresh process, and what compiling costs before."""

from matplotlib.patches import Patch

from torchpace.report.figures.bars import (
    FOOT,
    HEADING,
    THICK,
    bar_axes,
    bar_words,
    groups_of,
    present,
    stack,
    write_row,
)

TITLE = "Cold start and break-even"
CAPTION = (
    "Left: one fresh process each with warm caches, from its start to its tenth step; the time "
    "beside it runs to the end of the first. Right, "
    "hatched, on a scale of its own: what making the compiled file took once with empty caches. "
    "Earned back: after so many steps a faster step has paid for what the runtime costs more than "
    "the reference before its first step ends, compiling with empty caches included. Each case has "
    "its own scale."
)
STAGES = {
    "start": "process start and import",
    "load": "load",
    "compile": "compile, caches warm",
    "first_step": "first step",
    "tenth_step": "to the tenth step",
}
EMPTY = "compile, caches empty"


def stages_of(row):
    """Seconds of each stage, one after the other."""
    stages = {name: value or 0 for name, value in row["cold_s"].items()}
    if "tenth_step" in stages:
        stages["tenth_step"] = max(0, stages["tenth_step"] - stages.get("first_step", 0))
    return stages


def total(row):
    """Seconds to the end of the first step."""
    if row["cold_total_s"] is not None:
        return row["cold_total_s"]
    return sum(value for name, value in stages_of(row).items() if name != "tenth_step")


def draw(results, pen):
    """A stacked bar a runtime, and beside it the compile with empty caches."""
    known = dict.fromkeys(STAGES)
    for case in results["cases"]:
        for row in case["runtimes"]:
            known |= dict.fromkeys(row["cold_s"])
    used = [stage for stage in known if present(results, "cold_s", stage)]
    if not used:
        return None
    colors = {stage: pen.series(list(known).index(stage)) for stage in used}
    groups = groups_of(results, "cold_s", total)
    compiles = any(row["compile_s"] for _, rows in groups for row in rows)
    handles = [Patch(facecolor=colors[s], label=STAGES.get(s, s)) for s in used]
    if compiles:
        handles.append(Patch(**empty_style(pen), label=EMPTY))
    legend = pen.legend_height([handle.get_label() for handle in handles]) + 12
    heights = [[row_height(pen, row) for row in rows] for _, rows in groups]
    figure = pen.figure(legend + sum(HEADING + sum(each) + FOOT for each in heights))
    pen.legend(figure, 4, handles)
    top = legend
    for (case, rows), each in zip(groups, heights, strict=True):
        pen.heading(figure, top, case["case"])
        top += HEADING
        draw_case(pen, figure, rows, each, top, colors, compiles)
        top += sum(each) + FOOT
    return figure


def empty_style(pen):
    """How the compile with empty caches is drawn."""
    return {"facecolor": "none", "edgecolor": pen.series(2), "hatch": "/////", "linewidth": 1}


def row_height(pen, row):
    """Pixels of a row: on a phone the words stand above it."""
    return 24 if pen.is_wide else 22 + THICK + 17 * any(texts_of(pen, row)[1:])


def texts_of(pen, row):
    """What stands beside a row: time to the first step's end, time of compiling, break-even."""
    texts = row["text"]["cold"]
    ready, compiled = texts["ready"], texts.get("compile_s", "") if row["compile_s"] else ""
    if compiled and not pen.is_wide:
        # Only on a wide page has the time a place beside its bar, which says what it is.
        ready, compiled = f"{ready}, compiled in {compiled}", ""
    return ready, compiled, texts.get("break_even", "")


def draw_case(pen, figure, rows, heights, top, colors, compiles):
    """The bars of a case: the process, and where anything compiles a second column for that."""
    left, width = (190, 260) if pen.is_wide else (8, pen.width - 16)
    beside, gap = (90, 74) if pen.is_wide else (100, 14)
    if compiles and not pen.is_wide:
        width -= beside + gap
    most = max(sum(stages_of(row).values()) for row in rows)
    axes = bar_axes(pen, figure, (left, top, width, sum(heights)), most, "s")
    axes.grid(pen.is_wide, axis="x")
    second = left + width + gap
    if compiles:
        longest = max(row["compile_s"] or 0 for row in rows)
        other = bar_axes(pen, figure, (second, top, beside, sum(heights)), longest, "s")
        other.grid(visible=False)
        other.set_xticks([])
    after = second + (beside + 12 if compiles else 0)
    columns = (left + width + 12, after, after + 84 * compiles)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        middle = y + (height / 2 if pen.is_wide else height - 4 - THICK / 2)
        stages = stages_of(row)
        stack(pen, axes, middle, [(stages.get(s, 0), color) for s, color in colors.items()])
        if row["compile_s"]:
            other.barh(middle, row["compile_s"], THICK, **empty_style(pen))
        beside_bar = list(zip(columns, texts_of(pen, row), strict=True))
        write_row(pen, figure, row["runtime"], beside_bar, top + y, top + middle)
        y += height


def describe(results):
    """Cold starts in words."""
    return "Cold start of a fresh process. " + bar_words(
        results, "cold_s", lambda row, k: f"{STAGES.get(k, k)} {row['text']['cold'][k]}"
    )
