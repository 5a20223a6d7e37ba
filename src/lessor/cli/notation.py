# SPDX-License-Identifier: Apache-2.0
"""How numbers, durations and byte strings are written on the command line: as etcdctl, a Go program, writes them.

Laws: pure functions; a text that cannot be read raises ValueError with Go's message, because scripts compare it.
`lease_id` and `ttl_s` read more than etcdctl does: decimal ids, and TTLs with a unit.

Lease ids are hexadecimal. `0d` marks a decimal one, and that is ambiguous, because `0d10` could also be hexadecimal:
- ids are printed with exactly sixteen characters, so a text of that length is always hexadecimal;
- otherwise `0d` and decimal digits only is decimal: `0d7587845169630795786`, `0d99`;
- everything else is hexadecimal: `d10`, `0dab`.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractions import Fraction

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1

_DIGITS = {10: re.compile(r"[+-]?[0-9]+"), 16: re.compile(r"[+-]?[0-9a-fA-F]+")}
_MARKED_DECIMAL = re.compile(r"0d(-?[0-9]+)")
_PRINTED_ID_LENGTH = 16

# Nanoseconds per unit; the two spellings of micro are the micro sign and the Greek letter.
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]*)(\.?)([0-9]*)([^0-9.]*)")

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_QUOTE_ESCAPES = {'"': '\\"', "\\": "\\\\"}

_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}


def int64(text: str, base: int) -> int:
    """A signed 64-bit number in base 10 or 16, without prefix or separators. ValueError as Go's strconv.ParseInt."""
    if not _DIGITS[base].fullmatch(text):
        raise ValueError(f"strconv.ParseInt: parsing {quote(text.encode())}: invalid syntax")
    # A text of absurd length is refused before it becomes a number of absurd size.
    value = int(text, base) if len(text.lstrip("+-0")) <= 19 else INT64_MAX + 1
    if not INT64_MIN <= value <= INT64_MAX:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text.encode())}: value out of range")
    return value


def uint64(text: str, base: int = 16) -> int:
    """A number without a sign: a member's id, hexadecimal, or in base 10. ValueError as Go's strconv.ParseUint."""
    if text[:1] in ("+", "-") or not _DIGITS[base].fullmatch(text):
        raise ValueError(f"strconv.ParseUint: parsing {quote(text.encode())}: invalid syntax")
    value = int(text, base) if len(text.lstrip("0")) <= 20 else 1 << 64
    if value >= 1 << 64:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text.encode())}: value out of range")
    return value


def boolean(text: str) -> bool:
    """The meaning of TEXT in `--flag=TEXT`. ValueError as Go's strconv.ParseBool."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text.encode())}: invalid syntax")


def lease_id(text: str, *, decimal: bool) -> int:
    """A lease id: hexadecimal, or decimal when `decimal` or when marked so (see the head of this module)."""
    marked = _MARKED_DECIMAL.fullmatch(text)
    if marked and (decimal or len(text) != _PRINTED_ID_LENGTH):
        return int64(marked[1], 10)
    return int64(text, 10 if decimal else 16)


def expecting_id(text: str, *, decimal: bool) -> str:
    """The end of the error about a text that `lease_id` cannot read: etcdctl's words, and a hint."""
    if decimal:
        return "expecting ID in decimal"
    if text[:2] in ("0x", "0X"):
        return "expecting ID in Hex, without 0x"
    # A decimal id, as curl shows it, is too long to be a hexadecimal one; a shorter number could be either.
    looks_decimal = re.fullmatch("[0-9]{1,19}", text) and int(text) <= INT64_MAX
    return f"expecting ID in Hex; if it is decimal, write 0d{text}" if looks_decimal else "expecting ID in Hex"


def duration_s(text: str) -> float:
    """Seconds of a duration such as 300ms, 5s, 1h30m or 0. ValueError as Go's time.ParseDuration."""
    return float(_duration_ns(text) / 1_000_000_000)


def ttl_s(text: str) -> int:
    """Whole seconds of a TTL: a plain number is seconds, otherwise a duration such as 30s, 5m or 2h.

    ValueError for what is neither (in the words of etcdctl, which knows plain numbers only) and for parts of a second.
    """
    try:
        return int64(text, 10)
    except ValueError as not_a_number:
        try:
            seconds = _duration_ns(text) / 1_000_000_000
        except ValueError:
            raise not_a_number from None
    if seconds.denominator != 1:
        raise ValueError(f"{text} is not a whole number of seconds, the unit of a TTL")
    return int(seconds)


def _duration_ns(text: str) -> "Fraction":
    from fractions import Fraction  # imports the module decimal too; few lines have a duration

    shown = quote(text.encode())
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return Fraction(0)
    if not rest:
        raise ValueError(f"time: invalid duration {shown}")
    total = Fraction(0)
    while rest:
        part = _DURATION_PART.match(rest)
        assert part is not None, "the pattern matches the empty text too"
        whole, dot, decimals, unit = part.groups()
        if not whole and not decimals:
            raise ValueError(f"time: invalid duration {shown}")
        if not unit:
            raise ValueError(f"time: missing unit in duration {shown}")
        if unit not in _UNITS_NS:
            raise ValueError(f"time: unknown unit {quote(unit.encode())} in duration {shown}")
        total += Fraction(f"{whole or 0}{dot}{decimals or 0}" if dot else whole) * _UNITS_NS[unit]
        rest = rest[part.end() :]
    if total > INT64_MAX:
        raise ValueError(f"time: invalid duration {shown}")
    return -total if text.startswith("-") else total


def quote(raw: bytes) -> str:
    """A byte string between double quotes, as Go's %q: printable text as it is, the rest escaped."""
    return '"' + "".join(map(_quoted, raw.decode("utf-8", "surrogateescape"))) + '"'


def _quoted(char: str) -> str:
    if char in _QUOTE_ESCAPES:
        return _QUOTE_ESCAPES[char]
    return char if char.isprintable() else escaped_char(char)


def escaped_char(char: str) -> str:
    """A character that is not printable, as Go's %q has it; a byte that is not UTF-8 as surrogateescape marks it."""
    code = ord(char)
    if char in _ESCAPES:
        return _ESCAPES[char]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def hex_escaped(raw: bytes) -> bytes:
    r"""A byte string under --hex: \x and two digits for each byte."""
    return "".join(f"\\x{byte:02x}" for byte in raw).encode()
