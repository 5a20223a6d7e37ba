# SPDX-License-Identifier: Apache-2.0
"""The options of a server. Their names are those of etcd's flags where the meaning is the same.

`Options` has the checked values, which the rest of the server reads. command.py is the command line that makes it.
"""

import re
import ssl
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from lessor.base import limits
from lessor.wire.h2_keepalive import KeepaliveRules

DEFAULT_CLIENT_URL = "http://localhost:2379"


class OptionError(Exception):
    """An option that cannot be used. The message is one line that names it and says which value would do."""


@dataclass(frozen=True)
class Listen:
    """An address to listen on: a host and port, or the path of a unix socket."""

    url: str
    host: str = ""
    port: int = 0
    unix_path: str = ""
    tls: bool = False


@dataclass(frozen=True)
class TlsOptions:
    """How to serve https:// and unixs:// URLs. Files are named and not read here; "": no file was given."""

    cert_file: str = ""
    key_file: str = ""
    trusted_ca_file: str = ""
    client_cert_auth: bool = False
    client_crl_file: str = ""
    client_cert_allowed_hostnames: tuple[str, ...] = ()
    auto: bool = False
    self_signed_validity_years: int = 1
    cipher_suites: tuple[str, ...] = ()
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion | None = None

    @property
    def asks_clients(self) -> bool:
        """Whether clients must show a certificate. As in etcd, --trusted-ca-file alone is enough for that."""
        return self.client_cert_auth or bool(self.trusted_ca_file)


class LogRotation(NamedTuple):
    """When a file of the log is put aside, as NAME.1, and how many of these are kept."""

    size_bytes: int
    files: int


class LogOutputs(NamedTuple):
    """Where the log goes. `streams`: stderr, stdout; `rotation`: that of the one file."""

    streams: tuple[str, ...] = ("stderr",)
    files: tuple[str, ...] = ()
    rotation: LogRotation | None = None


LOG_TO_STDERR = LogOutputs()


@dataclass(frozen=True)
class Options:
    """All that can be set. Units are in the names."""

    name: str = "default"
    data_dir: str = "default.lessor"
    listen_client_urls: tuple[Listen, ...] = field(default_factory=lambda: (parse_listen_url(DEFAULT_CLIENT_URL),))
    advertise_client_urls: tuple[str, ...] = (DEFAULT_CLIENT_URL,)
    listen_metrics_urls: tuple[Listen, ...] = ()
    max_txn_ops: int = limits.TXN_OPS_MAX
    max_request_bytes: int = limits.REQUEST_BYTES_MAX
    quota_backend_bytes: int = limits.QUOTA_BACKEND_BYTES
    auto_compaction_mode: str = "periodic"
    auto_compaction_retention: float = 0  # seconds (periodic) or revisions (revision); 0: off
    watch_progress_notify_interval_s: float = 600.0
    min_lease_ttl_s: int = limits.LEASE_TTL_S_MIN
    grpc_keepalive: KeepaliveRules = field(default_factory=KeepaliveRules)
    tls: TlsOptions = field(default_factory=TlsOptions)
    ui: bool = True  # whether browsers get a page at /ui/
    log_level: str = "info"
    log_format: str = "json"  # or "console"
    log_outputs: LogOutputs = LOG_TO_STDERR
    auth_token: str = "simple"  # or "jwt" and its settings, with commas
    auth_token_ttl_s: int = limits.AUTH_TOKEN_TTL_S  # of simple tokens
    bcrypt_cost: int = limits.BCRYPT_COST
    engine: str = field(default="", repr=False)  # URL of a shared log, which may hold a password; "": a log of our own
    engine_may_lose_commits: bool = False
    cluster_lease_s: float = limits.CLUSTER_LEASE_S  # for how long one record in the shared log lets us answer

    @property
    def message_bytes_max(self) -> int:
        """The size of the largest gRPC message or JSON body that is read."""
        return self.max_request_bytes + limits.REQUEST_OVERHEAD_BYTES

    @property
    def json_values_max(self) -> int:
        """How many names and values a JSON body may have; see `json_codec.decode`."""
        return limits.JSON_VALUES_MAX + limits.JSON_VALUES_PER_OP * self.max_txn_ops


def parse_listen_url(url: str) -> Listen:
    """Checks one URL of --listen-client-urls: http(s)://host:port or unix(s)://path. Raises OptionError."""
    parts = urlsplit(url)
    if parts.scheme in ("unix", "unixs"):
        path = parts.netloc + parts.path
        if not path:
            raise OptionError(f"--listen-client-urls: {url!r} names no socket; write {parts.scheme}:///path/to/socket")
        return Listen(url, unix_path=path, tls=parts.scheme == "unixs")
    if parts.scheme not in ("http", "https"):
        raise OptionError(f"--listen-client-urls: {url!r} must start with http://, https://, unix:// or unixs://")
    try:
        port = parts.port
    except ValueError:
        raise OptionError(f"--listen-client-urls: {url!r} has no port between 0 and 65535") from None
    if not parts.hostname or port is None or parts.path not in ("", "/"):
        raise OptionError(f"--listen-client-urls: {url!r} must be {parts.scheme}://host:port, with nothing behind it")
    return Listen(url, host=parts.hostname, port=port, tls=parts.scheme == "https")


def check_advertised_url(url: str) -> None:
    """Raises OptionError for a URL that no client could use as an address."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https", "unix", "unixs") or not (parts.netloc or parts.path):
        raise OptionError(f"--advertise-client-urls: {url!r} must be a URL like http://host:port")


def check_reachable_url(url: str) -> None:
    """Raises OptionError for a URL at which the other servers of a shared log cannot find this one."""
    if urlsplit(url.strip()).hostname in ("0.0.0.0", "::"):
        raise OptionError(f"--advertise-client-urls: other servers cannot reach {url}; with --engine, name an address")


def parse_auth_token(text: str) -> tuple[str, dict[str, str]]:
    """The value of --auth-token: the kind of token, "simple" or "jwt", and its settings. Raises OptionError."""
    kind, *pairs = text.split(",")
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value or "=" in value or name in settings:
            raise OptionError(f"--auth-token: {pair!r} must be a name=value that comes once")
        settings[name] = value
    if kind not in ("simple", "jwt"):
        raise OptionError(f"--auth-token: {kind!r} is not a kind of token; choose simple or jwt")
    return kind, settings


_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration_s(text: str) -> float:
    """The seconds of a duration as Go writes it: 30s, 5m, 1h30m, 100ms. Raises ValueError."""
    if text == "0":
        return 0.0
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5m or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def parse_cluster_lease_s(text: str) -> float:
    """The value of --cluster-lease. Raises OptionError."""
    try:
        lease_s = parse_duration_s(text)
    except ValueError as error:
        raise OptionError(f"--cluster-lease: {error}") from None
    if not limits.CLUSTER_LEASE_S_MIN <= lease_s <= limits.CLUSTER_LEASE_S_MAX:
        raise OptionError(
            f"--cluster-lease: {text!r} is not between {limits.CLUSTER_LEASE_S_MIN:g}s and "
            f"{limits.CLUSTER_LEASE_S_MAX:g}s"
        )
    return lease_s


# The values of gRPC, and so of etcd, for a time that is not above zero.
_GRPC_MIN_TIME_S = 300.0
_GRPC_INTERVAL_S_MIN = 1.0


def parse_grpc_keepalive(min_time: str, interval: str, timeout: str) -> KeepaliveRules:
    """The values of the three --grpc-keepalive flags; zero means what it means in etcd. Raises OptionError."""
    seconds = []
    for name, text in (("min-time", min_time), ("interval", interval), ("timeout", timeout)):
        try:
            seconds.append(parse_duration_s(text))
        except ValueError as error:
            raise OptionError(f"--grpc-keepalive-{name}: {error}") from None
    min_time_s, interval_s, timeout_s = seconds
    if not (interval_s and timeout_s):
        interval_s, timeout_s = limits.GRPC_KEEPALIVE_INTERVAL_S, limits.GRPC_KEEPALIVE_TIMEOUT_S
    return KeepaliveRules(min_time_s or _GRPC_MIN_TIME_S, max(interval_s, _GRPC_INTERVAL_S_MIN), timeout_s)


def parse_retention(mode: str, text: str) -> float:
    """The value of --auto-compaction-retention, as in Options. Raises OptionError.

    In mode `revision` it is a number of revisions; in `periodic` a duration, or a number of hours without a unit.
    """
    try:
        if mode == "revision":
            if not text.lstrip("-").isdigit():
                raise ValueError(f"{text!r} is no number of revisions; a time wants --auto-compaction-mode periodic")
            retention = float(int(text))
        else:
            retention = float(int(text)) * 3600 if text.lstrip("-").isdigit() else parse_duration_s(text)
    except ValueError as error:
        raise OptionError(f"--auto-compaction-retention: {error}") from None
    if retention < 0:
        raise OptionError(f"--auto-compaction-retention: {text!r} is negative; 0 turns it off")
    return retention
