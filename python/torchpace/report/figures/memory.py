"""Peak memory of a fresh process, beside what the model itself needs."""

from matplotlib.patches import Patch

from torchpace.report import units
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

TITLE = "Peak memory"
CAPTION = (
    "Peak of one fresh process each, runtime and libraries included. Counted is what the case "
    "itself needs, tensor by tensor: its parameters, gradients, optimizer state and the "
    "activations that autograd keeps. Each case has its own scale."
)
RESIDENT = "resident"
# The widest first: what the driver says holds what is reserved, and that what is allocated.
DEVICE = {
    "device_driver": ("device, driver", "band"),
    "device_reserved": ("device, reserved", "series-5"),
    "device_allocated": ("device, allocated", "series-0"),
}
COUNTED = {
    "parameters": ("parameters", "series-1"),
    "gradients": ("gradients", "series-2"),
    "optimizer": ("optimizer state", "series-3"),
    "activations": ("activations", "series-4"),
}
NAMES = {RESIDENT: RESIDENT} | {key: name for key, (name, _) in DEVICE.items()}


def draw(results, pen):
    """A bar of what is resident, one of what the device holds, and per case what was counted."""
    has_device = any(present(results, "peak_bytes", key) for key in DEVICE)
    if not has_device and not present(results, "peak_bytes", RESIDENT):
        return None
    groups = groups_of(results, "peak_bytes", lambda row: row["peak_bytes"].get(RESIDENT) or 0)
    counted = any(counted_of(case) for case, _ in groups)
    shown = {RESIDENT: (RESIDENT, "muted")} | (DEVICE if has_device else {})
    shown |= COUNTED if counted else {}
    handles = [Patch(facecolor=pen.colors[c], label=name) for name, c in shown.values()]
    legend = pen.legend_height([name for name, _ in shown.values()]) + 12
    bars = (THICK + 2) * (2 if has_device else 1)
    step = bars + 10 if pen.is_wide else bars + 22 + (17 if has_device else 0)
    heights = [(24 if pen.is_wide else 38) * bool(counted_of(c)) + step * len(r) for c, r in groups]
    figure = pen.figure(legend + sum(HEADING + height + FOOT for height in heights))
    pen.legend(figure, 4, handles)
    top = legend
    for (case, rows), height in zip(groups, heights, strict=True):
        pen.heading(figure, top, case["case"])
        top += HEADING
        draw_case(pen, figure, case, rows, top, height, step)
        top += height + FOOT
    return figure


def counted_of(case):
    """Counted bytes of a case in the order of drawing; empty where they are not known."""
    return {key: case["memory_bytes"][key] for key in COUNTED if case["memory_bytes"].get(key)}


def draw_case(pen, figure, case, rows, top, height, step):
    """The bars of a case, the counted ones first."""
    left, right = (190, 340) if pen.is_wide else (8, 8)
    width = pen.width - left - right
    counted = counted_of(case)
    most = max(sum(counted.values()), *(max(r["peak_bytes"].values(), default=0) for r in rows), 0)
    scale, unit = units.of_unit(most, units.SIZES)
    axes = bar_axes(pen, figure, (left, top, width, height), most / scale, unit)
    axes.grid(pen.is_wide, axis="x")
    beside = pen.width - right + 14
    y = 0
    if counted:
        y = 24 if pen.is_wide else 38
        middle = 12 if pen.is_wide else y - 4 - THICK / 2
        parts = [(value / scale, pen.colors[COUNTED[key][1]]) for key, value in counted.items()]
        stack(pen, axes, middle, parts)
        columns = [(beside, case["display"]["counted_sum"])]
        write_row(pen, figure, "counted", columns, top, top + middle)
    for row in rows:
        draw_row(pen, axes, row, y, step, scale)
        columns = list(zip((beside, beside + 70), lines_of(row), strict=True))
        write_row(pen, figure, row["runtime"], columns, top + y, top + y + step / 2)
        y += step


def draw_row(pen, axes, row, y, step, scale):
    """Resident above, device below; the parts of the device lie within one another."""
    peak = row["peak_bytes"]
    device = [(key, peak[key]) for key in DEVICE if peak.get(key)]
    low = y + step - (5 if pen.is_wide else 4) - THICK / 2
    high = low - (THICK + 2) * bool(device)
    axes.barh(high, (peak.get(RESIDENT) or 0) / scale, THICK, color=pen.muted)
    for key, value in device:
        axes.barh(low, value / scale, THICK, color=pen.colors[DEVICE[key][1]])


def lines_of(row):
    """What stands beside a row: resident, and what the device holds."""
    peak, texts = row["peak_bytes"], row["text"]["peaks"]
    device = [texts[key] for key in reversed(DEVICE) if peak.get(key)]
    return [
        texts[RESIDENT] if peak.get(RESIDENT) else "",
        "device " + ", ".join(device) if device else "",
    ]


def describe(results):
    """Peak memory in words."""
    return "Peak memory of a fresh process. " + bar_words(
        results,
        "peak_bytes",
        lambda row, k: (
            f"{NAMES.get(k, k)} {row['text']['peaks'][k]}" if row["peak_bytes"][k] else ""
        ),
    )
