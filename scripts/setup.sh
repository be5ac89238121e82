# Sourced by the other scripts: go to the project's folder and make its virtual environment.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Install the package with the extra $1 into .venv, unless that was done for this pyproject.toml, and enter it.
set_up() {
    local python=${PYTHON:-python3} stamp=".venv/installed-$1"
    if ! cmp -s pyproject.toml "$stamp"; then
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "dumap needs Python 3.11 or newer, and '$python' is not." \
                "Name another one: PYTHON=/path/to/python3 $0" >&2
            exit 1
        fi
        echo "Installing into $PWD/.venv ..."
        "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
        cp pyproject.toml "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
