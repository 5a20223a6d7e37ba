# SPDX-License-Identifier: Apache-2.0
r"""Cuts a line of input into words, as the interactive commands of etcdctl do.

Law: pure functions; a line that cannot be read raises ValueError with Go's message.

Words are separated by white space. "double quotes" hold a word together, with Go's escapes inside (\n, \", \x41, \101,
\u4e2d); 'single quotes' too, with nothing special inside. A quote that is not closed is ignored.

Theory of operation. A word is a str whose bytes that are not UTF-8 are surrogates (os.fsencode gives them back), as
the words of the command line are. An escape like \xff makes a byte, so text is put together as bytes first.
"""

import re

from lessor.cli.notation import quote

# The three ways to write a word. The last one does not begin with a quote; quotes inside it have no meaning (it's).
# That is etcdctl's rule.
_WORD = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'[^']*'|[^'"\s]\S*[^'"\s]?""")
_ESCAPE = re.compile(rb"\\(?:([abfnrtv\\\"])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))")
_LETTERS = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_LETTERS.update({b"\\": b"\\", b'"': b'"'})
_QUOTED = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|`([^`]*)`)')


def split(line: str) -> list[str]:
    """The words of a line. ValueError for an escape that does not exist."""
    words = []
    for word in _WORD.findall(line):
        if word[0] == "'":
            words.append(word[1:-1])
        elif word[0] == '"':
            words.append(unescaped(word[1:-1]))
        else:
            words.append(word)
    return words


def quoted(text: str) -> tuple[str, str]:
    """The text in the quotes, double or `raw`, at the beginning of `text`, and the rest. ValueError without quotes."""
    match = _QUOTED.match(text)
    if match is None:
        raise ValueError(f"expected quoted string in {quote(text.encode('utf-8', 'surrogateescape'))}")
    return match[2] if match[1] is None else unescaped(match[1]), text[match.end() :]


def unescaped(text: str) -> str:
    """The inside of double quotes with each escape replaced by what it means."""

    def replaced(match: re.Match[bytes]) -> bytes:
        letter, two, octal, four, eight, _ = match.groups()
        if letter:
            return _LETTERS[letter]
        if two or octal:
            byte = int(two, 16) if two else int(octal, 8)
            if byte < 256:
                return bytes([byte])
        number = int(four or eight or "110000", 16)
        if number >= 0x110000 or 0xD800 <= number < 0xE000:
            raise ValueError("invalid syntax")
        return chr(number).encode()

    raw = text.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(replaced, raw).decode("utf-8", "surrogateescape")
