"""`python -m torchpace.report results.json --output DIR`: report.html and its pictures.

Exit codes: 0 written, 2 bad input or an output folder that cannot be written, 77 jinja2 or
matplotlib is missing.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from torchpace.report.loader import ReportError, read_results

BAD_INPUT = 2
SKIPPED = 77


def missing_packages():
    """Names of the packages that a page needs and this Python lacks."""
    return [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]


def write_files(folder, files):
    """Writes all files under temporary names, then renames them: an old report stays whole.

    Raises ReportError naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as temporary:
            for name, content in files.items():
                with open(Path(temporary) / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for name in files:
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise ReportError(
            f"{folder}: cannot write the report: {error.strerror}; name another folder by --output"
        ) from error


def main(arguments=None):
    """Returns the exit code; prints the page's path."""
    parser = argparse.ArgumentParser(
        prog="python -m torchpace.report", description="Writes report.html and its pictures."
    )
    parser.add_argument("results", type=Path, help="results.json of torchpace compare")
    parser.add_argument("--output", type=Path, help="folder to write to (default: that of results)")
    options = parser.parse_args(arguments)
    folder = options.output or options.results.parent
    try:
        results = read_results(options.results)
        if missing := missing_packages():
            names = " and ".join(missing)
            print(
                f"torchpace report: the HTML page needs {names}, not found in {sys.executable}: "
                f"python -m pip install {' '.join(missing)}",
                file=sys.stderr,
            )
            return SKIPPED
        from torchpace.report.figures import draw_all
        from torchpace.report.page import render

        pictures = draw_all(results)
        files = {f"{picture.name}.png": picture.png for picture in pictures}
        files["report.html"] = render(results, pictures).encode()
        write_files(folder, files)
    except ReportError as error:
        print(f"torchpace report: {error}", file=sys.stderr)
        return BAD_INPUT
    print(folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
