import pytest
import torch

from torchpace.io import tensor_file


@pytest.fixture
def probed(worker, exported):
    """Asks of a training case of 8 layers."""
    settings, _ = exported("dnn_deep_train/size:smoke")
    worker.ask("load " + settings.line())
    return worker


def totals(answer):
    return {(each["part"], each["name"]): each for each in answer["operators"]}


def test_operators_of_a_known_model_are_counted(probed):
    """Of 8 layers with ReLU between them; backward has a product for each weight and for the input
    of each layer but the first.
    """
    answer = probed.ask("operators 5")
    found = totals(answer)
    for part, name, calls, outer in (
        ("forward", "aten::linear", 8, 8),
        ("forward", "aten::addmm", 8, 0),
        ("forward", "aten::relu", 7, 7),
        ("backward", "aten::mm", 8 + 7, 0),
        ("backward", "aten::threshold_backward", 7, 0),
        ("optimizer", "aten::addcdiv_", 16, 16),
    ):
        each = found[part, name]
        assert (each["calls"], each["outer_calls"]) == (calls, outer), each
        assert each["self_ns"] > 0 == each["device_ns"]
    assert all("::" in name and not name.startswith("autograd") for _, name in found)
    assert len(answer["step_ns"]) == 5 and answer["synchronizations"] == 0
    assert answer["compiled"] is False
    # A self time holds no other operator's.
    assert sum(each["self_ns"] for each in found.values()) < sum(answer["step_ns"]) / 5


def test_parts_make_up_a_step(probed, exported):
    from torchpace import models, runtimes

    times = probed.ask("parts 4")["parts"]
    assert sorted(times) == ["backward", "forward", "optimizer"]
    assert all(len(ns) == 4 and min(ns) > 0 for ns in times.values())
    settings, _ = exported("dnn_deep_train/size:smoke")
    whole, apart = (
        runtimes.find("py-eager").load("py-eager", settings, models.of(settings)) for _ in range(2)
    )
    with whole.turn(), apart.turn():
        for index in range(3):
            whole.step(index)
            for _, run in apart.parts(index):
                run()
    for one, other in zip(whole.module.parameters(), apart.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_inference_has_one_part(worker, exported):
    settings, _ = exported("dnn_deep_inference/size:smoke")
    worker.ask("load " + settings.line())
    assert list(worker.ask("parts 2")["parts"]) == ["forward"]
    found = totals(worker.ask("operators 2"))
    assert found["forward", "aten::relu"]["calls"] == 7
    assert {part for part, _ in found} == {"forward"}


def test_dispatch_and_matmul_answer_as_many_numbers_as_asked(probed):
    cost = probed.ask("dispatch 4")
    assert sorted(cost) == ["operator_ns", "profiled_ns", "profiled_self_ns"]
    assert all(len(ns) == 4 and min(ns) > 0 for ns in cost.values())
    times = probed.ask("gemm_peak 16 3")["gemm_peak_ns"]
    assert len(times) == 3 and min(times) > 0


def test_probes_leave_the_next_turn_as_it_was(probed, exported, tmp_path):
    settings, _ = exported("dnn_deep_train/size:smoke")
    probed.ask("load " + settings.line())
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    probed.ask(f"write {before}")
    for probe in ("parts 2", "operators 2", "dispatch 2", "gemm_peak 8 2"):
        assert "error" not in probed.ask(probe)
    probed.ask(f"write {after}")
    one, other = (tensor_file.read_tensors(path, "values") for path in (before, after))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_errors_are_one_line(probed):
    for line, said in (
        ("parts", "parts: expected K"),
        ("parts 0", "parts: K: expected an integer of at least 1"),
        ("operators x", "operators: K: expected an integer"),
        ("dispatch 1 2", "dispatch: expected K"),
        ("gemm_peak 8", "gemm_peak: expected N K"),
        ("gemm_peak 0 3", "gemm_peak: N: expected an integer of at least 1"),
    ):
        assert said in probed.ask(line)["error"], line
    assert len(probed.ask("run 2 0")["step_ns"]) == 2


def test_a_step_of_one_piece_has_operators_and_no_parts(exported):
    from torchpace import models, profiling, runtimes
    from torchpace.errors import InputError

    settings, _ = exported("dnn_deep_train/size:smoke")
    workload = runtimes.find("py-eager").load("py-eager", settings, models.of(settings))
    workload.parts = lambda index: []
    with pytest.raises(InputError, match="found one piece"):
        profiling.time_parts(workload, 1)
    parts = {each["part"] for each in profiling.profile_operators(workload, 1)["operators"]}
    assert parts == {"step"}
