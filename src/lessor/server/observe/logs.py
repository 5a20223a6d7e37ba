# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line on standard error, with etcd's field names."""

import json
import logging
from datetime import UTC, datetime

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
LEVELS = ("debug", "info", "warn", "error", "panic", "fatal")


class JsonFormatter(logging.Formatter):
    """The fields level, ts, caller and msg, then the fields that the call passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        level = {"warning": "warn", "critical": "fatal"}.get(record.levelname.lower(), record.levelname.lower())
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "level": level,
            "ts": moment.replace("+00:00", "Z"),
            "caller": f"{record.module}.py:{record.lineno}",
            "msg": record.getMessage(),
        }
        line.update((name, value) for name, value in record.__dict__.items() if name not in _STANDARD)
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up(level: str) -> None:
    """Sends the records of the `lessor` logger from `level` (one of LEVELS) upwards to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("lessor")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel({"warn": "WARNING", "panic": "CRITICAL", "fatal": "CRITICAL"}.get(level, level.upper()))
