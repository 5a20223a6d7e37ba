# SPDX-License-Identifier: Apache-2.0
"""Header compression: the examples of RFC 7541, the cache of heads, the sizes of tables and lists."""

import hpack
import pytest

from lessor.base import limits
from lessor.wire import h2_headers
from lessor.wire.frames import ConnectionFault, ErrorCode
from lessor.wire.h2_headers import (
    MALFORMED,
    REQUEST,
    RESPONSE,
    TOO_LARGE,
    TRAILERS,
    Field,
    Head,
    HeaderDecoder,
    encode_headers,
    header_list_bytes,
)

CALL: list[Field] = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"here")]

# RFC 7541 C.3 (plain) and C.4 (Huffman): three requests on one connection, the later ones using the table.
FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
SECOND = [*FIRST, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]
RFC_EXAMPLES = {
    "C.3": (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ),
    "C.4": (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ),
}


def fields_of(head: Head) -> list[Field]:
    pseudo = [
        (b":method", head.method),
        (b":scheme", head.scheme),
        (b":path", head.path),
        (b":authority", head.authority),
        (b":status", head.status),
    ]
    return [field for field in pseudo if field[1]] + list(head.headers)


@pytest.mark.parametrize("section", RFC_EXAMPLES)
def test_the_examples_of_rfc_7541(section: str) -> None:
    decoder = HeaderDecoder()
    for block, expected in zip(RFC_EXAMPLES[section], (FIRST, SECOND, THIRD), strict=True):
        assert fields_of(decoder.head(bytes.fromhex(block))) == expected


def test_a_repeated_block_gives_the_same_head() -> None:
    decoder = HeaderDecoder()
    block = encode_headers(CALL)
    assert decoder.head(block) is decoder.head(bytes(block))


def test_a_block_that_fills_the_table_is_decoded_each_time() -> None:
    decoder = HeaderDecoder()
    block = encode_headers(CALL) + b"\x40\x05token\x01a"  # literal that enters the table
    assert decoder.head(block) is not decoder.head(block)
    third = decoder.head(encode_headers(CALL) + b"\xbe\xbf")  # both entries are there
    assert third.headers == ((b"token", b"a"), (b"token", b"a"))


def test_the_same_bytes_mean_something_else_after_the_table_changed() -> None:
    decoder = HeaderDecoder()
    newest = encode_headers(CALL) + b"\xbe"
    decoder.head(encode_headers(CALL) + b"\x40\x05token\x01a")
    assert decoder.head(newest).get(b"token") == b"a"
    decoder.head(encode_headers(CALL) + b"\x40\x05token\x01b")
    assert decoder.head(newest).get(b"token") == b"b"


def test_a_cached_block_whose_entry_was_evicted_is_an_error() -> None:
    decoder = HeaderDecoder()
    newest = encode_headers(CALL) + b"\xbe"
    decoder.head(encode_headers(CALL) + b"\x40\x05token\x01a")
    decoder.head(newest)
    decoder.head(b"\x20" + encode_headers(CALL))  # table size 0
    with pytest.raises(ConnectionFault):
        decoder.head(newest)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H2_HEAD_CACHE_MAX", 4)
    monkeypatch.setattr(limits, "H2_FIELD_CACHE_MAX", 4)
    decoder = HeaderDecoder()
    for number in range(50):
        head = decoder.head(encode_headers([*CALL, (b"token", b"%d" % number)]))
        assert head.get(b"token") == b"%d" % number
        timed = decoder.head(encode_headers([*CALL, (b"token", b"%d" % number), (b"grpc-timeout", b"1S")]))
        assert timed.get(b"token") == b"%d" % number
        assert len(decoder.heads) <= 4
        assert len(decoder._templates) <= 4
        assert len(decoder._kinds) <= 4


def test_a_call_with_another_deadline_takes_over_verdict_and_route() -> None:
    decoder, encoder = HeaderDecoder(), hpack.Encoder()
    first = decoder.head(encoder.encode([*CALL, (b"token", b"a"), (b"grpc-timeout", b"1S")]))
    first.route = "found"
    second = decoder.head(encoder.encode([*CALL, (b"token", b"a"), (b"grpc-timeout", b"2S")]))
    assert fields_of(second) == [*CALL, (b"token", b"a"), (b"grpc-timeout", b"2S")]
    assert (second.form, second.route, second.get(b"grpc-timeout")) == (REQUEST, "found", b"2S")
    assert first.get(b"grpc-timeout") == b"1S"


@pytest.mark.parametrize(
    "fields",
    [
        [*CALL, (b"token", b"b"), (b"grpc-timeout", b"2S")],
        [*CALL, (b"grpc-encoding", b"snappy")],
        [*CALL[:2], (b":path", b"/y"), CALL[3], (b"token", b"a"), (b"grpc-timeout", b"2S")],
    ],
)
def test_a_call_that_differs_in_anything_else_has_a_route_of_its_own(fields: list[Field]) -> None:
    decoder, encoder = HeaderDecoder(), hpack.Encoder()
    decoder.head(encoder.encode([*CALL, (b"token", b"a"), (b"grpc-timeout", b"1S")])).route = "found"
    decoder.head(encoder.encode([*CALL, (b"grpc-encoding", b"gzip")])).route = "gzip"
    head = decoder.head(encoder.encode(fields))
    assert head.route is None
    assert fields_of(head) == fields


@pytest.mark.parametrize(
    "fields",
    [
        [*CALL, (b"token", b"a"), (b"grpc-timeout", b" 2S")],
        [CALL[0], (b"grpc-timeout", b"2S"), *CALL[1:], (b"token", b"a")],
    ],
    ids=["bad-value", "before-a-pseudo-header"],
)
def test_a_wrong_deadline_is_seen_though_the_rest_is_known(fields: list[Field]) -> None:
    decoder, encoder = HeaderDecoder(), hpack.Encoder()
    assert decoder.head(encoder.encode([*CALL, (b"token", b"a"), (b"grpc-timeout", b"1S")])).form == REQUEST
    assert decoder.head(encoder.encode(fields)).form == MALFORMED


def test_a_deadline_among_other_metadata_keeps_its_place() -> None:
    decoder, encoder = HeaderDecoder(), hpack.Encoder()
    decoder.head(encoder.encode([*CALL, (b"token", b"a"), (b"grpc-timeout", b"1S"), (b"x", b"y")]))
    fields = [*CALL, (b"grpc-timeout", b"2S"), (b"token", b"a"), (b"x", b"y")]
    assert fields_of(decoder.head(encoder.encode(fields))) == fields


def test_long_blocks_and_values_are_not_remembered() -> None:
    decoder = HeaderDecoder()
    block = encode_headers([*CALL, (b"token", b"x" * 2000)])
    assert decoder.head(block) is not decoder.head(block)
    assert all(len(value) < 2000 for _, value in decoder._kinds)


def test_an_entry_larger_than_the_table_empties_it_rfc_7541_4_4() -> None:
    decoder = HeaderDecoder()
    decoder.head(encode_headers(CALL) + b"\x40\x05token\x01a")
    literal = encode_headers([(b"large", b"x" * 4096)])
    decoder.head(encode_headers(CALL) + b"\x40" + literal[1:])
    with pytest.raises(ConnectionFault):
        decoder.head(encode_headers(CALL) + b"\xbe")


def test_the_oldest_entries_leave_a_full_table_rfc_7541_4_4() -> None:
    decoder = HeaderDecoder()
    for number in range(300):  # each takes 32 + 5 + 5 bytes: 97 fit
        decoder.head(encode_headers(CALL) + b"\x40\x05token\x05%05d" % number)
    count = 4096 // 42
    oldest = decoder.head(encode_headers(CALL) + bytes((0xFF, 61 + count - 127)))
    assert oldest.get(b"token") == b"%05d" % (300 - count)
    with pytest.raises(ConnectionFault):
        decoder.head(encode_headers(CALL) + bytes((0xFF, 62 + count - 127)))


def test_a_table_size_may_be_lowered_and_raised_but_not_above_the_announced_rfc_7541_6_3() -> None:
    decoder = HeaderDecoder()
    decoder.head(b"\x20\x3f\xe1\x1f" + encode_headers(CALL))  # 0, then 4096
    with pytest.raises(ConnectionFault) as caught:
        decoder.head(b"\x3f\xe2\x1f" + encode_headers(CALL))  # 4097
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xbe",
        b"\x82\x20",
        b"\x40",
        b"\x40\x05ab",
        b"\x00\x01a",
        b"\x7f",
        b"\xff\x80\x80\x80\x80\x80\x01",
        b"\x0f\xff\xff\xff\xff\xff\x0f\x01a",
        b"\x00\x81\xff\x01a",
        b"\x00\x84\xff\xff\xff\xff\x01a",
        b"\x00\x81\x00\x01a",
    ],
    ids=[
        "index-0",
        "beyond-the-table",
        "size-update-after-a-field",
        "nothing-after-the-prefix",
        "name-cut",
        "value-missing",
        "integer-cut",
        "integer-too-long",
        "huge-index",
        "huffman-padding-too-long",
        "huffman-end-of-string",
        "huffman-zero-padding",
    ],
)
def test_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeaderDecoder().head(block)
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR


def test_a_list_up_to_the_limit_passes_one_byte_more_is_too_large() -> None:
    room = limits.H2_HEADER_LIST_BYTES_MAX - header_list_bytes([*CALL, (b"token", b"")])
    assert HeaderDecoder().head(encode_headers([*CALL, (b"token", b"x" * room)])).form == REQUEST
    decoder = HeaderDecoder()
    assert decoder.head(encode_headers([*CALL, (b"token", b"x" * (room + 1))])).form == TOO_LARGE
    assert decoder.head(encode_headers(CALL)).form == REQUEST


def test_a_small_block_that_unpacks_to_a_huge_list_is_stopped() -> None:
    decoder = HeaderDecoder()
    value = b"x" * 4000
    decoder.head(encode_headers(CALL) + b"\x40" + encode_headers([(b"bomb", value)])[1:])
    with pytest.raises(ConnectionFault) as caught:
        decoder.head(encode_headers(CALL) + b"\xbe" * 10_000)
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_what_we_encode_is_read_by_another_implementation_and_leaves_its_table_alone() -> None:
    fields = [
        *CALL,
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"token", b"x" * 300),
        (b"n" * 200, b""),
    ]
    decoder = hpack.Decoder()
    block = encode_headers(fields)
    assert [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)] == fields
    assert not decoder.header_table.dynamic_entries
    assert encode_headers([(b":status", b"200"), (b":method", b"POST")]) == b"\x88\x83"


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        (CALL, REQUEST),
        ([(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*")], REQUEST),
        ([(b":method", b"CONNECT"), (b":authority", b"here:1")], REQUEST),
        ([*CALL, (b"host", b"HERE")], REQUEST),
        ([*CALL, (b"content-length", b"5"), (b"content-length", b"5")], REQUEST),
        ([*CALL, (b"te", b"Trailers")], REQUEST),
        ([*CALL, (b"token", b"inner space\tand \xff")], REQUEST),
        ([(b":status", b"404")], RESPONSE),
        ([(b":status", b"404"), (b":method", b"GET")], MALFORMED),
        ([(b":status", b"4040")], MALFORMED),
        ([(b"grpc-status", b"0")], TRAILERS),
        ([], TRAILERS),
    ],
)
def test_what_a_header_list_is(fields: list[Field], form: int) -> None:
    assert h2_headers.head_of(fields, {}).form == form


def test_authority_falls_back_to_host_rfc_9113_8_3_1() -> None:
    fields = [*CALL[:3], (b"host", b"there")]
    assert h2_headers.head_of(fields, {}).authority == b"there"


def test_the_first_of_repeated_fields_is_got_and_all_are_listed() -> None:
    head = h2_headers.head_of([*CALL, (b"a", b"1"), (b"b", b"2"), (b"a", b"3")], {})
    assert head.get(b"a") == b"1"
    assert head.headers == ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"))


def test_huffman_code_is_bounded() -> None:
    """Text of the largest list passes, and no more code than that is read, in one string or in several."""
    encoder = hpack.Encoder()

    def block(*texts: str) -> bytes:
        fields = [hpack.NeverIndexedHeaderTuple("x", text) for text in texts]
        return encode_headers(CALL) + encoder.encode(fields, huffman=True)

    room = limits.H2_HEADER_LIST_BYTES_MAX - header_list_bytes(CALL)
    assert HeaderDecoder().head(block("z" * (room - 33))).form == REQUEST  # a letter of seven bits
    letters = limits.H2_HEADER_HUFFMAN_BYTES_MAX * 8 // 5  # 'e' has five bits
    assert HeaderDecoder().head(block("e" * (letters - 10))).form == TOO_LARGE
    for texts in (["e" * (letters + 10)], ["e" * 8_000] * (letters // 8_000 + 1)):
        with pytest.raises(ConnectionFault) as caught:
            HeaderDecoder().head(block(*texts))
        assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM
