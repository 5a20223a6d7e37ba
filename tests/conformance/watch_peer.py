# SPDX-License-Identifier: Apache-2.0
"""A watch stream as a client holds it: create, cancel, ask for progress, read one response after the other."""

from types import TracebackType
from typing import Any, Self

from lessor.api.proto import mvcc_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import Conversation, Subject, end_of

PUT, DELETE = mvcc_pb2.Event.PUT, mvcc_pb2.Event.DELETE


class WatchPeer:
    """One watch stream, for one `with` block."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.stream: Conversation

    def __enter__(self) -> Self:
        self.stream = self._subject.conversation("etcdserverpb.Watch/Watch")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.cancel()

    def ask(self, key: bytes = b"", **options: Any) -> None:
        """Sends a create request."""
        self.stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, **options)))

    def create(self, key: bytes = b"", **options: Any) -> Any:
        """Sends a create request; returns the reply, which has to say `created`."""
        self.ask(key, **options)
        reply = self.read()
        assert reply.created, reply
        return reply

    def prefix(self, prefix: bytes, **options: Any) -> Any:
        return self.create(prefix, range_end=end_of(prefix), **options)

    def cancel(self, watch_id: int) -> None:
        self.stream.send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))

    def ask_progress(self) -> None:
        self.stream.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    def read(self) -> Any:
        """The next response, whatever it is."""
        reply = self.stream.read()
        assert reply is not None, "the stream ended"
        assert not isinstance(reply, Failure), reply
        return reply

    def events(self, count: int) -> list[Any]:
        """The next events, over as many responses as they come in; never more than asked for."""
        found: list[Any] = []
        while len(found) < count:
            reply = self.read()
            assert reply.events, reply
            assert not reply.canceled
            found += reply.events
        assert len(found) == count, found
        return found


def seen(events: Any) -> list[tuple[int, bytes, int]]:
    """The events as (type, key, revision)."""
    return [(event.type, event.kv.key, event.kv.mod_revision) for event in events]
