"""Run the drills: ``python tests/drills [--long] [NAME ...]``.

Without names, all of them, those of a CUDA device where there is one; with ``--long``, as many
trials as in the table of docs/reliability.md. Results of long runs are kept in
``tests/drills/results`` and filled into that page; ``--save`` keeps those of quick ones.
"""

from __future__ import annotations

import argparse
import sys

import page
from drill import DRILLS, run

import descramble_fast


def main() -> int:
    """Run what was asked for; 1 where anything failed."""
    page.load()
    parser = argparse.ArgumentParser(
        prog="python tests/drills", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DRILLS))
    parser.add_argument("--long", action="store_true", help="as many trials as in the table")
    parser.add_argument("--save", action="store_true", help="keep the results of a quick run, too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in DRILLS]
    if unknown:
        parser.error(f"no drill is called {unknown[0]!r}; there are {', '.join(DRILLS)}")
    failed = False
    cuda = descramble_fast.cuda_available()
    for name in options.names or [each for each in DRILLS if cuda or not DRILLS[each].device]:
        record = run(name, options.long)
        failed |= bool(record.failed)
        figures = "".join(f", {key} {value}" for key, value in record.figures.items())
        print(
            f"{name}: {record.trials:,} trials, {record.failed:,} failures, "
            f"{record.seconds:.0f} s{figures}",
            flush=True,
        )
        for failure in record.failures:
            print(f"  {failure}")
        if options.long or options.save:
            record.save(name)
    page.write()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
