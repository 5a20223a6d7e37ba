# SPDX-License-Identifier: Apache-2.0
"""The address of a log in an etcd: how it is written, and what it means.

    etcd://HOST:PORT,HOST:PORT/PREFIX       etcds:// with TLS
    etcd://USER:PASSWORD@HOST/PREFIX        what is special in them as %2F, %40, ...
    etcds://HOST/PREFIX?cacert=FILE&cert=FILE&key=FILE&user=USER&password-file=FILE&compact=auto

Laws
- No error has any part of the text in it that may be of the user or the password; nor has a `repr`.
- A query parameter that is not known is refused: a word that is misspelt must not be passed over.

PREFIX is "/lessor" by default; all keys of the log begin with it and a "/". Two Lessor clusters in one etcd take two.

cacert         the authorities to trust, PEM; those of the machine by default
cert, key      our own certificate, for an etcd with --client-cert-auth, and its key
user, password-file  instead of USER:PASSWORD@, which others on the machine can see in the list of processes: the file
               has the password, and nothing else but the end of its line
compact        who compacts the history of the etcd, without which it grows until it is full: always (we, at each trim),
               never (its operator, with --auto-compaction-retention); auto, the default: we, if nothing but this log is
               in it
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from lessor.durable.shared_log import LogRefusedError

PREFIX: Final = "/lessor"
ALWAYS: Final = "always"
NEVER: Final = "never"
AUTO: Final = "auto"
_FILES: Final = ("cacert", "cert", "key")
_FORM: Final = "write etcd://HOST:PORT,HOST:PORT/PREFIX"


@dataclass(frozen=True)
class EtcdUrl:
    """Where a log is, and how to get at it."""

    endpoints: tuple[str, ...]  # each as host:port
    prefix: bytes  # of all keys; ends with a slash
    tls: bool
    cacert: str = ""
    cert: str = ""
    key: str = ""
    compact: str = AUTO
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


def parse(text: str) -> EtcdUrl:
    """Reads the address; the password file too, if it names one. Raises LogRefusedError."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("etcd", "etcds"):
        raise LogRefusedError(f"the engine is not an etcd: {_FORM}")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    login, _, hosts = place.rpartition("@")
    if "@" in path or "#" in text:
        raise LogRefusedError("the address of the engine: write /, @, ? and # as %2F, %40, %3F, %23")
    words = _query(query)
    user, password = _login(login, words)
    tls = scheme == "etcds"
    files = {name: words.get(name, "") for name in _FILES}
    if any(files.values()) and not tls:
        raise LogRefusedError("cacert, cert and key are for etcds://, and the engine is written etcd://")
    if bool(files["cert"]) != bool(files["key"]):
        raise LogRefusedError("cert and key of the engine go together: give both or neither")
    compact = words.get("compact", AUTO)
    if compact not in (ALWAYS, NEVER, AUTO):
        raise LogRefusedError("compact of the engine is always, never or auto")
    prefix = "/" + unquote(path).strip("/") if path.strip("/") else PREFIX
    if not prefix.isprintable():
        raise LogRefusedError("the engine's prefix has a character that cannot be printed")
    return EtcdUrl(_hosts(hosts), prefix.encode() + b"/", tls, **files, compact=compact, user=user, password=password)


def _query(text: str) -> dict[str, str]:
    words: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        if name not in (*_FILES, "user", "password-file", "compact"):
            known = ", ".join((*_FILES, "user", "password-file", "compact"))
            raise LogRefusedError(f"an unknown word behind the ? of the engine; there are {known}")
        if name in words or not value:
            raise LogRefusedError(f"{name} of the engine: give it once, with a value")
        words[name] = unquote(value)
    return words


def _login(login: str, words: dict[str, str]) -> tuple[str, str]:
    if "user" in words or "password-file" in words:
        if login or len({"user", "password-file"} & words.keys()) < 2:
            raise LogRefusedError("the engine's user: either USER:PASSWORD@ or user= and password-file=")
        name = words["password-file"]
        try:
            return words["user"], Path(name).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise LogRefusedError(f"the engine's password-file {name}: {(reason or 'unreadable').lower()}") from None
    user, separator, password = login.partition(":")
    if login and (not separator or not user):
        raise LogRefusedError("the engine's user is without a password: write USER:PASSWORD@HOST")
    return unquote(user), unquote(password)


def _hosts(text: str) -> tuple[str, ...]:
    """The endpoints. The errors do not quote: what stands here may be a part of a password."""
    found = []
    for host in text.split(","):
        name, separator, port = host.rpartition(":")
        if not separator or host.endswith("]"):
            name, port = host, "2379"
        bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        named = bool(bare) and (":" in bare) == (bare != name)
        if not named or not (port.isascii() and port.isdigit() and int(port) < 65_536):
            raise LogRefusedError(f"the engine has an address that is none: {_FORM}")
        found.append(f"{name}:{port}")
    return tuple(found)
