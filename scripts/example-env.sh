#!/usr/bin/env bash
# scripts/example-env.sh NAME: the environment of examples/NAME, at .venv-examples/NAME: its framework and nothing of ours.
# Does nothing where it is there and requirements.txt has not changed. PYTHON= names the interpreter (default: .venv's).
# An example with a package.json gets its packages by npm, beside its program; one with neither needs none.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?usage: scripts/example-env.sh NAME, a folder of examples/}
listed=examples/$name/requirements.txt
place=.venv-examples/$name
if [ ! -d "examples/$name" ]; then
    echo "error: there is no examples/$name" >&2
    exit 2
fi
if [ "examples/$name/package.json" -nt "examples/$name/node_modules/.package-lock.json" ]; then
    if ! command -v npm >/dev/null; then
        echo "error: $name needs Node.js with npm: scripts/install-system.sh installs them on Debian" >&2
        exit 2
    fi
    npm install --prefix "examples/$name" --no-package-lock --no-audit --no-fund --loglevel=error
fi
if [ ! -f "$listed" ]; then
    exit 0
fi
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# The stamp holds what was installed for whom: another Python or another requirement makes the environment anew.
wanted=$("$python" -c 'import sys; print(sys.version)' && cat "$listed")
if [ "$(cat "$place/.installed" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
mkdir -p .venv-examples
"$python" -m venv --clear "$place"
# Modules are compiled when they are first imported: most of a framework never is.
"$place/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary --no-compile -r "$listed"
echo "$wanted" >"$place/.installed"
