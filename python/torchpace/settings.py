"""A case as `key=value` words: how the controller, the exporter and the workers of both languages
pass it on.

Values are percent-encoded (space, %, control characters). Twin: include/torchpace/settings.hpp.
Free of torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchpace.case_phase import CASE_PHASES
from torchpace.errors import InputError

_REQUIRED: Any = object()
_UNSAFE = re.compile(rb"[\x00-\x20%\x7f]")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")


class SettingsError(InputError):
    """A case or a settings line that cannot be used."""


def encode(value: str) -> str:
    """`value` with space, % and control characters as %XX, so that it is one word of a settings
    line.
    """
    encoded = _UNSAFE.sub(
        lambda match: b"%%%02X" % match[0][0], value.encode("utf-8", "surrogateescape")
    )
    return encoded.decode("utf-8", "surrogateescape")


def decode(word: str) -> str:
    """The inverse of encode. Raises SettingsError on a % that no two hexadecimal digits follow."""

    def byte(match: re.Match[bytes]) -> bytes:
        if match[1] is None:
            raise SettingsError(f"settings: expected %XX (two hexadecimal digits), got '{word}'")
        return bytes([int(match[1], 16)])

    raw = _ESCAPE.sub(byte, word.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


class Settings(Mapping[str, str]):
    """An immutable mapping of text to text with typed getters; every getter raises SettingsError.

    >>> Settings.parse("model=dnn width=64 state=a%20b").integer("width")
    64
    """

    def __init__(self, values: Mapping[str, Any] | None = None, **more: Any):
        merged = {**(values or {}), **more}
        self._values = {key: _to_text(value) for key, value in merged.items()}

    @classmethod
    def parse(cls, line: str) -> Settings:
        """Reads `key=value key=value ...`; of two values for one key the later holds.

        Raises SettingsError on a word without `=`, an empty key or a bad %XX.
        """
        values = {}
        for word in line.strip("\r\n").split(" "):
            if not word:
                continue
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise SettingsError(f"settings: expected key=value, got '{word}'")
            values[key] = decode(value)
        return cls(values)

    def line(self) -> str:
        """The settings as one line, keys in order: the inverse of parse."""
        return " ".join(f"{key}={encode(value)}" for key, value in sorted(self._values.items()))

    def replace(self, **changes: Any) -> Settings:
        """A copy with `changes`; a value of None removes its key."""
        merged = {**self._values, **changes}
        return Settings({key: value for key, value in merged.items() if value is not None})

    def text(self, key: str, default: str = _REQUIRED, choices: tuple[str, ...] = ()) -> str:
        value = self._find(key, default)
        if choices and value not in choices:
            raise SettingsError(
                f"settings: {key}: expected one of {', '.join(choices)}, got '{value}'"
            )
        return value

    def integer(self, key: str, default: int = _REQUIRED, minimum: int | None = None) -> int:
        text = str(self._find(key, default))
        if not re.fullmatch(r"-?[0-9]+", text):
            raise SettingsError(f"settings: {key}: expected an integer, got '{text}'")
        value = int(text)
        if minimum is not None and value < minimum:
            raise SettingsError(f"settings: {key}: expected at least {minimum}, got {value}")
        return value

    def number(self, key: str, default: float = _REQUIRED) -> float:
        text = str(self._find(key, default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SettingsError(f"settings: {key}: expected a number, got '{text}'")
        return value

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        value = self._find(key, default)
        if isinstance(value, bool):
            return value
        if value not in ("0", "1", "true", "false"):
            raise SettingsError(f"settings: {key}: expected 0, 1, true or false, got '{value}'")
        return value in ("1", "true")

    def _find(self, key: str, default: Any) -> Any:
        if key in self._values:
            return self._values[key]
        if default is _REQUIRED:
            raise SettingsError(f"settings: expected a value for '{key}', found none")
        return default

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self.line()!r})"


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return value if isinstance(value, str) else str(value)


def read_cases(path: str | Path | None = None) -> dict[str, Any]:
    """The families, sizes and presets of `path`, by default those of this package.

    Raises SettingsError if it cannot be read or lacks its families.
    """
    path = Path(path) if path else Path(__file__).with_name("cases.json")
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"cases: cannot read {path}: expected JSON with families, {error}"
        ) from None
    if not isinstance(cases, dict) or "families" not in cases:
        raise SettingsError(f"cases: {path}: expected an object with 'families', found none")
    return cases


def expand_case(name: str, cases: Mapping[str, Any] | None = None, **overrides: Any) -> Settings:
    """The settings of a case by its literal name, `family_phase/size:S/key:value`.

    Defaults: float32, cpu, seed 0, Adam with 2e-4; the latency phase has batch 1. Raises
    SettingsError if the family, phase or size is unknown, naming those that are known.
    """
    cases = cases or read_cases()
    head, *parts = name.split("/")
    family, _, phase = head.rpartition("_")
    known = cases["families"]
    if family not in known or phase not in CASE_PHASES:
        raise SettingsError(
            f"case '{name}': expected FAMILY_PHASE of {', '.join(known)} and "
            f"{', '.join(CASE_PHASES)}, got '{head}'"
        )
    values: dict[str, Any] = {}
    for part in parts:
        key, colon, value = part.partition(":")
        if not colon or not key:
            raise SettingsError(f"case '{name}': expected key:value after '/', got '{part}'")
        values[key] = value
    size = values.pop("size", "quick")
    sizes = known[family]["sizes"]
    if size not in sizes:
        raise SettingsError(f"case '{name}': expected a size of {', '.join(sizes)}, got '{size}'")
    base = {"dtype": "float32", "device": "cpu", "seed": 0, "optimizer": "adam", "lr": 2e-4}
    base |= known[family]["settings"] | sizes[size]
    if CASE_PHASES[phase].batch_of_one:
        base["batch"] = 1
    identity = {"case": name, "family": family, "model": known[family]["model"], "phase": phase}
    return Settings({**base, **identity, **values, **overrides})
