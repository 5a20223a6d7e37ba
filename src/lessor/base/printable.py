# SPDX-License-Identifier: Apache-2.0
"""Texts that others chose, for a log or a terminal, which characters that are not printable could steer.

Unprintable are: control characters, marks that turn the direction of writing, characters without a width, line
separators, halves of surrogate pairs, and what Unicode has not assigned.
"""

import re
from collections.abc import Callable

# Covers all that `str.isprintable` refuses, and more: only such a run of characters is looked at one by one.
_SUSPECT = re.compile(r"[^ -~]+")


def escape_unprintable(text: str, escape: Callable[[str], str], keep: str = "") -> str:
    """The text with `escape` of each character that is not printable, and is none of `keep`, in its place."""

    def run(match: re.Match[str]) -> str:
        return "".join(char if char in keep or char.isprintable() else escape(char) for char in match[0])

    return text if text.isprintable() else _SUSPECT.sub(run, text)
