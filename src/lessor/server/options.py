# SPDX-License-Identifier: Apache-2.0
"""What a server is started with: etcd's flag names and ETCD_ environment names where the meaning is the same.

`Options` is the checked form that the rest of the server reads. The command line that fills it is command.py.
"""

import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from lessor.base import limits
from lessor.wire.h2_keepalive import KeepaliveRules

DEFAULT_CLIENT_URL = "http://localhost:2379"


class OptionError(Exception):
    """An option that cannot be used; the message is one line that names it and says what would do."""


@dataclass(frozen=True)
class Listen:
    """Where to listen for clients: a host and port, or the path of a unix socket."""

    url: str
    host: str = ""
    port: int = 0
    unix_path: str = ""
    tls: bool = False


@dataclass(frozen=True)
class TlsOptions:
    """How https:// and unixs:// URLs are served. Files are named, not read; "" is for a file that was not given."""

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
        """Whether clients must show a certificate. As in etcd, naming an authority for them is enough."""
        return self.client_cert_auth or bool(self.trusted_ca_file)


@dataclass(frozen=True)
class Options:
    """Everything that can be set. Units are in the names."""

    name: str = "default"
    data_dir: str = "default.lessor"
    listen_client_urls: tuple[Listen, ...] = field(default_factory=lambda: (parse_listen_url(DEFAULT_CLIENT_URL),))
    advertise_client_urls: tuple[str, ...] = (DEFAULT_CLIENT_URL,)
    listen_metrics_urls: tuple[Listen, ...] = ()
    max_txn_ops: int = limits.TXN_OPS_MAX
    max_request_bytes: int = limits.REQUEST_BYTES_MAX
    quota_backend_bytes: int = limits.QUOTA_BACKEND_BYTES
    auto_compaction_mode: str = "periodic"
    auto_compaction_retention: float = 0  # seconds (periodic) or revisions (revision); 0 turns it off
    watch_progress_notify_interval_s: float = 600.0
    min_lease_ttl_s: int = limits.LEASE_TTL_S_MIN
    grpc_keepalive: KeepaliveRules = field(default_factory=KeepaliveRules)
    tls: TlsOptions = field(default_factory=TlsOptions)
    log_level: str = "info"
    auth_token: str = "simple"  # or "jwt" and its settings, with commas
    auth_token_ttl_s: int = limits.AUTH_TOKEN_TTL_S  # of simple tokens
    bcrypt_cost: int = limits.BCRYPT_COST

    @property
    def message_bytes_max(self) -> int:
        """The largest gRPC message or JSON body that is read."""
        return self.max_request_bytes + limits.REQUEST_OVERHEAD_BYTES


def parse_listen_url(url: str) -> Listen:
    """Checks one URL of --listen-client-urls: http(s)://host:port or unix(s)://path."""
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
    """Raises OptionError for what no client could use as an address."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https", "unix", "unixs") or not (parts.netloc or parts.path):
        raise OptionError(f"--advertise-client-urls: {url!r} must be a URL like http://host:port")


def parse_auth_token(text: str) -> tuple[str, dict[str, str]]:
    """--auth-token: the kind of token, "simple" or "jwt", and its settings. Raises OptionError."""
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
    """Seconds of a duration as Go writes it: 30s, 5m, 1h30m, 100ms. Raises ValueError."""
    if text == "0":
        return 0.0
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 5m or 1h30m")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


# What gRPC takes, and etcd with it, where one of these is not above zero.
_GRPC_MIN_TIME_S = 300.0
_GRPC_INTERVAL_S_MIN = 1.0


def parse_grpc_keepalive(min_time: str, interval: str, timeout: str) -> KeepaliveRules:
    """The three --grpc-keepalive durations, with etcd's meaning of zero. Raises OptionError."""
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
    """--auto-compaction-retention: revisions in mode `revision`; a duration or a bare number of hours in `periodic`."""
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
