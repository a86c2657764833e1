#!/bin/sh
# Put the wheels of infer-dev and of everything it needs into a directory, as uv.lock pins them, with requirements.txt and
# its hashes. An image that finds them in docker/wheels is built without a package index.
# Usage: docker/make-wheels.sh [--python 3.12] [--platform manylinux_2_35_x86_64] [DIR]     (default: docker/wheels)
# Without --python the wheels are for the Python that runs this; give the image's when that is another one.
#   EXTRAS="client models"  what the image can do beside serving: smoke, model downloads (EXTRAS= leaves both out)
set -eu
repo=$(cd "$(dirname "$0")/.." && pwd)
python= platform= out=
while [ $# -gt 0 ]; do
  case $1 in
    --python) python=$2; shift 2 ;;
    --platform) platform=$2; shift 2 ;;
    -h | --help) sed -n '2,7s/^# //p' "$0"; exit 0 ;;
    -*) echo "make-wheels.sh: there is no option $1; see --help" >&2; exit 2 ;;
    *) out=$1; shift ;;
  esac
done
out=${out:-$repo/docker/wheels}
mkdir -p "$out"
rm -f "$out"/*.whl "$out"/requirements.txt

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip -q --disable-pip-version-check"
$pip install 'uv>=0.5'
uv=$work/venv/bin/uv

cd "$repo"
set -- --extra install
for extra in ${EXTRAS-client models}; do set -- "$@" --extra "$extra"; done
"$uv" -q export --locked --no-dev "$@" --no-emit-project --format requirements-txt \
  --no-annotate --no-header -o "$work/requirements.txt" >/dev/null
set --
[ -z "$python" ] || set -- --python-version "$python" --platform "${platform:-manylinux_2_35_x86_64}" \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux1_x86_64 --platform any
$pip download --require-hashes --only-binary :all: --no-deps "$@" -r "$work/requirements.txt" -d "$out"
"$uv" -q build --wheel --out-dir "$out" .
rm -f "$out/.gitignore"   # uv build leaves one
cp "$work/requirements.txt" "$out/requirements.txt"
echo "wheels: $(ls "$out"/*.whl | wc -l) in $out, $(du -sh "$out" | cut -f1)"
