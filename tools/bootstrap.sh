#!/bin/sh
# Make .venv with the locked dependencies. Usage: tools/bootstrap.sh [uv sync options, such as --extra cpu]
# Needs Python >= 3.11. Where Debian's python3 lacks venv and we are root, python3-venv is installed with apt-get.
set -eu
cd "$(dirname "$0")/.."

python=
for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "bootstrap: no Python >= 3.11 found; install one or set PYTHON=/path/to/python3" >&2
  exit 1
fi

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  rm -rf .venv
  if ! "$python" -m venv .venv 2>/dev/null; then
    rm -rf .venv
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "bootstrap: installing python3-venv" >&2
      (apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv) >&2
      "$python" -m venv .venv
    else
      echo "bootstrap: $python cannot make virtual environments; run: sudo apt-get install python3-venv" >&2
      exit 1
    fi
  fi
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never exec .venv/bin/uv sync --quiet --locked --inexact \
  --python .venv/bin/python "$@"
