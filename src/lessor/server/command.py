# SPDX-License-Identifier: Apache-2.0
"""`lessor serve`: the command line of the server.

As in etcd, each flag is also an environment variable: ETCD_ and the name of the flag in capitals. It is an error to set
both, so that there is no doubt which one counts. With --config-file neither counts, and a line of the log names those
that are set. Flags of etcd's without a meaning here: foreign_flags.py.
"""

import asyncio
import copy
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from lessor.api import version
from lessor.base import limits
from lessor.durable.engine import DataDirError, EngineError
from lessor.server import config_file
from lessor.server.foreign_flags import Foreign, is_foreign
from lessor.server.observe import logs
from lessor.server.observe.log_outputs import DEFAULT_ROTATION, parse_log_outputs
from lessor.server.options import (
    DEFAULT_CLIENT_URL,
    Listen,
    OptionError,
    Options,
    check_advertised_url,
    check_reachable_url,
    parse_cluster_lease_s,
    parse_duration_s,
    parse_grpc_keepalive,
    parse_listen_url,
    parse_retention,
)
from lessor.server.tls import flags as tls_flags

log = logging.getLogger("lessor")

EXIT_CANNOT_SERVE = 1


def _flag(name: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A flag and its ETCD_ environment variable."""
    variable = "ETCD_" + name.upper().replace("-", "_")
    names = [f"--{name}", *(f"--{alias}" for alias in settings.pop("aliases", ()))]
    return click.option(*names, envvar=variable, show_envvar=True, show_default=True, **settings)


def _flags(flags: Iterable[tuple[str, dict[str, Any]]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Several flags, in the order in which the help lists them."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, settings in reversed(list(flags)):
            function = _flag(name, **settings)(function)
        return function

    return add


class _Serve(click.Command):
    """Takes flags with one dash too, as Go does, and knows the flags of etcd that have no meaning here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {opt for parameter in self.params for opt in parameter.opts}
        args = [f"-{word}" if f"-{word}".partition("=")[0] in known else word for word in args]
        ctx.obj = foreign = Foreign()
        return super().parse_args(ctx, foreign.take(args))


class _ForeignFlagsError(click.ClickException):
    exit_code = 2  # as for other mistakes on a command line


def _show_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(version.text(), nl=False)
        context.exit()


@click.command(cls=_Serve, context_settings={"max_content_width": 120})
@_flag("name", default="default", help="Name of this member.")
@_flag("data-dir", default=None, help="Directory that holds the data.  [default: NAME.lessor]")
@_flag(
    "listen-client-urls",
    default=DEFAULT_CLIENT_URL,
    help="URLs to listen on, with commas: http(s)://host:port, unix(s)://path.",
)
@_flag("listen-metrics-urls", default=None, help="URLs to listen on for /metrics and the health pages alone.")
@_flag("advertise-client-urls", default=None, help="URLs that clients are told to use.  [default: those listened on]")
@_flags(tls_flags.FLAGS)
@_flag("max-txn-ops", default=limits.TXN_OPS_MAX, type=click.IntRange(min=1), help="Operations allowed in one txn.")
@_flag(
    "max-request-bytes",
    default=limits.REQUEST_BYTES_MAX,
    type=click.IntRange(min=1),
    help="Size allowed for a write request.",
)
@_flag(
    "quota-backend-bytes",
    default=0,
    type=int,
    help="Data size at which writes are refused (alarm NOSPACE); 0 means 2 GiB.",
)
@_flag(
    "auto-compaction-mode",
    default="periodic",
    type=click.Choice(["periodic", "revision"]),
    help="What the retention counts.",
)
@_flag("auto-compaction-retention", default="0", help="History kept: hours or a duration, or revisions; 0 keeps all.")
@_flag(
    "watch-progress-notify-interval",
    aliases=["experimental-watch-progress-notify-interval"],  # until etcd 3.5
    default="10m",
    help="How often idle watchers that ask for it are notified.",
)
@_flag("grpc-keepalive-min-time", default="5s", help="How often a client with calls under way may ping.")
@_flag("grpc-keepalive-interval", default="2h", help="Silence of a client after which it is pinged.")
@_flag("grpc-keepalive-timeout", default="20s", help="How long it then has to answer, before its connection is closed.")
@_flag(
    "min-lease-ttl",
    default=limits.LEASE_TTL_S_MIN,
    type=click.IntRange(min=1, max=limits.LEASE_TTL_S_MAX),
    help="Shortest TTL granted, in seconds.",
)
@_flag(
    "auth-token", default="simple", help="Tokens of users: simple, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE."
)
@_flag(
    "auth-token-ttl",
    default=limits.AUTH_TOKEN_TTL_S,
    type=click.IntRange(min=0),
    help="Seconds that a simple token lives after its last use; 0 means the default.",
)
@_flag(
    "bcrypt-cost",
    default=limits.BCRYPT_COST,
    type=click.IntRange(4, 31),
    help="Cost of hashing a password; each step doubles it.",
)
@_flag(
    "engine",
    default="",
    help="Shared log to keep the data in: postgres://..., etcd://...  [default: a log in the data directory]",
)
@_flag("engine-may-lose-commits", is_flag=True, help="Use an engine that loses what it has acknowledged, for trials.")
@_flag(
    "cluster-lease",
    default="1s",
    help="How long one record in the engine lets this server answer; another takes over a quarter later.",
)
@_flag("ui", **{**tls_flags.SWITCH, "default": True}, help="Serve the page for people at /ui/.")
@_flag("log-level", default="info", type=click.Choice(logs.LEVELS), help="Least severe messages to log.")
@_flag("log-format", default="json", type=click.Choice(list(logs.FORMATTERS)), help="Form of a line of the log.")
@_flag("log-outputs", default="default", help="Where the log goes: default, stderr, stdout, or files, with commas.")
@_flag("enable-log-rotation", **tls_flags.SWITCH, help="Put the one file of --log-outputs aside when it is large.")
@_flag(
    "log-rotation-config-json",
    default=DEFAULT_ROTATION,
    help="When: maxsize in MiB; how many files are kept: maxbackups, 0 for all.",
)
@_flag("config-file", default="", help="Flags as a YAML file. Other flags and variables do not count then.")
@_flag("strict-flags", **tls_flags.SWITCH, help="Refuse flags of etcd that would have no effect.")
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Print the version."
)
@click.pass_context
def serve(context: click.Context, /, **values: Any) -> None:
    """Serve the etcd v3 API from one data directory."""
    foreign: Foreign = context.obj
    foreign.take_variables(os.environ)
    overridden: list[str] = []
    strict = values["strict_flags"]
    try:
        if values["config_file"]:
            overridden, foreign = foreign.names, Foreign()
            words = foreign.take(config_file.words_of(values["config_file"]))
            strict = strict or "--strict-flags=true" in words
            options = parse(words)
        else:
            _refuse_doubles(context)
            options = build(values)
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    complaint = foreign.complaint
    if complaint is None and strict and foreign.idle:
        complaint = f"{', '.join(foreign.idle)}: without effect; leave it out, or leave out --strict-flags"
    if complaint is not None:
        raise _ForeignFlagsError(complaint)
    try:
        logs.set_up(options.log_level, options.log_format, options.log_outputs)
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    _name_strangers(context, foreign, overridden)
    signals = _Signals()
    signals.starting()
    from lessor.server.main import run

    try:
        code = run(options, signals)
    except (DataDirError, EngineError, OptionError) as error:
        click.echo(f"lessor: {error}", err=True)
        code = EXIT_CANNOT_SERVE
    sys.exit(code)


def parse(flags: Sequence[str]) -> Options:
    """The Options of `lessor serve` with these flags. Reads no environment variables.

    Raises OptionError, or click.UsageError for an unknown flag or a value of the wrong type.
    """
    params = [copy.copy(param) for param in serve.params]
    for param in params:
        param.envvar = None
    with click.Command(serve.name, params=params).make_context("serve", list(flags)) as context:
        return build(context.params)


def _refuse_doubles(context: click.Context) -> None:
    for parameter in context.command.params:
        variable = getattr(parameter, "envvar", None)
        given = context.get_parameter_source(parameter.name or "")
        if given is ParameterSource.COMMANDLINE and variable and parameter.value_from_envvar(context):
            raise OptionError(f"both {parameter.opts[0]} and {variable} are set; unset one of them")


def _name_strangers(context: click.Context, foreign: Foreign, overridden: list[str]) -> None:
    """Logs what is set and has no effect: its operator may believe that it protects the server.

    As in etcd, there is a line for each ETCD_ variable that no flag has. `overridden`: flags of etcd beside a file.
    """
    if foreign.idle:
        log.warning("these flags of etcd have no effect here", extra={"flags": ", ".join(foreign.idle)})
    if context.params["config_file"]:
        others = [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.name not in ("config_file", "strict_flags")
            and context.get_parameter_source(parameter.name or "")
            in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        ]
        others += overridden
        if others:
            log.warning("with --config-file these flags do not count", extra={"flags": ", ".join(others)})
        return
    known = {getattr(parameter, "envvar", None) for parameter in context.command.params}
    for variable in sorted(os.environ):
        if variable.startswith("ETCD_") and variable not in known and not is_foreign(variable):
            log.warning("unrecognized environment variable", extra={"environment-variable": variable})


def build(values: dict[str, Any]) -> Options:
    """Checks the values of the flags, by their Python names, and makes Options of them. Raises OptionError."""
    listen = tuple(parse_listen_url(url.strip()) for url in values["listen_client_urls"].split(","))
    metrics = _listen_metrics(values["listen_metrics_urls"])
    advertised = values["advertise_client_urls"]
    try:
        notify_s = parse_duration_s(values["watch_progress_notify_interval"])
    except ValueError as error:
        raise OptionError(f"--watch-progress-notify-interval: {error}") from None
    if notify_s < 0.1:
        raise OptionError("--watch-progress-notify-interval: 100ms is the least")
    if values["quota_backend_bytes"] < 0:
        raise OptionError("--quota-backend-bytes: must not be negative; 0 means 2 GiB")
    if not values["name"] or "/" in values["name"]:
        raise OptionError(f"--name: {values['name']!r} must not be empty and hold no /")
    if advertised:
        for url in advertised.split(","):
            check_advertised_url(url)
    if values["engine"]:
        for url in advertised.split(",") if advertised else [each.url for each in listen]:
            check_reachable_url(url)
    mode = values["auto_compaction_mode"]
    return Options(
        name=values["name"],
        data_dir=values["data_dir"] or f"{values['name']}.lessor",
        listen_client_urls=listen,
        listen_metrics_urls=metrics,
        advertise_client_urls=tuple(advertised.split(",")) if advertised else tuple(each.url for each in listen),
        max_txn_ops=values["max_txn_ops"],
        max_request_bytes=values["max_request_bytes"],
        quota_backend_bytes=values["quota_backend_bytes"] or limits.QUOTA_BACKEND_BYTES,
        auto_compaction_mode=mode,
        auto_compaction_retention=parse_retention(mode, values["auto_compaction_retention"]),
        watch_progress_notify_interval_s=notify_s,
        min_lease_ttl_s=values["min_lease_ttl"],
        grpc_keepalive=parse_grpc_keepalive(
            values["grpc_keepalive_min_time"], values["grpc_keepalive_interval"], values["grpc_keepalive_timeout"]
        ),
        tls=tls_flags.read(values, (*listen, *metrics)),
        ui=values["ui"],
        log_level=values["log_level"],
        log_format=values["log_format"],
        log_outputs=parse_log_outputs(
            values["log_outputs"], values["enable_log_rotation"], values["log_rotation_config_json"]
        ),
        auth_token=values["auth_token"],
        auth_token_ttl_s=values["auth_token_ttl"] or limits.AUTH_TOKEN_TTL_S,
        bcrypt_cost=values["bcrypt_cost"],
        engine=values["engine"],
        engine_may_lose_commits=values["engine_may_lose_commits"],
        cluster_lease_s=parse_cluster_lease_s(values["cluster_lease"]),
    )


def _listen_metrics(urls: str | None) -> tuple[Listen, ...]:
    try:
        return tuple(parse_listen_url(url.strip()) for url in urls.split(",")) if urls else ()
    except OptionError as error:
        raise OptionError(str(error).replace("--listen-client-urls", "--listen-metrics-urls")) from None


class _Signals:
    """SIGTERM and SIGINT end the server. While it starts they end the process at once: nothing is to be saved then.

    SIGHUP: the terminal has closed, or somebody asks us to read our files again, as is the custom of daemons.
    """

    def __init__(self) -> None:
        self._had_terminal = _terminal_is_there()
        self._server: Any = None  # before it has started
        self._stopping = False

    def starting(self) -> None:
        """A server starts. The loop of one before it has ended, and has given the signals back."""
        self._server = None
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it, for us too
            signal.signal(signal.SIGHUP, self.on_signal)

    def install(self, loop: asyncio.AbstractEventLoop, server: Any) -> None:
        """From now on the loop takes the signals: SIGTERM and SIGINT, too."""
        self._server = server
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.request_stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self.on_signal)

    def on_signal(self, *_: object) -> None:
        """Raises SystemExit if the terminal has closed while the server starts."""
        if self._stopping:
            return  # the kernel and the shell both send the signal when a terminal closes: one is enough
        if self._had_terminal and not _terminal_is_there():
            self._stopping = True
            log.warning("SIGHUP: the terminal has closed; stopping", extra={"remedy": "start the server with nohup"})
            if self._server is None:
                sys.exit(EXIT_CANNOT_SERVE)
            self._server.request_stop()
        elif self._server is None:
            log.info("SIGHUP: going on with the start. SIGTERM stops the server")
        else:
            log.info("SIGHUP: going on; certificates are read again if they have changed. SIGTERM stops the server")
            self._server.read_certificates()


def _terminal_is_there() -> bool:
    """Whether the process has a controlling terminal that is still connected."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.EIO, errno.ENODEV, errno.ENOENT)
    return True
