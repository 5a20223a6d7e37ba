# SPDX-License-Identifier: Apache-2.0
"""Runs the benches: all of them, or those whose file or row is called like one of the words given.

    python -m bench [WORD ...] [-- OPTIONS]
    python -m bench --report

A bench is a file here that has ROWS. What the options are: `python -m bench -- --help`.
"""

import importlib
import sys
from pathlib import Path

from bench import report, rows


def all_rows() -> dict[str, tuple[rows.Row, ...]]:
    """The rows of each bench file, by the file's name."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if "\nROWS" in file.read_text():
            found[file.stem] = importlib.import_module(f"bench.{file.stem}").ROWS
    return found


def main(arguments: list[str]) -> int:
    if arguments == ["--report"]:
        return report.main([])
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    words, options = arguments[:cut], rows.parsed(arguments[cut + 1 :])
    wanted = [
        row
        for file, held in all_rows().items()
        for row in held
        if not words or any(word in f"{file} {row.name}" for word in words)
    ]
    if not wanted:
        print(f"bench: no bench is called like: {' '.join(words)}", file=sys.stderr)
        return 2
    return rows.main(wanted, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
