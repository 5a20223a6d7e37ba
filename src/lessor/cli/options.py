# SPDX-License-Identifier: Apache-2.0
"""The flags that every command takes, and the reading of a command line, so that etcdctl's command lines work.

Theory of operation: click reads the line. The flags for all commands may stand before or after the command's name, so
they are parameters of the group and of each command, and all of them write into one `Globals`; the later flag wins. A
setting without a flag comes from the environment (ETCDCTL_ENDPOINTS and so on), then from the defaults. Where click and
etcdctl's library read a line differently (`--prefix=false`, `-w=json`), `Command` and `Group` rewrite the line first.

Unlike in etcdctl, a flag and an environment variable for the same setting are not an error (the flag wins), and a
variable that cannot be read is one.
"""

import getpass
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from lessor.cli import notation
from lessor.cli.failure import BAD_ARGS, ERROR, Failure
from lessor.cli.notation import quote

DEFAULT_ENDPOINT = "127.0.0.1:2379"
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
COMPLETION = "_LESSOR_COMPLETE"  # the environment variable by which a script of `completion` asks this program


@dataclass(frozen=True)
class Settings:
    """The settings from the flags for all commands and the environment, read and checked."""

    endpoints: tuple[str, ...]
    dial_timeout_s: float
    command_timeout_s: float
    output_format: str
    hexadecimal: bool
    debug: bool
    cacert: str = ""
    cert: str = ""
    key: str = ""
    insecure_skip_tls_verify: bool = False
    insecure_transport: bool = True
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    max_request_bytes: int = 0  # 0 and below: no limit of ours
    max_recv_bytes: int = 0
    keepalive_time_s: float = 2.0
    keepalive_timeout_s: float = 6.0
    server_name: str = ""  # the name that certificates must have, if not the endpoint's host


class Globals:
    """The flags for all commands as they were given, gathered from everywhere on the line."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self._settings: Settings | None = None

    def settings(self) -> Settings:
        """Adds the environment and the defaults, asks for a password and looks the endpoints up, all only once.

        Failure for a variable that cannot be read, and when no endpoint is found.
        """
        if self._settings is None:
            self._settings = self._read()
        return self._settings

    def _read(self) -> Settings:
        endpoints, server_name = self._servers()
        token = self._value("auth_jwt_token", str, "")
        user, password = self._value("user", str, ""), self._value("password", str, "")
        user, password = ("", "") if token else credentials(user, password, "Password: ")
        return Settings(
            endpoints=endpoints,
            server_name=server_name,
            dial_timeout_s=self._value("dial_timeout", notation.duration_s, 2.0),
            command_timeout_s=self._value("command_timeout", notation.duration_s, 5.0),
            output_format=self._value("write_out", str, "simple"),
            hexadecimal=self._value("hex", notation.boolean, False),
            debug=self._value("debug", notation.boolean, False),
            cacert=self._value("cacert", str, ""),
            cert=self._value("cert", str, ""),
            key=self._value("key", str, ""),
            insecure_skip_tls_verify=self._value("insecure_skip_tls_verify", notation.boolean, False),
            insecure_transport=self._value("insecure_transport", notation.boolean, True),
            user=user,
            password=password,
            token=token,
            max_request_bytes=self._value("max_request_bytes", _decimal, 0),
            max_recv_bytes=self._value("max_recv_bytes", _decimal, 0),
            keepalive_time_s=self._value("keepalive_time", notation.duration_s, 2.0),
            keepalive_timeout_s=self._value("keepalive_timeout", notation.duration_s, 6.0),
        )

    def _servers(self) -> tuple[tuple[str, ...], str]:
        """The endpoints, and the name that their certificates must have: the domain, if DNS is not to be trusted."""
        domain = self._value("discovery_srv", str, "")
        if not domain:
            return self._value("endpoints", _endpoints, (DEFAULT_ENDPOINT,)), ""
        from lessor.cli.discovery import endpoints_of

        insecure = self._value("insecure_discovery", notation.boolean, True)
        service_name = self._value("discovery_srv_name", str, "")
        timeout_s = self._value("dial_timeout", notation.duration_s, 2.0)
        found = endpoints_of(domain, service_name, insecure=insecure, timeout_s=timeout_s)
        return tuple(found), "" if insecure else domain

    def _value(self, name: str, read: Callable[[str], Any], default: Any) -> Any:
        if name in self.given:
            return self.given[name]
        variable = "ETCDCTL_" + name.upper()
        text = os.environ.get(variable, "")
        if not text:
            return default
        try:
            return read(text)
        except ValueError as error:
            raise Failure(ERROR, f"invalid value {quote(text.encode())} for {variable}: {error}") from None


def credentials(user: str, password: str, prompt: str) -> tuple[str, str]:
    """`user` is NAME or NAME:PASSWORD; with `password` it is the name alone. Asks for a missing password."""
    if not user or password:
        return user, password
    name, colon, password = user.partition(":")
    return (name, password) if colon else (user, ask_password(prompt))


def ask_password(prompt: str) -> str:
    """Asks on the terminal; without one, takes a line of standard input. Failure when there is neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", getpass.GetPassWarning)  # that a line that is piped in may be echoed
        try:
            return getpass.getpass(prompt)
        except EOFError:
            text = (
                "no terminal to ask for a password, and nothing on standard input: write NAME:PASSWORD, or --password"
            )
            raise Failure(BAD_ARGS, text) from None


def _endpoints(text: str) -> tuple[str, ...]:
    return tuple(endpoint.strip() for endpoint in text.split(",") if endpoint.strip())


class GoValue(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic in newer versions of click
    """The value of a flag, read by a function of `notation`; the complaint about a bad value is etcdctl's."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            flag = ", ".join(sorted(param.opts, key=len)) if param else ""
            text = f'invalid argument {quote(os.fsencode(value))} for "{flag}" flag: {error}'
            raise Failure(ERROR, f"{text}{hint(ctx)}") from None


class FileName(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic in newer versions of click
    """The name of a file, which is not opened here."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise Failure(BAD_ARGS, f"empty string is passed to {param.opts[0] if param else 'the'} option")
        return value


def _decimal(text: str) -> int:
    return notation.int64(text, 10)


INT64 = GoValue("int", _decimal)
DURATION = GoValue("duration", notation.duration_s)
FILE = FileName()


def hint(ctx: click.Context | None) -> str:
    """The end of a complaint about the command line: where to read on."""
    return f" (see '{ctx.command_path} --help')" if ctx and ctx.command_path else ""


def _gather(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    gathered = ctx.find_object(Globals)
    if gathered is None:
        gathered = ctx.obj = Globals()
    if ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE:
        gathered.given[param.name or ""] = value


def _gather_endpoints(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    _gather(ctx, param, tuple(endpoint for text in value for endpoint in _endpoints(text)))


def _formats(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    return [name for name in ("fields", "json", "protobuf", "simple", "table") if name.startswith(begun)]


def _global_options() -> list[click.Parameter]:
    def option(*names: str, help: str, callback: Any = _gather, **kind: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=callback, help=help, **kind)

    return [
        option(
            "--endpoints",
            multiple=True,
            callback=_gather_endpoints,
            metavar="LIST",
            help="Servers, comma-separated, tried in this order: host:port, http(s)://host:port or unix(s):///path "
            f"(default {DEFAULT_ENDPOINT}).",
        ),
        option(
            "-d",
            "--discovery-srv",
            metavar="DOMAIN",
            help="Use the servers that the SRV records of this domain name, rather than --endpoints.",
        ),
        option("--discovery-srv-name", metavar="NAME", help="Look for _etcd-client-NAME there, not _etcd-client."),
        option(
            "--insecure-discovery/--no-insecure-discovery",
            default=True,
            help="Take servers found so that speak no TLS, or whose certificates do not name DOMAIN (default true).",
        ),
        option("--dial-timeout", type=DURATION, help="Longest wait for a connection, per endpoint (default 2s)."),
        option("--command-timeout", type=DURATION, help="Longest wait for an answer (default 5s)."),
        option(
            "--keepalive-time",
            type=DURATION,
            help="Silence after which a server is asked for a sign of life; 0: never, below 10s: 10s (default 2s).",
        ),
        option("--keepalive-timeout", type=DURATION, help="Longest wait for that sign (default 6s)."),
        option("--cacert", type=FILE, help="CA certificates (PEM) that the server's must come from."),
        option("--cert", type=FILE, help="The client's own certificate (PEM), for servers that ask for one."),
        option("--key", type=FILE, help="The key of that certificate (PEM)."),
        option("--insecure-skip-tls-verify", is_flag=True, help="Believe any server. For trials only."),
        option(
            "--insecure-transport/--no-insecure-transport",
            default=True,
            help="Without other flags for TLS, speak none to endpoints that do not say https:// (default true).",
        ),
        option(
            "-w",
            "--write-out",
            metavar="FORMAT",
            shell_complete=_formats,
            help="simple, json, fields, table or protobuf, where a command has them (default simple).",
        ),
        option("--hex", is_flag=True, help="Print byte strings, and the ids of the fields format, in hexadecimal."),
        option("--user", metavar="NAME[:PASSWORD]", help="Log in as this user (asks for a password that is missing)."),
        option("--password", metavar="PASSWORD", help="The user's password; --user is the name alone then."),
        option("--auth-jwt-token", metavar="TOKEN", help="A JWT to call with, in the place of --user and --password."),
        option("--max-request-bytes", type=INT64, help="The largest request to send (default 0: the server decides)."),
        option("--max-recv-bytes", type=INT64, help="The largest reply to take (default 0: any)."),
        option("--debug", is_flag=True, help="Print the settings, and the whole story of an internal error."),
    ]


@contextmanager
def _knowing(ctx: click.Context) -> Iterator[None]:
    """Adds to a complaint about the line the command that it is about; click does not always do it."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or ctx
        raise


def rewritten(args: list[str], params: list[click.Parameter], ctx: click.Context | None = None) -> list[str]:
    """The line as click reads it: `--flag=true` is `--flag`, `--flag=false` goes away, `-w=json` is `-wjson`."""
    options = {name: param for param in params if isinstance(param, click.Option) for name in param.opts}
    result = []
    arguments = iter(args)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = options.get(name)
        if argument == "--":
            result += [argument, *arguments]
        elif option is None:
            result.append(argument)
        elif not equals:
            result.append(argument)
            if not option.is_flag:
                result += [value for value in [next(arguments, None)] if value is not None]
        elif not option.is_flag:
            result.append(argument if name.startswith("--") else name + value)
        else:
            try:
                result += [name] if notation.boolean(value) else option.secondary_opts[:1]
            except ValueError as error:
                text = f'invalid argument {quote(os.fsencode(value))} for "{name}" flag: {error}'
                raise Failure(ERROR, f"{text}{hint(ctx)}") from None
    return result


class Command(click.Command):
    """A command that takes the flags for all commands besides its own."""

    def __init__(self, name: str | None, **kinds: Any) -> None:
        super().__init__(name, context_settings=HELP_OPTIONS, **kinds)
        self.own_params = [param.name for param in self.params]
        self.params += _global_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _knowing(ctx):
            return super().parse_args(ctx, rewritten(args, self.get_params(ctx), ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self._write_options(ctx, formatter, "Options", own=True)
        self.format_common_options(ctx, formatter)

    def format_common_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the flags for all commands."""
        self._write_options(ctx, formatter, "Options of all commands", own=False)

    def _write_options(self, ctx: click.Context, formatter: click.HelpFormatter, title: str, *, own: bool) -> None:
        params = [param for param in self.get_params(ctx) if (param.name in (*self.own_params, "help")) is own]
        records = [record for record in (param.get_help_record(ctx) for param in params) if record is not None]
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def read_own(command: click.Command, args: list[str]) -> dict[str, Any]:
    """The arguments and flags of a line of input that names this command, by name. Failure for a wrong line.

    Such a line has only the command's own flags: those of all commands stand on the command line.
    """
    assert isinstance(command, Command)
    params = [param for param in command.params if param.name in command.own_params]
    reader = click.Command(None, params=params, add_help_option=False)
    try:
        return reader.make_context("", rewritten(args, params)).params
    except click.UsageError as error:
        error.ctx = None
        raise Failure(BAD_ARGS, complaint(error)) from None
    except Failure as failure:
        raise Failure(BAD_ARGS, failure.text) from None


@click.pass_context
def _help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


class Group(click.Group):
    """A group of commands, each loaded when it is called: a client command never waits for the server's code.

    `loaders` has, by name, the text for the help and the function that imports the command. A command may be called by
    any beginning of its name that no other command shares, as in etcdctl.
    """

    def __init__(self, name: str, help: str, loaders: dict[str, tuple[str, Callable[[], click.Command]]]) -> None:
        super().__init__(
            name,
            help=help,
            callback=_help,
            invoke_without_command=True,
            subcommand_metavar="COMMAND [ARGS]...",
            context_settings=HELP_OPTIONS,
        )
        self.loaders = loaders
        self.params += _global_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _knowing(ctx):
            return super().parse_args(ctx, rewritten(args, self.get_params(ctx), ctx))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.loaders)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        loader = self.loaders.get(cmd_name)
        return loader[1]() if loader else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        said = args[0]
        names = [said] if said in self.loaders else [name for name in self.loaders if said and name.startswith(said)]
        if len(names) != 1:
            maybe = f", could be {' or '.join(sorted(names))}" if names else suggestion(said, self.loaders)
            text = f'unknown command {quote(os.fsencode(said))} for "{ctx.command_path}"{maybe}{hint(ctx)}'
            raise Failure(ERROR, text)
        return names[0], self.get_command(ctx, names[0]), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.loaders[name][0]) for name in self.list_commands(ctx)])


def settings_of(ctx: click.Context) -> Settings:
    """The settings of the line. To be called when the whole line has been read: inside a command."""
    gathered = ctx.find_object(Globals)
    return (gathered or Globals()).settings()


def suggestion(said: str, known: Iterable[str], before: str = "") -> str:
    """The end of a complaint about a name: the known names that may have been meant, if any."""
    from difflib import get_close_matches

    meant = get_close_matches(said, known, cutoff=0.7)
    return f"; did you mean {' or '.join(before + name for name in meant)}?" if meant else ""


# In click's words; `complaint` says the same in etcdctl's.
_NEEDS_VALUE = re.compile(r"requires an argument")


def complaint(error: click.UsageError) -> str:
    """The error in the command line, in etcdctl's words, and where to read on."""
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        text = f"unknown flag: {name}" if name.startswith("--") else f"unknown shorthand flag: '{name[1:2]}' in {name}"
        if error.ctx is not None:
            flags = (flag for param in error.ctx.command.get_params(error.ctx) for flag in param.opts)
            text += suggestion(name[2:], (flag[2:] for flag in flags if flag.startswith("--")), "--")
    elif isinstance(error, click.BadOptionUsage) and _NEEDS_VALUE.search(error.message):
        name = error.option_name
        text = (
            f"flag needs an argument: {name}"
            if name.startswith("--")
            else f"flag needs an argument: '{name[1:]}' in {name}"
        )
    else:
        text = error.format_message().rstrip(".")
    return f"{text}{hint(error.ctx)}"
