# SPDX-License-Identifier: Apache-2.0
"""Builds a wheel whose innermost modules are compiled, when the environment says LESSOR_COMPILE=1.

mypyc turns the very files named here, types and all, into one C extension. Nothing is written for it: without the
variable the same files run as they are, and no C compiler is needed. Why, and what it asks of the code:
docs/decisions/0011-compiled-build.md.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What each call goes through. A class that inherits from a compiled one must be compiled too.
FOLDERS = ("base", "state", "wire")
SERVER = (
    "loop/call",
    "loop/core",
    "loop/expiry",
    "loop/release",
    "loop/turn",
    "loop/unfinished",
    "observe/histogram",
    "observe/metrics",
    "services/keepalive",
    "services/table",
    "services/watch",
    "transport/connection",
    "transport/grpc_calls",
    "transport/h1_session",
    "transport/h2_output",
    "transport/h2_session",
    "transport/http_calls",
)
DURABLE = ("record", "sectors", "unfolded", "upkeep")  # what each commit goes through
PIP_RUN = "PIP_BUILD_TRACKER"  # names a folder that is there as long as pip runs
BUILD_NEEDS = ("mypy[mypyc]>=1.15", "setuptools>=77", "types-protobuf>=6.30")


class CompileHook(BuildHookInterface[Any]):
    """hatchling calls it before it packs a wheel, and after."""

    _own: Path | None = None

    def _wanted(self) -> bool:
        return self.target_name == "wheel" and os.environ.get("LESSOR_COMPILE", "") not in ("", "0")

    def dependencies(self) -> list[str]:
        return [*BUILD_NEEDS, *self.metadata.core.dependencies] if self._wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._wanted():
            return
        if version == "editable":
            raise ValueError("LESSOR_COMPILE is for wheels: an editable install would run files older than its sources")
        # pip shows it with -v only.
        print("lessor: compiling, which takes two to four minutes", file=sys.stderr, flush=True)
        scratch = self._scratch()
        for built in self._compile(scratch):
            build_data["force_include"][str(built)] = str(built.relative_to(scratch / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    def _scratch(self) -> Path:
        """Where the compiler's 41 MB lie: outside the source tree, and no longer than they are needed.

        pip has a wheel made twice, by two processes, the first time for its metadata. The second time nothing is to be
        done any more, because pip keeps a folder from the first to the last, and deletes it then.
        """
        of_pip = os.environ.get(PIP_RUN)
        if of_pip:
            return Path(of_pip, "lessor-mypyc")
        self._own = Path(tempfile.mkdtemp(prefix="lessor-mypyc-"))
        return self._own

    def _compile(self, scratch: Path) -> list[Path]:
        from mypyc.build import mypycify
        from setuptools import Distribution

        package = Path(self.root, "src", "lessor")
        sources = [path for folder in FOLDERS for path in sorted(package.joinpath(folder).glob("*.py"))]
        sources += [package / "server" / f"{name}.py" for name in SERVER]
        sources += [package / "durable" / f"{name}.py" for name in DURABLE]
        names = [str(path.relative_to(self.root)) for path in sources if path.name != "__init__.py"]
        os.chdir(self.root)  # mypy finds its settings here
        # In front, because mypy takes them as its command line.
        names = [f"--cache-dir={scratch / 'cache'}", *names]
        extensions = mypycify(names, opt_level="1", debug_level="0", target_dir=str(scratch / "c"))
        command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(scratch / "lib"), str(scratch / "temp")
        command.ensure_finalized()
        command.run()
        return [Path(built) for built in command.get_outputs()]
