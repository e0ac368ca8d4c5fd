"""Cold start: the stages of a fresh process up to its first step."""

from torchpace.report import words
from torchpace.report.figures.bars import bar_words, bars, present

TITLE = "Cold start"
CAPTION = "One fresh process each, until its first step is done."
STAGES = {"start": "start", "load": "load", "build": "build", "first_step": "first step"}


def draw(results, pen):
    """Stacked bars: the stages of a fresh process up to its first step."""
    known_stages = [*STAGES]
    for case in results["cases"]:
        for row in case["runtimes"]:
            known_stages += [name for name in row["cold_s"] if name not in known_stages]
    used = [s for s in known_stages if any(present(results, "cold_s", s))]
    if not used:
        return None

    def parts(row):
        return [row["cold_s"].get(stage) or 0 for stage in used]

    names = [STAGES.get(stage, stage) for stage in used]
    return bars(
        results, pen, "cold_s", parts, names, lambda values: words.seconds(sum(values)), "seconds"
    )


def describe(results):
    """Cold starts in words."""
    return "Cold start of a fresh process. " + bar_words(
        results, "cold_s", lambda k, v: f"{STAGES.get(k, k)} {words.seconds(v)}"
    )
