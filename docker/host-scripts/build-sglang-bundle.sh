#!/usr/bin/env bash
# Build an offline bundle of SGLang on a host with a network, by `infer-dev bundle build`; all logic is there.
# Options are passed on: --template-dir, -o, -p, -e, --create-executable, --ignore-pypi-non-wheel, --rattler-config,
# --rattler-cache-dir, --pixi-pack-cache-dir, --retries, --retry-sleep, --skip-verify … (--help shows all of them).
# Without pixi: build-sglang-bundle.sh --lock docker/sglang-wheel-locks/cuda12.txt
# Defaults lie in this repository, whatever the current directory; paths that you give are relative to where you are.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
workspace=$repo/docker/.container/workspace

# A later option wins over an earlier one, so the defaults come first.
defaults=(--cache-dir "$workspace/.cache" --output "$workspace/sglang-offline-bundle.tar"
  --template-dir "$repo/docker/sglang-pixi-template")

if [[ -n ${BUNDLE_BUILDER:-} ]]; then
  run=("$BUNDLE_BUILDER")
elif command -v infer-dev >/dev/null; then
  run=(infer-dev)
elif [[ -x $repo/.venv/bin/infer-dev ]]; then
  run=("$repo/.venv/bin/infer-dev")
elif command -v uv >/dev/null; then
  run=(uv run --project "$repo" infer-dev)
else
  echo "cannot find infer-dev or uv: install one of them (pip install uv), or set BUNDLE_BUILDER" >&2
  exit 22
fi
exec "${run[@]}" bundle build "${defaults[@]}" "$@"
