# SPDX-License-Identifier: Apache-2.0
"""`--config-file`: the flags of a server as a YAML file, in the form that etcd reads.

A key is the name of a flag, without dashes. `client-transport-security` and `peer-transport-security` hold the flags
about TLS: the keys of the first are the names of flags, those of the second the names without `peer-`. A list stands
for its elements with commas, and a key without a value is as if it was not there. In a duration without a unit the
number counts nanoseconds, because Go reads it so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lessor.server.options import OptionError

# The flags whose numbers are durations; elsewhere a number is a number, or counts hours.
_DURATIONS = frozenset(
    ("grpc-keepalive-min-time", "grpc-keepalive-interval", "grpc-keepalive-timeout", "watch-progress-notify-interval")
)
# Of the two tables: what comes before a key, and the keys that are called otherwise as flags.
_TABLES = {
    "client-transport-security": ("", {"allowed-hostname": "client-cert-allowed-hostname"}),
    "peer-transport-security": (
        "peer-",
        {"allowed-cn": "peer-cert-allowed-cn", "allowed-hostname": "peer-cert-allowed-hostname"},
    ),
}


def words_of(path: str) -> list[str]:
    """The flags in the file, each as one word, `--name=value`.

    Raises OptionError, one line, for a file that cannot be read or has another form.
    """
    try:
        import yaml  # an extra, and most servers have no such file
    except ImportError:
        raise OptionError("--config-file: needs `pip install 'lessor[yaml]'`") from None
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"--config-file: {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise OptionError(f"--config-file: {path}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return [f"--{name}={value}" for name, value in _flags(found)]
    except ValueError as error:
        raise OptionError(f"--config-file: {path}: {error}") from None


def _flags(found: Any) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    if not isinstance(found, dict):
        raise ValueError("no table of names and values")
    for name, value in found.items():
        if value is None:
            continue
        if name in _TABLES:
            if not isinstance(value, dict):
                raise ValueError(f"{name}: no table of names and values")
            before, names = _TABLES[name]
            for key, inner in value.items():
                if inner not in (None, [], ""):
                    flag = names.get(key, f"{before}{key}")
                    yield flag, _text(flag, inner)
        else:
            yield str(name), _text(str(name), value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and name in _DURATIONS:
        return f"{value}ns"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(element, (str, int, float)) for element in value):
        return ",".join(map(str, value))
    raise ValueError(f"{name}: no text, number, truth value or list of them")
