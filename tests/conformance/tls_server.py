# SPDX-License-Identifier: Apache-2.0
"""Both servers with TLS: an http:// URL for the suite's own looks, an https:// URL for the tests.

    with tls_server("lessor", folder, "--trusted-ca-file=...") as server:
        server.secure_port

The certificate is FOLDER/server.pem of the authority FOLDER/ca.pem; `Pki` makes both.
"""

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority, Files
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.server_process import AnyServer
from tests.conformance.subject import server_of
from tests.ports import free_port

ANSWER_S_MAX = 10.0
# What the outcome of a connection is called here.
SERVED, CLOSED = "served", "closed"


class Pki:
    """An authority, a server's certificate, and clients' certificates of every kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("tests")
        self.authority.write(folder / "ca.pem")
        self.server = self.authority.issue(folder, "server")
        stranger = Authority("stranger")
        stranger.write(folder / "stranger-ca.pem")
        intermediate = Authority("intermediate", parent=self.authority)
        self.clients: dict[str, Files | None] = {
            "none": None,
            "alice": self.authority.issue(folder, "alice"),
            "without name": self.authority.issue(folder, "", file="nameless"),
            "below an intermediate": intermediate.issue(folder, "below", chain=intermediate.pem),
            "stranger": stranger.issue(folder, "stranger"),
            "expired": self.authority.issue(folder, "expired", days_left=-1),
            "revoked": self.authority.issue(folder, "revoked", serial=0x77),
            "for servers only": self.authority.issue(folder, "server-only", for_servers_only=True),
            "of another host": self.authority.issue(folder, "elsewhere", hosts=("elsewhere.example",)),
        }
        # As etcd, the list is DER.
        (folder / "crl.der").write_bytes(self.authority.revoke([0x77, 0x78]))

    def context(self, client: str = "none", newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        files = self.clients[client]
        if files is not None:
            context.load_cert_chain(files.certificate, files.key)
        if newest is not None:
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = newest
        return context


@contextmanager
def tls_server(kind: str, pki: Pki, *flags: str) -> Iterator[tuple[AnyServer, int]]:
    """A server with `flags`, and the port of its https:// URL."""
    port = free_port()
    server = server_of(kind)
    server.flags += [
        f"--listen-client-urls={server.client_url},https://127.0.0.1:{port}",
        f"--cert-file={pki.server.certificate}",
        f"--key-file={pki.server.key}",
        *flags,
    ]
    with server:
        yield server, port


def skip_before_3_6(kind: str) -> None:
    """Skips a test of what etcd 3.5 did not have in all its releases."""
    binary = etcd_binary()
    if kind == "etcd" and binary is not None:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        if re.search(r"etcd Version: 3\.[345]\.", said):
            pytest.skip("newer than this etcd")


def outcome(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> str:
    """Asks for /version in HTTP/1.1: SERVED, CLOSED, or the alert that came instead."""
    request = b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    try:
        with (
            socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(request)
            reply = secure.recv(1000)
    except ssl.SSLError as error:
        reason = (error.reason or "").lower()
        return reason.partition("_alert_")[2].replace("_", " ") if "_alert_" in reason else CLOSED
    except ConnectionError:
        return CLOSED
    return SERVED if reply.startswith(b"HTTP/1.1 200") else CLOSED


def raw(port: int, data: bytes) -> bytes:
    """Sends bytes without TLS; what comes back until the server closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) as plain:
        try:
            plain.sendall(data)
            while piece := plain.recv(65536):
                received += piece
        except ConnectionError:
            pass
    return received
