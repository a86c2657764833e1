#!/bin/sh
# Have nginx for the gateway and its tests. Usage: tools/nginx.sh
# Where it is missing and we are root on Debian or Ubuntu, nginx-light is installed with apt-get, and the service that the
# package would start is kept from starting. Elsewhere this says what to do and exits 1; the tests then skip, visibly.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
if command -v nginx >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "nginx: missing, so the gateway's tests are skipped; run: sudo apt-get install nginx-light" >&2
  exit 1
fi

# invoke-rc.d asks this file whether a package may start its service: 101 is no. One that is there is somebody's own.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  made=1
fi
trap '[ -z "$made" ] || rm -f "$policy"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo "nginx: installing nginx-light" >&2
(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light) >&2
command -v nginx >/dev/null
