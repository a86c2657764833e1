#!/bin/sh
# Have the programs that tests run beside Python's: nginx for the gateway, tini and dumb-init to compare PID 1 with.
# Usage: tools/programs.sh
# What is missing is installed with apt-get where we are root on Debian or Ubuntu, and the service that nginx's package would
# start is kept from starting. Elsewhere this says what to do and exits 1; the tests then skip, visibly.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing() {
  packages=
  command -v nginx >/dev/null || packages="$packages nginx-light"
  command -v tini >/dev/null || packages="$packages tini"
  command -v dumb-init >/dev/null || packages="$packages dumb-init"
}

missing
if [ -z "$packages" ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "programs: some tests are skipped for want of$packages; run: sudo apt-get install$packages" >&2
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
echo "programs: installing$packages" >&2
# shellcheck disable=SC2086  # a list of words
(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends $packages) >&2
missing
[ -z "$packages" ]
