# SPDX-License-Identifier: Apache-2.0
"""Holds the floors of the house: which package may import what, and what the pure floors may do.

Laws
- An import points only to a lower floor or stays in its own package; packages of one floor are strangers.
- Inside server/ the same holds of its rooms, by a table of their own. A room is what stands directly in server/: a
  folder or a module.
- No files import each other in a circle, in whatever package and at whatever time they do it.
- There is no list of exceptions. What has one home (the clock, the database driver) is named with its home.
- lessor/__init__.py stands below all floors and imports none; lessor/__main__.py is an entry point, above them all.
- Imports are found by parsing, wherever they stand: at the top, in a function, under TYPE_CHECKING.

Each rule takes one parsed module, and `circles` takes all of them; they yield findings as "file:line: what is wrong".
The second half of this file feeds each rule modules that break it, so that a rule that has gone blind is noticed. What
the laws cannot see: imports made by other libraries, and clocks reached through an object that was passed in.
"""

import ast
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

FLOORS = {
    "base": 0,
    "api": 1,
    "state": 2,
    "wire": 2,
    "gateway": 2,
    "etcd_file": 2,
    "durable": 3,
    "client": 3,
    "cluster": 4,
    "engines": 4,
    "replicated": 5,
    "server": 6,
    "cli": 6,
    "testing": 7,
}
SERVER_FLOORS = {
    "options": 0,
    "observe": 1,
    "loop": 2,
    "services": 3,
    "transport": 3,
    "following": 3,
    "tls": 3,
    "foreign_flags": 4,
    "config_file": 4,
    "supervisor": 4,
    "listening": 4,
    "role": 4,
    "main": 5,
    "command": 6,
}
PURE_FLOOR_MAX = 2
PURE_BESIDES = {"cluster"}  # decisions only: replicated/ carries them out
ENTRY, ENTRY_FLOOR = "lessor/__main__.py", 8

# Modules that only these may import: a package, or one file of a package.
HOMES = {
    "asyncio": {"server", "client", "testing", "cli/tasks.py", "engines/etcd_link.py"},
    "uvloop": {"server"},
    "sqlite3": {"durable"},
    "psycopg": {"engines"},
    "psycopg2": {"engines"},
    "asyncpg": {"engines"},
    "pg8000": {"engines"},
}
# Clocks, randomness, files, sockets, threads: nothing that pure code could need.
IMPURE_MODULES = {
    *("time", "datetime", "sched", "random", "secrets", "uuid", "os", "io", "pathlib", "shutil", "tempfile", "mmap"),
    *("socket", "socketserver", "ssl", "select", "selectors", "signal", "subprocess", "threading", "multiprocessing"),
    *("concurrent", "queue", "logging", "getpass", "platform"),
    *("http.client", "http.server", "urllib.request"),
}
IMPURE_CALLS = {"open", "input", "print", "breakpoint"}
CLOCK_HOME = "lessor/base/clock.py"


@dataclass(frozen=True)
class Module:
    """A parsed source file; `path` is relative to src, with slashes."""

    path: str
    tree: ast.Module

    @property
    def package(self) -> str | None:
        """The package under lessor that the file belongs to; None for lessor itself."""
        parts = self.path.split("/")
        return parts[1] if len(parts) > 2 else None

    @property
    def room(self) -> str | None:
        """What stands directly in server/ and is the file or holds it; None outside, and for the package itself."""
        parts = self.path.removesuffix("/__init__.py").removesuffix(".py").split("/")
        return parts[2] if parts[1:2] == ["server"] and len(parts) > 2 else None

    @property
    def floor(self) -> int:
        if self.package is None:
            return ENTRY_FLOOR if self.path == ENTRY else -1
        return FLOORS[self.package]

    @property
    def pure(self) -> bool:
        return self.floor <= PURE_FLOOR_MAX or self.package in PURE_BESIDES

    def finding(self, node: ast.AST, text: str) -> str:
        return f"src/{self.path}:{getattr(node, 'lineno', 1)}: {text}"


def imports_of(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every import with the full dotted name it brings in, relative ones resolved."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = module.path.split("/")[: -node.level]
                origin = ".".join([*above, *([origin] if origin else [])])
            for alias in node.names:
                yield node, f"{origin}.{alias.name}"


def floors(module: Module) -> Iterator[str]:
    for node, name in imports_of(module):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top != "lessor" or target not in FLOORS or target == module.package:
            continue
        if FLOORS[target] >= module.floor:
            where = f"{module.package} (floor {module.floor})" if module.package else "lessor itself"
            yield module.finding(node, f"{where} imports {target} (floor {FLOORS[target]})")


def server_floors(module: Module) -> Iterator[str]:
    for node, name in imports_of(module):
        target = name.removeprefix("lessor.server.").partition(".")[0] if name.startswith("lessor.server.") else ""
        if target not in SERVER_FLOORS or module.package != "server" or target == module.room:
            continue
        if module.room is None:
            yield module.finding(node, f"server/__init__.py stands below all rooms and imports {target}")
        elif SERVER_FLOORS[target] >= SERVER_FLOORS[module.room]:
            where = f"{module.room} (floor {SERVER_FLOORS[module.room]} of server)"
            yield module.finding(node, f"{where} imports {target} (floor {SERVER_FLOORS[target]})")


def file_of(name: str, paths: Collection[str]) -> str | None:
    """The file that an import of `name` asks for: the module, or the one that holds the name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in paths:
                return path
    return None


def circles(modules: Sequence[Module]) -> Iterator[str]:
    """A finding for each set of files that can all be reached from each other, at an import of its first file."""
    paths = {module.path for module in modules}
    imports: dict[str, dict[str, ast.AST]] = {}
    for module in modules:
        found = ((file_of(name, paths), node) for node, name in imports_of(module))
        imports[module.path] = {path: node for path, node in found if path is not None}
    reached = {path: _reached(path, imports) for path in sorted(paths)}
    seen: set[str] = set()
    for module in sorted(modules, key=lambda module: module.path):
        circle = {path for path in reached[module.path] if module.path in reached[path]}
        if circle and module.path not in seen:
            seen |= circle
            node = next(node for path, node in imports[module.path].items() if path in circle)
            yield module.finding(node, f"files import each other in a circle: {', '.join(sorted(circle))}")


def _reached(start: str, imports: Mapping[str, Iterable[str]]) -> set[str]:
    """The files that `start` imports, and those that they import; `start` too where a way leads back."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = set(imports[waiting.pop()]) - reached
        reached |= fresh
        waiting += fresh
    return reached


def homes(module: Module) -> Iterator[str]:
    for node, name in imports_of(module):
        top = name.partition(".")[0]
        if top in HOMES and HOMES[top].isdisjoint((module.package, module.path.removeprefix("lessor/"))):
            yield module.finding(node, f"only {', '.join(sorted(HOMES[top]))} may import {top}")
        if module.floor <= 0 and top not in sys.stdlib_module_names and top != "lessor":
            yield module.finding(node, f"base is standard library only, and {top} is not in it")


def purity(module: Module) -> Iterator[str]:
    if not module.pure:
        return
    for node, name in imports_of(module):
        top = name.partition(".")[0]
        impure = not IMPURE_MODULES.isdisjoint((top, name, name.rpartition(".")[0]))
        if impure and not (top == "time" and module.path == CLOCK_HOME):
            yield module.finding(node, f"pure code imports {name}; what it needs is an argument")
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)):
            yield module.finding(node, "pure code is never async")
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield module.finding(node.target, "pure code is never async")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield module.finding(node, f"pure code calls {node.func.id}()")


def hidden_imports(module: Module) -> Iterator[str]:
    """An import by name at run time would get past the other rules."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == "__import__":
            yield module.finding(node, "__import__ hides an import from the layer test")
    for node, name in imports_of(module):
        if name == "importlib" or name.startswith(("importlib.import_module", "importlib.util", "importlib.machinery")):
            yield module.finding(node, f"{name} hides imports from the layer test")


def services_hold_no_state(module: Module) -> Iterator[str]:
    """Of services/table.py: an object is given its parts when it is made, and remembers nothing after that."""
    if module.path != "lessor/server/services/table.py":
        return
    births = {
        inner
        for birth in ast.walk(module.tree)
        if isinstance(birth, ast.FunctionDef) and birth.name == "__init__"
        for inner in ast.walk(birth)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            yield module.finding(node, "services hold no state")
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        for target in targets:
            own = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
            if own and node not in births:
                yield module.finding(node, "services hold no state")
    for line in module.tree.body:
        if isinstance(line, ast.Assign) and not all(isinstance(t, ast.Name) and t.id.isupper() for t in line.targets):
            yield module.finding(line, "services hold no state: a module level name that is not a CONSTANT")


RULES = (floors, server_floors, homes, purity, hidden_imports, services_hold_no_state)


def module_of(path: str, text: str) -> Module:
    return Module(path, ast.parse(text, path))


@cache
def house() -> list[Module]:
    files = sorted((SOURCE / "lessor").rglob("*.py"))
    return [module_of(file.relative_to(SOURCE).as_posix(), file.read_text()) for file in files]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_floors(rule: object) -> None:
    assert callable(rule)
    findings = [finding for module in house() for finding in rule(module)]
    assert not findings, "\n" + "\n".join(findings)


def test_no_files_import_each_other_in_a_circle() -> None:
    findings = list(circles(house()))
    assert not findings, "\n" + "\n".join(findings)


def test_every_room_of_the_server_stands_on_a_floor() -> None:
    assert {module.room for module in house()} - {None} == SERVER_FLOORS.keys()


def test_every_package_stands_on_a_floor() -> None:
    packages = {module.package for module in house()} - {None}
    assert packages <= FLOORS.keys()
    # Guards the test itself: a wrong SOURCE would find nothing wrong anywhere.
    assert {"base", "api", "state", "wire", "gateway", "durable", "cluster", "server"} <= packages


BROKEN = [
    # floors: upwards, sideways, in each spelling of an import
    (floors, "lessor/state/a.py", "from lessor.durable import engine", 1),
    (floors, "lessor/state/a.py", "import lessor.wire.h2", 1),
    (floors, "lessor/state/a.py", "from lessor import gateway", 1),
    (floors, "lessor/state/a.py", "def f():\n    from lessor.server.main import run", 2),
    (floors, "lessor/state/a.py", "from ..wire import h2", 1),
    (floors, "lessor/state/a.py", "from .. import wire", 1),
    (floors, "lessor/state/deep/a.py", "from ...wire import h2", 1),
    (floors, "lessor/base/a.py", "from lessor.api import methods", 1),
    (floors, "lessor/durable/a.py", "from lessor.client import sync", 1),
    (floors, "lessor/server/a.py", "from lessor.cli import main", 1),
    (floors, "lessor/server/a.py", "from lessor.testing import virtual_clock", 1),
    (floors, "lessor/__init__.py", "from lessor.base import clock", 1),
    (floors, "lessor/wire/a.py", "if TYPE_CHECKING:\n    from lessor.state.machine import StateMachine", 2),
    # rooms of the server: upwards, sideways, in each spelling of an import
    (server_floors, "lessor/server/observe/a.py", "from lessor.server.loop.core import Core", 1),
    (server_floors, "lessor/server/loop/a.py", "import lessor.server.services.watch", 1),
    (server_floors, "lessor/server/loop/core.py", "from lessor.server import transport", 1),
    (server_floors, "lessor/server/services/a.py", "from lessor.server.transport.grpc_calls import Route", 1),
    (server_floors, "lessor/server/transport/a.py", "def f():\n    from ..services import table", 2),
    (server_floors, "lessor/server/transport/a.py", "from .. import tls", 1),
    (server_floors, "lessor/server/loop/deep/a.py", "from ...services import table", 1),
    (server_floors, "lessor/server/services/a.py", "if TYPE_CHECKING:\n    from lessor.server.main import Server", 2),
    (server_floors, "lessor/server/listening.py", "from lessor.server import supervisor", 1),
    (server_floors, "lessor/server/main.py", "from lessor.server import command", 1),
    (server_floors, "lessor/server/observe/__init__.py", "from lessor.server import loop", 1),
    (server_floors, "lessor/server/__init__.py", "from lessor.server.main import Server", 1),
    # homes
    (homes, "lessor/cli/a.py", "import asyncio", 1),
    (homes, "lessor/cli/deep/tasks.py", "import asyncio", 1),
    (homes, "lessor/durable/tasks.py", "import asyncio", 1),
    (homes, "lessor/cli/tasks.py", "import uvloop", 1),
    (homes, "lessor/durable/a.py", "from asyncio import Lock", 1),
    (homes, "lessor/state/a.py", "import asyncio.events", 1),
    (homes, "lessor/server/a.py", "import sqlite3", 1),
    (homes, "lessor/client/a.py", "import uvloop", 1),
    (homes, "lessor/base/a.py", "import click", 1),
    # purity
    (purity, "lessor/state/a.py", "async def f(): pass", 1),
    (purity, "lessor/state/a.py", "import time", 1),
    (purity, "lessor/cluster/a.py", "import random", 1),
    (purity, "lessor/base/a.py", "from time import monotonic", 1),
    (purity, "lessor/base/clock.py", "import random", 1),
    (purity, "lessor/api/a.py", "from datetime import datetime", 1),
    (purity, "lessor/wire/a.py", "import random", 1),
    (purity, "lessor/gateway/a.py", "x = 1\nfrom os import urandom", 2),
    (purity, "lessor/gateway/a.py", "import os.path", 1),
    (purity, "lessor/wire/a.py", "import secrets", 1),
    (purity, "lessor/wire/a.py", "import http.client", 1),
    (purity, "lessor/wire/a.py", "from http import client", 1),
    (purity, "lessor/wire/a.py", "from http.client import HTTPConnection", 1),
    (purity, "lessor/wire/a.py", "import socket", 1),
    (purity, "lessor/state/a.py", "x = 1\ny = open('f')", 2),
    # hidden imports
    (hidden_imports, "lessor/state/a.py", "m = __import__('time')", 1),
    (hidden_imports, "lessor/server/a.py", "from importlib import import_module", 1),
    (hidden_imports, "lessor/server/a.py", "import importlib", 1),
    # services
    (services_hold_no_state, "lessor/server/services/table.py", "seen = {}", 1),
    (services_hold_no_state, "lessor/server/services/table.py", "class S:\n def call(self):\n  self.count = 1", 3),
    (services_hold_no_state, "lessor/server/services/table.py", "class S:\n def call(self):\n  self.count += 1", 3),
    (services_hold_no_state, "lessor/server/services/table.py", "def f():\n global x", 2),
]


@pytest.mark.parametrize(("rule", "path", "text", "line"), BROKEN)
def test_each_rule_finds_what_breaks_it(rule: object, path: str, text: str, line: int) -> None:
    assert callable(rule)
    findings = list(rule(module_of(path, text)))
    assert len(findings) == 1
    assert findings[0].startswith(f"src/{path}:{line}: ")


CIRCLES = [
    # two files; one of them at run time only, or for types only
    ({"state/a": "from lessor.state import b", "state/b": "from lessor.state.a import A"}, ["a:1: a b"]),
    ({"state/a": "import lessor.state.b", "state/b": "x = 1\ndef f():\n    from . import a"}, ["a:1: a b"]),
    ({"state/a": "if TYPE_CHECKING:\n    from .b import B", "state/b": "from .a import A"}, ["a:2: a b"]),
    # the line is that of an import that is part of it
    ({"wire/a": "from .c import C\nfrom .b import B", "wire/b": "from .a import A", "wire/c": ""}, ["a:2: a b"]),
    # three files, two circles that share one, two that do not
    ({"cli/a": "from . import b", "cli/b": "from . import c", "cli/c": "from . import a"}, ["a:1: a b c"]),
    ({"cli/a": "from . import b, c", "cli/b": "from . import a", "cli/c": "from . import a"}, ["a:1: a b c"]),
    (
        {
            "cli/a": "from . import b",
            "cli/b": "from . import a",
            "cli/c": "from . import d",
            "cli/d": "from . import c",
        },
        ["a:1: a b", "c:1: c d"],
    ),
    # through the package's own file, and a file that imports itself
    ({"client/__init__": "from .a import A", "client/a": "from lessor.client import B"}, ["__init__:1: __init__ a"]),
    ({"client/a": "from . import a"}, ["a:1: a"]),
    # no circle
    ({"cli/a": "from . import b, c", "cli/b": "from . import c", "cli/c": "import asyncio"}, []),
    ({"client/__init__": "from .a import A\nfrom .b import B", "client/a": "", "client/b": "from .a import A"}, []),
]


@pytest.mark.parametrize(("files", "expected"), CIRCLES)
def test_circles_of_files_are_found(files: dict[str, str], expected: list[str]) -> None:
    def short(path: str) -> str:
        return path.rpartition("/")[2].removesuffix(".py")

    found = []
    for finding in circles([module_of(f"lessor/{path}.py", text) for path, text in files.items()]):
        path, line, text = finding.split(":", 2)
        names = sorted(short(each) for each in text.rpartition(": ")[2].split(", "))
        found.append(f"{short(path)}:{line}: {' '.join(names)}")
    assert found == expected


SOUND = [
    ("lessor/state/a.py", "from lessor.base import errors\nfrom lessor.api.proto import rpc_pb2\nfrom . import mvcc"),
    ("lessor/state/a.py", "from sortedcontainers import SortedDict\nimport heapq"),
    ("lessor/base/clock.py", "import time"),
    ("lessor/wire/a.py", "from http import HTTPStatus\nfrom urllib.parse import urlsplit"),
    ("lessor/__main__.py", "from lessor.cli.main import main"),
    ("lessor/__init__.py", "__version__ = '1'"),
    (
        "lessor/server/a.py",
        "import asyncio, uvloop, os\nfrom lessor import __version__\nfrom lessor.durable import sqlite",
    ),
    ("lessor/durable/a.py", "import sqlite3, threading\nfrom lessor.state import journal"),
    ("lessor/testing/a.py", "import asyncio\nfrom lessor.server.main import Server\nfrom lessor.client import sync"),
    ("lessor/cli/a.py", "from importlib import metadata\nfrom lessor.client import sync\nprint(1)"),
    ("lessor/cli/tasks.py", "import asyncio"),
    (
        "lessor/server/services/a.py",
        "from lessor.server import options\nfrom lessor.server.loop import core\nfrom . import watch",
    ),
    (
        "lessor/server/main.py",
        "from lessor.server.services import table\nfrom .transport import connection, h2_session",
    ),
    ("lessor/server/tls/a.py", "from lessor.server.options import TlsOptions\nfrom lessor.server.tls import peer"),
    ("lessor/server/services/table.py", "LIMIT = 1\nclass S:\n def __init__(self, machine):\n  self.machine = machine"),
]


@pytest.mark.parametrize(("path", "text"), SOUND)
def test_no_rule_objects_to_sound_code(path: str, text: str) -> None:
    assert [finding for rule in RULES for finding in rule(module_of(path, text))] == []
