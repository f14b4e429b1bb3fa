# shellcheck shell=bash
# Sourced by launch/local and launch/test: a virtual environment with the locked requirements.
# PYTHON names another interpreter, VENV another folder than .venv.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV="${VENV:-.venv}"
# Python keeps what it compiled on import, whatever the shell says: the tests, a preparation and the
# input start many processes, each of which would compile jax and the rest anew, for seconds.
unset PYTHONDONTWRITEBYTECODE

usable() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.12 python3.11 python; do
    if usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or 3.12 is needed, and none was found; set PYTHON=/path/to/python3.12" >&2
  return 1
}

# install NAME REQUIREMENT...: pip install, once for each state of the lock file.
install() {
  local name=$1 state
  shift
  state="$VENV/.installed-$name-$(cat requirements.lock setup.py | sha256sum | cut -c1-12)"
  if [ ! -e "$state" ]; then
    # Said to be installed only if it is, also where nobody has set -e.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@" &&
      touch "$state"
  fi
}

make_environment() {
  # One that was left half-made (no pip) is made anew.
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    local python
    python=$(find_python)
    echo "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
  fi
  echo "installing requirements.lock (reused where it is installed already)"
  install lock --no-deps -r requirements.lock
  install project --no-deps -e .
}
