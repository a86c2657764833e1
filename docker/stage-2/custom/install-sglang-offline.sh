#!/bin/sh
# Install the offline bundle, as boot does with AUTO_INFER_SGLANG_BUNDLE_ON_BOOT=1; arguments go to `infer-dev install`.
set -eu

program=/opt/infer-dev/bin/infer-dev
[ -x "$program" ] || program=$(command -v infer-dev) || {
  echo "install-sglang-offline.sh: cannot find infer-dev: it is neither in /opt/infer-dev/bin nor on PATH; install it there" >&2
  exit 127
}
exec "$program" install "$@"
