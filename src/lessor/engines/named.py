# SPDX-License-Identifier: Apache-2.0
"""Which shared log a URL names. A library that only one engine needs is imported when that engine is named."""

from urllib.parse import urlsplit

from lessor.durable.shared_log import LogRefusedError, SharedLog


def shared_log(url: str, *, may_lose_commits: bool = False) -> SharedLog:
    """The log, not yet opened: nothing is connected. Raises LogRefusedError for a URL that names none.

    `may_lose_commits`: an engine that may lose what it has acknowledged is used all the same.
    """
    if url.startswith(("postgres://", "postgresql://")):
        try:
            from lessor.engines.log_postgres import PostgresLog
        except ImportError:
            raise LogRefusedError("the engine postgres:// needs psycopg: pip install 'lessor[postgres]'") from None
        return PostgresLog(url, may_lose_commits=may_lose_commits)
    if url.startswith(("etcd://", "etcds://")):
        from lessor.engines.log_etcd import EtcdLog

        return EtcdLog(url, local=may_lose_commits)
    raise LogRefusedError("the engine's URL begins with none of postgres://, etcd:// and etcds://")


def place(url: str) -> str:
    """Where the log is, for people: no user, no password, no file. Raises LogRefusedError for a URL that names none."""
    shared_log(url).close()  # a URL that nobody can read may be cut in the wrong place below
    parts = urlsplit(url)
    schemas = [word for word in parts.query.split("&") if word.startswith("schema=")]
    return "".join(
        [parts.scheme, "://", parts.netloc.rpartition("@")[2], parts.path, *("?" + each for each in schemas)]
    )
