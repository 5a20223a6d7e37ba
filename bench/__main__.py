# SPDX-License-Identifier: Apache-2.0
"""Runs the benches: all of them, or those whose file or row is called like one of the words given.

    python -m bench [WORD ...] [-- OPTIONS]
    python -m bench --report

A bench is a file here that has ROWS. What the options are: `python -m bench -- --help`. An option before the `--` is an
error: as a word it would choose benches, and its value too.
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


def mended(words: list[str], options: list[str]) -> str:
    """The same command line with all its options where they belong."""
    first = next(place for place, word in enumerate(words) if word.startswith("-"))
    return " ".join(["`python -m bench", *words[:first], "--", *words[first:], *options]) + "`"


def main(arguments: list[str]) -> int:
    if arguments == ["--report"]:
        return report.main([])
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    words = arguments[:cut]
    if flags := [word for word in words if word.startswith("-")]:
        better = mended(words, arguments[cut + 1 :])
        print(f"bench: {flags[0]} is not the name of a bench: put options behind --, as in {better}", file=sys.stderr)
        return 2
    options = rows.parsed(arguments[cut + 1 :])
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
