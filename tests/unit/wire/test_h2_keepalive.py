# SPDX-License-Identifier: Apache-2.0
"""Pings: how often a peer may send them, and what becomes of one that does not answer ours. As grpc-go has it."""

import pytest

from lessor.base.limits import H2_PINGS_PER_S_MAX
from lessor.wire import frames
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import H2Server
from lessor.wire.h2_keepalive import PING_STRIKES_MAX, PING_WITHOUT_STREAMS_S, Keepalive, KeepaliveRules
from tests.unit.wire.h2_pair import (
    RESPONSE_BLOCK,
    data_frame,
    error_of,
    frames_of,
    headers_frame,
    raw_client,
    raw_server,
)

PING = frames.frame(frames.PING, 0, 0, b"12345678")
PONG = (frames.PING, frames.FLAG_ACK, 0, b"12345678")
RULES = KeepaliveRules(min_time_s=5, interval_s=60, timeout_s=20)


@pytest.mark.parametrize("with_stream", [True, False])
def test_the_fourth_ping_at_once_is_answered_and_ends_the_connection(with_stream: bool) -> None:
    server = raw_server()
    if with_stream:
        server.receive(headers_frame(1))
    server.take_output()
    server.receive(PING * 3)
    assert not server.closing
    assert frames_of(server.take_output()) == [PONG] * 3
    server.receive(PING)
    assert server.closing
    assert error_of(server) == (int(with_stream), ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")


@pytest.mark.parametrize(("with_stream", "least_s"), [(True, 5.0), (False, PING_WITHOUT_STREAMS_S)])
def test_a_ping_in_time_is_no_strike_but_forgives_none(with_stream: bool, least_s: float) -> None:
    server = raw_server()
    if with_stream:
        server.receive(headers_frame(1))
    now = 0.0
    for _ in range(20):
        server.receive(PING, now)
        now += least_s
    for _ in range(PING_STRIKES_MAX):
        now += least_s * 0.9 - least_s
        server.receive(PING, now)
        assert not server.closing
        now += least_s
        server.receive(PING, now)
        assert not server.closing
        now += least_s
    server.receive(PING, now - least_s * 0.1)
    assert server.closing


def test_what_we_send_clears_the_strikes_and_pays_for_one_ping() -> None:
    server = raw_server()
    stream = server.receive(headers_frame(1))[0][1]
    server.send_headers(stream, RESPONSE_BLOCK)
    for _ in range(50):
        server.receive(PING * (1 + PING_STRIKES_MAX))
        assert not server.closing
        server.send_data(stream, b"x")
    server.receive(PING * (2 + PING_STRIKES_MAX))
    assert server.closing


def test_other_frames_of_ours_do_not_clear_them() -> None:
    """A client could make us send as many settings and windows as it likes."""
    server = raw_server()
    server.receive(headers_frame(1))
    for _ in range(PING_STRIKES_MAX + 1):
        server.receive(PING)
        server.receive(frames.settings_frame([]))
    server.receive(PING)
    assert server.closing


def test_a_client_bears_more_from_its_server() -> None:
    client = raw_client()
    client.receive(PING * H2_PINGS_PER_S_MAX)
    assert not client.closing


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    keepalive = Keepalive(RULES)
    assert keepalive.next_step(0.0, 0.0) == (False, 60)
    assert keepalive.next_step(60.0, 10.0) == (False, 10)
    assert keepalive.next_step(70.0, 10.0) == (True, 20)
    assert keepalive.next_step(85.0, 10.0) == (False, 5)
    assert keepalive.next_step(90.0, 10.0) == (False, 0)
    assert keepalive.next_step(99.0, 10.0) == (False, 0)


def test_whatever_comes_after_the_question_is_an_answer() -> None:
    keepalive = Keepalive(RULES)
    assert keepalive.next_step(60.0, 0.0) == (True, 20)
    assert keepalive.next_step(80.0, 61.0) == (False, 41)
    assert keepalive.next_step(121.0, 61.0) == (True, 20)
    assert keepalive.next_step(141.0, 61.0) == (False, 0)


def test_half_a_frame_is_a_sign_of_life_too() -> None:
    server = H2Server(RULES, now=100.0)
    assert server.look_after_peer(130.0) == 30
    server.receive(frames.PREFACE + frames.settings_frame([]) + headers_frame(1), 140.0)
    server.receive(data_frame(1, b"12345678")[:4], 150.0)
    server.receive(data_frame(1, b"12345678")[4:6], 155.0)
    assert server.look_after_peer(160.0) == 55
    server.take_output()
    assert server.look_after_peer(215.0) == 20
    assert frames_of(server.take_output()) == [(frames.PING, 0, 0, bytes(8))]
