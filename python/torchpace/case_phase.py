"""The phases of a case, in one table. Twin: include/torchpace/case_phase.hpp. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torchpace.settings import Settings


class CasePhase(NamedTuple):
    """What a step of a case does, and how it is timed."""

    name: str
    trains: bool = False  # a step is forward, loss, backward and update; else it is a forward
    batch_of_one: bool = False  # and every step is synchronized: its latency, not the throughput


CASE_PHASES = {
    phase.name: phase
    for phase in (
        CasePhase("train", trains=True),
        CasePhase("inference"),
        CasePhase("latency", batch_of_one=True),
    )
}


def case_phase(settings: Settings, *default: str) -> CasePhase:
    """Of the key `phase`. Raises SettingsError where there is neither one nor a default, or an
    unknown name.
    """
    return CASE_PHASES[settings.text("phase", *default, choices=tuple(CASE_PHASES))]
