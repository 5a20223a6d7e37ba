# SPDX-License-Identifier: Apache-2.0
"""No text that a server sends steers the terminal of the person who asked; programs get the bytes as they are."""

import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Iterator

import pytest

from lessor.api.proto import auth_pb2, rpc_pb2
from lessor.client import AsyncClient, run
from tests.conformance.lessor_server import LessorServer
from tests.conformance.server_process import AnyServer

pytestmark = pytest.mark.slow

# Names the window, clears the screen (with one byte, with two, as UTF-8), turns the line around, forges a line.
EVIL = b"k/\x1b]0;owned\x07\x9b2J\xc2\x9b2J\xe2\x80\xae\xe2\x81\xa6\rx\nOK\x7f\xff"
EVIL_TEXT = "name\x1b]0;owned\x07\u009b2J\u202e\u2066\rx\nroot\x7f"
VALUE = b"line 1\n\tline 2\x1b[2J\xe2\x80\xae\x9b"
LEASE = 0x77


@pytest.fixture(scope="module")
def server() -> Iterator[AnyServer]:
    async def fill(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.grant(1_000, LEASE)
            await client.put(EVIL, VALUE, lease_id=LEASE)
            granted = auth_pb2.Permission(permType="READ", key=EVIL, range_end=EVIL + b"\x01")
            for method, request in (
                ("RoleAdd", rpc_pb2.AuthRoleAddRequest(name=EVIL_TEXT)),
                ("RoleGrantPermission", rpc_pb2.AuthRoleGrantPermissionRequest(name=EVIL_TEXT, perm=granted)),
                ("UserAdd", rpc_pb2.AuthUserAddRequest(name=EVIL_TEXT, password="secret")),
                ("UserGrantRole", rpc_pb2.AuthUserGrantRoleRequest(user=EVIL_TEXT, role=EVIL_TEXT)),
            ):
                await client.call(f"/etcdserverpb.Auth/{method}", request)

    with LessorServer() as lessor:
        run(fill(lessor.address))
        yield lessor


def command(server: AnyServer, *words: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "lessor", "--endpoints", server.address, *words]


def on_terminal(server: AnyServer, *words: str | bytes) -> str:
    """The output of a command, standard error included, whose stdout and stderr are a terminal."""
    ours, its = pty.openpty()
    with subprocess.Popen(command(server, *words), stdin=subprocess.DEVNULL, stdout=its, stderr=its):
        os.close(its)
        seen = b""
        try:
            while piece := os.read(ours, 65_536):
                seen += piece
        except OSError:  # EIO: the terminal's other end is closed
            pass
    os.close(ours)
    return seen.replace(b"\r\n", b"\n").decode()  # a terminal adds the \r; all bytes are UTF-8


def tame(text: str) -> bool:
    return all(char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text)


@pytest.mark.parametrize(
    "words",
    [
        *(["get", "--prefix", "k"], ["get", "--prefix", "k", "--print-value-only"], ["get", "--prefix", "k", "--hex"]),
        *([*("get", "--prefix", "k", "-w"), form] for form in ("json", "fields", "protobuf")),
        *(
            ["lease", "list", "--long"],
            ["lease", "list", "--long", "-w", "fields"],
            ["lease", "timetolive", "77", "--keys"],
        ),
        *(["user", "list"], ["user", "get", EVIL_TEXT], ["user", "get", "--detail", EVIL_TEXT], ["role", "list"]),
        *(["role", "get", EVIL_TEXT], ["role", "list", "-w", "json"], ["user", "list", "-w", "json"]),
        *(["role", "get", "nobody\x1b[2J\u202e"], ["user", "add", EVIL_TEXT, "--no-password"]),
        *(["no\x1b[2J\u202e"], ["get", "--\u202e"], ["member", "list"], ["put", "kk", "v\x1b[2J"]),
    ],
)
def test_nothing_that_is_not_printable_reaches_a_terminal(server: AnyServer, words: list[str]) -> None:
    seen = on_terminal(server, *words)
    assert seen
    assert tame(seen), ascii(seen)


def test_a_key_cannot_look_like_another_line(server: AnyServer) -> None:
    shown = r"k/\x1b]0;owned\a\x9b2J\u009b2J\u202e\u2066\rx\nOK\x7f\xff"
    lines = on_terminal(server, "get", "--prefix", "k/").split("\n")
    assert lines == [shown, "line 1", "\tline 2" + r"\x1b[2J\u202e\x9b", ""]  # the lines of a value are its own
    keys = on_terminal(server, "lease", "timetolive", "77", "--keys")
    assert keys.endswith(f"attached keys([{shown}])\n")
    assert keys.count("\n") == 1
    # The list is no output of etcdctl's: its lines are lines elsewhere, too.
    listed = subprocess.run(command(server, "lease", "list", "--long"), capture_output=True, check=True).stdout
    assert listed.decode().splitlines()[1].endswith(f"  {shown}")
    assert len(listed.splitlines()) == 2
    assert len(on_terminal(server, "user", "list").splitlines()) == 1


def test_programs_get_the_bytes_as_they_are(server: AnyServer) -> None:
    got = subprocess.run(command(server, "get", "--prefix", "k/"), capture_output=True, check=True).stdout
    assert got == EVIL + b"\n" + VALUE + b"\n"
    users = subprocess.run(command(server, "user", "list"), capture_output=True, check=True).stdout
    assert users == EVIL_TEXT.encode() + b"\n"
