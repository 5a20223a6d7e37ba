# SPDX-License-Identifier: Apache-2.0
"""Claim: on one core, HTTP/1.1 framing allows 30k exchanges/s, and the JSON codec costs less than the framing's budget.

Without sockets: bytes in, events, a reply in one piece, bytes out. A small POST with Content-Length, as curl sends it.
The codec is compared with protobuf's own json_format on the same messages.

    python bench/h1_null.py
"""

import sys
import time
from collections.abc import Callable

from google.protobuf import json_format

from lessor.api.proto.rpc_pb2 import LeaseGrantRequest, LeaseGrantResponse, ResponseHeader
from lessor.gateway import json_codec, routes
from lessor.wire.h1 import H1Connection, encode_headers

BODY = b'{"TTL":"300","ID":"7587869462738929000"}'
REQUEST = (
    b"POST /v3/lease/grant HTTP/1.1\r\nHost: 127.0.0.1:2379\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
    b"Content-Length: %d\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n%b" % (len(BODY), BODY)
)
HEADERS = encode_headers(routes.JSON_HEADERS)
REPLY = LeaseGrantResponse(
    header=ResponseHeader(cluster_id=17376908466636080180, member_id=351898220565275620, revision=3, raft_term=2),
    ID=7587869462738929000,
    TTL=300,
)
SECONDS = 1.0


def per_second(act: Callable[[], object], batch: int = 1_000) -> float:
    """The best of three runs."""
    best = 0.0
    for _ in range(3):
        count = 0
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < SECONDS / 3:
            for _ in range(batch):
                act()
            count += batch
        best = max(best, count / spent)
    return best


def main() -> None:
    connection = H1Connection()
    text = json_codec.encode(REPLY)

    def exchange() -> None:
        connection.receive(REQUEST)
        connection.reply(200, HEADERS, text)
        connection.take_output()

    def call() -> None:
        events = connection.receive(REQUEST)
        exchange = events[0][1]
        method = routes.match(exchange.method, exchange.path)
        assert not isinstance(method, routes.Answer)
        json_codec.decode(method.request, events[1][2])
        connection.reply(200, HEADERS, json_codec.encode(REPLY))
        connection.take_output()

    def reference() -> None:
        json_format.Parse(BODY, LeaseGrantRequest(), ignore_unknown_fields=True)
        json_format.MessageToJson(REPLY, preserving_proto_field_name=True, indent=None)

    def codec() -> None:
        json_codec.decode(LeaseGrantRequest, BODY)
        json_codec.encode(REPLY)

    exchanges = per_second(exchange)
    print(f"HTTP/1.1 exchanges, framing alone        {exchanges:10,.0f} /s")
    print(f"  with route, JSON in and JSON out       {per_second(call):10,.0f} /s")
    ours, theirs = per_second(codec), per_second(reference)
    print(f"JSON codec, a grant in and its reply out {ours:10,.0f} /s, {ours / theirs:.1f} times json_format")
    if exchanges < 30_000:
        sys.exit("below the claim of 30,000 exchanges/s")


if __name__ == "__main__":
    main()
