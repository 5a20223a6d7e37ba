# SPDX-License-Identifier: Apache-2.0
"""The way out of a watch stream, for responses that are sent in fragments.

Laws
- No response comes between the fragments of another. Go's client puts the fragments of a stream together by their order
  alone, and drops the responses of other watches that come between them.
- History goes to a watcher that asked for fragments as one response of up to WATCH_REPLAY_REVISIONS_MAX revisions, as
  in etcd, though it is made piece by piece: a *chain* of fragments. A piece ends between revisions. When another
  response has to leave in the middle of a chain, an empty last fragment ends it first; what follows is a response of
  its own.
- The fragments of one revision stay together. What is to leave meanwhile, a few turns long, leaves after the last.

Does not do: cutting, encoding (watch.py, state/watch_changes.py).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lessor.server.loop.call import StreamCall
from lessor.state.watcher import Watcher

FRAGMENT = b"\x38\x01"  # field 7, true


class Chain(NamedTuple):
    """A response of history of which more fragments are to come."""

    watcher: Watcher
    upto_revision: int  # of the head of all of its fragments
    revisions_left: int
    head: bytes


class WayOut:
    """Sends the responses of one watch stream."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._chain: Chain | None = None
        self._revision: bytes | None = None  # the head of a revision of which some fragments have been sent
        self._behind: list[bytes] = []  # it

    @property
    def watcher(self) -> Watcher | None:
        """Whose chain is under way."""
        return None if self._chain is None else self._chain.watcher

    def chain_of(self, watcher: Watcher) -> Chain | None:
        """The chain that is under way, if it is this watcher's."""
        chain = self._chain
        return chain if chain is not None and chain.watcher is watcher else None

    def send(self, responses: list[bytes]) -> None:
        """Sends whole responses; each may be given as all of its fragments."""
        if self._revision is not None:
            self._behind += responses
            return
        self._end_chain()
        self._call.send(responses)

    def send_piece(self, watcher: Watcher, responses: list[bytes], following: Chain | None) -> None:
        """Sends a piece of a watcher's history, as `send`, or as a part of its chain.

        `following`: the chain that its next piece belongs to, if this one ends with a fragment that is not the last.
        """
        if self.chain_of(watcher) is None:
            self._end_chain()
        self._call.send(responses)
        self._chain = following

    def send_revision(self, watcher: Watcher, head: bytes, groups: Sequence[list[bytes]]) -> Iterator[int]:
        """Sends a large revision, in fragments if there are several groups of chunks, in steps: yields their costs.

        If the watcher's chain is under way it ends with them.
        """
        chain = self.chain_of(watcher)
        if chain is None:
            self._end_chain()
        else:
            head = self._revision = chain.head
            self._chain = None
        for group in groups[:-1]:
            yield from self._call.send_long(head + FRAGMENT, group)
            self._revision = head
        yield from self._call.send_long(head, groups[-1])
        self._revision = None
        self._send_behind()

    def give_up(self) -> None:
        """The revision under way is not sent to its end, because its watcher is gone."""
        if self._revision is not None:
            self._call.send([self._revision])
            self._revision = None
            self._send_behind()

    def _send_behind(self) -> None:
        behind, self._behind = self._behind, []
        if behind:
            self._call.send(behind)

    def _end_chain(self) -> None:
        """The last fragment, an empty one."""
        if self._chain is not None:
            self._call.send([self._chain.head])
            self._chain = None
