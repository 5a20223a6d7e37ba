# Sourced by the other scripts: makes .venv with the project and its development tools when it is missing or when
# pyproject.toml has changed since, and sets PY to its Python.
PY=.venv/bin/python
stamp=.venv/lessor-installed
if ! [ -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "preparing .venv (once)" >&2
    [ -x "$PY" ] || "${PYTHON:-python3}" -m venv .venv
    "$PY" -m pip install --quiet --disable-pip-version-check --editable '.[dev]' >&2
    touch "$stamp"
fi
