# SPDX-License-Identifier: Apache-2.0
"""Who is told that it is his fault, and which option mends it: TLS on one side alone, rights, event loops."""

import asyncio
import copy
import pickle
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lessor.base.errors import Code
from lessor.cli.main import run as command
from lessor.client import (
    AsyncClient,
    Blame,
    CallTimeout,
    Client,
    ClientError,
    Compacted,
    ConnectionLost,
    LeaseLost,
    LoginFailed,
    OutcomeUnknown,
    ServerError,
    TooLarge,
    Trouble,
    WatchCanceled,
    WrongLoop,
    tls_context,
)
from lessor.testing.server import InProcessServer

DOCS = Path(__file__).parents[2] / "docs" / "client.md"


# --- TLS on one side alone ---


def plain(server: InProcessServer) -> Client:
    return Client(f"http://{server.address}")


def untrusting(server: InProcessServer) -> Client:
    return Client(f"https://{server.address}")


def renamed(server: InProcessServer) -> Client:
    return server.client(server_name="other.example")


@pytest.mark.parametrize(
    ("tls", "make", "trouble", "blame", "mend"),
    [
        (True, plain, Trouble.MAYBE_TLS, Blame.NETWORK, "write https:// or pass ssl=tls_context(...)"),
        (False, untrusting, Trouble.NO_TLS, Blame.CALLER, "the server does not speak TLS; write http://"),
        (True, untrusting, Trouble.UNKNOWN_CA, Blame.CALLER, "tls_context(ca_file=...)"),
        (True, renamed, Trouble.WRONG_NAME, Blame.CALLER, "server_name=..."),
    ],
)
def test_tls_that_does_not_fit_is_told_with_the_option_that_mends_it(
    tls: bool, make: Callable[[InProcessServer], Client], trouble: Trouble, blame: Blame, mend: str
) -> None:
    with InProcessServer(tls=tls) as server, make(server) as client:
        with pytest.raises(ConnectionLost) as caught:
            client.put("a", "b")
        error = caught.value
        assert (error.trouble, error.blame, error.outcome_unknown) == (trouble, blame, False)
        assert mend in str(error)
        assert str(error).startswith(error.what)


def test_a_server_that_wants_a_certificate_says_so(tmp_path: Path) -> None:
    with InProcessServer(tls=True) as first:
        ca = str(first.ca_file)
        with InProcessServer("--client-cert-auth", f"--trusted-ca-file={ca}", tls=True) as server:
            ssl = tls_context(ca_file=str(server.ca_file))
            with Client(server.client_url, ssl=ssl) as client, pytest.raises(ConnectionLost) as caught:
                client.put("a", "b")
    assert "our certificate" in str(caught.value)
    assert "cert_file=" in str(caught.value)
    assert caught.value.trouble is Trouble.OWN_CERTIFICATE
    assert not caught.value.outcome_unknown


@pytest.mark.parametrize(
    ("tls", "scheme", "says"),
    [
        (True, "http", "closed at once; if it speaks TLS, write https:// before the endpoint"),
        (False, "https", "the server does not speak TLS; write http:// before the endpoint"),
        (True, "https", "name its authority with --cacert"),
    ],
)
@pytest.mark.parametrize("line", ["put a b", "lease grant 5", "lock l true"])
def test_so_does_the_command(tls: bool, scheme: str, says: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with InProcessServer(tls=tls) as server:
        flags = ["--endpoints", f"{scheme}://{server.address}", "--command-timeout=3s"]
        code = command([*flags, *line.split()])
    said = capsys.readouterr().err
    assert code != 0
    assert says in said
    assert "may have taken effect" not in said
    assert "ssl=" not in said  # an option of the library


# --- watches ---


def test_a_watch_that_is_not_allowed_is_the_callers_fault() -> None:
    with InProcessServer(root_password="root") as server, server.client() as root:
        root.auth.user_add("ann", "pw")
        client = Client(server.address, user="ann", password="pw")
        with client, pytest.raises(WatchCanceled) as caught, client.events("a"):
            pass
    assert (caught.value.code, caught.value.blame) == (Code.PERMISSION_DENIED, Blame.CALLER)


@pytest.mark.parametrize(
    ("reason", "code", "blame"),
    [
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", Code.PERMISSION_DENIED, "caller"),
        ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", Code.UNAUTHENTICATED, "caller"),
        ("rpc error: code = Unavailable desc = etcdserver: no leader", Code.UNAVAILABLE, "server"),
        ("rpc error: code = Nonsense desc = x", None, "server"),
        ("mvcc: watcher range is empty", None, "caller"),
        ("etcdserver: too many requests: keys of watches", None, "server"),
        ("", None, "server"),
    ],
)
def test_the_reason_of_a_canceled_watch_names_who_can_help(reason: str, code: Code | None, blame: str) -> None:
    error = WatchCanceled(reason)
    assert (error.code, error.blame) == (code, blame)


# --- sizes ---


def test_a_message_beyond_the_clients_own_limit_is_the_callers_fault() -> None:
    with InProcessServer() as server:
        with server.client(request_bytes_max=100) as client, pytest.raises(TooLarge) as caught:
            client.put("a", b"x" * 200)
        assert (caught.value.blame, caught.value.outcome_unknown) == (Blame.CALLER, False)
        with server.client(reply_bytes_max=100) as client:
            client.put("a", b"x" * 200)
            with pytest.raises(TooLarge) as caught:
                client.get("a")
        assert caught.value.blame is Blame.CALLER


# --- event loops ---


def in_a_new_loop(work: Coroutine[Any, Any, object]) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def test_a_client_in_a_second_loop_says_so() -> None:
    with InProcessServer() as server:
        client = server.async_client()

        async def use() -> None:
            await client.put("a", "b")

        async def lock() -> None:
            await client.lock("a").acquire()

        with asyncio.Runner() as first:
            first.run(use())
            for again in (use(), lock(), client.lease(5).grant(), client.aclose()):
                with pytest.raises(WrongLoop, match="another event loop: make one in each loop, or use Client"):
                    in_a_new_loop(again)
            first.run(client.aclose())


def test_without_a_loop_of_asyncios_it_says_so() -> None:
    client = AsyncClient("127.0.0.1:1")
    for call in (client.get("a"), client.lease(5).grant(), client.lock("a").acquire(), client.maintenance.status()):
        with pytest.raises(WrongLoop, match="works in an event loop of asyncio, and none runs here; use Client"):
            call.send(None)  # as trio would


# --- the errors themselves ---

EXAMPLES: list[ClientError] = [
    ServerError(Code.NOT_FOUND, "no"),
    ServerError(Code.UNAVAILABLE, "no", outcome_unknown=True),
    LoginFailed(Code.INVALID_ARGUMENT, "no"),
    TooLarge(Code.RESOURCE_EXHAUSTED, "no", outcome_unknown=True),
    ConnectionLost("gone", endpoint="a:1", trouble=Trouble.NO_TLS),
    ConnectionLost("gone", endpoint="a:1", outcome_unknown=True),
    CallTimeout("late", timeout_s=1.0, outcome_unknown=True),
    LeaseLost(7, "gone"),
    WatchCanceled("rpc error: code = PermissionDenied desc = no"),
    Compacted(1, 2),
    WrongLoop("no"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_an_error_names_its_class_and_can_be_copied(error: ClientError) -> None:
    assert repr(error).startswith(f"{type(error).__name__}(")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert (str(twin), repr(twin), vars(twin)) == (str(error), repr(error), vars(error))
        assert isinstance(twin, OutcomeUnknown) is error.outcome_unknown


def test_every_error_is_documented() -> None:
    import lessor.client

    public: list[Any] = [getattr(lessor.client, name) for name in lessor.client.__all__]
    errors = [each for each in public if isinstance(each, type) and issubclass(each, ClientError)]
    assert len(errors) > 12
    text = DOCS.read_text()
    assert [each.__name__ for each in errors if f"`{each.__name__}`" not in text] == []
