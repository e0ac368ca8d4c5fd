#!/usr/bin/env python3
"""Trains GPTlite from Python as examples/train_without_python.cpp does, and draws the losses.

    PYTHONPATH=python scripts/training_curve.py train eager PACKAGE TOKENS eager.txt
    PYTHONPATH=python scripts/training_curve.py train compile PACKAGE TOKENS compile.txt
    train_without_python PACKAGE TOKENS --losses cpp.txt
    PYTHONPATH=python scripts/training_curve.py draw curve.png C++=cpp.txt eager=eager.txt

The start, the shapes and the threads are those of the package; batches and learning rates those of
the C++ program. Fused AdamW. Writes a loss a line; says the time on standard output.
"""

import argparse
import math
import time
from pathlib import Path

LR, WARMUP = 1e-3, 100  # as in the C++ program
SMOOTHED = 50  # steps whose mean is one point of the picture


def learning_rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return LR * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def train(options: argparse.Namespace) -> None:
    import torch
    from torchpace import CompiledTraining
    from torchpace.data import text
    from torchpace.models import gptlite
    from torchpace.runtimes import aot
    from torchpace.io.tensor_spec import parse_spec

    torch.set_num_threads(int(aot.read_metadata(options.package)["torchpace.threads"]))
    package = CompiledTraining(options.package)
    start = {name: tensor.clone() for name, tensor in package.parameters().items()}
    (batch, context), _ = parse_spec(package.contents.inputs[0])
    recipe = package.recipe
    assert recipe.kind == "adamw", recipe
    vocabulary, width = start["token_embedding.weight"].shape
    layers = sum(name.endswith("norm1.weight") for name in start)
    module = gptlite.Gptlite(
        gptlite.GptliteOptions(
            layers=layers,
            width=width,
            heads=options.heads,
            context=context,
            vocabulary=vocabulary,
            dropout=0.0,
        )
    )
    module.load_state_dict(start)
    optimizer = torch.optim.AdamW(
        module.parameters(),
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
    )

    def forward(x, y):
        return gptlite.loss(module(x), y)

    loss_of = torch.compile(forward) if options.runtime == "compile" else forward
    tokens, losses = text.read_tokens(options.tokens), []
    begin = time.perf_counter()
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, options.steps)
        loss = loss_of(*text.batch(tokens, batch, context, step, 0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step == 0:
            first = time.perf_counter() - begin
    elapsed = time.perf_counter() - begin - first
    others = options.steps - 1
    print(
        f"{options.runtime}: first step {first:.2f} s, the other {others} in {elapsed:.2f} s: "
        f"{1e3 * elapsed / others:.2f} ms a step; last loss {losses[-1].item():.4f}"
    )
    options.losses.write_text("".join(f"{loss.item():.9g}\n" for loss in losses))


def draw(options: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    curves = {}
    for curve in options.curves:
        name, _, path = curve.rpartition("=")
        curves[name] = [float(line) for line in Path(path).read_text().split()]
    reference_name, reference = next(iter(curves.items()))
    for i, (name, losses) in enumerate(curves.items()):
        look = {"label": name, "color": f"C{i}", "linestyle": ("-", "--", ":")[i % 3]}
        ends = range(SMOOTHED, len(losses) + 1, SMOOTHED)
        means = [sum(losses[end - SMOOTHED : end]) / SMOOTHED for end in ends]
        left.plot(ends, means, linewidth=2, **look)
        if name == reference_name:
            continue
        apart = [abs(a - b) / b for a, b in zip(reference, losses, strict=True)]
        steps = range(1, len(apart) + 1)
        right.semilogy(steps, [max(a, 1e-9) for a in apart], linewidth=1, **look)
        beyond = next((i + 1 for i, a in enumerate(apart) if a > 1e-4), None)
        print(f"{reference_name} and {name}: first step more than 1e-4 apart: {beyond or 'none'}")
        for end in (100, 500, 1000, len(apart)):
            print(f"  largest difference of the first {end}: {max(apart[:end]):.1e}")
    left.set(xlabel="step", ylabel=f"loss, mean of {SMOOTHED} steps", title="Training loss")
    right.set(
        xlabel="step", ylabel=f"|difference| to {reference_name}, relative", title="Loss of a step"
    )
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train", help="from Python")
    command.add_argument("runtime", choices=("eager", "compile"))
    command.add_argument("package", type=Path)
    command.add_argument("tokens", type=Path)
    command.add_argument("losses", type=Path)
    command.add_argument("--steps", type=int, default=2000)
    command.add_argument("--heads", type=int, default=4)
    command.set_defaults(run=train)
    command = commands.add_parser("draw", help="files of losses")
    command.add_argument("picture", type=Path)
    command.add_argument("curves", nargs="+", metavar="NAME=FILE")
    command.set_defaults(run=draw)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
