# SPDX-License-Identifier: Apache-2.0
"""What may be written to a terminal: text from a server must not move its cursor, name its window or turn lines around.

Laws
- Where stdout or stderr is a terminal, characters that are not printable are written as escapes, as Go's %q has them:
  `\\x1b`, `\\u202e`. Lines and tabs of the layout and of values stay; in keys and names they are escaped too, so that
  none looks like the next line.
- Where it is none, a pipe or a file, the bytes are etcdctl's, to the letter.

etcdctl writes all bytes as they are, to terminals too.
"""

import sys

from lessor.base.printable import escape_unprintable
from lessor.cli.notation import escaped_char

LAYOUT = "\n\t"


def escaped(raw: bytes, keep: str = "") -> bytes:
    r"""The text with each character that is not printable as an escape, and each byte that is not UTF-8 as \xff.

    `keep`: characters that stay as they are nevertheless. A backslash stays: the text is for people, not to be read
    back.
    """
    return escape_unprintable(raw.decode("utf-8", "surrogateescape"), escaped_char, keep).encode()


def word(raw: bytes) -> bytes:
    """A key or a name, as it goes to stdout."""
    return escaped(raw) if sys.stdout.isatty() else raw


def word_text(text: str) -> str:
    """The same for a text."""
    return word(text.encode()).decode() if not text.isprintable() else text


def complain(text: str) -> None:
    """Writes a line to stderr, at once."""
    if sys.stderr.isatty():
        text = escaped(text.encode("utf-8", "surrogateescape"), LAYOUT).decode()
    print(text, file=sys.stderr, flush=True)
