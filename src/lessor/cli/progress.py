# SPDX-License-Identifier: Apache-2.0
"""A progress bar for long work, on stderr and only when that is a terminal: the output of a command stays as it is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """For one `with` block: yields a function to call with the work done since its last call, of `total` in all."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=total, label=title, file=sys.stderr, width=0) as bar:
        yield bar.update
