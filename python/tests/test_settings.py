import subprocess
import sys

import pytest

from torchpace.settings import Settings, SettingsError, decode, encode, expand_case, read_cases


@pytest.mark.parametrize(
    "value", ["", "plain", "a b", "50%", "tab\tnewline\n", "a=b", "größe", "%20", "\x7f"]
)
def test_a_line_brings_back_every_value(value):
    assert decode(encode(value)) == value
    line = Settings(case="x", path=value).line()
    assert "\n" not in line and line.count(" ") == 1
    assert dict(Settings.parse(line)) == {"case": "x", "path": value}


def test_encoding_is_that_of_the_other_language():
    assert encode("a b%\n") == "a%20b%25%0A"
    assert Settings(b=True, a=2e-4).line() == "a=0.0002 b=1"  # keys in order


@pytest.mark.parametrize("line", ["width", "=3", "a=1 width", "a=%2", "a=%zz"])
def test_a_bad_line_is_refused(line):
    with pytest.raises(SettingsError, match="settings: expected"):
        Settings.parse(line)


def test_getters_say_what_they_expected():
    s = Settings.parse("width=64 lr=1e-3 causal=0 dtype=float16 bad=x threads=0 nan=nan")
    assert (s.integer("width"), s.number("lr"), s.flag("causal"), s.text("no", "d")) == (
        64,
        1e-3,
        False,
        "d",
    )
    for call, message in (
        (lambda: s.integer("bad"), "bad: expected an integer, got 'x'"),
        (lambda: s.integer("threads", minimum=1), "threads: expected at least 1, got 0"),
        (lambda: s.number("bad"), "bad: expected a number, got 'x'"),
        (lambda: s.number("nan"), "nan: expected a number, got 'nan'"),
        (lambda: s.flag("bad"), "bad: expected 0, 1, true or false, got 'x'"),
        (
            lambda: s.text("dtype", choices=("float32",)),
            "dtype: expected one of float32, got 'float16'",
        ),
        (lambda: s.text("layers"), "expected a value for 'layers', found none"),
    ):
        with pytest.raises(SettingsError, match=message):
            call()


def test_cases_expand_and_unknown_ones_name_the_known():
    s = expand_case("gptlite_train/size:smoke/batch:3", seed=5)
    assert (s["model"], s["batch"], s["width"], s["seed"], s["data"]) == (
        "gptlite",
        "3",
        "64",
        "5",
        "text",
    )
    assert expand_case("dnn_deep_latency/size:quick")["batch"] == "1"
    for name in ("gpt_train", "gptlite_fly", "gptlite_train/size:huge", "gptlite_train/quick"):
        with pytest.raises(SettingsError, match="expected"):
            expand_case(name)
    with pytest.raises(SettingsError, match="cannot read"):
        read_cases("/nowhere/cases.json")


def test_importing_the_package_imports_no_torch():
    code = "import sys, torchpace.settings, torchpace.worker; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}
        ).returncode
        == 0
    )
