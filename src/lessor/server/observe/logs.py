# SPDX-License-Identifier: Apache-2.0
"""Structured logs: a JSON object per line, with etcd's field names, or the form for people to read.

Laws
- A line holds printable characters only, whatever a client has named itself: any other character is written as JSON
  writes it, `\\u202e` for instance, so that a program that reads the line gets the text unchanged, and a terminal or a
  pager that shows it is not steered.
- A text that a call passed as a field is cut at LOG_TEXT_CHARACTERS_MAX: a client's name must not fill the disk.
- A line that clients can cause as often as they like is written through a `Sparing`.
"""

import json
import logging
import math
from datetime import UTC, datetime
from typing import Any

from lessor.base import limits
from lessor.base.clock import Clock, MonotonicClock
from lessor.base.printable import escape_unprintable
from lessor.server.observe.log_outputs import handlers
from lessor.server.options import LOG_TO_STDERR, LogOutputs

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
LEVELS = ("debug", "info", "warn", "error", "panic", "fatal")
# The loop and its threads log what nobody handled under names of their own.
_LOGGERS = ("lessor", "asyncio", "concurrent.futures")


class JsonFormatter(logging.Formatter):
    """The fields level, ts, caller and msg, then the fields that the call passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        return _json(self._fields(record))

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        level = {"warning": "warn", "critical": "fatal"}.get(record.levelname.lower(), record.levelname.lower())
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "level": level,
            "ts": moment.replace("+00:00", "Z"),
            "caller": f"{record.module}.py:{record.lineno}",
            "msg": record.getMessage(),
        }
        line.update((name, _cut(value)) for name, value in record.__dict__.items() if name not in _STANDARD)
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return line


class ConsoleFormatter(JsonFormatter):
    """The same, with tabs between time, level, caller and message, and the other fields as JSON behind them."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        shown = [printable(str(fields.pop(name))) for name in ("ts", "level", "caller", "msg")]
        return "\t".join([*shown, _json(fields)] if fields else shown)


FORMATTERS = {"json": JsonFormatter, "console": ConsoleFormatter}


def _json(fields: dict[str, Any]) -> str:
    return printable(json.dumps(fields, default=lambda value: _cut(str(value)), ensure_ascii=False))


def printable(text: str) -> str:
    r"""The text with each character that is not printable as \uXXXX, and one beyond U+FFFF as two of them, as in JSON.

    In a JSON text these are in strings only, so that the text means the same afterwards.
    """
    return escape_unprintable(text, _escaped)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _cut(value: Any) -> Any:
    most = limits.LOG_TEXT_CHARACTERS_MAX
    if not isinstance(value, str) or len(value) <= most:
        return value
    return f"{value[:most]}... ({len(value) - most} more characters)"


class Sparing:
    """Decides which of many equal lines are logged: `lines_max` in each `period_s` seconds, and then the next one."""

    __slots__ = ("_clock", "_from_s", "_left_out", "_lines_max", "_period_s", "_written")

    def __init__(self, lines_max: int, period_s: float, clock: Clock | None = None) -> None:
        self._lines_max = lines_max
        self._period_s = period_s
        self._clock = clock or MonotonicClock()
        self._from_s = -math.inf
        self._written = 0
        self._left_out = 0

    def take(self, now_s: float | None = None) -> int | None:
        """Counts one occasion. Returns None to be silent, otherwise how many were passed over since the last line.

        `now_s`: the instant, for a caller with a clock of its own.
        """
        now_s = self._clock.now_s() if now_s is None else now_s
        if now_s - self._from_s >= self._period_s:
            self._from_s, self._written = now_s, 0
        if self._written >= self._lines_max:
            self._left_out += 1
            return None
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def set_up(level: str, form: str = "json", outputs: LogOutputs = LOG_TO_STDERR) -> None:
    """Sends the records of the `lessor` logger from `level` (one of LEVELS) upwards to the outputs.

    `form`: one of FORMATTERS. Raises OptionError for a file that cannot be opened.
    """
    made = handlers(outputs)
    for handler in made:
        handler.setFormatter(FORMATTERS[form]())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = list(made)
        logger.propagate = False
    least = {"warn": "WARNING", "panic": "CRITICAL", "fatal": "CRITICAL"}.get(level, level.upper())
    logging.getLogger("lessor").setLevel(least)
