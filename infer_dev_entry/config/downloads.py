"""The `[instance.<n>.model]` tables: checked, and matched with what each server opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from infer_dev_entry.config.facts import Host
from infer_dev_entry.config.faults import Faults, Path, shown
from infer_dev_entry.config.instances import Instance
from infer_dev_entry.config.keys import Value
from infer_dev_entry.models.wish import (
    MAX_PATTERNS,
    ModelWish,
    default_target,
    pattern_problem,
    patterns_for,
    repo_problem,
    revision_problem,
    target_problem,
)

_PATH_BEGINS = ("/", "./", "../", "~")


def is_path(model: str) -> bool:
    """Whether a server takes this for a path, not for the `org/name` of a hub."""
    return model.startswith(_PATH_BEGINS)


class DownloadReader:
    """Reads the model tables of one document, and remembers the directories of the earlier ones."""

    def __init__(self, host: Host, models_dir: str, source: str, faults: Faults) -> None:
        self._host = host
        self._models_dir = models_dir
        self._source = source
        self._faults = faults
        self._wishes: dict[str, ModelWish] = {}

    @property
    def wishes(self) -> tuple[ModelWish, ...]:
        """What is to be downloaded, one a directory, in file order."""
        return tuple(self._wishes.values())

    def directory_of(self, instance: Instance) -> str:
        """Return where an instance's download goes when its server table names no model; "" without a download."""
        table = instance.model
        if "repo_id" not in table or repo_problem(str(table["repo_id"])):
            return ""
        return self._local_dir(table) or default_target(self._models_dir, str(table["repo_id"]))

    def read(self, instance: Instance, model: str, model_at: Path) -> None:
        """Check one instance's table against the model that its server opens ("": not known), and note its wish."""
        table = instance.model
        path = (*instance.path, "model")
        if not table or not self._fits(table, path):
            return
        found = self._place(instance, model, model_at)
        if found is None:
            return
        target, needed = found
        problem = target_problem(target)
        if problem and not target.startswith(_PATH_BEGINS[1:]):  # another machine's home is not known
            at = (*path, "local_dir") if "local_dir" in table else model_at
            self._faults.add(at, f"{shown(target)} {problem}", "choose another directory")
            return
        allow = _names(table, "allow_patterns") or (patterns_for(needed) if needed else ())
        wish = ModelWish(
            source=str(table.get("source", self._source)),
            repo_id=str(table["repo_id"]),
            revision=str(table.get("revision", "")),
            target=target,
            allow_patterns=allow,
            ignore_patterns=_names(table, "ignore_patterns"),
            needed=(needed,) if needed else (),
            names=(instance.name,),
        )
        self._note(wish, path)

    def _fits(self, table: Mapping[str, Value], path: Path) -> bool:
        """Report what is wrong with the table's own values."""
        if "repo_id" not in table:
            if table:
                self._faults.add(path, "has no repo_id", 'write repo_id = "org/name"')
            return False
        checks: list[tuple[str, Callable[[str], str], str]] = [
            ("repo_id", repo_problem, "copy it from the model's page"),
            ("revision", revision_problem, "write the name of a branch or tag, or a commit"),
        ]
        fits = True
        for key, problem_of, mend in checks:
            if key in table and (problem := problem_of(str(table[key]))):
                self._faults.add((*path, key), f"{problem}, got {shown(table[key])}", mend)
                fits = False
        for key in ("allow_patterns", "ignore_patterns"):
            fits = self._patterns_fit(_names(table, key), (*path, key)) and fits
        return fits

    def _patterns_fit(self, patterns: tuple[str, ...], path: Path) -> bool:
        if len(patterns) > MAX_PATTERNS:
            self._faults.add(
                path, f"holds {len(patterns)} patterns, at most {MAX_PATTERNS} are taken", "use wider ones"
            )
            return False
        problems = [(pattern, problem) for pattern in patterns if (problem := pattern_problem(pattern))]
        for pattern, problem in problems:
            self._faults.add(path, f"{shown(pattern)}: {problem}", 'write patterns such as "*.safetensors"')
        return not problems

    def _local_dir(self, table: Mapping[str, Value]) -> str:
        given = str(table.get("local_dir", ""))
        return str(PurePosixPath(self._host.expand(given))) if given else ""

    def _place(self, instance: Instance, model: str, model_at: Path) -> tuple[str, str] | None:
        """Return the directory of the download, and the file in it that the server opens ("": the directory itself)."""
        local_dir = self._local_dir(instance.model)
        at = (*instance.path, "model", "local_dir")
        if not model:  # it comes from `--config` or raw words, which are the user's own to get right
            return self.directory_of(instance), ""
        if not is_path(model):
            problem = f"is {shown(model)}, which the server fetches itself, so the download would not be served"
            self._faults.add(
                model_at, problem, "remove it, or write the download's directory, or remove the model table"
            )
            return None
        served = PurePosixPath(model)
        if model.endswith(".gguf"):
            folder = PurePosixPath(local_dir) if local_dir else served.parent
            if not served.is_relative_to(folder):
                self._faults.add(at, f"{shown(local_dir)} does not hold {shown(model)}, which is served", "correct one")
                return None
            return str(folder), str(served.relative_to(folder))
        if local_dir and PurePosixPath(local_dir) != served:
            problem = f"{shown(local_dir)} is not {shown(model)}, which is served"
            self._faults.add(at, problem, "remove local_dir, or correct one of them")
            return None
        return str(served), ""

    def _note(self, wish: ModelWish, path: Path) -> None:
        other = self._wishes.get(wish.target)
        if other is not None:
            both = other.joined(wish)
            if both is None:
                problem = f"{shown(wish.target)} is also where instance.{other.names[0]} puts {other.shown}"
                self._faults.add(path, f"{problem}, from another repository or revision", "give each its own directory")
                return
            self._wishes[wish.target] = both
            return
        for target, earlier in self._wishes.items():
            pair = (PurePosixPath(target), PurePosixPath(wish.target))
            if pair[0].is_relative_to(pair[1]) or pair[1].is_relative_to(pair[0]):
                problem = f"{shown(wish.target)} and {shown(target)} of instance.{earlier.names[0]} lie in one another"
                self._faults.add(path, problem, "give each its own directory")
                return
        self._wishes[wish.target] = wish


def _names(table: Mapping[str, Value], key: str) -> tuple[str, ...]:
    value = table.get(key, ())
    return value if isinstance(value, tuple) else ()
