#!/bin/sh
# PeiDocker's on_entry script: hands PID 1 over to `infer-dev entry` by exec, as the entrypoint above it does.
# No arguments and a terminal: bash. No arguments and none: stay. Arguments: run them. What else boot does is up to
# AUTO_INFER_SGLANG_*.
set -eu

program=/opt/infer-dev/bin/infer-dev
[ -x "$program" ] || program=$(command -v infer-dev) || {
  echo "infer-dev-entry.sh: cannot find infer-dev: it is neither in /opt/infer-dev/bin nor on PATH; install it there" >&2
  exit 127
}

# PeiDocker may link /soft/app to a volume, which has no helpers yet.
[ -e "${INFER_DEV_HELPER_DIR:-/soft/app/sglang}/status" ] || "$program" helpers >/dev/null || :

if [ "${1-}" = -- ]; then shift; fi
if [ $# -eq 0 ] && [ -t 0 ]; then set -- bash; fi
exec "$program" entry -- "$@"
