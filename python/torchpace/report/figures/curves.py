"""Training losses, and their distance to the reference's."""

import math

import matplotlib.ticker
from matplotlib.lines import Line2D

from torchpace.report.figures.style import STEPS, TEXT

TITLE = "Training losses"
CAPTION = (
    "Losses of the runtimes on the same batches from the same start; below, the distance to the "
    "reference. ln V is the loss of a uniform guess."
)


def draw(results, pen):
    """Losses above, distance to the reference's losses below, a row a case."""
    cases = [c for c in results["cases"] if any(known(losses) for losses in c["curves"].values())]
    if not cases:
        return None
    heading, tall, short, foot = 26, 230, 120, 56
    legends = [legend_of_curves(pen, case) for case in cases]
    rows = [pen.legend_height([each.get_label() for each in entries]) for entries in legends]
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


def describe(results):
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
