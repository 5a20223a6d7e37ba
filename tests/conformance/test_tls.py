# SPDX-License-Identifier: Apache-2.0
"""TLS as a client meets it: who gets in, who is refused and how, on Lessor and on a real etcd alike.

Where a refusal may lose a race against the client's own request (TLS 1.3 refuses certificates after the client has
sent it), etcd's alert may be overtaken by a reset; Lessor's never is.
"""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.certificates import Authority
from tests.conformance.etcdctl import find_etcdctl
from tests.conformance.server_process import ServerProcess
from tests.conformance.subject import RUNNERS, server_of
from tests.conformance.tls_server import CLOSED, SERVED, Pki, outcome, raw, skip_before_3_6, tls_server
from tests.ports import free_port

pytestmark = pytest.mark.slow

PUT = "/etcdserverpb.KV/Put"
CALL_S_MAX = 10.0
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module", params=RUNNERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain_port(kind: str, pki: Pki) -> Iterator[tuple[int, int]]:
    """A server that asks clients for nothing: the ports of https:// and http://."""
    with tls_server(kind, pki) as (server, port):
        yield port, int(server.address.partition(":")[2])


@pytest.fixture(scope="module")
def port(plain_port: tuple[int, int]) -> int:
    return plain_port[0]


@pytest.fixture(scope="module")
def mutual(kind: str, pki: Pki) -> Iterator[int]:
    """The port of a server that asks for certificates, with a revocation list."""
    flags = (f"--trusted-ca-file={pki.folder}/ca.pem", f"--client-crl-file={pki.folder}/crl.der", "--client-cert-auth")
    with tls_server(kind, pki, *flags) as (_, port):
        yield port


# --- the server's certificate ---


@VERSIONS
@pytest.mark.parametrize("client", ["none", "alice", "stranger"])
def test_whoever_trusts_the_server_is_served(port: int, pki: Pki, version: ssl.TLSVersion, client: str) -> None:
    assert outcome(port, pki.context(client, version)) == SERVED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_names_in_the_certificate(port: int, pki: Pki, host: str) -> None:
    assert outcome(port, pki.context(), host) == SERVED


def test_another_name_is_not_believed_and_the_server_lives(port: int, pki: Pki) -> None:
    with (
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
        socket.create_connection(("127.0.0.1", port)) as plain,
    ):
        pki.context().wrap_socket(plain, server_hostname="elsewhere.example")
    assert outcome(port, pki.context()) == SERVED


def test_a_client_that_trusts_another_authority(port: int, pki: Pki) -> None:
    context = ssl.create_default_context(cafile=str(pki.folder / "stranger-ca.pem"))
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection(("127.0.0.1", port)) as plain,
    ):
        context.wrap_socket(plain, server_hostname="localhost")
    assert outcome(port, pki.context()) == SERVED


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["h2"], "h2"), (["h2", "http/1.1"], "h2"), (["http/1.1", "h2"], "h2"), ([], None)]
)
def test_the_protocol_is_agreed_upon(port: int, pki: Pki, offered: list[str], chosen: str | None) -> None:
    context = pki.context()
    if offered:
        context.set_alpn_protocols(offered)
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() == chosen


def test_http_1_1_is_served_to_clients_that_offer_it_alone(port: int, pki: Pki) -> None:
    context = pki.context()
    context.set_alpn_protocols(["http/1.1"])
    assert outcome(port, context) == SERVED


# --- versions and suites ---


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_1_is_refused(port: int, pki: Pki) -> None:
    context = pki.context(newest=ssl.TLSVersion.TLSv1_1)
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert outcome(port, context) == "protocol version"
    assert outcome(port, pki.context()) == SERVED


def test_the_least_and_the_newest_version_can_be_chosen(kind: str, pki: Pki) -> None:
    skip_before_3_6(kind)
    with tls_server(kind, pki, "--tls-min-version=TLS1.3") as (_, port):
        assert outcome(port, pki.context(newest=V12)) == "protocol version"
        assert outcome(port, pki.context(newest=V13)) == SERVED
    with tls_server(kind, pki, "--tls-max-version=TLS1.2") as (_, port):
        context = pki.context()
        assert outcome(port, context) == SERVED
        context.minimum_version = V13
        assert outcome(port, context) == "protocol version"


def test_suites_can_be_chosen(kind: str, pki: Pki) -> None:
    wanted = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
    with tls_server(kind, pki, f"--cipher-suites={wanted}") as (_, port):
        context = pki.context(newest=V12)
        context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
        assert outcome(port, context) == "handshake failure"
        context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        assert outcome(port, context) == SERVED
        assert outcome(port, pki.context(newest=V13)) == SERVED  # its suites are not chosen


# --- clients' certificates ---


@VERSIONS
@pytest.mark.parametrize("client", ["alice", "without name", "below an intermediate", "of another host"])
def test_certificates_that_are_accepted(mutual: int, pki: Pki, version: ssl.TLSVersion, client: str) -> None:
    assert outcome(mutual, pki.context(client, version)) == SERVED


@VERSIONS
@pytest.mark.parametrize(
    ("client", "alerts"),
    [
        ("none", {"certificate required", "handshake failure", "bad certificate"}),
        ("stranger", {"unknown ca", "bad certificate"}),
        ("expired", {"certificate expired", "bad certificate"}),
        ("for servers only", {"unsupported certificate", "bad certificate"}),
        ("revoked", set[str]()),
    ],
)
def test_certificates_that_are_refused(
    kind: str, mutual: int, pki: Pki, version: ssl.TLSVersion, client: str, alerts: set[str]
) -> None:
    got = outcome(mutual, pki.context(client, version))
    if kind != "etcd" and alerts:
        assert got in alerts
    else:
        assert got in alerts | {CLOSED}
    assert outcome(mutual, pki.context("alice")) == SERVED


def test_naming_an_authority_is_enough_to_ask_clients(kind: str, pki: Pki) -> None:
    with tls_server(kind, pki, f"--trusted-ca-file={pki.folder}/ca.pem") as (_, port):
        assert outcome(port, pki.context("none")) != SERVED
        assert outcome(port, pki.context("alice")) == SERVED


def test_asking_clients_without_an_authority_takes_the_machines(kind: str, pki: Pki) -> None:
    with tls_server(kind, pki, "--client-cert-auth") as (_, port):
        assert outcome(port, pki.context("alice")) != SERVED
        assert outcome(port, pki.context("none")) != SERVED


def test_clients_can_be_held_to_host_names(kind: str, pki: Pki) -> None:
    skip_before_3_6(kind)
    flags = (f"--trusted-ca-file={pki.folder}/ca.pem", "--client-cert-allowed-hostname=x.example,elsewhere.example")
    with tls_server(kind, pki, *flags) as (_, port):
        assert outcome(port, pki.context("of another host")) == SERVED
        assert outcome(port, pki.context("alice")) != SERVED


# --- what is no TLS ---


@pytest.mark.parametrize(
    "data",
    [
        b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x01\x02\x00\x01\x00" + bytes(600),
        bytes(range(256)) * 20,
    ],
    ids=["http", "h2", "broken hello", "garbage"],
)
def test_plain_bytes_on_the_tls_port_are_not_answered(port: int, pki: Pki, data: bytes) -> None:
    reply = raw(port, data)
    assert reply == b"" or reply[0] == 0x15  # nothing, or a TLS alert
    assert outcome(port, pki.context()) == SERVED


def test_tls_on_the_plain_port_fails_at_once(plain_port: tuple[int, int], pki: Pki) -> None:
    _, plain = plain_port
    assert outcome(plain, pki.context()) == CLOSED
    assert raw(plain, b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_half_a_handshake_holds_nobody_up(port: int, pki: Pki) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        for number, each in enumerate(silent):
            each.sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        assert outcome(port, pki.context()) == SERVED
    finally:
        for each in silent:
            each.close()
    assert outcome(port, pki.context()) == SERVED


# --- files that change ---


def serial_at(port: int, pki: Pki) -> int:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        pki.context().wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        certificate = secure.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def test_a_new_certificate_is_used_without_a_restart(kind: str, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    with (
        tls_server(kind, pki) as (_, port),
        socket.create_connection(("127.0.0.1", port)) as plain,
        pki.context().wrap_socket(plain, server_hostname="localhost") as live,
    ):
        live.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
        assert live.recv(10_000).startswith(b"HTTP/1.1 200")
        pki.authority.issue(tmp_path, "server", serial=4711)
        assert serial_at(port, pki) == 4711
        live.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
        assert live.recv(10_000).startswith(b"HTTP/1.1 200")


def test_files_that_break_do_not_break_the_service(tmp_path: Path) -> None:
    """Lessor alone: etcd refuses everybody until the files are whole again, and never reads a new authority."""
    pki = Pki(tmp_path)
    flags = (f"--trusted-ca-file={tmp_path}/ca.pem", f"--client-crl-file={tmp_path}/crl.der")
    with tls_server("lessor", pki, *flags) as (server, port):
        whole = pki.server.certificate.read_bytes()
        pki.server.certificate.write_bytes(whole[: len(whole) // 2])
        for _ in range(3):
            assert outcome(port, pki.context("alice")) == SERVED
        pki.server.certificate.write_bytes(whole)
        assert outcome(port, pki.context("alice")) == SERVED
        assert isinstance(server, ServerProcess)  # whose log is its own
        log = (server.folder / "log").read_text()
        assert log.count("cannot use the changed certificates") == 1
        # another authority for clients, from now on
        assert outcome(port, pki.context("stranger")) == "unknown ca"
        shutil.copy(tmp_path / "stranger-ca.pem", tmp_path / "bundle")
        os.replace(tmp_path / "bundle", tmp_path / "ca.pem")
        context = ssl.create_default_context(cadata=pki.authority.pem.decode())
        stranger = pki.clients["stranger"]
        assert stranger is not None
        context.load_cert_chain(stranger.certificate, stranger.key)
        assert outcome(port, context) == SERVED


def test_a_certificate_of_its_own(kind: str, tmp_path: Path) -> None:
    """--auto-tls: made at the first start where etcd keeps it, and the same after a restart."""
    port = free_port()
    server = server_of(kind)
    server.flags += [
        f"--data-dir={tmp_path}/data",
        f"--listen-client-urls={server.client_url},https://127.0.0.1:{port}",
        "--auto-tls",
    ]
    made = tmp_path / "data" / "fixtures" / "client"
    with server:
        assert sorted(file.name for file in made.iterdir()) == ["cert.pem", "key.pem"]
        assert (made / "key.pem").stat().st_mode & 0o077 == 0
        before = (made / "cert.pem").read_bytes()
        assert outcome(port, ssl.create_default_context(cafile=str(made / "cert.pem"))) == SERVED
    with server:
        assert (made / "cert.pem").read_bytes() == before
        assert outcome(port, ssl.create_default_context(cafile=str(made / "cert.pem"))) == SERVED


# --- what TLS does after the handshake ---


class Deadline:
    """Calls `end` after CALL_S_MAX, unless it is closed before."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._timer = threading.Timer(CALL_S_MAX, end)
        self._timer.start()

    def close(self) -> None:
        self._timer.cancel()


def by_openssl(port: int, pki: Pki, version: str, key: str, said: str) -> str:
    """Has the openssl program connect, press one of its keys, and then ask for /version; all that it printed."""
    line = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", f"{pki.folder}/ca.pem", version]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        subprocess.Popen(line, **pipes) as process,  # type: ignore[call-overload]
        # Whoever waits for a line that never comes must not wait for ever.
        contextlib.closing(Deadline(process.kill)),
    ):
        printed: list[bytes] = []

        def read_until(words: bytes) -> None:
            for text in iter(process.stdout.readline, b""):
                printed.append(text)
                if words in text:
                    return

        def say(words: bytes) -> None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(words)
                process.stdin.flush()

        read_until(b"Extended master secret" if version == "-tls1_2" else b"Verify return code")
        say(key.encode() + b"\n")
        read_until(said.encode())
        say(b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        read_until(b"never said")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return b"".join(printed).decode(errors="replace")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")
@pytest.mark.parametrize("key", ["k", "K"], ids=["its own keys", "both keys"])
def test_a_peer_may_change_its_keys(kind: str, port: int, pki: Pki, key: str) -> None:
    skip_before_3_6(kind)  # etcd 3.5.1 speaks no TLS 1.3
    assert "etcdserver" in by_openssl(port, pki, "-tls1_3", key, "KEYUPDATE")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")
def test_renegotiation_is_refused_and_the_server_lives(port: int, pki: Pki) -> None:
    assert "etcdserver" not in by_openssl(port, pki, "-tls1_2", "R", "RENEGOTIATING")
    assert outcome(port, pki.context()) == SERVED


# --- other people's clients ---


def credentials(pki: Pki, client: str) -> grpc.ChannelCredentials:
    files = pki.clients[client]
    authority = (pki.folder / "ca.pem").read_bytes()
    if files is None:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(authority, files.key.read_bytes(), files.certificate.read_bytes())


def put(port: int, pki: Pki, client: str) -> int:
    with grpc.secure_channel(f"localhost:{port}", credentials(pki, client)) as channel:
        call = channel.unary_unary(PUT, rpc.PutRequest.SerializeToString, rpc.PutResponse.FromString)
        return int(call(rpc.PutRequest(key=b"k", value=b"v"), timeout=CALL_S_MAX).header.revision)


def test_grpc_over_tls(port: int, pki: Pki) -> None:
    assert put(port, pki, "none") > 1


def test_grpc_with_client_certificates(mutual: int, pki: Pki) -> None:
    assert put(mutual, pki, "alice") > 1
    with pytest.raises(grpc.RpcError) as caught:
        put(mutual, pki, "stranger")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as caught:
        put(mutual, pki, "none")
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", ["--http1.1", "--http2", "--no-alpn"])
def test_curl(port: int, pki: Pki, version: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    line = ["curl", "-sS", "--max-time", "10", version, "--cacert", f"{pki.folder}/ca.pem"]
    base = f"https://127.0.0.1:{port}"
    done = subprocess.run([*line, f"{base}/version"], capture_output=True, check=True)
    assert "etcdserver" in json.loads(done.stdout)
    body = json.dumps({"key": "a2V5", "value": "dg=="})
    done = subprocess.run([*line, f"{base}/v3/kv/put", "-d", body], capture_output=True, check=True)
    assert "header" in json.loads(done.stdout)


def command_lines() -> dict[str, list[str]]:
    lines = {"lessor": [sys.executable, "-m", "lessor"]}
    if etcdctl := find_etcdctl():
        lines["etcdctl"] = [str(etcdctl)]
    return lines


@pytest.mark.parametrize("program", ["lessor", pytest.param("etcdctl", marks=pytest.mark.etcd)])
def test_command_lines(program: str, mutual: int, pki: Pki) -> None:
    line = command_lines().get(program)
    if line is None:
        pytest.skip("no etcdctl beside etcd")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}

    def run(*words: str, **more: str) -> tuple[int, str]:
        command = [*line, "--command-timeout=2s", f"--endpoints=https://127.0.0.1:{mutual}", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**environment, **more}, check=False)
        return done.returncode, done.stdout

    trust = f"--cacert={pki.folder}/ca.pem"
    alice = (f"--cert={pki.folder}/alice.pem", f"--key={pki.folder}/alice.key")
    assert run(trust, *alice, "put", "cli", "1") == (0, "OK\n")
    assert run("--insecure-skip-tls-verify", *alice, "get", "cli") == (0, "cli\n1\n")
    by_environment = {
        "ETCDCTL_CACERT": f"{pki.folder}/ca.pem",
        "ETCDCTL_CERT": f"{pki.folder}/alice.pem",
        "ETCDCTL_KEY": f"{pki.folder}/alice.key",
    }
    assert run("get", "cli", **by_environment) == (0, "cli\n1\n")
    assert run(f"--cacert={pki.folder}/stranger-ca.pem", *alice, "get", "cli") == (1, "")
    assert run(trust, "get", "cli") == (1, "")
    assert run(trust, f"--cert={pki.folder}/alice.pem", "get", "cli") == (128, "")
    assert run("--cacert=/not/there", "get", "cli") == (128, "")


def test_a_unix_socket_with_tls(kind: str, tmp_path: Path) -> None:
    skip_before_3_6(kind)
    pki = Pki(tmp_path)
    files = Authority("sockets")
    files.write(tmp_path / "sockets-ca.pem")
    own = files.issue(tmp_path, "socket", hosts=("s.sock",))  # clients verify the name of the file
    server = server_of(kind)
    path = f"unixs://{tmp_path}/s.sock"
    server.flags += [
        f"--listen-client-urls={server.client_url},{path}",
        f"--cert-file={own.certificate}",
        f"--key-file={own.key}",
    ]
    assert pki.authority is not files
    with server:
        for line in command_lines().values():
            command = [*line, f"--endpoints={path}", f"--cacert={tmp_path}/sockets-ca.pem", "put", "a", "b"]
            assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "OK\n"
