"""Peak memory of a fresh process."""

from torchpace.report import words
from torchpace.report.figures.bars import bar_words, bars, present

TITLE = "Peak memory"
CAPTION = "Peak of one fresh process each, runtime and libraries included."
MEMORY = {
    "resident": "resident",
    "device_allocated": "device, allocated",
    "device_reserved": "device, reserved",
}


def draw(results, pen):
    """Bars side by side in one row: resident, and on a device what was allocated and reserved."""
    used = [kind for kind in MEMORY if any(present(results, "peak_bytes", kind))]
    if not used:
        return None

    def parts(row):
        return [(row["peak_bytes"].get(kind) or 0) / 2**20 for kind in used]

    def text(values):
        return ", ".join(words.size(v * 2**20) for v in values if v)

    names = [MEMORY[kind] for kind in used]
    return bars(results, pen, "peak_bytes", parts, names, text, "MiB", stacked=False)


def describe(results):
    """Peak memory in words."""
    return "Peak memory of a fresh process. " + bar_words(
        results, "peak_bytes", lambda k, v: f"{MEMORY.get(k, k)} {words.size(v)}" if v else ""
    )
