"""Runs a drawn module by plain torch, and nothing of torchpace: what every runtime must agree with.

    python plain_torch.py

Each line of standard input is JSON: `file` of the module, `state` of its case, `out`, `train`. Each
is run in a fork, from the tensors of the state file, and answered with {} or {"error"}. `out` gets
the outputs of all batches, or the losses, parameters and buffers of ten steps of Adam.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import random_modules
import torch
from torch import Tensor, nn


def run(file: str, state: str, out: str, train: bool) -> None:
    content = torch.load(state, weights_only=True)
    made = random_modules.load(Path(file)).make()
    module = made["module"]
    load_state(module, content)
    keys = ["input"]
    while f"input.{len(keys)}" in content:
        keys.append(f"input.{len(keys)}")
    batches = list(zip(*(content[key].unbind(0) for key in keys), strict=True))
    values = trained(made, batches, content["target"]) if train else answered(module, batches)
    torch.save(values, out)


def load_state(module: nn.Module, content: dict[str, Tensor]) -> None:
    """Gives the module all tensors of the state file, in the dtypes that it has there."""
    with torch.no_grad():
        for key, value in content.items():
            kind, _, name = key.partition(".")
            if kind not in ("parameter", "buffer", "transient", "attribute"):
                continue
            tensor = find(module, name.split("."))
            if tensor.dtype != value.dtype:
                tensor.data = tensor.data.to(value.dtype)
            tensor.copy_(value)


def find(owner: Any, path: list[str]) -> Any:
    """The tensor at `layer1.table5.a`, through attributes, lists and dictionaries."""
    for name in path:
        if isinstance(owner, nn.Module):
            owner = getattr(owner, name)
        else:
            owner = owner[int(name)] if isinstance(owner, (list, tuple)) else owner[name]
    return owner


def answered(module: nn.Module, batches: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    module.eval()
    values = {}
    with torch.inference_mode():
        for index, inputs in enumerate(batches):
            result = module(*(x.clone() for x in inputs))
            values |= {f"batch{index}.{name}": x.clone() for name, x in flat(result, "output")}
    return values


def flat(result: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        yield path, result
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from flat(getattr(result, field.name), f"{path}.{field.name}")
    elif isinstance(result, (dict, list, tuple)):
        parts = result.items() if isinstance(result, dict) else enumerate(result)
        for name, part in parts:
            yield from flat(part, f"{path}.{name}")


def trained(
    made: dict[str, Any], batches: list[tuple[Tensor, ...]], targets: Tensor
) -> dict[str, Tensor]:
    module, losses = made["module"], []
    for part in module.modules():
        if "Dropout" in type(part).__name__:
            part.p = 0.0
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-4, eps=1e-8)
    for index in range(10):
        optimizer.zero_grad()
        inputs = (x.clone() for x in batches[index % len(batches)])
        loss = made["loss"](module(*inputs), targets[index % len(batches)])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    kept = module.state_dict().keys()
    values = {"losses": torch.stack(losses)}
    values |= {f"parameter.{name}": p.detach() for name, p in module.named_parameters()}
    return values | {f"buffer.{n}": b for n, b in module.named_buffers() if n in kept}


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                run(**json.loads(line))
                answer = {}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            print(json.dumps(answer), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
