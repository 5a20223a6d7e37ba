# SPDX-License-Identifier: Apache-2.0
"""Who calls, where several servers share a log: tokens and names in certificates, at whichever server they come."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from lessor.api.methods import METHODS
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cluster import proof
from lessor.server.following import link as link_module
from lessor.testing.server import InProcessServer
from tests.certificates import Authority, Files
from tests.memory_log import MemoryRecords
from tests.whole.test_followers import cut_off, follower_of, is_linked, leads, server_on, two
from tests.whole.test_on_a_shared_log import eventually, put

BY_REQUEST = {method.request: method for method in METHODS if method.name != "RangeStream"}
CALL_S_MAX = 20.0
INVALID = "etcdserver: invalid auth token"
NOBODY = "etcdserver: user name is empty"


def ask(channel: grpc.Channel, request: Message, *metadata: tuple[str, str]) -> Any:
    """The reply, or the text of the error."""
    method = BY_REQUEST[type(request)]
    if method.unary:
        call: Any = channel.unary_unary(method.path, type(request).SerializeToString, method.response.FromString)
        given: Any = request
    else:
        call = channel.stream_stream(method.path, type(request).SerializeToString, method.response.FromString)
        given = iter([request])
    try:
        reply = call(given, timeout=CALL_S_MAX, metadata=metadata)
        return reply if method.unary else next(iter(reply))
    except grpc.RpcError as error:
        return error.details()


def old_read(key: bytes) -> rpc.RangeRequest:
    return rpc.RangeRequest(key=key, serializable=True)


@contextlib.contextmanager
def channels(*servers: InProcessServer) -> Iterator[Sequence[grpc.Channel]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(grpc.insecure_channel(server.address)) for server in servers]


@contextlib.contextmanager
def two_with_auth(tmp_path: Path, *flags: str) -> Iterator[tuple[InProcessServer, InProcessServer]]:
    with two(tmp_path, *flags) as (leader, follower):
        leader._enable_auth("secret")
        eventually(lambda: follower.call(lambda: follower.server.core.auth.enabled))
        yield leader, follower


def log_in(channel: grpc.Channel) -> tuple[str, str]:
    """The metadata that show a new token of root."""
    return "token", ask(channel, rpc.AuthenticateRequest(name="root", password="secret")).token


def knows(server: InProcessServer, token: tuple[str, str]) -> bool:
    """Whether the server itself has what it takes to judge the token."""
    core = server.server.core
    return bool(server.call(lambda: core.tokens.caller(token[1], core.auth.revision)) is not None)


def test_a_follower_judges_a_token_itself(tmp_path: Path) -> None:
    with two_with_auth(tmp_path) as (leader, follower), channels(follower) as (channel,):
        token = log_in(channel)
        assert ask(channel, put(b"k", b"v"), token).header.revision == 2
        eventually(lambda: knows(follower, token))
        member_id = ask(channel, rpc.StatusRequest(), token).header.member_id
        assert member_id != leader.call(lambda: leader.server.core.machine.identity.member_id)
        for request in (rpc.HashKVRequest(), old_read(b"k")):
            assert ask(channel, request, token).header.member_id == member_id
        cut_off(follower)  # nobody else can be asked now
        assert ask(channel, old_read(b"k"), token).kvs[0].value == b"v"
        watch = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))
        assert ask(channel, watch, token).created


def test_a_token_outlives_the_server_that_gave_it(tmp_path: Path) -> None:
    with two_with_auth(tmp_path) as (leader, follower), channels(leader, follower) as (at_leader, at_follower):
        token = log_in(at_leader)
        ask(at_leader, put(b"k", b"v"), token)
        leader.kill()
        assert ask(at_follower, put(b"k", b"w"), token).header.revision == 3
        assert leads(follower)
        renewed = ask(at_follower, rpc.LeaseKeepAliveRequest(ID=7), token)
        assert (renewed.ID, renewed.TTL) == (7, 0)
        assert ask(at_follower, old_read(b"k"), token).kvs[0].version == 2


def test_the_leader_hears_of_many_tokens_at_once(tmp_path: Path) -> None:
    with two_with_auth(tmp_path) as (leader, follower), channels(follower) as (channel,):
        token = log_in(channel)
        words = follower.call(lambda: follower_of(follower)._words)
        marks = [number.to_bytes(16) for number in range(2_000)]
        follower.call(lambda: list(map(follower.server.core.token_uses.used, marks)))
        eventually(lambda: ends(leader).keys() >= set(marks))
        assert follower.call(lambda: follower_of(follower)._words) is words  # the same stream
        assert ask(channel, put(b"k", b"v"), token).header.revision == 2


@pytest.mark.parametrize("used_at", ["leader", "follower"])
def test_a_token_that_is_used_at_one_server_lives_on_at_all(tmp_path: Path, used_at: str) -> None:
    with two_with_auth(tmp_path) as (leader, follower), channels(leader, follower) as both:
        other = follower if used_at == "leader" else leader
        now_s = [1000.0]
        for server in (leader, follower):
            server.server.core.token_uses._now_s = lambda: now_s[0]
        token = log_in(both[0])
        eventually(lambda: knows(follower, token))
        eventually(lambda: len(ends(leader)) == len(ends(follower)) == 1)
        (mark,) = ends(other)
        for _ in range(3):
            before = ends(other)
            now_s[0] += 200
            assert is_live(other, mark)
            assert not isinstance(ask(both[used_at == "follower"], old_read(b"k"), token), str)
            eventually(lambda before=before: ends(other) != before)  # type: ignore[misc]
        now_s[0] += 400
        assert not is_live(other, mark)


def is_live(server: InProcessServer, mark: bytes) -> bool | None:
    return server.call(lambda: server.server.core.token_uses.is_live(mark))


def ends(server: InProcessServer) -> dict[bytes, float]:
    """Of the tokens of which the server knows uses: when they end."""
    return server.call(lambda: {mark: end for mark, (end, *_) in server.server.core.token_uses._ends.items()})


@pytest.mark.parametrize(
    "change",
    [
        lambda channel, token: ask(channel, rpc.AuthUserChangePasswordRequest(name="root", password="new"), token),
        lambda channel, token: (
            ask(channel, rpc.AuthDisableRequest(), token) and ask(channel, rpc.AuthEnableRequest(), token)
        ),
    ],
    ids=["another password", "auth is switched off, and on again"],
)
def test_a_token_is_void_at_all_servers_when_it_would_be_at_one(
    tmp_path: Path, change: Callable[[grpc.Channel, tuple[str, str]], Any]
) -> None:
    with two_with_auth(tmp_path) as (leader, follower), channels(leader, follower) as both:
        token = log_in(both[1])
        eventually(lambda: knows(follower, token))
        assert not isinstance(change(both[1], token), str)
        eventually(lambda: not knows(follower, token))
        assert [ask(channel, old_read(b"k"), token) for channel in both] == [INVALID, INVALID]
        leader.kill()
        assert ask(both[1], put(b"k", b"v"), token) == INVALID


def test_a_server_that_starts_later_knows_the_tokens(tmp_path: Path) -> None:
    kept = MemoryRecords()
    with server_on(kept, tmp_path / "a") as leader, channels(leader) as (at_leader,):
        eventually(lambda: leads(leader))
        leader._enable_auth("secret")
        token = log_in(at_leader)
        with server_on(kept, tmp_path / "b") as follower:
            eventually(lambda: is_linked(follower))
            eventually(lambda: knows(follower, token))
            follower.restart()  # from its tables
            eventually(lambda: is_linked(follower))
            eventually(lambda: knows(follower, token))
        with server_on(kept, tmp_path / "b") as follower, channels(follower) as (at_follower,):
            leader.kill()
            assert not isinstance(ask(at_follower, put(b"k", b"v"), token), str)


def test_a_server_alone_gives_tokens_as_etcd_does(tmp_path: Path) -> None:
    with InProcessServer(root_password="secret", data_dir=tmp_path / "a") as server, channels(server) as (channel,):
        assert log_in(channel)[1].count(".") == 1
        assert len(log_in(channel)[1].partition(".")[0]) == 16
        assert not server.server.core.auth.token_key


# --- names in certificates --------------------------------------------------------------------------------------------


class Secured:
    """Two servers that ask clients for certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = Authority("all")
        self.ca = authority.write(folder / "ca.pem")
        self.files = {name: authority.issue(folder, name) for name in ("server", "root", "ada", "mallory")}

    def server_on(self, kept: MemoryRecords, data_dir: Path) -> InProcessServer:
        files = self.files["server"]
        server = server_on(
            kept,
            data_dir,
            f"--cert-file={files.certificate}",
            f"--key-file={files.key}",
            f"--trusted-ca-file={self.ca}",
            "--client-cert-auth",
        )
        server.client_url = f"https://{server.address}"
        return server

    @contextlib.contextmanager
    def two(self) -> Iterator[tuple[InProcessServer, InProcessServer]]:
        kept = MemoryRecords()
        with self.server_on(kept, self.folder / "a") as leader:
            eventually(lambda: leads(leader))
            leader._enable_auth("secret")
            leader._apply(
                rpc.AuthUserAddRequest(name="ada", options={"no_password": True}),
                rpc.AuthRoleAddRequest(name="r"),
                rpc.AuthRoleGrantPermissionRequest(name="r", perm={"key": b"a", "permType": 2}),
                rpc.AuthUserGrantRoleRequest(user="ada", role="r"),
            )
            with self.server_on(kept, self.folder / "b") as follower:
                eventually(lambda: is_linked(follower))
                eventually(lambda: "ada" in follower.server.core.auth.users)
                yield leader, follower

    def channel(self, server: InProcessServer, name: str) -> grpc.Channel:
        files: Files = self.files[name]
        credentials = grpc.ssl_channel_credentials(
            self.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
        )
        return grpc.secure_channel(server.address, credentials)


DENIED = "etcdserver: permission denied"


def test_the_name_in_a_certificate_counts_at_a_follower_as_at_the_leader(tmp_path: Path) -> None:
    world = Secured(tmp_path)
    with world.two() as (leader, follower):
        for server in (leader, follower):
            with (
                world.channel(server, "ada") as ada,
                world.channel(server, "root") as root,
                world.channel(server, "mallory") as mallory,
            ):
                assert not isinstance(ask(ada, put(b"a", b"v")), str)
                assert ask(ada, put(b"b", b"v")) == DENIED
                assert ask(ada, rpc.RangeRequest(key=b"a")).kvs[0].value == b"v"
                assert ask(ada, rpc.RangeRequest(key=b"b")) == DENIED
                assert not isinstance(ask(root, put(b"b", b"v")), str)
                assert ask(mallory, put(b"a", b"v")) == DENIED
                lease_id = ask(ada, rpc.LeaseGrantRequest(TTL=60)).ID
                assert not isinstance(ask(root, put(b"b", b"v", lease_id)), str)
                assert ask(root, rpc.LeaseKeepAliveRequest(ID=lease_id)).TTL == 60
                assert ask(ada, rpc.LeaseKeepAliveRequest(ID=lease_id)) == DENIED  # of a lease with another's key
                assert ask(ada, put(b"a", b"v"), ("token", "bad")) == INVALID


def test_a_stranger_gains_nothing_from_the_words_of_a_follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stream_ids: list[int] = []

    def overheard(*about: Any) -> bytes:
        found = proof.vouch(*about)
        said.append(found.decode())
        stream_ids.append(about[2])
        return found

    monkeypatch.setattr(link_module, "vouch", overheard)
    world = Secured(tmp_path)
    with (
        world.two() as (leader, follower),
        world.channel(follower, "root") as root,
        world.channel(leader, "mallory") as mallory,
    ):
        assert not isinstance(ask(root, put(b"b", b"v")), str)
        epoch = leader.call(lambda: leader.server.core.machine.identity.term)
        forwarded = ("lessor-forwarded", f"{'0' * 32}:0:{epoch}")
        assert said
        for word in (*said, f"{'0' * 64}:{b'root'.hex()}", b"root".hex(), "root", ""):
            assert ask(mallory, put(b"b", b"w"), forwarded, ("lessor-caller", word)) == NOBODY
            assert ask(mallory, put(b"b", b"w"), ("lessor-caller", word)) == DENIED  # as without it
        # Nor at the same place of another connection.
        with world.channel(leader, "mallory") as another:
            for _ in range(0, stream_ids[-1] + 2, 2):
                assert ask(another, put(b"b", b"w"), forwarded, ("lessor-caller", said[-1])) == NOBODY
        # Also not on the very connection of the follower, which a proxy may share.
        monkeypatch.setattr(link_module, "vouch", lambda *about: said[-1].encode())
        assert ask(root, put(b"b", b"w")) == NOBODY
        monkeypatch.setattr(link_module, "vouch", proof.vouch)
        assert ask(root, rpc.RangeRequest(key=b"b")).kvs[0].value == b"v"


def test_a_name_that_comes_while_the_leader_stops_is_for_the_next_one(tmp_path: Path) -> None:
    world = Secured(tmp_path)
    with world.two() as (leader, follower), world.channel(follower, "ada") as ada, ThreadPoolExecutor() as pool:
        lease_id = ask(ada, rpc.LeaseGrantRequest(TTL=60)).ID
        core = leader.server.core

        followers = leader.call(lambda: dict(core.followers))
        stream: Any = next(iter(followers))

        def drains(draining: bool) -> None:
            core.followers = {} if draining else followers
            stream._call._output.h2._draining = draining

        def begun() -> int:
            link: Any = follower_of(follower)._link
            return int(follower.call(lambda: link.h2.next_stream_id))

        leader.call(lambda: drains(True))
        before = begun()
        asked = pool.submit(ask, ada, rpc.LeaseTimeToLiveRequest(ID=lease_id))
        eventually(lambda: begun() > before + 4)  # it was asked several times
        leader.call(lambda: drains(False))
        assert lease_id == asked.result().ID


def test_the_name_in_a_certificate_counts_over_a_take_over(tmp_path: Path) -> None:
    world = Secured(tmp_path)
    with world.two() as (leader, follower), world.channel(follower, "ada") as ada:
        assert not isinstance(ask(ada, put(b"a", b"v")), str)
        leader.kill()
        assert not isinstance(ask(ada, put(b"a", b"v")), str)
        assert ask(ada, put(b"b", b"v")) == DENIED


# --- clients that require a leader ------------------------------------------------------------------------------------

REQUIRE = ("hasleader", "true")
NO_LEADER = "etcdserver: no leader"


def test_who_requires_a_leader_does_not_wait_for_one(tmp_path: Path) -> None:
    watch = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))
    with two(tmp_path) as (_leader, follower), channels(follower) as (channel,):
        assert not isinstance(ask(channel, put(b"k", b"v"), REQUIRE), str)
        watching, patient = [
            channel.stream_stream(
                "/etcdserverpb.Watch/Watch", rpc.WatchRequest.SerializeToString, rpc.WatchResponse.FromString
            )
            for _ in range(2)
        ]
        streams = [watching(endless(watch), CALL_S_MAX, [REQUIRE]), patient(endless(watch), CALL_S_MAX)]
        assert all(next(stream).created for stream in streams)
        renewing = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")(endless(b""), CALL_S_MAX, [REQUIRE])
        next(renewing)
        cut_off(follower)
        eventually(lambda: ask(channel, old_read(b"k"), REQUIRE) == NO_LEADER)
        assert ask(channel, old_read(b"k")).kvs[0].value == b"v"
        assert not isinstance(ask(channel, old_read(b"k"), ("hasleader", "x")), str)
        for stream in (streams[0], renewing):
            with pytest.raises(grpc.RpcError) as error:
                next(stream)
            assert (error.value.code(), error.value.details()) == (grpc.StatusCode.UNAVAILABLE, NO_LEADER)
        assert streams[1].is_active()
        streams[1].cancel()


def test_a_server_alone_always_has_a_leader(tmp_path: Path) -> None:
    with InProcessServer(data_dir=tmp_path / "a") as server, channels(server) as (channel,):
        assert not isinstance(ask(channel, put(b"k", b"v"), REQUIRE), str)
        watch = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))
        assert ask(channel, watch, REQUIRE).created


def endless(request: Any) -> Iterator[Any]:
    """One request, and the stream stays open."""
    yield request
    threading.Event().wait(CALL_S_MAX)
