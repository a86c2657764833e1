"""Keys that a config names without holding them: `api_key_file` and `api_key_env`, for each key that an engine has.

They are read once, when the plan is made, and travel on only in the private file of the server.
"""

from __future__ import annotations

from collections.abc import Mapping

from infer_dev_entry.config.facts import Host, Secret
from infer_dev_entry.config.faults import REFUSED, Faults, Path, shown
from infer_dev_entry.config.flags import Setting, dashed
from infer_dev_entry.engines import ENGINE_NAMES, EngineProfile, profile_of

_SECRET_FLAGS = frozenset(flag for name in ENGINE_NAMES for flag in profile_of(name).secret_flags)


class SecretReader:
    """Reads the secrets of server tables, each file and variable once."""

    def __init__(self, host: Host, faults: Faults) -> None:
        self._host = host
        self._faults = faults
        self._read: dict[tuple[str, str], Secret] = {}

    def split(
        self, table: Mapping[str, object], path: Path, profile: EngineProfile
    ) -> tuple[dict[str, object], tuple[Setting, ...]]:
        """Return the table without the keys that name a secret's source, and those secrets as settings."""
        rest: dict[str, object] = {}
        found: dict[str, Setting] = {}
        given = {dashed(key) for key in table}
        for key, value in table.items():
            flag, source = _source_of(key)
            if not source:
                rest[key] = value
            elif flag not in profile.secret_flags:
                self._faults.warn((*path, key), f"is not for engine {profile.name}; left out")
            elif flag in given or flag in found:
                self._faults.add((*path, key), f"{flag.replace('-', '_')} is given twice", "give it in one way")
            else:
                found[flag] = Setting(
                    name=flag, value=self._value(source, value, (*path, key), profile), path=(*path, key)
                )
        return rest, tuple(found.values())

    def _value(self, source: str, subject: object, path: Path, profile: EngineProfile) -> object:
        """The secret; REFUSED when it cannot be had, which is reported."""
        if not isinstance(subject, str) or not subject:
            return REFUSED  # its type is the key table's to check; "" is "not given"
        secret = self._secret(source, subject)
        what = f"{shown(subject)}" if source == "file" else f"variable {subject}"
        problem = secret.problem or text_problem(secret.text, many=profile.name == "llama_cpp" and source == "file")
        if problem:
            mend = "give a file with the key alone" if source == "file" else "set it in the container's environment"
            self._faults.add(path, f"cannot take the key from {what}: {problem}", mend)
            return REFUSED
        if secret.warning:
            self._faults.warn(path, f"{what} {secret.warning}", f"chmod 600 {subject}")
        return secret.text

    def _secret(self, source: str, subject: str) -> Secret:
        if (source, subject) not in self._read:
            read = self._host.secret_file if source == "file" else self._host.secret_variable
            self._read[source, subject] = read(self._host.expand(subject) if source == "file" else subject)
        return self._read[source, subject]


def _source_of(key: str) -> tuple[str, str]:
    """The secret flag that a key gives a source for, and the kind of source; two empty strings for any other key."""
    flag, _, source = dashed(key).rpartition("-")
    return (flag, source) if flag in _SECRET_FLAGS and source in ("file", "env") else ("", "")


def text_problem(text: str, *, many: bool) -> str:
    """Why a text cannot be a key, or with `many` a list of keys with a line each; never says the text itself."""
    if not text.strip():
        return "it is empty"
    if not many and "\n" in text:
        return "it has several lines"
    if not all(line.isprintable() for line in (text.replace("\r\n", "\n").split("\n") if many else [text])):
        return "it has characters that no header can carry"
    if not many and (" " in text or text.startswith("-")):
        return "it has a blank or a leading dash"
    return ""
