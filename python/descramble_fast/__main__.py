"""The command ``descramble-fast``; also ``python -m descramble_fast``."""

from __future__ import annotations

import sys

_NEEDED = {"click", "matplotlib", "tqdm"}


def main() -> None:
    """Run the command line, or say in one line which extra it needs."""
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
