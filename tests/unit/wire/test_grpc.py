# SPDX-License-Identifier: Apache-2.0
"""gRPC's own layer: messages in a body, status in trailers, deadlines, metadata."""

import gzip
import struct
import zlib

import pytest
from hpack import Decoder

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.wire import grpc
from lessor.wire.h2_headers import Field, Head, HeaderDecoder, encode_headers


def head_of(*headers: Field) -> Head:
    return HeaderDecoder().head(encode_headers(list(headers)))


def fields_of(block: bytes) -> list[Field]:
    """A block as another implementation reads it."""
    return [(bytes(name), bytes(value)) for name, value in Decoder().decode(block, raw=True)]


def compressed(message: bytes, flag: int = 1) -> bytes:
    payload = gzip.compress(message)
    return struct.pack(">BI", flag, len(payload)) + payload


# --- messages -------------------------------------------------------------------------------------------------------


def test_a_frame_is_a_flag_a_length_and_the_message() -> None:
    assert grpc.frame(b"abc") == b"\x00\x00\x00\x00\x03abc"
    assert grpc.frame(b"") == b"\x00\x00\x00\x00\x00"


def test_messages_are_found_however_the_body_is_cut() -> None:
    messages = [b"", b"a", b"bc" * 300, b"", b"d"]
    body = b"".join(map(grpc.frame, messages))
    for cut in range(len(body) + 1):
        deframer = grpc.Deframer(1000)
        assert deframer.feed(body[:cut]) + deframer.feed(body[cut:]) == messages
        assert not deframer.unfinished_bytes
    deframer = grpc.Deframer(1000)
    assert [message for byte in body for message in deframer.feed(bytes((byte,)))] == messages


def test_a_body_that_ends_within_a_message_is_incomplete() -> None:
    body = grpc.frame(b"abc")
    for cut in range(1, len(body)):
        deframer = grpc.Deframer(1000)
        assert deframer.feed(body[:cut]) == []
        assert deframer.unfinished_bytes


def test_the_largest_message_passes_and_one_byte_more_is_refused_before_it_has_come() -> None:
    deframer = grpc.Deframer(10)
    assert deframer.feed(grpc.frame(b"x" * 10)) == [b"x" * 10]
    with pytest.raises(EtcdError, match=r"^grpc: received message larger than max \(11 vs. 10\)$") as caught:
        deframer.feed(grpc.frame(b"x" * 11)[:5])
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("bad", "code"),
    [(b"\x02" + bytes(4), Code.INTERNAL), (grpc.frame(b"x" * 11), Code.RESOURCE_EXHAUSTED)],
    ids=["unknown-flag", "too-large"],
)
def test_what_is_no_message_takes_none_of_those_before_it_along(bad: bytes, code: Code) -> None:
    good = grpc.frame(b"one") + grpc.frame(b"two")
    body = good + bad + grpc.frame(b"three")
    for cut in range(len(good)):
        deframer = grpc.Deframer(10)
        assert deframer.feed(body[:cut]) + deframer.feed(body[cut:]) == [b"one", b"two"]
        assert deframer.error is not None
        assert deframer.error.code == code
        with pytest.raises(EtcdError) as caught:
            deframer.feed(grpc.frame(b"four"))
        assert caught.value.code == code


def test_gzip_is_accepted_also_next_to_plain_messages() -> None:
    deframer = grpc.Deframer(1000, b"gzip")
    body = compressed(b"small") + grpc.frame(b"plain") + compressed(b"") + compressed(b"x" * 1000)
    assert deframer.feed(body) == [b"small", b"plain", b"", b"x" * 1000]


def test_a_message_that_inflates_beyond_the_limit_is_refused() -> None:
    with pytest.raises(EtcdError, match="after decompression larger than max 1000") as caught:
        grpc.Deframer(1000, b"gzip").feed(compressed(b"x" * 1001))
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    bomb = compressed(b"\0" * 50_000_000)
    with pytest.raises(EtcdError, match="larger than max"):
        grpc.Deframer(100_000, b"gzip").feed(bomb)


@pytest.mark.parametrize("cut", [0, 1, 30, 100])
def test_messages_beyond_what_may_be_inflated_are_left_and_come_later(cut: int) -> None:
    messages = [b"plain", b"a" * 400, b"b" * 400, b"c" * 400, b"plain too", b"", b"d" * 400]
    body = b"".join(grpc.frame(one) if one.startswith(b"plain") else compressed(one) for one in messages)
    deframer = grpc.Deframer(1000, b"gzip")
    found = deframer.feed(body[:cut], None, 401)
    pieces = [body[cut:], *[b""] * 10]
    while pieces:
        assert deframer.inflated_bytes <= 2 * (400 + grpc.PREFIX_BYTES)
        found += deframer.feed(pieces.pop(0), None, 401)
        assert deframer.waiting or found == messages
    assert found == messages
    assert not deframer.waiting
    assert not deframer.unfinished_bytes


def test_empty_messages_that_were_compressed_count_too() -> None:
    deframer = grpc.Deframer(1000, b"gzip")
    assert deframer.feed(compressed(b"") * 100, None, 50) == [b""] * (50 // grpc.PREFIX_BYTES)
    assert deframer.waiting


@pytest.mark.parametrize("more", [0, 1, 2, 1_000_000])
@pytest.mark.parametrize("allowed", [True, False])
def test_a_message_is_inflated_a_little_before_its_sender_is_asked_for(more: int, allowed: bool) -> None:
    message = bytes(limits.STRANGER_BYTES_MAX + more)
    asked: list[int] = []

    def may_inflate(size_bytes: int) -> None:
        asked.append(size_bytes)
        if not allowed:
            raise EtcdError(Code.INVALID_ARGUMENT, "a stranger")

    deframer = grpc.Deframer(2_000_000, b"gzip")
    if more and not allowed:
        with pytest.raises(EtcdError, match="a stranger"):
            deframer.feed(compressed(message), may_inflate)
        assert deframer.inflated_bytes == grpc.PREFIX_BYTES + limits.STRANGER_BYTES_MAX + 1
    else:
        assert deframer.feed(compressed(message), may_inflate) == [message]
        assert deframer.inflated_bytes == grpc.PREFIX_BYTES + len(message)
    assert asked == [limits.STRANGER_BYTES_MAX + 1] * bool(more)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (compressed(b"x"), None),
        (compressed(b"x"), b"identity"),
        (compressed(b"x", flag=2), b"gzip"),
        (b"\x01\x00\x00\x00\x03abc", b"gzip"),
        (b"\x01\x00\x00\x00\x00", b"gzip"),
        (struct.pack(">BI", 1, 30) + gzip.compress(b"x" * 100)[:-1].ljust(30, b"\0")[:30], b"gzip"),
        (struct.pack(">BI", 1, len(zlib.compress(b"x"))) + zlib.compress(b"x"), b"gzip"),
        (struct.pack(">BI", 1, len(gzip.compress(b"x")) + 1) + gzip.compress(b"x") + b"!", b"gzip"),
    ],
    ids=["no-encoding", "identity", "unknown-flag", "not-gzip", "empty", "cut-short", "zlib", "trailing-bytes"],
)
def test_a_wrongly_compressed_message_is_an_internal_error(body: bytes, encoding: bytes | None) -> None:
    with pytest.raises(EtcdError) as caught:
        grpc.Deframer(1000, encoding).feed(body)
    assert caught.value.code == Code.INTERNAL


@pytest.mark.parametrize("encoding", [None, b"", b"identity", b"gzip"])
def test_known_encodings_pass(encoding: bytes | None) -> None:
    grpc.check_encoding(encoding)


def test_another_encoding_is_unimplemented_and_the_answer_says_what_is_not() -> None:
    with pytest.raises(EtcdError, match='"snappy"') as caught:
        grpc.check_encoding(b"snappy")
    assert caught.value.code == Code.UNIMPLEMENTED
    answer = dict(fields_of(grpc.trailers_only(caught.value.code, caught.value.message)))
    assert set(answer[b"grpc-accept-encoding"].split(b",")) == {b"identity", b"gzip"}


# --- status ---------------------------------------------------------------------------------------------------------


def test_constant_blocks_are_readable_by_another_implementation() -> None:
    assert fields_of(grpc.RESPONSE_HEADERS) == [(b":status", b"200"), (b"content-type", b"application/grpc")]
    assert fields_of(grpc.TRAILERS_OK) == [(b"grpc-status", b"0")]
    assert grpc.trailers(Code.OK) == grpc.TRAILERS_OK


def test_an_error_is_told_in_trailers_or_in_the_only_block() -> None:
    status = [(b"grpc-status", b"5"), (b"grpc-message", b"etcdserver: requested lease not found")]
    assert fields_of(grpc.trailers(Code.NOT_FOUND, "etcdserver: requested lease not found")) == status
    assert fields_of(grpc.trailers_only(Code.NOT_FOUND, "etcdserver: requested lease not found")) == [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        *status,
    ]


def test_an_error_without_text_has_no_message_field() -> None:
    assert fields_of(grpc.trailers(Code.UNKNOWN)) == [(b"grpc-status", b"2")]


def test_a_long_message_is_cut() -> None:
    fields = dict(fields_of(grpc.trailers(Code.UNKNOWN, "x" * 100_000)))
    assert fields[b"grpc-message"] == b"x" * limits.GRPC_STATUS_CHARACTERS_MAX


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("plain ~ text!", b"plain ~ text!"),
        ("100%", b"100%25"),
        ("a\nb\tc", b"a%0Ab%09c"),
        ("\x7f", b"%7F"),
        ("租约", b"%E7%A7%9F%E7%BA%A6"),
        ("€ 😀", b"%E2%82%AC %F0%9F%98%80"),
    ],
)
def test_messages_are_percent_encoded(text: str, encoded: bytes) -> None:
    assert grpc.percent_encode(text) == encoded
    assert grpc.percent_decode(encoded) == text


def test_a_badly_encoded_message_is_shown_as_it_is() -> None:
    assert grpc.percent_decode(b"50% of %zz") == "50% of %zz"
    assert grpc.percent_decode(b"%FF!") == "\ufffd!"


def test_a_lone_surrogate_in_a_message_does_not_stop_the_answer() -> None:
    assert grpc.percent_encode("x\ud800") == b"x?"


@pytest.mark.parametrize(
    ("head", "trailers", "status"),
    [
        ([(b":status", b"200")], [(b"grpc-status", b"0")], (Code.OK, "")),
        (
            [(b":status", b"200")],
            [(b"grpc-status", b"8"), (b"grpc-message", b"too%20much")],
            (Code.RESOURCE_EXHAUSTED, "too much"),
        ),
        ([(b":status", b"200"), (b"grpc-status", b"5")], None, (Code.NOT_FOUND, "")),
        ([(b":status", b"200")], [(b"grpc-status", b"99"), (b"grpc-message", b"odd")], (Code.UNKNOWN, "odd")),
        ([(b":status", b"200")], [(b"grpc-status", b"-1")], (Code.UNKNOWN, "")),
    ],
)
def test_the_status_of_a_finished_call(
    head: list[Field], trailers: list[Field] | None, status: tuple[Code, str]
) -> None:
    assert grpc.status_of(head_of(*head), head_of(*trailers) if trailers else None) == status


@pytest.mark.parametrize(
    ("http_status", "code"),
    [
        (b"200", Code.UNKNOWN),
        (b"400", Code.INTERNAL),
        (b"401", Code.UNAUTHENTICATED),
        (b"403", Code.PERMISSION_DENIED),
        (b"404", Code.UNIMPLEMENTED),
        (b"429", Code.UNAVAILABLE),
        (b"502", Code.UNAVAILABLE),
        (b"503", Code.UNAVAILABLE),
        (b"504", Code.UNAVAILABLE),
        (b"500", Code.UNKNOWN),
        (b"431", Code.UNKNOWN),
    ],
)
def test_without_a_grpc_status_the_http_status_decides(http_status: bytes, code: Code) -> None:
    assert grpc.status_of(head_of((b":status", http_status)), None)[0] == code


def test_a_call_without_any_response() -> None:
    assert grpc.status_of(None, None)[0] == Code.INTERNAL


# --- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"Application/gRPC", True),
        (b"application/grpc-web", False),
        (b"application/json", False),
        (b"", False),
        (None, False),
    ],
)
def test_which_requests_are_grpc(content_type: bytes | None, expected: bool) -> None:
    assert grpc.is_grpc(content_type) is expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"5S", 5.0),
        (b"100m", 0.1),
        (b"250u", 0.00025),
        (b"1n", 1e-9),
        (b"0S", 0.0),
        (b"99999999n", 0.099999999),
        (b"00000001S", 1.0),
    ],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert grpc.parse_timeout(value) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "value", [b"", b"S", b"1", b"123456789S", b"-1S", b"+1S", b"1.5S", b"1s", b"1 S", b"1S ", b"\xd9\xa1S", b"1SS"]
)
def test_malformed_timeouts(value: bytes) -> None:
    with pytest.raises(EtcdError, match="malformed grpc-timeout"):
        grpc.parse_timeout(value)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.05, 0.3, 5.0, 59.9999, 1e5, 1e8, 3.5e11])
def test_a_written_timeout_is_hardly_longer_than_asked(seconds: float) -> None:
    written = grpc.parse_timeout(grpc.format_timeout(seconds))
    assert seconds <= written + 1e-12
    assert written <= seconds * 1.0001 + 1e-9


def test_a_timeout_beyond_eight_digits_of_hours_is_the_longest_there_is() -> None:
    assert grpc.format_timeout(1e15) == b"99999999H"


@pytest.mark.parametrize("value", [b"", b"a", b"ab", b"abc", b"abcd", bytes(range(256))])
def test_binary_metadata_is_base64_without_padding_and_read_with_or_without(value: bytes) -> None:
    encoded = grpc.encode_binary(value)
    assert b"=" not in encoded
    assert grpc.decode_binary(encoded) == value
    assert grpc.decode_binary(encoded + b"=" * (-len(encoded) % 4)) == value


@pytest.mark.parametrize("value", [b"a", b"abcde", b"a b=", b"$$$$", b"ab=c"])
def test_binary_metadata_that_is_not_base64(value: bytes) -> None:
    with pytest.raises(EtcdError, match="binary metadata"):
        grpc.decode_binary(value)


def test_metadata_leaves_out_what_is_http_or_grpc() -> None:
    head = head_of(
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"x"),
        (b"grpc-timeout", b"1S"),
        (b"token", b"secret"),
        (b"hasleader", b"true"),
        (b"trace-bin", b"AQI=,Aw"),
    )
    assert grpc.metadata(head) == [
        (b"token", b"secret"),
        (b"hasleader", b"true"),
        (b"trace-bin", b"\x01\x02"),
        (b"trace-bin", b"\x03"),
    ]
