# SPDX-License-Identifier: Apache-2.0
"""No response of a watch stream comes between the fragments of another."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from lessor.server.services.watch_fragments import FRAGMENT, Chain, WayOut
from lessor.state.watcher import Watcher


class Peer:
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def send(self, replies: list[bytes]) -> None:
        self.got += replies

    def send_long(self, head: bytes, chunks: Sequence[bytes]) -> Iterator[int]:
        yield 1
        self.got.append(head + b"".join(chunks))


def watcher() -> Watcher:
    return Watcher(
        1, b"k", None, start_revision=1, filters=(), prev_kv=False, fragment=True, progress_notify=False, owner=None
    )


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def out(peer: Peer) -> WayOut:
    return WayOut(cast(Any, peer))


def test_a_chain_goes_on_as_long_as_nothing_else_leaves(out: WayOut, peer: Peer) -> None:
    one = watcher()
    chain = Chain(one, 9, 5, b"head")
    out.send_piece(one, [b"1"], chain)
    assert out.chain_of(one) is chain
    out.send_piece(one, [b"2", b"3"], None)
    out.send([b"else"])
    assert peer.got == [b"1", b"2", b"3", b"else"]


def test_an_empty_last_fragment_ends_a_chain_before_another_response(out: WayOut, peer: Peer) -> None:
    one, other = watcher(), watcher()
    out.send_piece(one, [b"1"], Chain(one, 9, 5, b"head"))
    out.send([b"else"])
    assert out.chain_of(one) is None
    out.send_piece(one, [b"2"], Chain(one, 9, 5, b"head"))
    out.send_piece(other, [b"3"], None)
    assert peer.got == [b"1", b"head", b"else", b"2", b"head", b"3"]


def test_what_is_to_leave_between_the_fragments_of_a_revision_leaves_after_them(out: WayOut, peer: Peer) -> None:
    steps = out.send_revision(watcher(), b"h", [[b"1", b"2"], [b"3"]])
    next(steps)
    out.send([b"before"])  # no fragment has been sent
    next(steps)
    out.send([b"after"])
    assert list(steps) == []
    assert peer.got == [b"before", b"h" + FRAGMENT + b"12", b"h3", b"after"]


def test_a_large_revision_ends_the_chain_of_its_watcher(out: WayOut, peer: Peer) -> None:
    one = watcher()
    out.send_piece(one, [b"1"], Chain(one, 9, 5, b"head"))
    steps = out.send_revision(one, b"other head", [[b"2"]])
    next(steps)
    out.send([b"after"])
    assert list(steps) == []
    assert peer.got == [b"1", b"head2", b"after"]


def test_a_revision_that_is_given_up_ends_with_an_empty_last_fragment(out: WayOut, peer: Peer) -> None:
    steps = out.send_revision(watcher(), b"h", [[b"1"], [b"2"]])
    next(steps)
    next(steps)
    out.send([b"after"])
    out.give_up()
    out.give_up()
    assert peer.got == [b"h" + FRAGMENT + b"1", b"h", b"after"]
