#!/usr/bin/env bash
# Build the image and say what it adds to its base.
# Usage: docker/build-image.sh [-t TAG] [--base-image IMAGE] [docker build options, such as --build-arg PIXI=none]
#   docker/build-image.sh
#   docker/build-image.sh --base-image ubuntu:24.04 -t infer-dev:cpu
#   docker/make-wheels.sh --python 3.12 && docker/build-image.sh      # no package index is asked during the build
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tag=infer-dev:latest
base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' "$repo/docker/Dockerfile")}
while (($#)); do
  case $1 in
    -t | --tag) tag=$2; shift 2 ;;
    --base-image) base=$2; shift 2 ;;
    -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) break ;;
  esac
done
stale=$(find "$repo/infer_dev_entry" "$repo/model-configs" "$repo/pyproject.toml" "$repo/uv.lock" -type f -not -name '*.pyc' \
  -newer "$(ls "$repo"/docker/wheels/infer_dev_entry-*.whl 2>/dev/null || echo /dev/null)" -print -quit 2>/dev/null || true)
if [[ -n $stale ]] && ls "$repo"/docker/wheels/infer_dev_entry-*.whl >/dev/null 2>&1; then
  echo "cannot build from docker/wheels: ${stale#"$repo"/} is newer; run docker/make-wheels.sh again, or remove docker/wheels/*.whl" >&2
  exit 1
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repo/pyproject.toml" | head -n 1)
revision=$(git -C "$repo" rev-parse HEAD 2>/dev/null || true)
DOCKER_BUILDKIT=1 docker build --progress=plain -f "$repo/docker/Dockerfile" -t "$tag" --build-arg "BASE_IMAGE=$base" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" "$repo"

size() { docker image inspect --format '{{.Size}}' "$1" 2>/dev/null || echo 0; }
echo
docker history --format '{{.Size}}\t{{.CreatedBy}}' --no-trunc "$tag" | awk -F '\t' '$1 != "0B" {print $1 "\t" substr($2, 1, 90)}' | head -n 8
awk -v image="$(size "$tag")" -v base="$(size "$base")" -v name="$tag" 'BEGIN {
  if (base) printf "%s: %.0f MB, of them %.0f MB over the base\n", name, image / 1e6, (image - base) / 1e6
  else printf "%s: %.0f MB (the base is not in the local store: its size is not known)\n", name, image / 1e6 }'
