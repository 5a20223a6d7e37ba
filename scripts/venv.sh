# Sourced by the other scripts, from the repository's root: makes .venv when it is missing or when pyproject.toml has
# changed since, and sets PY to its Python.
#
#   . scripts/venv.sh             the server, and all that developing it needs
#   lessor_need=run; . scripts/venv.sh   only what the server needs, so that the first serve does not wait for the tools
#   lessor_need=cluster; ...             that, and a PostgreSQL
#
# PYTHON chooses another interpreter (3.11 or newer). Only the package registry is needed besides it.
PY=.venv/bin/python

lessor_make_venv() {
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$python" -m venv .venv && return
        rm -rf .venv
        echo "$0: $python cannot make a virtual environment; does your system pack its venv module separately?" >&2
        exit 1
    done
    echo "$0: no Python 3.11 or newer among: ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11};" \
        "set PYTHON to one" >&2
    exit 1
}

lessor_install() { # what pip shall install, and the stamp that says so
    echo "$0: preparing .venv (once)" >&2
    [ -x "$PY" ] || lessor_make_venv
    "$PY" -m pip install --quiet --disable-pip-version-check --editable "$1" >&2 || {
        echo "$0: pip could not install $1 into .venv (above is its reason); run the same command to try again" >&2
        exit 1
    }
    touch ".venv/installed-$2"
}

# A stamp counts when it is no older than pyproject.toml; what is there for developing is enough for serving.
lessor_has() { [ -e ".venv/installed-$1" ] && ! [ pyproject.toml -nt ".venv/installed-$1" ]; }

case ${lessor_need:-dev} in
    run) lessor_has dev || lessor_has cluster || lessor_has run || lessor_install . run ;;
    cluster) lessor_has dev || lessor_has cluster || lessor_install '.[cluster]' cluster ;;
    *) lessor_has dev || lessor_install '.[dev]' dev ;;
esac
