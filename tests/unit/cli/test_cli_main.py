# SPDX-License-Identifier: Apache-2.0
"""The command line without a server: flags and environment, exit codes, one line for whatever goes wrong."""

import os
import subprocess
import sys
from typing import Any

import click
import pytest

from lessor.base.errors import Code
from lessor.cli import main
from lessor.cli.asking import NEVER_S, client_of
from lessor.cli.failure import BAD_ARGS, BAD_CONNECTION, Failure
from lessor.cli.kv import key_range
from lessor.cli.main import cli
from lessor.cli.options import Command, Globals, Group, Settings, rewritten, settings_of
from lessor.cli.watch import watched
from lessor.client import CallTimeout, ConnectionLost, ServerError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ETCDCTL_"):
            monkeypatch.delenv(name)


def said(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a line."""
    exit_code = main.run(list(line))
    captured = capsys.readouterr()
    return exit_code, captured.out, captured.err


def settings_from(*line: str) -> Settings:
    """What a command sees of the flags for all commands."""
    seen: list[Settings] = []

    @click.command("probe", cls=Command)
    @click.pass_context
    def probe(ctx: click.Context) -> None:
        seen.append(settings_of(ctx))

    Group("lessor", "", {"probe": ("", lambda: probe)}).main(list(line), standalone_mode=False)
    return seen[0]


def test_defaults() -> None:
    assert settings_from("probe") == Settings(("127.0.0.1:2379",), 2.0, 5.0, "simple", False, False)


def test_a_token_takes_the_place_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no password is asked for either."""
    settings = settings_from("probe", "--auth-jwt-token", "t", "--user", "ann")
    assert (settings.token, settings.user, settings.password) == ("t", "", "")
    monkeypatch.setenv("ETCDCTL_AUTH_JWT_TOKEN", "e")
    assert settings_from("probe").token == "e"
    assert "secret" not in repr(settings_from("probe", "--auth-jwt-token", "secret"))  # --debug prints it


def test_flags_stand_before_or_after_the_command_and_the_last_one_wins() -> None:
    assert settings_from("-w", "json", "probe").output_format == "json"
    assert settings_from("probe", "-w=fields").output_format == "fields"
    assert settings_from("-w", "json", "probe", "--write-out=fields").output_format == "fields"
    assert settings_from("--hex", "probe").hexadecimal
    assert not settings_from("probe", "--hex=false").hexadecimal
    assert settings_from("--dial-timeout", "300ms", "probe", "--command-timeout", "1m").dial_timeout_s == 0.3


def test_endpoints_are_separated_by_commas_or_given_again() -> None:
    assert settings_from("probe", "--endpoints", " a:1, b:2 ").endpoints == ("a:1", "b:2")
    assert settings_from("probe", "--endpoints", "a:1", "--endpoints=b:2").endpoints == ("a:1", "b:2")
    assert settings_from("probe", "--endpoints", "").endpoints == ()


def test_the_environment_stands_in_for_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "a:1,b:2")
    monkeypatch.setenv("ETCDCTL_WRITE_OUT", "json")
    monkeypatch.setenv("ETCDCTL_COMMAND_TIMEOUT", "1h")
    monkeypatch.setenv("ETCDCTL_HEX", "true")
    assert settings_from("probe") == Settings(("a:1", "b:2"), 2.0, 3600.0, "json", True, False)
    assert settings_from("probe", "--endpoints", "c:3", "-w", "simple").endpoints == ("c:3",)
    assert settings_from("probe", "-w", "simple").output_format == "simple"


def test_a_variable_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_DIAL_TIMEOUT", "soon")
    with pytest.raises(Failure) as caught:
        Globals().settings()
    assert caught.value.text == 'invalid value "soon" for ETCDCTL_DIAL_TIMEOUT: time: invalid duration "soon"'


def test_a_line_is_rewritten_only_where_click_reads_it_otherwise() -> None:
    params: list[click.Parameter] = [
        click.Option(["--prefix"], is_flag=True),
        click.Option(["--lease"]),
        click.Option(["-w", "--write-out"]),
    ]
    line = [
        "--prefix=true",
        "--prefix=F",
        "-w=json",
        "--write-out=json",
        "--lease",
        "--prefix=true",
        "a=b",
        "--x=1",
    ]
    expected = ["--prefix", "-wjson", "--write-out=json", "--lease", "--prefix=true", "a=b", "--x=1"]
    assert rewritten([*line, "--", "--prefix=true"], params) == [*expected, "--", "--prefix=true"]
    with pytest.raises(Failure, match='invalid argument "maybe" for "--prefix" flag'):
        rewritten(["--prefix=maybe"], params)


@pytest.mark.parametrize(
    ("line", "exit_code", "error"),
    [
        ("lease grant", 128, "lease grant command needs TTL argument"),
        ("lease grant soon", 128, 'bad TTL (strconv.ParseInt: parsing "soon": invalid syntax)'),
        ("lease grant 1500ms", 128, "bad TTL (1500ms is not a whole number of seconds, the unit of a TTL)"),
        (
            "lease revoke ff --decimal",
            128,
            'bad lease ID arg (strconv.ParseInt: parsing "ff": invalid syntax), expecting ID in decimal',
        ),
        ("lease grant 5 -w table", 4, "table not supported as output format"),
        ("lease grant 5 -w xml", 4, "unsupported output format"),
        ("get k -w xml", 4, "unsupported output format"),
        ("put", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        ("watch", 128, "bad number of arguments"),
        ("watch a b c", 128, "bad number of arguments"),
        ("bogus", 1, 'unknown command "bogus" for "lessor" (see \'lessor --help\')'),
        ("lst", 1, 'unknown command "lst" for "lessor" (see \'lessor --help\')'),
        ("lese list", 1, 'unknown command "lese" for "lessor"; did you mean lease? (see \'lessor --help\')'),
        ("lease lst", 1, 'unknown command "lst" for "lessor lease"; did you mean list? (see \'lessor lease --help\')'),
        ("user grant-rol a b --x", 1, "unknown flag: --x (see 'lessor user grant-role --help')"),
        ("get k --prefx", 1, "unknown flag: --prefx; did you mean --prefix? (see 'lessor get --help')"),
        (
            "lease list --endpoint a:1",
            1,
            "unknown flag: --endpoint; did you mean --endpoints? (see 'lessor lease list --help')",
        ),
        ("--hx get k", 1, "unknown flag: --hx; did you mean --hex? (see 'lessor --help')"),
        ("get k -q", 1, "unknown shorthand flag: 'q' in -q (see 'lessor get --help')"),
        (
            "put k v --lease 7587845169630795786",
            128,
            'bad lease ID (strconv.ParseInt: parsing "7587845169630795786": value out of range), expecting ID in Hex; '
            "if it is decimal, write 0d7587845169630795786",
        ),
        (
            "lease re",
            2,
            "endpoint 'x://y': unknown scheme x; use host:port, http://, https://, unix:/// or unixs:///path",
        ),
        ("--bogus", 1, "unknown flag: --bogus (see 'lessor --help')"),
        (
            "get k --limit x",
            1,
            'invalid argument "x" for "--limit" flag: strconv.ParseInt: parsing "x": invalid syntax '
            "(see 'lessor get --help')",
        ),
    ],
)
def test_a_bad_line_is_refused_in_one_line_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str], line: str, exit_code: int, error: str
) -> None:
    args = ["lease", "re", "1", "--endpoints", "x://y"] if line == "lease re" else line.split()
    assert said(capsys, *args) == (exit_code, "", f"Error: {error}\n")


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ((), ("lease",), ("lease", "grant", "-h"), ("--help",), ("watch", "--help")):
        exit_code, out, err = said(capsys, *line)
        assert (exit_code, err) == (0, "")
        assert out.startswith("Usage: lessor")
    assert "serve" in said(capsys)[1]


def failing(error: BaseException) -> Any:
    def run(coroutine: Any) -> None:
        coroutine.close()
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line", "exit_code", "text"),
    [
        (ServerError(Code.NOT_FOUND, "etcdserver: no"), "lease revoke 1", 1, "failed to revoke lease (etcdserver: no)"),
        (ServerError(Code.NOT_FOUND, "etcdserver: no"), "lease grant 1", 1, "failed to grant lease (etcdserver: no)"),
        (ServerError(Code.NOT_FOUND, "etcdserver: no"), "lease list", 2, "etcdserver: no"),
        (ServerError(Code.NOT_FOUND, "etcdserver: no"), "lease timetolive 1", 2, "etcdserver: no"),
        (ServerError(Code.NOT_FOUND, "etcdserver: no"), "lease keep-alive 1 --once", 2, "etcdserver: no"),
        (ServerError(Code.NOT_FOUND, "etcdserver: no"), "put k v", 1, "etcdserver: no"),
        (ServerError(Code.UNKNOWN, "two\nlines"), "get k", 1, "rpc error: code = Unknown desc = two lines"),
        (
            ConnectionLost("cannot connect to a:1: no", endpoint="a:1"),
            "del k",
            1,
            "cannot connect to a:1: no; is a server running there? --endpoints names another",
        ),
        (
            ConnectionLost("a:1: gone", endpoint="a:1", outcome_unknown=True),
            "put k v",
            1,
            "a:1: gone; it may have taken effect: look before you repeat it",
        ),
        (
            CallTimeout("no answer from a:1 within 5 s", timeout_s=5),
            "get k",
            1,
            "context deadline exceeded: no answer from a:1 within 5 s; allow more with --command-timeout",
        ),
        (TypeError("a bug"), "get k", 1, "internal error: TypeError: a bug (--debug shows where)"),
    ],
)
def test_each_end_of_a_call_has_its_line_and_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    line: str,
    exit_code: int,
    text: str,
) -> None:
    monkeypatch.setattr("lessor.client._blocking.at_once", failing(error))
    assert said(capsys, *line.split()) == (exit_code, "", f"Error: {text}\n")


def test_ctrl_c_and_a_closed_pipe_are_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lessor.client.run", failing(KeyboardInterrupt()))
    assert said(capsys, "watch", "k") == (130, "", "")
    monkeypatch.setattr("lessor.client.run", failing(BrokenPipeError()))
    monkeypatch.setattr(main, "_stdout_closed", lambda: 141)
    assert said(capsys, "watch", "k") == (141, "", "")


def test_key_ranges() -> None:
    assert key_range(("a",), prefix=False, from_key=False) == (b"a", b"")
    assert key_range(("a", "b"), prefix=False, from_key=False) == (b"a", b"b")
    assert key_range(("a",), prefix=True, from_key=False) == (b"a", b"b")
    assert key_range(("a",), prefix=False, from_key=True) == (b"a", b"\0")
    assert key_range(("",), prefix=True, from_key=False) == (b"\0", b"\0")
    assert key_range(("\udcff",), prefix=True, from_key=False) == (b"\xff", b"\0")  # a byte that is not UTF-8
    with pytest.raises(Failure, match="too many arguments"):
        key_range(("a", "b"), prefix=True, from_key=False)


def test_what_to_watch_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(("a", "b"), prefix=False) == (b"a", b"b")
    monkeypatch.setenv("ETCDCTL_WATCH_KEY", "k")
    assert watched((), prefix=True) == (b"k", b"l")
    monkeypatch.setenv("ETCDCTL_WATCH_RANGE_END", "z")
    assert watched((), prefix=False) == (b"k", b"z")
    with pytest.raises(Failure, match="found conflicting environment key"):
        watched(("a",), prefix=False)
    monkeypatch.delenv("ETCDCTL_WATCH_KEY")
    with pytest.raises(Failure) as caught:
        watched(("a",), prefix=False)
    assert caught.value.exit_code == BAD_ARGS
    assert caught.value.text == 'ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END="z"'


def test_no_endpoint_is_a_bad_connection(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, _, err = said(capsys, "get", "a", "--endpoints", "")
    assert exit_code == BAD_CONNECTION
    assert err == "Error: no endpoint given: write host:port, http://host:port or unix:///path\n"


@pytest.mark.slow
def test_a_client_command_does_not_load_the_server() -> None:
    script = (
        "import sys; from lessor.cli.main import run; code = run(['get', 'a', '--endpoints', '127.0.0.1:1']);"
        "names = [n for n in sys.modules if n.startswith(('lessor.server', 'lessor.state', 'lessor.durable', 'uvloop',"
        " 'sqlite3', 'prometheus_client'))]; print(code, names)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


@pytest.mark.slow
def test_a_server_starts_without_what_it_may_never_need() -> None:
    """Each of these makes a start longer: two hundredths of a second, when 100,000 leases take half a second."""
    script = (
        "import sys; import lessor.__main__, lessor.server.command, lessor.server.main;"
        "print([n for n in sys.modules if n in ('prometheus_client', 'wsproto', 'cryptography', 'grpc', 'rich',"
        " 'http.server')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_python_m_lessor_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lessor", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lessor version: ")
    assert done.stdout.endswith("\nAPI version: 3.7\n")


@pytest.mark.parametrize(
    ("flags", "after_s", "answer_s"),
    [
        ([], 10.0, 6.0),  # what Go's gRPC makes of etcdctl's 2 s
        (["--keepalive-time", "9s"], 10.0, 6.0),
        (["--keepalive-time=5m", "--keepalive-timeout=500ms"], 300.0, 0.5),
        (["--keepalive-time", "0", "--keepalive-timeout", "0"], NEVER_S, 20.0),
    ],
)
def test_how_long_a_silent_server_is_believed_in(
    flags: list[str], after_s: float, answer_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("lessor.client.AsyncClient", lambda endpoints, **options: made.append(options))
    ctx = cli.make_context("lessor", [*flags, "version"])
    client_of(settings_of(ctx))
    assert (made[0]["ping_after_s"], made[0]["ping_answer_s_max"]) == (after_s, answer_s)


def test_a_password_is_asked_for_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"Password: ": "pw"}
    monkeypatch.setattr("getpass.getpass", answers.pop)  # a second time it raises
    exit_code, _, err = said(capsys, "lease", "grant", "5", "--user", "root", "--endpoints", "127.0.0.1:1")
    assert (exit_code, answers) == (1, {})
    assert "cannot connect" in err


def test_patience_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_KEEPALIVE_TIME", "30s")
    monkeypatch.setenv("ETCDCTL_KEEPALIVE_TIMEOUT", "1m")
    settings = Globals().settings()
    assert (settings.keepalive_time_s, settings.keepalive_timeout_s) == (30.0, 60.0)


def test_without_a_terminal_and_without_input_a_password_cannot_be_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_of_input(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", end_of_input)
    assert main.run(["get", "a", "--user=root"]) == 128
    assert "write NAME:PASSWORD, or --password" in capsys.readouterr().err
