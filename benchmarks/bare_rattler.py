"""The peer of our rattler backend: py-rattler's own `install` of a channel's every record, and nothing around it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


def main(channel_dir: str, prefix: str, cache_dir: str) -> None:
    """Install all packages of `<channel_dir>/<platform>/repodata.json` into `prefix`."""
    from rattler import Channel, RepoData
    from rattler.install import install

    records = []
    for path in sorted(Path(channel_dir).glob("*/repodata.json")):
        for record in RepoData.from_path(path).into_repo_data(Channel(Path(channel_dir).as_uri())):
            record.url = (path.parent / record.file_name).as_uri()
            records.append(record)

    async def work() -> None:
        await install(
            records, prefix, cache_dir=Path(cache_dir), installed_packages=[], execute_link_scripts=False,
            show_progress=False,
        )  # fmt: skip

    asyncio.run(work())


if __name__ == "__main__":
    main(*sys.argv[1:])
