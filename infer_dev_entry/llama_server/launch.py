"""Run this launcher under an interpreter that has no infer-dev, such as a bundle's: called by its path, not by `-m`.

Only this package is brought along: on PYTHONPATH the rest of infer-dev's environment would answer for what the bundle
has in another version.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def bring_package(directory: Path) -> None:
    """Make the package in `directory` importable under that directory's name, and nothing beside it."""
    spec = importlib.util.spec_from_file_location(
        directory.name, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{directory} is no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[directory.name] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    # Python puts this directory first (not with -I or -P), and its modules' names are too common to be found bare.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != PACKAGE / "llama_server"]
    bring_package(PACKAGE)
    runpy.run_module(f"{PACKAGE.name}.llama_server", run_name="__main__", alter_sys=True)
