# SPDX-License-Identifier: Apache-2.0
"""Lines of the log, and the shortages that it tells of."""

import asyncio
import json
import logging
import unicodedata
from collections.abc import Iterator

import pytest

from lessor.base import limits
from lessor.server.observe.disk_space import DiskSpace
from lessor.server.observe.logs import JsonFormatter, Sparing, printable
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.shortages import ALL, DISK_SPACE, PASSWORDS, UNFINISHED, Shortages
from lessor.server.transport import door
from lessor.server.transport.door import Door, files_for_clients


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def now_s(self) -> float:
        return self.s


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(JsonFormatter().format(record)))


@pytest.fixture
def kept() -> Iterator[Kept]:
    logger, handler = logging.getLogger("lessor"), Kept()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def formatted(message: str, **fields: object) -> str:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "module": "m", "lineno": 1, **fields})
    return JsonFormatter().format(record)


EVERYTHING = "".join(chr(code) for code in range(0x110000))


def test_no_character_of_unicode_reaches_the_log_unless_it_is_printable() -> None:
    for start in range(0, len(EVERYTHING), 1_000):  # a field is cut at 1,024
        piece = EVERYTHING[start : start + 1_000]
        line = formatted(piece, user=piece)
        assert line.isprintable()
        line.encode()  # a half of a surrogate pair has no UTF-8
        assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in line)
        # Nothing is lost: a program that reads the line gets the text. Of two halves JSON makes one character.
        whole = piece.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")
        assert json.loads(line)["user"] == json.loads(line)["msg"] == whole


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 文字 é", "plain 文字 é"),
        ("\x1b[2J\x7f\x9b", r"\u001b[2J\u007f\u009b"),
        ("a\u202eb\u2066\u200f\u2028", r"a\u202eb\u2066\u200f\u2028"),
        ("\U000e0041\ud800", r"\udb40\udc41\ud800"),
    ],
)
def test_the_escapes_are_those_of_json(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_exceptions_and_values_that_are_no_text_are_escaped_too() -> None:
    try:
        raise ValueError("\u202e\x9b")
    except ValueError as error:
        line = formatted("m", exc_info=(ValueError, error, None), error=error, raw=b"\xff\x1b", many=["\u2066"])
    assert line.isprintable()


def test_a_long_text_is_cut_and_says_by_how_much() -> None:
    most = limits.LOG_TEXT_CHARACTERS_MAX
    shown = json.loads(formatted("m", user="n" * (most + 7), error=ValueError("e" * 2_000_000), short="s" * most))
    assert shown["user"] == "n" * most + "... (7 more characters)"
    assert len(shown["error"]) < most + 50
    assert shown["short"] == "s" * most


def test_a_flood_leaves_so_many_lines_a_period_and_the_number_of_the_others() -> None:
    hand = Hand()
    sparing = Sparing(2, 10.0, hand)
    assert [sparing.take() for _ in range(5)] == [0, 0, None, None, None]
    hand.s = 9.9
    assert sparing.take() is None
    hand.s = 10.0
    assert [sparing.take() for _ in range(3)] == [4, 0, None]


def test_a_shortage_is_counted_each_time_and_told_once_a_period(kept: Kept) -> None:
    hand = Hand()
    shortages = Shortages(hand)
    for _ in range(1_000):
        shortages.reached(PASSWORDS)
        shortages.reached(UNFINISHED)
    assert shortages.counts[PASSWORDS] == 1_000
    assert [line["msg"] for line in kept.lines] == [PASSWORDS.text, UNFINISHED.text]
    hand.s = limits.SHORTAGE_LOG_S
    shortages.reached(PASSWORDS)
    line = kept.lines[-1]
    assert (line["limit"], line["remedy"]) == (limits.PASSWORDS_WAITING_MAX, PASSWORDS.remedy)
    assert line["times-since-last-line"] == 1_000
    assert str(line["caller"]).startswith("test_logs.py:")  # the place that kept the limit, not the one that logs


def test_each_shortage_has_a_name_of_its_own_and_says_what_to_do() -> None:
    assert len({each.name for each in ALL}) == len(ALL)
    assert all(each.text and each.remedy for each in ALL)


@pytest.mark.parametrize(
    ("limit", "for_clients"), [(40, 30), (256, 192), (1_024, 960), (524_288, 524_288 - limits.FILES_RESERVED)]
)
def test_descriptors_are_kept_back(limit: int, for_clients: int, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "files_limit", lambda: limit)
    assert files_for_clients(limit) == for_clients
    entry = Door(Shortages())
    assert entry.admits(for_clients - 1)
    assert not kept.lines
    assert not entry.admits(for_clients)
    assert kept.lines[0]["limit"] == limit


def test_little_space_on_the_disk_is_told_and_shown(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        f_bavail, f_frsize = 10, 4_096

    metrics = Metrics()
    space = DiskSpace("/nowhere", metrics)
    space.look()  # a folder that is not there is no shortage
    assert not kept.lines
    monkeypatch.setattr("os.statvfs", lambda folder: Found)

    async def begin() -> None:
        space.start(asyncio.get_running_loop())

    asyncio.run(begin())
    assert metrics.disk_free_bytes == 40_960
    assert metrics.shortages.counts[DISK_SPACE] == 1
    assert kept.lines[0]["free_bytes"] == 40_960
