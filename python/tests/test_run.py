"""`torchpace run` on good, corrupted and mismatched files: one line each, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def program() -> Path | None:
    """torchpace with torchpace_run beside it: of TORCHPACE_BUILD, else of the tree's builds."""
    named = os.environ.get("TORCHPACE_BUILD")
    builds = [Path(named)] if named else sorted(ROOT.glob("build/*"))
    found = [b / "bin" / "torchpace" for b in builds if (b / "bin" / "torchpace_run").exists()]
    return next((p for p in found if p.exists()), None)


pytestmark = pytest.mark.skipif(program() is None, reason="torchpace_run is not built")

METADATA = {
    "torchpace.format": "1",
    "torchpace.torch": torch.__version__,
    "torchpace.device": "cpu",
    "torchpace.threads": "1",
    "torchpace.isa": torch.backends.cpu.get_cpu_capability(),
    "torchpace.gpu": "",
    "torchpace.inputs": "?x8:float32",
    "torchpace.outputs": "?x4:float32",
}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.second = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """net.pt, net.pt2, foreign.pt2 (without torchpace's keys), exported.pt2, state.pt."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(4, 8)
    torch.jit.script(net).save(str(folder / "net.pt"))
    torch.save(dict(net.state_dict()), folder / "state.pt")
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, folder / "exported.pt2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(folder / "net.pt2"),
        inductor_configs={"aot_inductor.metadata": METADATA},
    )
    torch.set_num_threads(threads)
    foreign = dict.fromkeys(METADATA)
    rewrite(folder / "net.pt2", folder / "foreign.pt2", metadata=foreign)
    return folder


def rewrite(source: Path, target: Path, metadata: dict | None = None, **entries) -> None:
    """Copies an archive with other metadata (None: the key goes) and other bytes by suffix."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if metadata and name.endswith("_metadata.json"):
                values = json.loads(data) | metadata
                data = json.dumps({k: v for k, v in values.items() if v is not None}).encode()
            for suffix, other in entries.items():
                if name.endswith("." + suffix):
                    data = other
            new.writestr(name, data)


def run(tmp_path: Path, *arguments: str, threads: str = "1") -> subprocess.CompletedProcess:
    """Runs the program with a TMPDIR that must be empty afterwards."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(scratch), "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        [str(program()), "run", "--seconds", "0.2", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert list(scratch.iterdir()) == [], "left in the temporary folder"
    return done


def refused(tmp_path: Path, *arguments: str) -> str:
    """The one line of a file that is refused with exit code 2."""
    done = run(tmp_path, *arguments)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2, done.stderr + done.stdout
    assert len(lines) == 1 and lines[0].startswith("torchpace: "), done.stderr
    assert done.stdout == ""
    return lines[0]


def flip(source: Path, target: Path, place: int) -> None:
    data = bytearray(source.read_bytes())
    data[place] ^= 0x40
    target.write_bytes(data)


def place_of(path: Path, suffix: str) -> int:
    """Where the middle of an entry's data lies in the file."""
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(suffix))
    header = path.read_bytes()[entry.header_offset : entry.header_offset + 30]
    data = entry.header_offset + 30 + int.from_bytes(header[26:28], "little")
    return data + int.from_bytes(header[28:30], "little") + entry.compress_size // 2


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(files, tmp_path, name, part):
    data = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * part)])
    line = refused(tmp_path, str(path), "--input", "4x8")
    assert "truncated" in line or "empty file" in line


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("net.pt2", ".so"),
        ("net.pt2", "wrapper_metadata.json"),
        ("net.pt", "data/0"),
        ("net.pt", "data.pkl"),
        ("net.pt", "code/__torch__.py"),
        ("net.pt", "constants.pkl"),
    ],
)
def test_a_flipped_byte_is_refused(files, tmp_path, name, suffix):
    if suffix == "code/__torch__.py":
        with zipfile.ZipFile(files / name) as archive:
            code = [n for n in archive.namelist() if "/code/" in n and n.endswith(".py")]
        suffix = code[0]
    flip(files / name, tmp_path / name, place_of(files / name, suffix))
    refused(tmp_path, str(tmp_path / name), "--input", "4x8")


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_flipped_bytes_of_the_tables_are_refused(files, tmp_path, name):
    data = (files / name).read_bytes()
    for place in (0, data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06"), len(data) - 8):
        flip(files / name, tmp_path / name, place)
        refused(tmp_path, str(tmp_path / name), "--input", "4x8")


@pytest.mark.parametrize("name", ["../evil.so", "/evil.so", "x/../../evil.so", "x\\..\\evil.so"])
def test_a_name_that_leaves_the_folder_is_refused(files, tmp_path, name):
    path = tmp_path / "evil.pt2"
    path.write_bytes((files / "net.pt2").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    assert "expected names inside the archive's own folder" in refused(tmp_path, str(path))


def test_zip_bombs_are_refused_by_size(files, tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("x/code/bomb.py", bytes(1 << 26))
    assert "zip bomb" in refused(tmp_path, str(path), "--input", "4x8")


def test_other_files_are_refused(files, tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("hello\n")
    assert "something else" in refused(tmp_path, str(text), "--input", "4x8")
    assert "a folder" in refused(tmp_path, str(tmp_path), "--input", "4x8")
    assert "cannot be opened" in refused(tmp_path, str(tmp_path / "none.pt2"), "--input", "4x8")
    line = refused(tmp_path, str(files / "exported.pt2"), "--input", "4x8")
    assert "torch.export.save" in line and "torchpace compare --model FILE.pt2" in line
    assert "torch.save" in refused(tmp_path, str(files / "state.pt"), "--input", "4x8")
    package = tmp_path / "package.pt"
    package.write_bytes((files / "net.pt2").read_bytes())
    assert "name it .pt2" in refused(tmp_path, str(package), "--input", "4x8")
    encrypted = tmp_path / "encrypted.pt"
    data = bytearray((files / "net.pt").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    encrypted.write_bytes(data)
    assert "no encryption" in refused(tmp_path, str(encrypted), "--input", "4x8")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"torchpace.torch": "2.10.0"}, "found one for 2.10.0"),
        ({"torchpace.threads": "64"}, "found one for 64"),
        ({"AOTI_DEVICE_KEY": "cuda"}, "found one for cuda"),
        ({"AOTI_DEVICE_KEY": None}, "AOTI_DEVICE_KEY"),
        ({"AOTI_CPU_ISA": "AVX9000"}, "needs AVX9000"),
    ],
)
def test_a_package_for_another_machine_is_refused(files, tmp_path, metadata, expected):
    path = tmp_path / "other.pt2"
    rewrite(files / "net.pt2", path, metadata=metadata)
    assert expected in refused(tmp_path, str(path), "--threads", "1")


def test_a_library_that_is_none_is_refused(files, tmp_path):
    path = tmp_path / "broken.pt2"
    rewrite(files / "net.pt2", path, so=b"\x7fELF and nothing else")
    assert "does not load" in refused(tmp_path, str(path))


def test_wrong_inputs_are_refused(files, tmp_path):
    net, package, foreign = (str(files / n) for n in ("net.pt", "net.pt2", "foreign.pt2"))
    assert "expected --input" in refused(tmp_path, net)
    assert "cannot be multiplied" in refused(tmp_path, net, "--input", "4x7")
    assert "expected inputs ?x8:float32" in refused(tmp_path, package, "--input", "4x7")
    assert "found 4x8:int64" in refused(tmp_path, package, "--input", "4x8:int64")
    two = ("--input", "4x8", "--input", "4x8")
    assert "found 4x8:float32;4x8:float32" in refused(tmp_path, package, *two)
    assert "expected --input" in refused(tmp_path, foreign)
    assert "refuses these inputs" in refused(tmp_path, foreign, "--input", "4x7")
    assert "refuses these inputs" in refused(tmp_path, foreign, "--input", "4x8:int64")
    assert "refuses these inputs" in refused(tmp_path, foreign, *two)
    assert "1x3x224x224" in refused(tmp_path, net, "--input", "4xa")
    assert "channels_last" in refused(tmp_path, net, "--input", "4x8:float32:banana")
    assert "dtype: expected one of" in refused(tmp_path, net, "--input", "4x8:f32")
    assert "--dynamic" in refused(tmp_path, net, "--input", "4x8", "--dynamic", "4:")


def test_a_loader_that_dies_is_one_line(files, tmp_path):
    """Code with a right CRC may still crash: here what the library's start runs is overwritten."""
    with zipfile.ZipFile(files / "net.pt2") as archive:
        name = next(n for n in archive.namelist() if n.endswith(".so"))
        library = bytearray(archive.read(name))
    header = int.from_bytes(library[40:48], "little")
    count = int.from_bytes(library[60:62], "little")
    for i in range(count):
        section = header + 64 * i
        if int.from_bytes(library[section + 4 : section + 8], "little") == 14:  # SHT_INIT_ARRAY
            offset = int.from_bytes(library[section + 24 : section + 32], "little")
            size = int.from_bytes(library[section + 32 : section + 40], "little")
            library[offset : offset + size] = b"\x01" * size
        if int.from_bytes(library[section + 8 : section + 16], "little") & 4:  # code
            offset = int.from_bytes(library[section + 24 : section + 32], "little")
            size = int.from_bytes(library[section + 32 : section + 40], "little")
            library[offset : offset + size] = b"\x0f\x0b" * (size // 2) + b"\x0b" * (size % 2)
    path = tmp_path / "dies.pt2"
    rewrite(files / "net.pt2", path, so=bytes(library))
    done = run(tmp_path, str(path))
    assert done.returncode == 1, done.stderr
    assert "the loader died: signal" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_right_runs(files, tmp_path):
    table = run(tmp_path, str(files / "net.pt2"), "--dynamic", "1:4*2")
    assert table.returncode == 0, table.stderr
    assert [s in table.stdout for s in ("1x8:float32", "2x8:float32", "4x8:float32")] == [True] * 3
    assert "p99" in table.stdout and "peak memory" in table.stdout and "load" in table.stdout

    compared = run(tmp_path, str(files / "net.pt2"), "--compare", str(files / "net.pt"), "--json")
    assert compared.returncode == 0, compared.stderr
    result = json.loads(compared.stdout)
    assert result["comparisons"][0]["rounds"] >= 15
    assert result["rows"][0]["latency"]["step_ns"]["median"] > 0
    assert result["other"]["kind"] == "TorchScript file"

    foreign = run(tmp_path, str(files / "foreign.pt2"), "--input", "4x8", "--streams", "2")
    assert foreign.returncode == 0, foreign.stderr
    assert "with 2 callers" in foreign.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """Of other people: fixed.pt2 for 4096 rows, layers.pt2 for channels_last inputs, and two.pt2
    with the models encoder and decoder.
    """
    folder = tmp_path_factory.mktemp("packages")
    compile_ = torch._inductor.aoti_compile_and_package
    with torch.no_grad():
        exported = torch.export.export(Sinus(), (torch.randn(4096, 64),))
        compile_(exported, package_path=str(folder / "fixed.pt2"))
        x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
        compile_(torch.export.export(Sinus(), (x,)), package_path=str(folder / "layers.pt2"))
        files = torch._inductor.aot_compile(
            exported.module(), (torch.randn(4096, 64),), options={"aot_inductor.package": True}
        )
    torch._inductor.package.package.package_aoti(
        str(folder / "two.pt2"), {"encoder": files, "decoder": files}
    )
    return folder


class Sinus(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2 + 1


def scripted(tmp_path: Path, name: str, module: torch.nn.Module) -> str:
    path = tmp_path / name
    torch.jit.script(module.eval()).save(str(path))
    return str(path)


def test_every_dynamic_size_is_checked_before_anything_is_timed(packages, tmp_path):
    """Code for 4096 rows reads past the end of a tensor of one."""
    fixed = str(packages / "fixed.pt2")
    line = refused(tmp_path, fixed, "--input", "4096x64", "--dynamic", "4096,1")
    assert "refuses these inputs, 1x64:float32" in line and "expected: 4096" in line
    sinus = scripted(tmp_path, "sinus.pt", Sinus())
    sizes = ("--input", "4096x64", "--dynamic", "4096,1")
    line = refused(tmp_path, sinus, "--compare", fixed, *sizes)
    assert "fixed.pt2: the package refuses these inputs, 1x64:float32" in line
    line = refused(tmp_path, fixed, "--compare", str(tmp_path / "none.pt"), "--input", "4096x64")
    assert "cannot be opened" in line


def test_a_package_for_channels_last_inputs(packages, tmp_path):
    package = str(packages / "layers.pt2")
    line = refused(tmp_path, package, "--input", "2x3x8x8")
    assert "2x3x8x8:float32:channels_last" in line and "strides" in line
    done = run(tmp_path, package, "--input", "2x3x8x8:float32:channels_last")
    assert done.returncode == 0, done.stderr
    assert "2x3x8x8:float32:channels_last" in done.stdout


def test_a_package_of_several_models(packages, tmp_path):
    two = (str(packages / "two.pt2"), "--input", "4096x64")
    line = refused(tmp_path, *two)
    assert "found one of decoder, encoder" in line and "--model-name" in line
    assert "the model 'banana'" in refused(tmp_path, *two, "--model-name", "banana")
    fixed = ("--compare", str(packages / "fixed.pt2"))
    done = run(tmp_path, *two, "--model-name", "encoder", *fixed)
    assert done.returncode == 0, done.stderr


class Normalize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(0.45).div_(0.225) + 1


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + 1


def test_a_file_that_changes_its_inputs_or_buffers_is_refused(tmp_path):
    path = scripted(tmp_path, "inplace.pt", Normalize())
    good = scripted(tmp_path, "good.pt", Sinus())
    for files in ((path,), (path, "--compare", path), (good, "--compare", path)):
        line = refused(tmp_path, *files, "--input", "2x3x16x16")
        assert "inplace.pt: the model changes its input 0 in place" in line
        assert "clone it first (x = x.clone())" in line
    path = scripted(tmp_path, "counting.pt", Counting())
    line = refused(tmp_path, path, "--input", "4x8", "--torchscript", "plain")
    assert "the model changes its buffer calls" in line


class Label(torch.nn.Module):
    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(-1) if self.largest else x.argmin(-1)


class Spectrum(torch.nn.Module):
    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"all": x, "of": torch.fft.fft(x) * self.sign}


class Number(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return x.size(0)


def test_outputs_of_every_kind_are_compared(tmp_path):
    largest, smallest = (scripted(tmp_path, f"{b}.pt", Label(b)) for b in (True, False))
    done = run(tmp_path, largest, "--compare", largest, "--input", "4x16")
    assert done.returncode == 0 and "outputs agree to 0" in done.stdout, done.stderr
    done = run(tmp_path, largest, "--compare", smallest, "--input", "4x16")
    assert done.returncode == 3, done.stderr
    assert "INVALID: output: 4 of 4 elements differ" in done.stdout
    spectrum = scripted(tmp_path, "spectrum.pt", Spectrum())
    done = run(tmp_path, spectrum, "--compare", spectrum, "--input", "4x16")
    assert done.returncode == 0, done.stderr
    negative = scripted(tmp_path, "negative.pt", Spectrum(-1.0))
    done = run(tmp_path, spectrum, "--compare", negative, "--input", "4x16", "--json")
    assert done.returncode == 3, done.stderr
    assert "output.1 differs by" in json.loads(done.stdout)["comparisons"][0]["note"]
    done = run(tmp_path, spectrum, "--input", "4x16:complex64")
    assert done.returncode == 0 and "4x16:complex64" in done.stdout, done.stderr
    huge = refused(tmp_path, spectrum, "--input", "99999999x99999999")
    assert "--input 99999999x99999999:float32: cannot be made" in huge
    number = scripted(tmp_path, "number.pt", Number())
    assert "returns none" in refused(tmp_path, number, "--input", "4x16")


def test_custom_operators_need_their_library(tmp_path):
    source = tmp_path / "operator.cpp"
    source.write_text(
        "#include <ATen/core/Tensor.h>\n"
        "#include <ATen/ops/add.h>\n"
        "#include <torch/library.h>\n"
        "at::Tensor twice(const at::Tensor& x) { return at::add(x, x); }\n"
        'TORCH_LIBRARY(tests_of_run, m) { m.def("twice", &twice); }\n'
    )
    library = tmp_path / "operator.so"
    folder = Path(torch.__file__).parent
    flags = ["-std=c++17", "-shared", "-fPIC", f"-I{folder}/include", f"-L{folder}/lib"]
    subprocess.run(
        ["c++", *flags, str(source), "-o", str(library), "-ltorch_cpu", "-lc10"], check=True
    )
    torch.ops.load_library(str(library))

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.tests_of_run.twice(x)

    path = scripted(tmp_path, "twice.pt", Twice())
    line = refused(tmp_path, path, "--input", "4x8")
    assert "tests_of_run::twice" in line and "--load-library FILE.so" in line
    done = run(tmp_path, path, "--input", "4x8", "--load-library", str(library))
    assert done.returncode == 0, done.stderr
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"no ELF")
    for file in (bad, tmp_path / "none.so"):
        line = refused(tmp_path, path, "--input", "4x8", "--load-library", str(file))
        assert f"--load-library{' ' if file == bad else ':'}" in line and file.name in line


def test_what_tmpdir_lacks_is_named(files, tmp_path):
    command = [str(program()), "run", "--seconds", "0.2", str(files / "net.pt"), "--input", "4x8"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TMPDIR": "/none"}, timeout=60
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "TMPDIR: expected a folder to write to, found /none" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_lost_write_is_no_success(files, tmp_path):
    command = [str(program()), "run", "--seconds", "0.2", str(files / "net.pt"), "--input", "4x8"]
    with open("/dev/full", "w") as full:
        for more in ((), ("--json",)):
            done = subprocess.run(
                [*command, *more], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
            assert done.returncode == 1, done.stderr
            assert "is the disk full?" in done.stderr and len(errors_of(done)) == 1
        worker = program().parent / "torchpace_worker"
        done = subprocess.run(
            [worker, "--list"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
        assert done.returncode == 1 and "is the disk full?" in done.stderr


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Its lines on standard error without the one that says how busy others keep the machine."""
    return [line for line in done.stderr.splitlines() if "other programs kept" not in line]


def test_a_closed_pipe_is_no_error(files, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(program()), "run", "--seconds", "0.2", str(files / "net.pt"), "--input", "4x8"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 0 and errors_of(done) == []


def test_other_outputs_are_no_comparison(files, tmp_path):
    torch.manual_seed(1)
    torch.jit.script(Net().eval()).save(str(tmp_path / "other.pt"))
    other = str(tmp_path / "other.pt")
    done = run(tmp_path, str(files / "net.pt"), "--compare", other, "--input", "4x8")
    assert done.returncode == 3, done.stderr
    assert "INVALID" in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--device", "banana", "device: expected auto, cpu, cuda or cuda:N, got 'banana'"),
        ("--below", "x", "below: expected an integer, got 'x'"),
        ("--streams", "0", "--streams: expected a number above 0, got '0'"),
        ("--threads", "0", "--threads: expected a number above 0, got '0'"),
        ("--seconds", "-1", "--seconds: expected a number above 0, got '-1'"),
    ],
)
def test_wrong_options_are_one_line(files, tmp_path, option, value, reason):
    assert reason in refused(tmp_path, files / "net.pt", "--input", "4x8", option, value)


def test_a_missing_device_is_a_skip(files, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run(tmp_path, str(files / "net.pt"), "--input", "4x8", "--device", "cuda")
    assert done.returncode == 77 and len(done.stderr.splitlines()) == 1
