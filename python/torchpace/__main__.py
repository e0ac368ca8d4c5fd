"""The program torchpace of an installed wheel: `torchpace`, or `python -m torchpace`.

The program itself is C++; it is told of this interpreter and this package.
"""

import os
import sys
from pathlib import Path


def main() -> int:
    """Becomes the program; returns only where there is none."""
    package = Path(__file__).parent
    program = package / "native" / "bin" / "torchpace"
    if not program.is_file():
        print(
            f"torchpace: expected the program {program}, found none: this is a source tree; build "
            "it with scripts/setup.sh, or pip install ./python",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("TORCHPACE_PYTHON", sys.executable)
    os.environ.setdefault("TORCHPACE_PYTHON_PATH", str(package.parent))
    os.execv(program, [str(program), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
