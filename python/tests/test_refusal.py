"""What a compiler cannot do is said in one line, with the line of the model."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from torchpace.aot import inductor
from torchpace.refusal import refused

MODULES = """
import torch

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

class Counts(Linear):
    def forward(self, x):
        y = self.linear(x)
        for i in range(int((y > 0).sum())):
            y = y + i
        return y

class Guards(Linear):
    def forward(self, x):
        y = self.linear(x)
        return 2 * y if y[y > 0].shape[0] > 3 else y

class Wrong(Linear):
    def forward(self, x):
        return self.linear(x @ torch.ones(3, 3))

class Raises(Linear):
    def forward(self, x):
        raise KeyError("name")
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    file = tmp_path_factory.mktemp("refusal") / "refusing.py"
    file.write_text(MODULES)
    spec = importlib.util.spec_from_file_location("refusing", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reason(call) -> str:
    inductor.prepare()
    torch._dynamo.reset()
    logging.disable(logging.ERROR)  # of torch, beside the error that it raises
    try:
        with pytest.raises(Exception) as caught, torch.no_grad():
            call()
    finally:
        logging.disable(logging.NOTSET)
    line = str(refused("torch", caught.value))
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "name,words,code",
    [
        ("Counts", "data-dependent expression", "range(int((y > 0).sum()))"),
        ("Guards", "data-dependent expression u0 > 3", "return 2 * y if y[y > 0].shape[0] > 3"),
        ("Wrong", "a and b must have same reduction dim", "x @ torch.ones(3, 3)"),
        ("Raises", "KeyError: 'name'", 'raise KeyError("name")'),
    ],
)
def test_an_export_that_fails_names_the_line_of_the_model(modules, name, words, code):
    module, x = getattr(modules, name)(), torch.randn(2, 4)
    line = reason(lambda: torch.export.export(module, (x,)))
    assert words in line and " at refusing.py:" in line and code in line, line


def test_a_compile_that_fails_names_the_line_and_what_its_headline_is_of(modules):
    line = reason(lambda: torch.compile(modules.Wrong(), fullgraph=True)(torch.randn(2, 4)))
    assert "a and b must have same reduction dim" in line, line
    assert " at refusing.py:" in line and "x @ torch.ones(3, 3)" in line, line


def test_the_first_error_of_the_cpp_compiler_is_the_reason():
    from torch._inductor.exc import CppCompileError

    output = "/x/a.cpp: In function 'f':\n/x/a.cpp:3:5: error: 'nan' was not declared\n  3 | nan\n"
    line = str(refused("AOTInductor", CppCompileError(["g++", "/x/a.cpp"], output)))
    assert line == "AOTInductor: C++ compile error: /x/a.cpp:3:5: error: 'nan' was not declared"
    missing = "g++: error: b/x.cpp: No such file or directory\n"
    assert missing.strip() in str(refused("AOTInductor", CppCompileError(["g++"], missing)))
