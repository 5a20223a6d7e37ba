# SPDX-License-Identifier: Apache-2.0
"""What scripts/release asks of a version and of its files.

    release_checks.py version             the version, the changelog and the tag of HEAD agree
    release_checks.py contents FILE...    each archive has what it should have, and nothing else
    release_checks.py try NAME            in an environment with that wheel alone: it serves, and is compiled or not

Exit code 1 and one line for each fault.
"""

import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILED_SUFFIXES = (".so", ".pyd")
START_S_MAX = 30.0  # of a server
IN_SOURCE = ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "hatch_build.py", "src/lessor/py.typed")


def version_of(text: str) -> str:
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("src/lessor/__init__.py: no __version__")
    return found[1]


def version_faults(version: str, changelog: str, tags: list[str]) -> list[str]:
    faults = []
    heading = re.search(r"^## (.*)$", changelog, re.MULTILINE)
    if heading is None or version not in heading[1]:
        faults.append(f"CHANGELOG.md: the first heading does not name {version}")
    elif tags and "Unreleased" in heading[1]:
        faults.append("CHANGELOG.md: HEAD has a tag, and the first heading says Unreleased")
    faults += [f"the tag {tag} of HEAD is not v{version}" for tag in tags if tag != f"v{version}"]
    return faults


def source_files() -> set[str]:
    """The files of the package, as they stand in a wheel."""
    package = ROOT / "src"
    found = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(package)) for path in found}


def wheel_faults(name: str, files: set[str], wanted: set[str]) -> list[str]:
    """`wanted`: the files of the package."""
    inside = {file for file in files if not file.startswith("lessor-")}
    built = {file for file in inside if file.endswith(COMPILED_SUFFIXES)}
    faults = [f"{name}: {file} is missing" for file in sorted(wanted - inside)]
    faults += [f"{name}: {file} should not be there" for file in sorted(inside - wanted - built)]
    if name.endswith("-none-any.whl"):
        faults += [f"{name}: {file} is compiled" for file in sorted(built)]
    elif "lessor/state/machine" not in {file.partition(".")[0] for file in built}:
        faults.append(f"{name}: is for one machine, and not compiled")
    if not any(file.endswith(".dist-info/licenses/LICENSE") for file in files):
        faults.append(f"{name}: the licence is missing")
    return faults


def sdist_faults(name: str, files: set[str], wanted: set[str]) -> list[str]:
    """`files`: without the first folder."""
    missing = {*IN_SOURCE, *(f"src/{file}" for file in wanted)} - files
    strange = {file for file in files if file.startswith((".venv/", "build/", "dist/"))}
    return [f"{name}: {file} is missing" for file in sorted(missing)] + [
        f"{name}: {file} should not be there" for file in sorted(strange)
    ]


def contents_faults(path: Path) -> list[str]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel_faults(path.name, set(wheel.namelist()), source_files())
    with tarfile.open(path) as source:
        files = {name.partition("/")[2] for name in source.getnames()}
    return sdist_faults(path.name, files, source_files())


def try_out(name: str) -> None:
    """Raises when the installed package does not work. To be run by the environment's own Python."""
    from lessor.state import machine

    compiled = str(machine.__file__).endswith(COMPILED_SUFFIXES)
    if compiled == name.endswith("-none-any.whl"):
        raise SystemExit(f"{name}: state/machine.py is {'' if compiled else 'not '}compiled")
    command = str(Path(sys.executable).with_name("lessor"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    urls = [f"--{flag}-client-urls=http://{address}" for flag in ("listen", "advertise")]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([command, "serve", f"--data-dir={folder}/data", *urls], stderr=subprocess.DEVNULL)
        try:
            _use(name, command, address)
        finally:
            server.terminate()
            if server.wait() != 0:
                raise SystemExit(f"{name}: lessor serve ended with {server.returncode}")


def _use(name: str, command: str, address: str) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    for words, said in ((("put", "a", "b"), "OK\n"), (("get", "a"), "a\nb\n")):
        while True:
            done = subprocess.run(
                [command, f"--endpoints={address}", *words], capture_output=True, text=True, check=False
            )
            if done.stdout == said:
                break
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{name}: lessor {' '.join(words)}: {done.stdout}{done.stderr}")


def main(words: list[str]) -> int:
    what, *rest = words
    if what == "try":
        try_out(rest[0])
        return 0
    if what == "version":
        version = version_of((ROOT / "src" / "lessor" / "__init__.py").read_text())
        tags = subprocess.run(
            ["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        faults = version_faults(version, (ROOT / "CHANGELOG.md").read_text(), tags)
    else:
        faults = [fault for name in rest for fault in contents_faults(Path(name))]
    for fault in faults:
        print(f"scripts/release: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
