# SPDX-License-Identifier: Apache-2.0
"""Renewals that a follower passes on: whose reply is whose, and what becomes of those without one."""

from typing import Any

from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.cluster.forwarding import FORWARD_PASS_ON_S
from lessor.durable.engine import Leader
from lessor.server.following.link import NOBODY, Ended, Shown
from lessor.server.following.own_headers import OwnHeaders
from lessor.server.following.renewals import Line, PassedRenewals

LOST = Ended(Code.UNAVAILABLE, "lost", lost=True, reached=True)


class LinkCall:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.over = False

    def send(self, messages: list[bytes], *, last: bool = False) -> None:
        self.sent += messages

    def finish(self) -> None:
        self.over = True

    cancel = finish


class Home:
    """A follower and its link."""

    nonce = bytes(16)
    leader = Leader(1, (), bytes(16), 1)
    own = OwnHeaders(1).own

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[LinkCall] = []
        self.lines: dict[Shown, Line] = {}
        self.streams: list[PassedRenewals] = []
        self.linked = True

    def now_s(self) -> float:
        return self.now

    def start(self, path: str, owner: Any, passed_as: Any, caller: Any) -> LinkCall:
        self.calls.append(LinkCall())
        return self.calls[-1]

    def open(self, stream: Any) -> None:
        self.streams.append(stream)
        if self.linked:
            stream.start(self)

    def close(self, stream: Any) -> None:
        self.streams.remove(stream)

    def line(self, caller: Shown, link: Any) -> Line:
        if caller not in self.lines:
            self.lines[caller] = Line(self, caller, link, lambda: self.end_line(caller))  # type: ignore[arg-type]
        return self.lines[caller]

    def end_line(self, caller: Shown) -> None:
        line = self.lines.pop(caller)
        for stream in self.streams:
            if stream.line is line:
                stream.leave_line()


class Call:
    """A client's stream."""

    def __init__(self, home: Home, token: bytes | None = None, name: str | None = None) -> None:
        self.forwarded = False
        self.token = token
        self.peer_common_name = name
        self.backlog_bytes = 0
        self.passes_on = False
        self.replies: list[bytes] = []
        self.outcome: list[EtcdError | None] = []
        self.handler = PassedRenewals(home, self)  # type: ignore[arg-type]

    def send(self, replies: list[bytes]) -> None:
        self.replies += replies

    def finish(self, error: EtcdError | None = None) -> None:
        if not self.outcome:
            self.outcome.append(error)
            self.handler.on_over()

    def renew(self, *leases: int) -> None:
        self.handler.on_messages([request(lease) for lease in leases])


def request(lease: int) -> bytes:
    return rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString()


def test_streams_without_a_token_share_a_line_and_each_gets_its_own_replies() -> None:
    home = Home()
    one, two, user = Call(home), Call(home), Call(home, b"token")
    one.renew(1)
    two.renew(2, 3)
    one.renew(4)
    user.renew(5)
    shared, apart = home.calls
    assert shared.sent == [request(lease) for lease in (1, 2, 3, 4)]
    assert apart.sent == [request(5)]
    for number in range(4):
        home.lines[NOBODY].on_message(b"%d" % number)
    assert (one.replies, two.replies, user.replies) == ([b"0", b"3"], [b"1", b"2"], [])


def test_clients_with_the_same_name_in_their_certificates_share_a_line_and_others_have_their_own() -> None:
    home = Home()
    ada, ada_too, bob = (Call(home, name=name) for name in ("ada", "ada", "bob"))
    ada_with_token = Call(home, b"token", "ada")
    for lease, call in enumerate((ada, ada_too, bob, ada_with_token)):
        call.renew(lease)
    assert [call.sent for call in home.calls] == [[request(0), request(1)], [request(2)], [request(3)]]
    assert set(home.lines) == {Shown(None, "ada"), Shown(None, "bob"), Shown(b"token", None)}


def test_an_answer_that_is_too_old_is_dropped_and_the_order_stays() -> None:
    home = Home()
    one, two = Call(home), Call(home)
    one.renew(1)
    two.renew(2)
    home.now += FORWARD_PASS_ON_S * 1.01
    line = home.lines[NOBODY]
    line.on_message(b"old 1")
    assert home.calls[0].sent == [request(1), request(2), request(1), request(2)]
    line.on_message(b"old 2")
    line.on_message(b"new 1")
    line.on_message(b"new 2")
    assert (one.replies, two.replies) == ([b"new 1"], [b"new 2"])


def test_renewals_without_an_answer_go_to_the_next_leader_before_later_ones() -> None:
    home = Home()
    one, two = Call(home), Call(home)
    one.renew(1, 2)
    two.renew(3)
    line = home.lines[NOBODY]
    line.on_message(b"1")
    home.linked = False
    line.on_ended(LOST)
    assert one.handler.waits
    assert two.handler.waits
    one.renew(4)
    for stream in home.streams:
        stream.start(home)  # type: ignore[arg-type]
    assert home.calls[1].sent == [request(lease) for lease in (2, 4, 3)]
    for reply in (b"2", b"4", b"3"):
        home.lines[NOBODY].on_message(reply)
    assert (one.replies, two.replies) == ([b"1", b"2", b"4"], [b"3"])


def test_a_request_that_cannot_be_read_ends_its_own_stream_behind_the_replies() -> None:
    home = Home()
    one, two = Call(home), Call(home)
    one.handler.on_messages([request(1), b"\xff", request(2)])
    two.renew(3)
    assert home.calls[0].sent == [request(1), request(3)]
    assert one.outcome == []
    home.lines[NOBODY].on_message(b"1")
    home.lines[NOBODY].on_message(b"3")
    assert one.replies == [b"1"]
    (error,) = one.outcome
    assert error is not None
    assert error.message == errors.MALFORMED_IN_STREAM.message
    assert (two.replies, two.outcome) == ([b"3"], [])


def test_a_refusal_is_the_answer_to_one_renewal() -> None:
    home = Home()
    one, two = Call(home, b"t"), Call(home, b"t")
    one.renew(1)
    two.renew(2)
    home.lines[Shown(b"t")].on_ended(Ended(Code.PERMISSION_DENIED, "no", lost=False, reached=True))
    (error,) = one.outcome
    assert error is not None
    assert (error.code, error.message) == (Code.PERMISSION_DENIED, "no")
    assert two.outcome == []
    two.handler.start(home)  # type: ignore[arg-type]
    assert home.calls[1].sent == [request(2)]


def test_a_stream_ends_when_its_requests_have_their_replies() -> None:
    home = Home()
    call = Call(home, b"t")
    call.renew(1)
    call.handler.on_requests_end()
    assert call.outcome == []
    home.lines[Shown(b"t")].on_message(b"1")
    assert call.outcome == [None]
    assert home.calls[0].over  # nobody else has this token
    assert home.lines == {}


def test_a_client_that_goes_away_takes_no_reply_of_another() -> None:
    home = Home()
    one, two = Call(home), Call(home)
    one.renew(1)
    two.renew(2)
    one.finish()
    home.lines[NOBODY].on_message(b"1")
    home.lines[NOBODY].on_message(b"2")
    assert two.replies == [b"2"]
    assert not home.calls[0].over
