"""The command ``descramble-fast``; also ``python -m descramble_fast``."""

from __future__ import annotations

import sys
from pathlib import Path

from descramble_fast import _core

_NEEDED = {"click", "matplotlib", "tqdm"}
# Where the compiled parts lie, which in an editable install is not beside this file.
_FOLDERS = {"--cmake-dir": "lib/cmake/descramble_fast", "--include-dir": "include"}


def main() -> None:
    """Run the command line, or say in one line which extra it needs."""
    if len(sys.argv) == 2 and sys.argv[1] in _FOLDERS:  # for build scripts: without any extra
        print(Path(_core.__file__).parent / _FOLDERS[sys.argv[1]])
        return
    try:
        from descramble_fast import cli

        cli.descramble_fast(prog_name="descramble-fast")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(
            f"descramble-fast: {missing} is missing; this needs the demo extra: "
            "pip install 'descramble-fast[demo]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
