# SPDX-License-Identifier: Apache-2.0
"""--log-outputs: which outputs the flags mean, and that lines reach them whatever becomes of a file."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.server.observe import logs
from lessor.server.observe.log_outputs import DEFAULT_ROTATION, parse_log_outputs
from lessor.server.options import LogOutputs, LogRotation, OptionError

log = logging.getLogger("lessor")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    names = ("lessor", "asyncio", "concurrent.futures")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    level = log.level
    yield
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers, logger.propagate = handlers, propagate
    log.setLevel(level)


@pytest.mark.parametrize(
    ("text", "streams", "files"),
    [
        ("default", ("stderr",), ()),
        ("", ("stderr",), ()),
        ("stdout", ("stdout",), ()),
        ("systemd/journal", ("stderr",), ()),
        ("stderr, /a,/a,b", ("stderr",), ("/a", "b")),
        ("/a", (), ("/a",)),
    ],
)
def test_outputs(text: str, streams: tuple[str, ...], files: tuple[str, ...]) -> None:
    assert parse_log_outputs(text, False, "not looked at") == LogOutputs(streams, files)


@pytest.mark.parametrize(
    ("rotation", "meant"),
    [
        (DEFAULT_ROTATION, LogRotation(100 << 20, 9_999)),
        ('{"maxsize": 1, "maxbackups": 3}', LogRotation(1 << 20, 3)),
        ("{}", LogRotation(100 << 20, 9_999)),
    ],
)
def test_rotation(rotation: str, meant: LogRotation) -> None:
    assert parse_log_outputs("stderr,/a", True, rotation).rotation == meant


@pytest.mark.parametrize(
    ("text", "rotation", "said"),
    [
        ("default", "{}", "requires a single file path"),
        ("a,b", "{}", "requires a single file path"),
        ("a", "{", "improperly formatted log rotation config"),
        ("a", "[]", "invalid log rotation config"),
        ("a", '{"maxsize": -1}', "invalid log rotation config: maxsize"),
        ("a", '{"maxbackups": "3"}', "invalid log rotation config: maxbackups"),
        ("a", '{"maxage": 3, "compress": true}', "maxage, compress: only maxsize and maxbackups"),
        ("default,a", "{}", 'multi logoutput for "default"'),
    ],
)
def test_what_is_refused(text: str, rotation: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        parse_log_outputs(text, True, rotation)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--log-outputs: .*: No such file or directory"):
        logs.set_up("info", outputs=LogOutputs((), (str(tmp_path / "none" / "log"),)))


def test_lines_reach_streams_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    logs.set_up("info", "console", LogOutputs(("stdout",), (str(file),)))
    log.info("one")
    for shown in (capsys.readouterr().out, file.read_text()):
        assert shown.count("\n") == 1
        assert shown.endswith("one\n")


def test_a_file_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    file, moved = tmp_path / "log", tmp_path / "log.1"
    logs.set_up("info", outputs=LogOutputs((), (str(file),)))
    log.info("one")
    file.rename(moved)
    log.info("two")
    assert '"one"' in moved.read_text()
    assert '"two"' in file.read_text()


def test_a_line_that_is_lost_is_told_once_and_harms_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    logs.set_up("info", outputs=LogOutputs(("stdout",), (str(folder / "log"),)))
    (folder / "log").unlink()
    folder.rmdir()
    log.info("one")
    log.info("two")
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 2
    (line,) = shown.err.splitlines()
    assert line.startswith("lessor: a line of the log is lost: ")


def test_a_large_file_is_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.set_up("info", outputs=LogOutputs((), (str(file),), LogRotation(1_000, 2)))
    for number in range(40):
        log.info("line %d", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert "line 39" in file.read_text()
    assert all(path.stat().st_size <= 1_000 for path in tmp_path.iterdir())
