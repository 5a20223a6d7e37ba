# SPDX-License-Identifier: Apache-2.0
"""A real etcd and a Lessor side by side, brought to the same state again and again, and compared.

`level` takes away keys, leases, alarms, users and roles on both sides and writes until both are at the same revision,
compacted there. From then on the same bytes mean the same to both, so requests need no translation, not even malformed
ones. An area plays a sequence of steps on one side after the other and notes the answers; `tell_apart` compares the
notes.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.against_model import Difference, Party, differences_of
from tests.conformance.auth_peer import CHEAP, As
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.fuzz.steps import Now, code_of
from tests.conformance.grpc_peer import Failure
from tests.conformance.lessor_server import ROOT_PASSWORD, LessorServer
from tests.conformance.server_process import ServerProcess
from tests.conformance.subject import NOTIFY_S, Subject, etcd_flags
from tests.model import Model
from tests.property.strategies import EVERYTHING, TXN_OPS_MAX

FLAGS = [f"--max-txn-ops={TXN_OPS_MAX}", *CHEAP]
_NO_ALARMS = Model()
_MEMBERS_CHANGE_S = 0.05


class Side:
    """One of the two servers, at the beginning of a sequence of steps."""

    def __init__(self, subject: Subject, differences: Sequence[Difference], now: Now) -> None:
        self.subject = subject
        self.now = now
        self.differences = differences
        self.auth_revision = 0

    @property
    def old(self) -> bool:
        """Whether the pair's etcd is one of before 3.6, which Lessor follows; true on both sides then."""
        return any("3.5." in known.versions for known in self.differences)

    def unsafe(self, request: Any) -> bool:
        """Whether the request is one that the table of known differences names; no side is sent it.

        Returns after a moment for those that etcd may only be sent one after the other.
        """
        if isinstance(request, rpc.MemberRemoveRequest | rpc.MemberPromoteRequest):
            # While one change of members is being applied, raft drops the next one, and nobody answers it.
            time.sleep(_MEMBERS_CHANGE_S)
        return any(known.concerns(request, _NO_ALARMS) for known in self.differences)

    def write(self, request: Any) -> Any:
        """Sends a unary request, with the numbers of the moment; the answer, or None where it is not to be sent."""
        placed = self.now.place(request)
        if self.unsafe(placed):
            return None
        reply = As(self.subject).call(placed)
        self.now.learn(placed, reply)
        return reply


class Pair:
    """Both servers for one `with` block; `restart` replaces them by new ones."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.subjects: list[Subject] = []
        self.differences: list[Difference] = []

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        binary = etcd_binary()
        assert binary is not None
        etcd = self._stack.enter_context(EtcdServer(binary, [*FLAGS, *etcd_flags(binary)]))
        notify = f"--watch-progress-notify-interval={int(NOTIFY_S * 1000)}ms"
        lessor = self._stack.enter_context(LessorServer([*FLAGS, notify]))
        self._servers: list[ServerProcess] = [etcd, lessor]
        self.subjects = [self._stack.enter_context(Subject(server)) for server in self._servers]
        self.differences = differences_of(etcd)

    def restart(self) -> None:
        self._stack.close()
        self._start()

    def level(self) -> list[Side]:
        """Both sides without state, at the same revision."""
        # One that a sequence has killed is killed by the next, smaller one again.
        if not all(server.alive for server in self._servers) or not all(map(_open, self.subjects)):
            self.restart()
        revisions = [Party(subject).empty() for subject in self.subjects]
        wanted = max(revisions) + 2
        sides = []
        for subject, revision in zip(self.subjects, revisions, strict=True):
            for _ in range(wanted - 1 - revision):
                subject.put(b"leveller")
            assert subject.delete(**EVERYTHING) == wanted
            subject.compact(wanted)
            side = Side(subject, self.differences, Now(wanted))
            side.auth_revision = subject.stub("etcdserverpb.Auth/AuthStatus")(rpc.AuthStatusRequest()).authRevision
            sides.append(side)
        return sides


def _open(subject: Subject) -> bool:
    """Takes away users and roles and switches auth off; False when nobody can any more."""
    anybody = As(subject)
    status = anybody.call(rpc.AuthStatusRequest())
    if isinstance(status, Failure) or status.enabled:
        login = anybody.call(rpc.AuthenticateRequest(name="root", password=ROOT_PASSWORD))
        root = anybody if isinstance(login, Failure) else As(subject, login.token)
        if isinstance(root.call(rpc.AuthDisableRequest()), Failure):
            return False
    for user in anybody.do(rpc.AuthUserListRequest()).users:
        anybody.do(rpc.AuthUserDeleteRequest(name=user))
    for role in anybody.do(rpc.AuthRoleListRequest()).roles:
        anybody.do(rpc.AuthRoleDeleteRequest(role=role))
    return True


def tell_apart(pair: Pair, play: Callable[[Side, list[Any]], list[Any]], steps: list[Any]) -> None:
    """Plays the steps on both sides; AssertionError at the first note that differs."""
    etcd, lessor = [play(side, steps) for side in pair.level()]
    for number, (theirs, ours) in enumerate(zip(etcd, lessor, strict=False)):
        assert theirs == ours, f"note {number}\netcd:   {code_of(theirs)}\nLessor: {code_of(ours)}"
    assert len(etcd) == len(lessor), f"etcd:   {code_of(etcd)}\nLessor: {code_of(lessor)}"
