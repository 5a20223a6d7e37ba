# SPDX-License-Identifier: Apache-2.0
"""The errors of a JSON body, in the words of Go, in which etcd's gateway is written.

Laws
- Only refused bodies come here. This module does not decide what is refused; it makes the text and finds the place.
- A place is line and column, both from 1, counted from the first letter that is not white space.
- Cost: at most five times what Python's C decoder takes to read the body. No step of Python for each token: a peer can
  send millions of them.

Theory of operation. Two of Go's libraries read a body, one after the other. encoding/json finds the end of the value
and reports faults of syntax: "invalid character '}' looking for beginning of value". protojson then reads the value
into the message: "proto: (line 1:8): invalid value for bytes field key: 1".

Python's decoder is quick and says where it stopped, but not in Go's words. So it finds the last token before the fault,
and two more readings of the sound part, each with one token behind it, find out what may follow there. From there on
`_walk` reads the one or two tokens up to the fault as Go does.
"""

import json
import re
from functools import lru_cache
from typing import Final

from lessor.base import limits

_SPACE = " \t\r\n"
_NOT_SPACE = re.compile(r"[^ \t\r\n]|\Z")
_SPACES = re.compile(rb"[ \t\r\n]*+")
_SOUND_TEXT = re.compile(rb'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_DIGITS = re.compile(rb"[0-9]*")
_DECIMALS = frozenset("0123456789")
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_BY_NAME = {7: r"\a", 8: r"\b", 9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r", 39: r"\'", 92: r"\\"}

EOF: Final = "unexpected EOF"
TOO_DEEP: Final = "proto: syntax error: exceeded max depth"

# Strings are read, objects, lists and numbers only counted: nothing is made of them.
_glance = json.JSONDecoder(object_pairs_hook=len, parse_float=len, parse_int=len).raw_decode


class FaultError(Exception):
    """A value that its field cannot hold. On the way out each level adds its step to `path`.

    text      the text after the place
    syntax    whether protojson calls it a syntax error
    shows     whether the value follows the text
    of_name   when the fault is in the field's name, not in its value: the number of that name in its object, from 1
    path      from the fault outwards: the name of a field as it was sent, or the index in a list
    """

    def __init__(self, text: str, *, syntax: bool = False, shows: bool = True, of_name: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.syntax = syntax
        self.shows = shows
        self.of_name = of_name
        self.path: list[str | int] = []

    def message(self, source: str) -> str:
        """The error's text. `source`: the body, which is sound JSON and begins without white space."""
        at = _place_of(source, self.path[::-1], self.of_name)
        shown = ""
        if self.shows:
            shown = source[at] if source[at] in "{[" else source[at : _glance(source, at)[1]]
            if len(shown) > limits.JSON_SHOWN_LETTERS_MAX:
                shown = shown[: limits.JSON_SHOWN_LETTERS_MAX] + "..."
        kind = "syntax error " if self.syntax else ""
        return f"proto: {kind}({place(source, at)}): {self.text}{shown}"


def place(source: str, at: int) -> str:
    return f"line {source.count(chr(10), 0, at) + 1}:{at - source.rfind(chr(10), 0, at)}"


def _place_of(source: str, path: list[str | int], of_name: int) -> int:
    """The position of the value at the end of the path; with `of_name`, that of its name, the `of_name`-th.

    Names are those of fields: letters, digits and underscores.
    """
    at = 0
    for depth, step in enumerate(path, 1):
        wanted = of_name if depth == len(path) else 0
        at = _inside(source, at, step, wanted)
    return at


def _inside(source: str, at: int, step: str | int, of_name: int) -> int:
    """The position after one step into the object or list that begins at `at`."""
    index = seen = 0
    at = _after_space(source, at + 1)
    while True:
        if isinstance(step, str):
            at = _after_others(source, at, step)
        name_at, name = at, ""
        if isinstance(step, str):
            name, at = _glance(source, at)
            at = _after_space(source, _after_space(source, at) + 1)  # the colon
        seen += name == step
        if of_name and seen == of_name:
            return name_at
        if not of_name and (seen if isinstance(step, str) else index == step):
            return at
        _, at = _glance(source, at)
        at = _after_space(source, _after_space(source, at) + 1)  # the comma
        index += 1


def _bracketed(inner: str) -> str:
    return rf'[{{\[](?:[^"{{}}\[\]]++|{_STRING}{inner})*+[}}\]]'


# In sound JSON: a string, and an object or list at most three deep.
_STRING: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SHALLOW: Final = _bracketed("|" + _bracketed("|" + _bracketed("")))


def _spellings(letter: str) -> str:
    """How a letter of a field's name can stand in JSON: as it is, or as an escape."""
    return rf"(?:{re.escape(letter)}|\\u(?i:{ord(letter):04x}))"


@lru_cache(maxsize=256)
def _others(name: str) -> re.Pattern[str]:
    """A row of fields with other names. It ends early at a value that is deep."""
    value = rf'(?:[^"{{}}\[\],]++|{_STRING}|{_SHALLOW})++'
    other = rf'(?!"{"".join(map(_spellings, name))}"){_STRING}[ \t\r\n]*+:{value}'
    return re.compile(rf"(?:{other},[ \t\r\n]*+)*+")


def _after_others(source: str, at: int, name: str) -> int:
    """The position after a row of fields that begins at `at`, and whose names are others, without a step for each."""
    found = _others(name).match(source, at)
    assert found is not None  # the empty row, if nothing else
    return found.end()


def _after_space(source: str, at: int) -> int:
    found = _NOT_SPACE.search(source, at)
    assert found is not None  # the end, if nothing else
    return found.start()


# --- syntax -------------------------------------------------------------------------------------------------------


class _BrokenError(Exception):
    """The text of a syntax error."""


def syntax_fault(body: bytes) -> str | None:
    """The error of encoding/json for the first value in a body; None when the value is sound.

    `body`: begins without white space, and is not empty.
    """
    # A letter for each byte. Python takes NaN and Infinity for numbers; it does not matter what stands in a string.
    text = body.decode("latin-1").replace("N", "!").replace("I", "!")
    try:
        at = _stop(text)
        if at is not None:
            at = _token(text, at)
            if text[at : at + 1] in (".", "e", "E") and text[at - 1 : at] in _DECIMALS:
                at = len(text[:at].rstrip("+-.0123456789Ee"))  # Python has stopped in the middle of a number
            _walk(body, at, *_state(text[:at].rstrip(_SPACE)))
        elif text[0] in "-0123456789":  # and it does not say so when that is the whole value
            _walk(body, 0, "value", 0)
    except _BrokenError as broken:
        return str(broken)
    except RecursionError:
        return TOO_DEEP
    return None


def text_around(body: bytes, at: int) -> int:
    """The start of the string around the byte at `at`. The body is sound JSON but for its UTF-8."""
    return _token(body.decode("latin-1"), at)


def _token(text: str, at: int) -> int:
    """The start of the token in which `at` lies, or `at` between tokens. What stands before `at` is sound."""
    while at and (stop := _stop(text[:at])) is not None and stop < at:  # a string: its start, in two steps at most
        at = stop
    return at


def _stop(text: str) -> int | None:
    """The position of the letter, or of the start of the string, that Python's decoder cannot read; None: it can."""
    try:
        _glance(text)
    except json.JSONDecodeError as error:
        return error.pos
    return None


def _takes(text: str) -> bool:
    """Whether the last letter fits behind those before it."""
    at = _stop(text)
    return at is None or at >= len(text)


def _state(before: str) -> tuple[str, int]:
    """What `_walk` looks for behind the beginning of a sound value, which ends with a token; and the open bracket."""
    last = before[-1:]
    if not last:
        return "value", 0
    if last == "{":
        return "name or }", 0x7B
    if last == "[":
        return "value or ]", 0x5B
    if last == ":":
        return "value", 0x7B
    if last == ",":
        return ("value", 0x5B) if _takes(before + "0") else ("name", 0x7B)
    if _takes(before + "]"):
        return "more", 0x5B
    return "more" if _takes(before + "}") else "colon", 0x7B


def _walk(body: bytes, at: int, looking_for: str, bracket: int) -> None:
    """Reads on as Go does, until the first value ends. Raises _BrokenError at a fault.

    `bracket`: the innermost that is open at `at`; 0: none is. The value ends with it.
    """
    open_ones = [bracket] if bracket else []
    while True:
        at = _after_run(_SPACES, body, at)
        if at >= len(body):
            raise _BrokenError(EOF)
        letter = body[at : at + 1]
        if looking_for == "value" or (looking_for == "value or ]" and letter != b"]"):
            if letter in (b"{", b"["):
                open_ones.append(letter[0])
                looking_for = "name or }" if letter == b"{" else "value or ]"
                at += 1
                continue
            at = _scalar(body, at)
        elif looking_for == "name" or (looking_for == "name or }" and letter != b"}"):
            if letter != b'"':
                raise _unexpected(body, at, "looking for beginning of object key string")
            at, looking_for = _string(body, at), "colon"
            continue
        elif looking_for == "colon":
            if letter != b":":
                raise _unexpected(body, at, "after object key")
            at, looking_for = at + 1, "value"
            continue
        elif letter == b",":
            at, looking_for = at + 1, "name" if open_ones[-1] == 0x7B else "value"
            continue
        elif letter == (b"}" if open_ones[-1] == 0x7B else b"]"):
            open_ones.pop()
            at += 1
        else:
            where = "after object key:value pair" if open_ones[-1] == 0x7B else "after array element"
            raise _unexpected(body, at, where)
        if not open_ones:
            return
        looking_for = "more"


def _scalar(body: bytes, at: int) -> int:
    letter = body[at]
    if letter == 0x22:
        return _string(body, at)
    literal = _LITERALS.get(letter)
    if literal is not None:
        for number, expected in enumerate(literal):
            if _at(body, at + number) != expected:
                raise _unexpected(body, at + number, f"in literal {literal.decode()} (expecting {_quoted(expected)})")
        return at + len(literal)
    if letter == 0x2D or 0x30 <= letter <= 0x39:
        return _number(body, at)
    raise _unexpected(body, at, "looking for beginning of value")


def _string(body: bytes, at: int) -> int:
    found = _SOUND_TEXT.match(body, at + 1)
    assert found is not None  # the empty text, if nothing else
    at = found.end()
    letter = _at(body, at)
    if letter == 0x22:
        return at + 1
    if letter != 0x5C:
        raise _unexpected(body, at, "in string literal")
    if _at(body, at + 1) != 0x75:
        raise _unexpected(body, at + 1, "in string escape code")
    at += 2
    while _at(body, at) in _HEX_DIGITS:
        at += 1
    raise _unexpected(body, at, r"in \u hexadecimal character escape")


def _number(body: bytes, at: int) -> int:
    if body[at] == 0x2D:
        at += 1
        _demand_digit(body, at, "in numeric literal")
    at = at + 1 if body[at] == 0x30 else _after_run(_DIGITS, body, at)
    if body[at : at + 1] == b".":
        at += 1
        _demand_digit(body, at, "after decimal point in numeric literal")
        at = _after_run(_DIGITS, body, at)
    if body[at : at + 1] in (b"e", b"E"):
        at += 2 if body[at + 1 : at + 2] in (b"+", b"-") else 1
        _demand_digit(body, at, "in exponent of numeric literal")
        at = _after_run(_DIGITS, body, at)
    return at


def _demand_digit(body: bytes, at: int, where: str) -> None:
    if not 0x30 <= _at(body, at) <= 0x39:
        raise _unexpected(body, at, where)


def _after_run(letters: re.Pattern[bytes], body: bytes, at: int) -> int:
    found = letters.match(body, at)
    assert found is not None  # the empty run, if nothing else
    return found.end()


def _at(body: bytes, at: int) -> int:
    if at >= len(body):
        raise _BrokenError(EOF)
    return body[at]


def _unexpected(body: bytes, at: int, where: str) -> _BrokenError:
    return _BrokenError(f"invalid character {_quoted(_at(body, at))} {where}")


def _quoted(byte: int) -> str:
    """A byte as Go quotes it: as a letter of its own."""
    letter = chr(byte)
    if byte in _BY_NAME:
        letter = _BY_NAME[byte]
    elif byte < 0x20 or byte == 0x7F:
        letter = f"\\x{byte:02x}"
    elif not letter.isprintable():
        letter = f"\\u{byte:04x}"
    return f"'{letter}'"
