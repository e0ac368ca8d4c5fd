"""How often parity calls a correct reference INVALID: Python eager against its own float64 run.

    .venv/bin/python scripts/false_alarms.py [--cases CASE,...] [--seeds 0:20] [--threads 1,2]

Every seed draws other weights and batches. Prints, for each case, the quantiles of error / bound
over seeds and numbers of threads, and every tensor with a ratio above 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))

import torch  # noqa: E402

from torchpace import models, parity  # noqa: E402
from torchpace.exporter.exporter import Exporter  # noqa: E402
from torchpace.io import tensor_file  # noqa: E402
from torchpace.runtimes import eager  # noqa: E402
from torchpace.settings import expand_case  # noqa: E402

TEXT = ROOT / "tests" / "fixtures" / "text.txt"
FAMILIES = ("gptlite", "dnn_deep", "dnn_wide")
CASES = [f"{family}_{phase}/size:quick" for phase in ("train", "inference") for family in FAMILIES]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help="names, joined by commas")
    parser.add_argument("--seeds", default="0:20", help="the first and the one after the last")
    parser.add_argument("--threads", default="1,2", help="numbers, joined by commas")
    options = parser.parse_args()
    seeds = range(*map(int, options.seeds.split(":")))
    threads = [int(n) for n in options.threads.split(",")]
    alarms = 0
    print(f"{'case':32} {'tries':>5} {'median':>7} {'95 %':>7} {'largest':>8} {'alarms':>6}")
    for case in options.cases.split(","):
        found = torch.tensor([x for seed in seeds for x in ratios(case, seed, threads)])
        count = int((found > 1).sum())
        median, most = found.quantile(torch.tensor([0.5, 0.95])).tolist()
        numbers = f"{median:7.3f} {most:7.3f} {found.max().item():8.3f} {count:6}"
        print(f"{case:32} {len(found):5} {numbers}", flush=True)
        alarms += count
    return int(alarms > 0)


def ratios(case: str, seed: int, threads: list[int]) -> list[float]:
    """Largest error / bound of the reference, for each number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        settings = expand_case(case, threads=1, seed=seed)
        answer = Exporter(Path(folder), TEXT).answer(settings.line())
        settings = settings.replace(**{key: answer[key] for key in ("state", "golden", "tokens")})
        golden = tensor_file.read_tensors(answer["golden"], "values")
        found = []
        for count in threads:
            torch.set_num_threads(count)
            values = eager.load("py-eager", settings, models.of(settings)).values()
            result = parity.check_parity(values, values, golden, torch.float32)
            found.append(ratio_of(result))
            if not result.passed:
                print(f"seed {seed}, threads {count}: {result.worst or result.note}", flush=True)
        return found


def ratio_of(result: parity.Parity) -> float:
    pairs = (
        (result.max_abs_error, result.tolerance),
        (result.rms_error, result.rms_tolerance),
    )
    if any(x is None for pair in pairs for x in pair):
        return float("inf")
    return max(error / bound if bound else 0.0 for error, bound in pairs)


if __name__ == "__main__":
    sys.exit(main())
