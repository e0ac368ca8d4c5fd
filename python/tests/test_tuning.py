"""The choice between ways of compiling, on a clock that only they move."""

import pytest

from torchpace.aot import tuning


class Machine:
    def __init__(self):
        self.now = 0.0
        self.noise = 1.0  # by which everything is slower
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def way(self, name: str, step_s: float):
        def run() -> None:
            self.ran.append(name)
            self.now += step_s * self.noise

        return run


@pytest.mark.parametrize(
    ("other_s", "expected"),
    [(0.9e-3, "other"), (0.99e-3, "first"), (1e-3, "first"), (1.5e-3, "first")],
)
def test_the_first_is_kept_unless_another_is_clearly_faster(other_s, expected):
    machine = Machine()
    ways = {"first": machine.way("first", 1e-3), "other": machine.way("other", other_s)}
    name, ratios = tuning.fastest(ways, machine.clock)
    assert name == expected
    assert ratios == {"first": 1.0, "other": pytest.approx(other_s / 1e-3)}


def test_what_slows_some_rounds_down_changes_no_choice():
    machine = Machine()

    def disturbed(run):
        def step() -> None:
            machine.noise = 5.0 if len(machine.ran) % 97 < 30 else 1.0
            run()

        return step

    ways = {"first": disturbed(machine.way("first", 1e-3)), "other": machine.way("other", 0.8e-3)}
    assert tuning.fastest(ways, machine.clock)[0] == "other"


def test_what_others_do_is_told_and_tried_again(monkeypatch):
    busy = iter([0.0, 9.0, 0.0, 5.0, 0.0, 7.0])  # seconds before and after each try
    monkeypatch.setattr(tuning, "_busy_s", lambda: next(busy))
    monkeypatch.setattr(tuning, "fastest", lambda ways: ("b", {"a": 1.0, "b": 0.5}))
    ticks = iter(range(100))
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(tuning.time, "process_time", lambda: 0.0)
    choice = tuning.choose({})
    assert choice.others == 5.0
    assert str(choice) == (
        "b was the fastest way to compile: relative times a 1.00, b 0.50; "
        "other programs kept 5.0 cores busy meanwhile"
    )


def test_a_quiet_machine_needs_one_try(monkeypatch):
    monkeypatch.setattr(tuning, "_busy_s", lambda: 0.0)
    tries = []
    monkeypatch.setattr(tuning, "fastest", lambda ways: tries.append(1) or ("a", {"a": 1.0}))
    assert "busy" not in str(tuning.choose({})) and len(tries) == 1


def test_ways_take_turns_and_each_goes_first():
    machine = Machine()
    ways = {name: machine.way(name, 5e-3) for name in ("a", "b", "c")}
    tuning.fastest(ways, machine.clock)
    order = [a for a, b in zip(machine.ran, [*machine.ran[1:], ""], strict=True) if a != b]
    for name in ways:
        assert order.count(name) >= tuning.ROUNDS * 2 / 3
    assert "".join(order).count("bca") > 0 and "".join(order).count("cab") > 0
