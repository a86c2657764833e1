#!/bin/sh
# Start or update the servers of AUTO_INFER_SGLANG_CONFIG (or of the file given); arguments go to `infer-dev serve`.
set -eu

program=/opt/infer-dev/bin/infer-dev
[ -x "$program" ] || program=$(command -v infer-dev) || {
  echo "check-and-run-sglang.sh: cannot find infer-dev: it is neither in /opt/infer-dev/bin nor on PATH; install it there" >&2
  exit 127
}
exec "$program" serve "$@"
