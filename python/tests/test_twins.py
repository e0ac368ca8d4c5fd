"""Files of the two languages lie under the same paths; lists by hand forget nothing."""

import re
from pathlib import Path

import pytest

from torchpace.case_phase import CASE_PHASES
from torchpace.optim.algorithms import OPTIMIZER_ALGORITHMS

ROOT = Path(__file__).resolve().parents[2]
BASES = ("include/torchpace/", "tools/torchpace/", "python/torchpace/")
TWIN = re.compile(r"Twin:\s*(?:\n\s*(?://+|#)?\s*)?([\w/.]+\.(?:hpp|cpp|py))")
# Where Python needs another path: a package's program, and what only C++ hides in detail/.
SAME = {"worker/__main__": "worker", "worker/commands": "detail/worker_commands"}


def twins():
    for base in BASES:
        for file in sorted((ROOT / base).rglob("*")):
            if file.suffix in (".hpp", ".cpp", ".py"):
                for found in TWIN.finditer(file.read_text(encoding="utf-8")):
                    yield str(file.relative_to(ROOT)), found[1]


def stem(path):
    base = next(base for base in BASES if path.startswith(base))
    name = path.removeprefix(base).rpartition(".")[0]
    return SAME.get(name, name)


@pytest.mark.parametrize(("file", "twin"), sorted(set(twins())))
def test_a_twin_is_there_under_the_same_path(file, twin):
    assert (ROOT / twin).is_file(), f"{file} names {twin}"
    assert stem(file) == stem(twin)


def test_there_are_twins():
    assert len(set(twins())) > 40


def names_in(folder):
    return {f.relative_to(ROOT / "include").as_posix() for f in (ROOT / folder).glob("*.hpp")}


def test_the_registry_has_every_model_and_runtime():
    registry = (ROOT / "tools/registry/registry.cpp").read_text()
    # Those of other engines have a worker each.
    workers = {f.stem for f in (ROOT / "tools/worker").glob("*.cpp")} - {"main"}
    engines = {f"torchpace/runtimes/{name}.hpp" for name in workers}
    for folder in ("include/torchpace/models", "include/torchpace/runtimes"):
        for header in names_in(folder) - engines:
            assert f"#include <{header}>" in registry, header
    for model in (ROOT / "include/torchpace/models").glob("*.hpp"):
        assert f'{{"{model.stem}", make_{model.stem}}}' in registry
    for runtime in (ROOT / "include/torchpace/runtimes").glob("*.hpp"):
        assert runtime.stem in workers or f"{runtime.stem}_runtimes" in registry
    for name in workers:
        assert f"{name}_runtimes()" in (ROOT / f"tools/worker/{name}.cpp").read_text()


# What torchpace.hpp leaves to its users, since it would double what the header costs.
APART = {"google_benchmark", "worker", "workload", "profiling", "execution_options", "torchpace"}


def test_the_umbrella_header_has_every_other_header():
    umbrella = (ROOT / "include/torchpace/torchpace.hpp").read_text()
    included = set(re.findall(r"#include <(torchpace/.*?)>", umbrella))
    headers = set.union(*(names_in(f"include/torchpace{f}") for f in ("", "/models", "/optim")))
    apart = {f"torchpace/{name}.hpp" for name in APART}
    assert included == headers - apart


def rows_of(table, header):
    """The quoted names that begin the rows of a C++ table."""
    text = (ROOT / "include/torchpace" / header).read_text()
    body = text[text.index(table) :]
    return re.findall(r'^ +\w+\{(?:\.name = )?"(\w+)"', body[: body.index("};")], re.M)


def test_tables_of_both_languages_have_the_same_rows():
    assert rows_of("kCasePhases{", "case_phase.hpp") == list(CASE_PHASES)
    assert rows_of("kOptimizerAlgorithms{", "optim/algorithms.hpp") == list(OPTIMIZER_ALGORITHMS)


# What C++ has as a type or a function of another form, Python as functions of the module.
OTHER_FORM = {"environment", "io/tensor_spec", "detail/worker_commands"}


def public_names(path):
    """Top-level names without detail namespaces, as snake_case."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        found = re.findall(r"^(?:class|def) (\w+)|^([A-Z]\w*)(?=[:=( ])", text, re.M)
    else:
        text = re.sub(r"namespace (?:\w+::)*detail \{.*?\n\}  //", "", text, flags=re.S)
        types = r"^(?:struct|class) (\w+)"
        functions = r"^(?:inline|constexpr|template)[^;{=(]*?(\w+)(?= =|\(|\{)"
        found = re.findall(f"{types}|{functions}", text, re.M)
    names = {name for pair in found for name in pair if name and not name.startswith("_")}
    bare = {re.sub(r"^k(?=[A-Z])", "", name) for name in names}
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in bare}


@pytest.mark.parametrize(
    ("file", "twin"),
    [
        (file, twin)
        for file, twin in sorted(set(twins()))
        if file.endswith(".py") and stem(file) not in OTHER_FORM
    ],
)
def test_twins_share_public_names(file, twin):
    """A model and a runtime at least the function that registers it, others a name of their own."""
    python, cpp = public_names(file), public_names(twin)
    name = Path(twin).stem
    if "/models/" in file:
        assert f"make_{name}" in cpp and python & {"make", "of"}
    elif "/runtimes/" in file and "/detail/" not in file:
        assert f"{name}_runtimes" in cpp and {"runtimes", "load"} <= python
    else:
        assert python & cpp, (sorted(python), sorted(cpp))
