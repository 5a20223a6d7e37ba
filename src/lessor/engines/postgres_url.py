# SPDX-License-Identifier: Apache-2.0
"""The URL that names a shared log in PostgreSQL: what libpq gets of it, what is ours, what nobody may read.

Laws
- What libpq knows means what it means there, and what the URL leaves open comes from libpq's environment (PGPASSWORD, a
  password file, a service file). Only `schema` is ours.
- No error made here holds a character of a password; `scrubbed` takes passwords out of the texts of others. A URL that
  libpq would cut in the wrong place, so that a piece of a password became a host's name, is refused before.

Does not do: connecting.
"""

import os
import re
from typing import Final

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from lessor.base.printable import escape_unprintable
from lessor.durable.shared_log import LogRefusedError

SCHEMES: Final = ("postgres://", "postgresql://")
SCHEMA_DEFAULT: Final = "lessor"
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret")
_SCRUBBED_MIN: Final = 3  # a shorter secret is a part of many words: taking it out of them would tell it
_ESCAPING: Final = (
    "special characters in names and passwords are written as %XX (@ as %40, / as %2F, ? as %3F, % as %25)"
)

# What a URL may change. A dead peer is noticed about as soon as a missing answer is.
_DEFAULTS: Final = {
    "application_name": ("lessor", "PGAPPNAME"),
    "connect_timeout": ("2", "PGCONNECT_TIMEOUT"),
    "keepalives_idle": ("2", ""),
    "keepalives_interval": ("1", ""),
    "keepalives_count": ("3", ""),
    "tcp_user_timeout": ("5000", ""),
}


class Address:
    """Where the log is: in `schema`, at one of `hosts`, each of which libpq can connect to. `shown` is for people."""

    __slots__ = ("_secrets", "hosts", "schema", "shown")

    def __init__(self, url: str) -> None:
        """Raises LogRefusedError."""
        rest = self._rest(url)
        rest, self.schema = _without_schema(rest)
        try:
            found = {key: str(value) for key, value in conninfo_to_dict("postgresql://" + rest).items()}
        except ProgrammingError:  # its text quotes the URL
            raise LogRefusedError(
                "the engine's URL is none that libpq can read: postgres://USER:PASSWORD@HOST:PORT/DATABASE, "
                f"then ?NAME=VALUE&... with libpq's names, or schema; {_ESCAPING}"
            ) from None
        self._secrets = _secrets(found)
        for key, (value, variable) in _DEFAULTS.items():
            if key not in found and (not variable or variable not in os.environ):
                found[key] = value
        found["client_encoding"] = "utf8"  # of the messages
        each = _each(found)
        self.hosts = tuple(make_conninfo("", **one) for one in each)
        hosts = ",".join(_place(one) for one in each)
        place = "/".join(part for part in (hosts, found.get("dbname", ""), self.schema) if part)
        self.shown = self.scrubbed(place)

    @staticmethod
    def _rest(url: str) -> str:
        """What stands behind the scheme, when it is safe to let libpq cut it into pieces."""
        for scheme in SCHEMES:
            if url.startswith(scheme):
                rest = url.removeprefix(scheme)
                break
        else:
            raise LogRefusedError("the engine's URL does not begin with postgres://")
        beginning = re.split(r"[/?]", rest, maxsplit=1)[0]
        if (
            "\0" in url
            or beginning.count("@") > 1
            or rest.count("@") != beginning.count("@")
            or _BAD_PERCENT.search(rest)
        ):
            raise LogRefusedError(f"the engine's URL is ambiguous: {_ESCAPING}")
        return rest

    def scrubbed(self, text: str) -> str:
        """The text on one line, without passwords."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
        return escape_unprintable(line, lambda char: f"\\u{ord(char):04x}")

    def __repr__(self) -> str:
        return f"<{self.shown}>"


def _without_schema(rest: str) -> tuple[str, str]:
    beginning, mark, query = rest.partition("?")
    schema = SCHEMA_DEFAULT
    kept = []
    for part in query.split("&") if mark else ():
        name, _, value = part.partition("=")
        if name == "schema":
            schema = value
            if not _SCHEMA.fullmatch(value) or value.startswith("pg_"):
                raise LogRefusedError(
                    "the schema in the engine's URL: small letters, digits and _, 63 at most, not pg_ at the beginning"
                )
        elif part:
            kept.append(part)
    return beginning + ("?" + "&".join(kept) if kept else ""), schema


def _place(one: dict[str, str]) -> str:
    host = one.get("host") or one.get("hostaddr") or os.environ.get("PGHOST", "")
    return f"{host}:{one['port']}" if one.get("port") else host


def _each(found: dict[str, str]) -> list[dict[str, str]]:
    """The same for each of the hosts. libpq would always take the first that lets it in, though it was replaced."""
    lists = {key: found[key].split(",") for key in ("host", "hostaddr", "port") if key in found}
    count = max((len(values) for values in lists.values()), default=1)
    if any(len(values) not in (1, count) for values in lists.values()):
        raise LogRefusedError("the engine's URL has another number of ports than of hosts")
    if any(port and not port.isdecimal() for port in lists.get("port", [])):
        raise LogRefusedError(f"a port in the engine's URL is no number; {_ESCAPING}")
    each = [dict(found) for _ in range(count)]
    for at, one in enumerate(each):
        for key, values in lists.items():
            one[key] = values[at if len(values) > 1 else 0]
    return each


def _secrets(found: dict[str, str]) -> list[str]:
    """Longest first, so that none is cut by another that stands in it."""
    given = [found[key] for key in _SECRETS if key in found]
    for option in pq.Conninfo.get_defaults():  # PGPASSWORD and the like
        given += [option.val.decode(errors="replace")] if option.keyword.decode() in _SECRETS and option.val else []
    return sorted({secret for secret in given if len(secret) >= _SCRUBBED_MIN}, key=len, reverse=True)
