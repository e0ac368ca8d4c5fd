"""Answers settings lines with the files of their cases."""

from __future__ import annotations

import time
from pathlib import Path

from torchpace import models
from torchpace.data import text
from torchpace.exporter import artifacts, cache, cases
from torchpace.settings import Settings
from torchpace.workload import load_libraries


class Exporter:
    def __init__(self, folder: Path, file: Path | None = None):
        self.folder, self.file = folder.absolute(), file
        self.maker = artifacts.Maker(folder)
        self._texts: dict[int, text.Text] = {}
        self._exported: dict[str, dict] = {}  # of cases that artifacts were asked of

    def answer(self, line: str) -> dict:
        """Answers one settings line. Raises InputError or Skipped."""
        settings = Settings.parse(line)
        if "make" not in settings:
            return self.export(settings)
        case = settings.replace(make=None, compile_timeout=None)
        if case.line() not in self._exported:  # checked once, not for each kind: gigabytes
            self._exported[case.line()] = self.export(case)
        files = self._exported[case.line()]
        paths = {key: files[key] for key in ("state", "golden", "tokens")}
        return self.maker.ask(settings.replace(**paths, **files["set"]))

    def export(self, settings: Settings) -> dict:
        """A case's files. Raises InputError or Skipped."""
        started = time.perf_counter()
        load_libraries(settings)
        model = models.of(settings)
        cases.check(settings, model)
        data = settings.text("data", "normal", ("text", "normal"))
        source = self._text(settings) if data == "text" else None
        entry = cache.get_or_make(
            self.folder / "cases" / cases.key_of(settings, model, source),
            lambda target: cases.make_case(target, settings, model, source),
        )
        no_golden = entry.manifest["no_golden"]
        notes = [
            source.note if source else "",
            entry.manifest["note"],
            f"rebuilt: {entry.rebuilt}" if entry.rebuilt else "",
        ]
        return {
            "case": settings.text("case", ""),
            "state": str(entry.path / "state.pt"),
            "golden": "" if no_golden else str(entry.path / "golden.pt"),
            "tokens": str(source.path) if source else "",
            "memory": entry.manifest["memory"],
            "set": entry.manifest["set"],
            "no_golden": no_golden,
            "cached": entry.cached,
            "seconds": time.perf_counter() - started,
            "note": "; ".join(note for note in notes if note),
        }

    def _text(self, settings: Settings) -> text.Text:
        vocabulary = settings.integer("vocabulary", 65, minimum=2)
        if vocabulary not in self._texts:
            self._texts[vocabulary] = text.find(self.folder, self.file, vocabulary)
        return self._texts[vocabulary]
