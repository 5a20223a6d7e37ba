# SPDX-License-Identifier: Apache-2.0
"""Where the lines of the log go: `--log-outputs`, and `--enable-log-rotation` for one file.

Laws
- A line goes to each output. An output that cannot be written to holds up neither the others nor the server: the first
  line that is lost is told on standard error.
- A file that was moved or deleted is made anew with the next line: logrotate needs neither a signal nor copytruncate.

The loop writes the lines. If the disk of such a file hangs, that holds up everybody. Standard error, which a supervisor
reads, does not.
"""

import json
import logging
import sys
from logging.handlers import RotatingFileHandler, WatchedFileHandler

from lessor.server.options import LogOutputs, LogRotation, OptionError

DEFAULT = "default"
DEFAULT_ROTATION = '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}'
_STREAMS = {DEFAULT: "stderr", "stderr": "stderr", "stdout": "stdout", "systemd/journal": "stderr"}
_NO_SINGLE_FILE = "--log-outputs requires a single file path when --log-rotate-config-json is defined"
_MEGABYTE = 1_048_576
_ALL_FILES = 9_999  # kept where none is ever to be deleted: the names are searched for at each change


def parse_log_outputs(text: str, rotates: bool, rotation: str) -> LogOutputs:
    """Of the three flags. Raises OptionError, mostly with etcd's text."""
    outputs = [output.strip() for output in text.split(",") if output.strip()] or [DEFAULT]
    if len(outputs) > 1 and DEFAULT in outputs:
        raise OptionError(f'--log-outputs: multi logoutput for "{DEFAULT}" is not supported yet')
    files = tuple(dict.fromkeys(output for output in outputs if output not in _STREAMS))
    streams = tuple(dict.fromkeys(_STREAMS[output] for output in outputs if output in _STREAMS))
    if not rotates:
        return LogOutputs(streams, files)
    if len(files) != 1:
        raise OptionError(_NO_SINGLE_FILE)
    return LogOutputs(streams, files, _parse_rotation(rotation))


def _parse_rotation(text: str) -> LogRotation:
    flag = "--log-rotation-config-json"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{flag}: improperly formatted log rotation config: {error}") from None
    if not isinstance(found, dict):
        raise OptionError(f"{flag}: invalid log rotation config: no object")
    undone = [name for name in ("maxage", "localtime", "compress") if found.get(name)]
    if undone:
        raise OptionError(f"{flag}: {', '.join(undone)}: only maxsize and maxbackups; for more let logrotate do it")
    size_mb, kept = found.get("maxsize") or 100, found.get("maxbackups") or 0
    for name, value in (("maxsize", size_mb), ("maxbackups", kept)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise OptionError(f"{flag}: invalid log rotation config: {name}: no number that is 0 or more")
    return LogRotation(size_mb * _MEGABYTE, min(kept or _ALL_FILES, _ALL_FILES))


def handlers(outputs: LogOutputs) -> list[logging.Handler]:
    """One for each output. Raises OptionError for a file that cannot be opened."""
    made: list[logging.Handler] = [logging.StreamHandler(getattr(sys, stream)) for stream in outputs.streams]
    for path in outputs.files:
        try:
            if outputs.rotation is None:
                made.append(_Watched(path, encoding="utf-8"))
            else:
                size_bytes, files = outputs.rotation
                made.append(_Rotating(path, maxBytes=size_bytes, backupCount=files, encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"--log-outputs: {path}: {error.strerror}") from None
    return made


class _Sturdy(logging.Handler):
    """Loses a line that cannot be written, and says so once."""

    _said = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # a file could not be opened anew
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self._said:
            self._said = True
            sys.stderr.write(f"lessor: a line of the log is lost: {sys.exc_info()[1]}\n")


class _Watched(_Sturdy, WatchedFileHandler):
    pass


class _Rotating(_Sturdy, RotatingFileHandler):
    pass
