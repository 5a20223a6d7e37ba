# SPDX-License-Identifier: Apache-2.0
"""The area of auth: users, roles and permissions that change, and what each user is answered then.

Actors are "" (no token), "bad" (a token that nobody gave out), the users, and "old" before a user's name: the token
from before the last login. Tokens differ from server to server; each side's are kept under the actor's name.

Permissions of a role begin at different keys: where two begin at the same key, etcd may keep one that was replaced
(docs/compatibility.md). Nor does anybody but root ask for a range that ends before it begins: named there too.
"""

from typing import Any, NamedTuple

from google.protobuf.message import Message
from hypothesis import strategies as st

from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import election_pb2, lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import As
from tests.conformance.fuzz.pair import Side
from tests.conformance.fuzz.steps import plain
from tests.conformance.grpc_peer import Failure
from tests.conformance.lessor_server import ROOT_PASSWORD
from tests.property.strategies import (
    CURRENT,
    clashing_transactions,
    compactions,
    deletes,
    keys,
    leases_of_puts,
    mostly,
    puts,
    range_ends,
    ranges,
    telling_ranges,
    transactions,
    weighted,
)


class Login(NamedTuple):
    user: str
    password: str


class Call(NamedTuple):
    """A unary request in somebody's name."""

    actor: str
    request: Any


class KeepAlive(NamedTuple):
    actor: str
    lease: int


class Watch(NamedTuple):
    """Opens a watch, reads its first response, and ends the stream."""

    actor: str
    request: Any


# Steps whose rules are newer than 3.5.1: about leases and their keys, transactions, the error of a refused watch, and
# the right to compact, to maintain the server and to ask for its status.
_NEWER = (
    Watch,
    KeepAlive,
    rpc.LeaseGrantRequest,
    rpc.LeaseRevokeRequest,
    rpc.LeaseTimeToLiveRequest,
    rpc.LeaseLeasesRequest,
    rpc.TxnRequest,
    rpc.StatusRequest,
    rpc.AlarmRequest,
    rpc.CompactionRequest,
    rpc.HashRequest,
    rpc.DefragmentRequest,
    rpc.MoveLeaderRequest,
    rpc.MemberListRequest,
)


class Player:
    """Plays steps on one side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.tokens = {"bad": "a.1"}
        self._on = False

    def play(self, steps: list[Any]) -> list[Any]:
        return [self._step(step) for step in steps]

    def _as(self, actor: str) -> As:
        # 3.5.1 looks at tokens while auth is off, too.
        return As(self.side.subject, None if self.side.old and not self._on else self.tokens.get(actor))

    def _step(self, step: Any) -> Any:
        if self.side.old and self._on and (isinstance(step, _NEWER) or isinstance(step[1], _NEWER)):
            return None
        if step[0] != "root" and isinstance(step, Call | Watch) and _asks_for_nothing(step.request):
            return None
        match step:
            case Login(user, password):
                reply = self._as("").call(rpc.AuthenticateRequest(name=user, password=password))
                if not isinstance(reply, Failure):
                    self.tokens["old " + user] = self.tokens.get(user, "a.1")
                    self.tokens[user] = reply.token
                return self._note(reply)
            case Call(actor, request):
                placed = self.side.now.place(request)
                if self.side.unsafe(placed):
                    return None
                reply = self._as(actor).call(placed)
                self.side.now.learn(placed, reply)
                if isinstance(reply, rpc.AuthEnableResponse | rpc.AuthDisableResponse):
                    self._on = isinstance(reply, rpc.AuthEnableResponse)
                return self._note(reply)
            case KeepAlive(actor, lease):
                return [self._note(reply) for reply in self._as(actor).keep_alive(lease)]
            case Watch(actor, request):
                stream = self._as(actor).conversation("etcdserverpb.Watch/Watch")
                stream.send(rpc.WatchRequest(create_request=self.side.now.place(request)))
                reply = stream.read()
                stream.cancel()
                return self._note(reply)
        raise TypeError(step)

    def _note(self, reply: Any) -> Any:
        if isinstance(reply, rpc.AuthStatusResponse):
            return reply.enabled, reply.authRevision - self.side.auth_revision
        return plain(reply)


def _asks_for_nothing(request: Message) -> bool:
    """Whether a range in the request ends before it begins. etcd's verdict depends on the shape of its tree then."""
    if isinstance(request, rpc.AuthRoleGrantPermissionRequest | rpc.AuthRoleRevokePermissionRequest):
        return False
    end = getattr(request, "range_end", b"")
    if end not in (b"", b"\0") and end <= request.key:  # type: ignore[attr-defined]
        return True
    return any(
        _asks_for_nothing(inner)
        for field, value in request.ListFields()
        if field.message_type is not None
        for inner in (value if field.is_repeated else [value])
    )


def play(side: Side, steps: list[Any]) -> list[Any]:
    return Player(side).play(steps)


USERS = ("root", "u1", "u2")
_PASSWORDS = {"root": ROOT_PASSWORD, "u1": "one", "u2": "two"}
_RANGES = (
    (b"a", b""),
    (b"ab", b"b"),
    (b"b", b"c\0"),
    (b"c", b"\0"),
    (b"\0", b"\0"),
    (b"\xff", b""),
    (b"", b""),
    (b"z", b"y"),
)
_SETUP: list[Any] = [
    Call("root", rpc.LeaseGrantRequest(ID=1, TTL=100)),
    Call("root", rpc.LeaseGrantRequest(ID=2, TTL=3600)),
    Call("root", rpc.LeaseGrantRequest(ID=7, TTL=100)),
    Call("root", rpc.PutRequest(key=b"a", value=b"x", lease=1)),
    Call("root", rpc.PutRequest(key=b"ab", value=b"y", lease=1)),
    Call("root", rpc.PutRequest(key=b"b", value=b"y", lease=2)),
    *[Call("root", rpc.AuthUserAddRequest(name=name, password=_PASSWORDS[name])) for name in USERS],
    *[Call("root", rpc.AuthRoleAddRequest(name=name)) for name in ("root", "r1", "r2")],
    *[
        Call("root", rpc.AuthUserGrantRoleRequest(user=user, role=role))
        for user, role in (("root", "root"), ("u1", "r1"), ("u2", "r2"))
    ],
]
_ON: list[Any] = [
    Call("root", rpc.AuthEnableRequest()),
    *[Login(name, _PASSWORDS[name]) for name in USERS],
]

_actors = st.sampled_from((*USERS, "u1", "u2", "u1", "u2", "", "bad", "old u1", "old root"))
_managers = mostly(st.just("root"), _actors, 4)
_users = mostly(st.sampled_from(("u1", "u2")), st.sampled_from(("root", "u3", "")), 4)
_roles = mostly(st.sampled_from(("r1", "r2")), st.sampled_from(("root", "r3", "")), 5)
_passwords = st.sampled_from(("one", "two", "", "wrong"))


@st.composite
def _permissions(draw: st.DrawFn) -> auth.Permission:
    key, range_end = draw(st.sampled_from(_RANGES))
    kind: Any = draw(st.sampled_from((0, 1, 2)))
    return auth.Permission(permType=kind, key=key, range_end=range_end)


_grants_to_roles = st.builds(rpc.AuthRoleGrantPermissionRequest, name=_roles, perm=_permissions())
_manage = st.one_of(
    st.builds(rpc.AuthUserAddRequest, name=_users, password=_passwords),
    st.builds(
        rpc.AuthUserAddRequest, name=_users, password=_passwords, options=st.just(auth.UserAddOptions(no_password=True))
    ),
    st.builds(rpc.AuthUserDeleteRequest, name=_users),
    st.builds(rpc.AuthUserGetRequest, name=_users),
    st.builds(rpc.AuthUserListRequest),
    st.builds(rpc.AuthUserChangePasswordRequest, name=mostly(_users, st.just("u3"), 2), password=_passwords),
    st.builds(rpc.AuthUserGrantRoleRequest, user=_users, role=_roles),
    st.builds(rpc.AuthUserRevokeRoleRequest, name=_users, role=_roles),
    st.builds(rpc.AuthRoleAddRequest, name=_roles),
    st.builds(rpc.AuthRoleDeleteRequest, role=_roles),
    st.builds(rpc.AuthRoleGetRequest, role=_roles),
    st.builds(rpc.AuthRoleListRequest),
    _grants_to_roles,
    _grants_to_roles,
    st.sampled_from(_RANGES).flatmap(
        lambda pair: st.builds(
            rpc.AuthRoleRevokePermissionRequest, role=_roles, key=st.just(pair[0]), range_end=st.just(pair[1])
        )
    ),
    mostly(st.builds(rpc.AuthStatusRequest), st.sampled_from((rpc.AuthEnableRequest(), rpc.AuthDisableRequest())), 3),
)
_lease_ids = st.sampled_from((1, 2, 7, 8))
_leases = st.one_of(
    st.builds(rpc.LeaseGrantRequest, ID=_lease_ids, TTL=st.sampled_from((100, 3600))),
    st.builds(rpc.LeaseRevokeRequest, ID=_lease_ids),
    st.builds(rpc.LeaseTimeToLiveRequest, ID=_lease_ids, keys=st.booleans()),
    st.builds(rpc.LeaseLeasesRequest),
)
_others = st.sampled_from(
    (
        rpc.StatusRequest(),
        rpc.AlarmRequest(),
        rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, alarm=rpc.NOSPACE),
        rpc.HashRequest(),
        rpc.HashKVRequest(),
        rpc.DefragmentRequest(),
        rpc.MemberListRequest(),
        rpc.MemberListRequest(linearizable=True),
        rpc.MemberRemoveRequest(ID=77),
        rpc.MemberPromoteRequest(ID=77),
        rpc.MoveLeaderRequest(targetID=77),
        rpc.DowngradeRequest(version="3.5.0"),
        lock_pb2.LockRequest(name=b"a", lease=9),
        lock_pb2.UnlockRequest(key=b"b"),
        election_pb2.LeaderRequest(name=b"a"),
        election_pb2.CampaignRequest(name=b"b", lease=9),
        election_pb2.ProclaimRequest(leader={"name": b"a", "key": b"a", "rev": 2, "lease": 1}),
        election_pb2.ResignRequest(leader={"name": b"a", "key": b"a", "rev": 2, "lease": 1}),
    )
)
_few_keys = st.sampled_from((b"a", b"ab", b"b", b"c"))
_data = weighted(
    (2, st.builds(rpc.PutRequest, key=_few_keys, lease=leases_of_puts, prev_kv=st.booleans())),
    (2, st.builds(rpc.RangeRequest, key=_few_keys, range_end=range_ends)),
    (2, st.builds(rpc.DeleteRangeRequest, key=_few_keys, range_end=range_ends, prev_kv=st.booleans())),
    (1, puts),
    (1, ranges),
    (1, telling_ranges()),
    (1, deletes),
    (2, transactions()),
    (3, clashing_transactions()),
    (1, compactions),
)
_watches = st.builds(
    rpc.WatchCreateRequest,
    key=keys,
    range_end=range_ends,
    start_revision=mostly(st.just(0), st.sampled_from((1, CURRENT, CURRENT - 2, -1)), 4),
    watch_id=st.sampled_from((0, 0, 5)),
)
_steps = weighted(
    (4, st.builds(Call, _managers, _manage)),
    (8, st.builds(Call, _actors, _data)),
    (4, st.builds(Call, _actors, _leases)),
    (2, st.builds(Call, _actors, _others)),
    (2, st.builds(KeepAlive, _actors, _lease_ids)),
    (2, st.builds(Watch, _actors, _watches)),
    (1, st.sampled_from(USERS).map(lambda name: Login(name, _PASSWORDS[name]))),
    (1, st.builds(Login, _users, _passwords)),
)
_permitted = st.lists(st.builds(Call, st.just("root"), _grants_to_roles), min_size=2, max_size=5)


def _some(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[list[Any]]:
    return sizes.flatmap(lambda size: st.lists(_steps, min_size=size, max_size=size))


STEPS = weighted(
    (4, st.builds(lambda granted, steps: [*_SETUP, *granted, *_ON, *steps], _permitted, _some(st.integers(1, 20)))),
    (1, _some(st.integers(1, 8)).map(lambda steps: [*_SETUP, *steps])),
)
