# SPDX-License-Identifier: Apache-2.0
"""Numbers, durations and byte strings as Go's tools write them. The expected complaints were read off etcdctl 3.6."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.cli.notation import boolean, duration_s, expecting_id, hex_escaped, int64, lease_id, quote, ttl_s


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        ("0", 10, 0),
        ("-9223372036854775808", 10, -(1 << 63)),
        ("+9223372036854775807", 10, (1 << 63) - 1),
        ("00000000000000000000000000007", 10, 7),
        ("694da2023c1ab464", 16, 0x694DA2023C1AB464),
        ("FF", 16, 255),
        ("-8000000000000000", 16, -(1 << 63)),
    ],
)
def test_a_number_is_read(text: str, base: int, value: int) -> None:
    assert int64(text, base) == value


@pytest.mark.parametrize(
    ("text", "base", "complaint"),
    [
        ("abc", 10, 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("", 10, 'strconv.ParseInt: parsing "": invalid syntax'),
        ("1_0", 10, 'strconv.ParseInt: parsing "1_0": invalid syntax'),
        (" 1", 10, 'strconv.ParseInt: parsing " 1": invalid syntax'),
        ("\u0661", 10, 'strconv.ParseInt: parsing "\u0661": invalid syntax'),
        ("9223372036854775808", 10, 'strconv.ParseInt: parsing "9223372036854775808": value out of range'),
        ("9" * 5000, 10, f'strconv.ParseInt: parsing "{"9" * 5000}": value out of range'),
        ("xyz", 16, 'strconv.ParseInt: parsing "xyz": invalid syntax'),
        ("0x12", 16, 'strconv.ParseInt: parsing "0x12": invalid syntax'),
        ("ffffffffffffffffff", 16, 'strconv.ParseInt: parsing "ffffffffffffffffff": value out of range'),
    ],
)
def test_what_is_no_number_is_refused_in_gos_words(text: str, base: int, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        int64(text, base)
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("text", "decimal", "value"),
    [
        ("694da2023c1ab464", False, 7587899077671171172),
        ("0d7587899077671171172", False, 7587899077671171172),
        ("0d7587899077671171172", True, 7587899077671171172),
        ("7587899077671171172", True, 7587899077671171172),
        ("0d99", False, 99),
        ("0d-3", False, -3),
        ("99", False, 0x99),
        ("99", True, 99),
        ("0dab", False, 0xDAB),
        ("d10", False, 0xD10),
        ("0d", False, 0xD),
        # Sixteen characters are an id as it is printed, whatever it looks like.
        ("0d12345678901234", False, 0x0D12345678901234),
        ("0d12345678901234", True, 12345678901234),
    ],
)
def test_lease_ids_are_hexadecimal_unless_marked_or_told_otherwise(text: str, decimal: bool, value: int) -> None:
    assert lease_id(text, decimal=decimal) == value


@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1))
def test_an_id_as_it_is_printed_is_read_back(number: int) -> None:
    assert lease_id(f"{number:016x}", decimal=False) == number
    assert lease_id(str(number), decimal=True) == number


@pytest.mark.parametrize(
    ("text", "decimal", "said"),
    [
        ("xyz", False, "expecting ID in Hex"),
        ("xyz", True, "expecting ID in decimal"),
        ("0x7d", False, "expecting ID in Hex, without 0x"),
        ("7587845169630795786", False, "expecting ID in Hex; if it is decimal, write 0d7587845169630795786"),
        ("9223372036854775807", False, "expecting ID in Hex; if it is decimal, write 0d9223372036854775807"),
        ("9223372036854775808", False, "expecting ID in Hex"),  # no lease has that
        ("123456789012345678901", False, "expecting ID in Hex"),
    ],
)
def test_what_is_said_of_an_id_that_cannot_be_read(text: str, decimal: bool, said: str) -> None:
    with pytest.raises(ValueError, match="ParseInt"):
        lease_id(text, decimal=decimal)
    assert expecting_id(text, decimal=decimal) == said


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("5s", 5), ("1h30m", 5400), ("300ms", 0.3), ("1.5h", 5400), (".5s", 0.5), ("2m", 120), ("0", 0)),
        *(("-3s", -3), ("100us", 1e-4), ("100\u00b5s", 1e-4), ("1s1s", 2)),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("abc", 'time: invalid duration "abc"'),
        ("", 'time: invalid duration ""'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        (".s", 'time: invalid duration ".s"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
    ],
)
def test_what_is_no_duration_is_refused_in_gos_words(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        duration_s(text)
    assert str(caught.value) == complaint


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        duration_s(text)
    except ValueError as error:
        complaint = str(error)
    else:
        complaint = "time: none"
    assert complaint.startswith("time: ")


@pytest.mark.parametrize(("text", "seconds"), [("300", 300), ("-5", -5), ("30s", 30), ("5m", 300), ("2h", 7200)])
def test_a_ttl_is_a_number_of_seconds_or_a_duration(text: str, seconds: int) -> None:
    assert ttl_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("abc", 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("", 'strconv.ParseInt: parsing "": invalid syntax'),
        ("1.5", 'strconv.ParseInt: parsing "1.5": invalid syntax'),
        ("1500ms", "1500ms is not a whole number of seconds, the unit of a TTL"),
    ],
)
def test_what_is_no_ttl_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole
        ttl_s(text)
    assert str(caught.value) == complaint


def test_booleans() -> None:
    assert [boolean(text) for text in ("1", "t", "TRUE", "true", "0", "F", "False")] == [True] * 4 + [False] * 3
    with pytest.raises(ValueError, match='parsing "maybe": invalid syntax'):
        boolean("maybe")


@pytest.mark.parametrize(
    ("raw", "quoted"),
    [
        # The first two are what etcdctl printed for a key and a value.
        (b'\x01\xff"\n<\xc3\xa9', r'"\x01\xff\"\n<é"'),
        (b"v\x80&\xe2\x80\xa8", r'"v\x80&\u2028"'),
        (b"", '""'),
        (b"\\\a\b\f\r\t\v\0\x7f", r'"\\\a\b\f\r\t\v\x00\x7f"'),
        (b"\xe2\x80", r'"\xe2\x80"'),
        (b"\xed\xa0\x80", r'"\xed\xa0\x80"'),
        ("\U0001f600\U000e0001".encode(), '"\U0001f600\\U000e0001"'),
        ("\u00a0\u200b".encode(), r'"\u00a0\u200b"'),
    ],
)
def test_quotes(raw: bytes, quoted: str) -> None:
    assert quote(raw) == quoted


def test_hex() -> None:
    assert hex_escaped(b'\x01\xff"a') == rb"\x01\xff\x22\x61"
    assert hex_escaped(b"") == b""
