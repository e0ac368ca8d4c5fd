"""What torch's compilers are asked for, and where they work."""

from __future__ import annotations

from torchpace import inductor


def test_variables_that_change_what_is_compiled_are_told(monkeypatch):
    for name in inductor.compiler_variables():
        monkeypatch.delenv(name.partition("=")[0])
    changing = ("DNNL_MAX_CPU_ISA", "MKL_CBWR", "PYTORCH_JIT", "TORCHDYNAMO_DISABLE")
    changing += ("TORCHINDUCTOR_FREEZING", "TORCH_COMPILE_STANCE_MODE")
    without = ("MKL_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
    for name in (*reversed(changing), *without, "PYTORCH_JITTER", "MY_MKL_CBWR"):
        monkeypatch.setenv(name, "1")
    assert inductor.compiler_variables() == [f"{name}=1" for name in changing]
