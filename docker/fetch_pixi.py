"""Provide pixi for the image: what docker/bin holds, else the release that PIXI_VERSION names, else nothing.

Usage: fetch_pixi.py PROVIDED OUT, with PIXI=auto|require|none, PIXI_VERSION and, if it is to be checked, PIXI_SHA256.
"""

import hashlib
import os
import platform
import shutil
import sys
import urllib.request
from pathlib import Path

TIMEOUT_S = 30
URL = "https://github.com/prefix-dev/pixi/releases/download/v{version}/pixi-{machine}-unknown-linux-musl"


def main() -> str | None:
    """Fill OUT; return why that failed, if it had to work."""
    provided, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True)
    for path in provided.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, out / path.name)
            (out / path.name).chmod(0o755)
            print(f"pixi: {path.name} of docker/bin")
    wish = os.environ.get("PIXI", "auto")
    if (out / "pixi").exists() or wish == "none":
        return None
    try:
        data = download(os.environ["PIXI_VERSION"])
    except OSError as error:
        if wish == "require":
            return f"cannot get pixi: {error}; put the program into docker/bin, or build with PIXI=auto or PIXI=none"
        print(f"pixi: left out, {error}; the backends rattler and wheelhouse need none")
        return None
    found, expected = hashlib.sha256(data).hexdigest(), os.environ.get("PIXI_SHA256", "")
    if expected and found != expected:
        return f"cannot use pixi: its sha256 is {found}, PIXI_SHA256 says {expected}"
    (out / "pixi").write_bytes(data)
    (out / "pixi").chmod(0o755)
    print(f"pixi: {os.environ['PIXI_VERSION']}, {len(data) // 1000} kB, sha256 {found}")
    return None


def download(version: str) -> bytes:
    """Return the release's program.

    Raises:
        OSError: it cannot be reached.
    """
    url = URL.format(version=version, machine=platform.machine())
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return answer.read()


if __name__ == "__main__":
    sys.exit(main())
