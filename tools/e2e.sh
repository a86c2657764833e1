#!/usr/bin/env bash
# Build the image and run tests/e2e against a real Docker Engine: the one that answers, else a private one, which this
# brings up on Debian as root (tools/docker-engine.sh) and takes down again. Usage: tools/e2e.sh [pytest options]
#   KEEP_ENGINE=1  leave the private engine up        BASE_IMAGE=…  build the image upon another base
set -euo pipefail
cd "$(dirname "$0")/.."
engine_dir=${INFER_DEV_ENGINE_DIR:-/tmp/infer-dev-engine}
brought_up=

answers() { docker version >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }

finish() {
  if [[ -n $brought_up && -z ${KEEP_ENGINE:-} ]]; then tools/docker-engine.sh down "$engine_dir"; fi
}
trap finish EXIT

if ! answers; then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "SKIPPED tests/e2e: no Docker Engine with Compose v2 answers, and none can be brought up (that takes root on Debian)"
    exit 0
  fi
  echo "no Docker Engine answers: bringing up a private one in $engine_dir …"
  brought_up=1
  lines=$(tools/docker-engine.sh up "$engine_dir")
  eval "$lines"
fi

export INFER_DEV_IMAGE=${INFER_DEV_IMAGE:-infer-dev:e2e}
docker/make-wheels.sh
# Upon a base of its own only what these tests need: python3-dev alone is 100 MB more to fetch on every fresh machine.
extra=(); [[ -z ${BASE_IMAGE:-} ]] || extra=(--build-arg "APT_PACKAGES=libgomp1 nginx-light")
if ! docker/build-image.sh -t "$INFER_DEV_IMAGE" --build-arg PIXI=none "${extra[@]}" >"${E2E_BUILD_LOG:-/tmp/infer-dev-e2e-build.log}" 2>&1; then
  tail -n 40 "${E2E_BUILD_LOG:-/tmp/infer-dev-e2e-build.log}" >&2
  exit 1
fi
tail -n 1 "${E2E_BUILD_LOG:-/tmp/infer-dev-e2e-build.log}"
.venv/bin/python -m pytest tests/e2e "$@"
