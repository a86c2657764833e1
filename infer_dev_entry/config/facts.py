"""What the configuration needs to know of a machine: the `Host` protocol, and a host of which nothing is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver lists it. `compute` is its capability, such as (9, 0); MIG slices are named by UUID.

    `lost` is the driver's word for one that it has given up, of which it tells nothing else.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int
    compute: tuple[int, int]
    mig_uuids: tuple[str, ...] = ()
    lost: str = ""


GpuSet = tuple[str, ...] | None  # None: all GPUs; (): none


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a server runs now; one that is `leaving` has been told to stop."""

    gpu_ids: GpuSet
    engine: str
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a file or a variable held; `problem` says why it could not be read, `warning` what is unsafe about it."""

    text: str = ""
    problem: str = ""
    warning: str = ""


UNKNOWN_SECRET = Secret(text="***")


class Host(Protocol):
    """The facts that the checks ask for. A `_problem` is None when all is well, else a reason for a message."""

    def gpus(self) -> tuple[Gpu, ...] | None:
        """The GPUs, in the driver's order; None when there is no driver to ask."""

    def held_bytes(self, units: Sequence[str], running: Collection[str], /) -> Mapping[str, int]:
        """How many bytes others hold of each of these GPUs (numbers, MIG UUIDs), as far as that can be seen.

        Our own servers run on those in `running`: what nobody visible holds there is theirs.
        """

    def expand(self, path: str, /) -> str:
        """The absolute path, with a leading `~` expanded."""

    def port_holder(self, host: str, port: int, /) -> str | None:
        """Who listens where a server would bind, such as `pid 4242 (python3)`; None when nobody does."""

    def model_problem(self, path: str, /) -> str | None:
        """Why a model path cannot be read."""

    def log_dir_problem(self, path: str, /) -> str | None:
        """Why a log file cannot be made in this directory (which may still have to be made)."""

    def log_file_problem(self, path: str, /) -> str | None:
        """Why what lies at this path cannot be a log file."""

    def program_problem(self, path: str, /) -> str | None:
        """Why a program cannot be run."""

    def file_problem(self, path: str, /) -> str | None:
        """Why a file cannot be read."""

    def find_program(self, name: str, /) -> str:
        """The absolute path of a program on PATH or where system programs are; the name itself when it is nowhere."""

    def package_problem(self, name: str, /) -> str | None:
        """Why a Python distribution cannot be imported by our own interpreter."""

    def environment_has(self, python: str, name: str, /) -> bool:
        """Whether the environment that an interpreter's path lies in holds a distribution."""

    def secret_file(self, path: str, /) -> Secret:
        """The text of a file that holds a key, without its last line's end."""

    def secret_variable(self, name: str, /) -> Secret:
        """The value of an environment variable that holds a key."""

    def variable(self, name: str, /) -> str | None:
        """What an environment variable holds; None when it is not set."""

    def knows_variables(self) -> bool:
        """Whether the environment is that of the machine which the config is for."""

    def sglang_args_source(self, python: str, /) -> tuple[str, str] | None:
        """The version of the SGLang that this interpreter would import, and the text of the modules with its flags."""

    def recall(self, key: str, /) -> str:
        """What was kept under this key by an earlier run; "" when there is nothing. Anybody may have written it."""

    def keep(self, key: str, text: str, /) -> None:
        """Keep a text for later runs, in the place of the last one, if that is possible."""


class NoHost:
    """A host that finds no fault: the config is read as text, for another machine. `gpu_count` pretends GPUs.

    Variables come from `environ`; what is not in it may be set on the other machine.
    """

    def __init__(
        self,
        gpu_count: int | None = None,
        gpus: tuple[Gpu, ...] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._gpus = gpus if gpu_count is None else tuple(_pretended(index) for index in range(gpu_count))
        self._environ = environ or {}

    def gpus(self) -> tuple[Gpu, ...] | None:
        """The pretended GPUs, if any."""
        return self._gpus

    def held_bytes(self, _units: Sequence[str], _running: Collection[str], /) -> Mapping[str, int]:
        """Nothing: not looked at."""
        return {}

    def expand(self, path: str, /) -> str:
        """The path as it is: another machine's home is not known."""
        return path

    def port_holder(self, _host: str, _port: int, /) -> str | None:
        """Nobody."""
        return None

    def model_problem(self, _path: str, /) -> str | None:
        """None: not looked at."""
        return None

    log_dir_problem = log_file_problem = program_problem = package_problem = file_problem = model_problem

    def find_program(self, name: str, /) -> str:
        """The name: another machine's programs are not known."""
        return name

    def environment_has(self, _python: str, _name: str, /) -> bool:
        """False: not looked at."""
        return False

    def secret_file(self, _path: str, /) -> Secret:
        """A stand-in: another machine's secrets are not known."""
        return UNKNOWN_SECRET

    secret_variable = secret_file

    def variable(self, name: str, /) -> str | None:
        """What was given."""
        return self._environ.get(name)

    def knows_variables(self) -> bool:
        """False: the other machine's environment is not known."""
        return False

    def sglang_args_source(self, _python: str, /) -> tuple[str, str] | None:
        """None: not looked at."""
        return None

    def recall(self, _key: str, /) -> str:
        """Nothing."""
        return ""

    def keep(self, _key: str, _text: str, /) -> None:
        """Do nothing."""


def _pretended(index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", name="pretended", memory_bytes=0, compute=(9, 0))
