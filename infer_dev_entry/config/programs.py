"""What an instance runs: its interpreter or binary, the flags that program knows, and its arguments, all checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from infer_dev_entry.config.arguments import ArgumentReader, Arguments, packaged_flags, sglang_flags
from infer_dev_entry.config.catalogue import Catalogue
from infer_dev_entry.config.checks import FleetChecker
from infer_dev_entry.config.downloads import DownloadReader
from infer_dev_entry.config.facts import Host, Placed
from infer_dev_entry.config.faults import Faults, Path
from infer_dev_entry.config.flags import Flags
from infer_dev_entry.config.installed import installed_catalogue
from infer_dev_entry.config.instances import Instance, Master
from infer_dev_entry.models.wish import ModelWish
from infer_dev_entry.settings import DEFAULT_MODELS_DIR

LLAMA_PACKAGE = "xllamacpp"
LLAMA_MEND = (
    "install a bundle that has it, or pip install 'infer-dev-entry[cpu]', or give control.binary a llama-server"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveOptions:
    """What the environment adds to a config. Empty strings mean "not given".

    `python` is `AUTO_INFER_SGLANG_PYTHON`; `engine_python` is infer-dev's own interpreter, which runs engine llama_cpp
    when the installed environment has no llama.cpp; `engine_launcher` is a file that other interpreters run it by,
    and `router_launcher` the one that any runs sglang-router by.
    A server's temporary directory is `<tmp_dir>/<name>`; its private files are in `<run_dir>/config`. With
    `model_download` a model that has a download need not be there yet. `placed` are the servers that run now, by name.
    """

    overrides: str = ""
    project_dir: str
    python: str = ""
    engine_python: str
    engine_launcher: str = ""
    router_launcher: str = ""
    run_dir: str
    tmp_dir: str
    model_download: bool = False
    model_source: str = "huggingface"
    models_dir: str = DEFAULT_MODELS_DIR
    placed: Mapping[str, Placed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An instance with its program and arguments, before GPUs and ports are dealt. `log_file` is "" when not given."""

    instance: Instance
    flags: Flags
    arguments: Arguments
    program: tuple[str, ...]
    log_dir: str
    log_file: str

    @property
    def per_replica(self) -> int:
        """The GPUs of one replica."""
        return self.instance.control.gpus_per_replica or max(1, self.arguments.parallel)

    def name_of(self, number: int) -> str:
        """The name of a replica; with `replicas = 1` the instance keeps its own."""
        return self.instance.server_name(number)

    def log_file_of(self, number: int) -> str:
        """The log file of a replica."""
        if not self.log_file:
            return str(PurePosixPath(self.log_dir) / f"sglang-server-{self.name_of(number)}.log")
        path = PurePosixPath(self.log_file)
        if self.instance.control.replicas == 1 or not path.name:
            return self.log_file
        return str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


class Preparer:
    """Prepares the instances of one document."""

    def __init__(
        self,
        master: Master,
        options: ResolveOptions,
        host: Host,
        reader: ArgumentReader,
        checker: FleetChecker,
        faults: Faults,
    ) -> None:
        self._master = master
        self._options = options
        self._host = host
        self._reader = reader
        self._checker = checker
        self._faults = faults
        self._catalogues: dict[str, Catalogue | None] = {}
        self._downloads = DownloadReader(host, options.models_dir, options.model_source, faults)

    @property
    def wishes(self) -> tuple[ModelWish, ...]:
        """The downloads that the instances prepared so far ask for."""
        return self._downloads.wishes

    def prepare(self, instance: Instance) -> Prepared:
        """Work out and check the program, the arguments and the log file of an instance."""
        self._check_visible_devices(instance)
        binary = self._binary(instance)
        interpreter, given_at = self._interpreter(instance)
        flags = self._flags(instance, interpreter, any_name=bool(binary))
        arguments = self._reader.read(instance, flags, self._downloads.directory_of(instance))
        if binary:
            self._checker.check_program(binary, instance.origin("binary"), "give the path of a llama-server")
        else:
            self._checker.check_program(interpreter, given_at, self._interpreter_mend(instance))
            self._check_packages(instance, arguments, interpreter)
        model_path = arguments.origin(flags.profile.model_flag, instance)
        self._downloads.read(instance, arguments.model, model_path)
        downloads = self._options.model_download
        self._checker.check_model(instance, arguments.model, model_path, downloads=downloads)
        log_dir = self._host.expand(instance.control.log_dir)
        return Prepared(
            instance=instance,
            flags=flags,
            arguments=arguments,
            program=(binary,) if binary else self._program(instance, interpreter),
            log_dir=log_dir,
            log_file=self._log_file(instance.control.log_file, log_dir),
        )

    def _check_visible_devices(self, instance: Instance) -> None:
        dealt = instance.control.gpu_ids != "all" or instance.control.replicas != 1
        if dealt and "CUDA_VISIBLE_DEVICES" in instance.environment:
            path = (*instance.path, "env", "CUDA_VISIBLE_DEVICES")
            self._faults.add(path, "gpu_ids decides it", "remove it, or the gpu_ids and replicas")

    def _binary(self, instance: Instance) -> str:
        binary = instance.control.binary
        if binary and instance.profile.name != "llama_cpp":
            self._faults.warn(instance.origin("binary"), "is only for engine llama_cpp; not used")
            return ""
        return self._host.expand(binary) if binary else ""

    def _interpreter(self, instance: Instance) -> tuple[str, Path]:
        """The interpreter of an instance, and where it was given."""
        own = instance.control.python_path
        if own:
            return self._host.expand(own), instance.origin("python_path")
        if instance.profile.name == "llama_cpp":
            return self._llama_interpreter(), instance.path
        if self._options.python:
            return self._options.python, instance.path
        if self._master.python_path:
            return self._host.expand(self._master.python_path), ("master", "python_path")
        return self.installed_python, instance.path

    @property
    def installed_python(self) -> str:
        """The interpreter of the installed environment, whether there is one or not."""
        project_dir = self._host.expand(self._master.project_dir or self._options.project_dir)
        return f"{project_dir.rstrip('/')}/env/bin/python"

    def _llama_interpreter(self) -> str:
        """The installed environment's when it has llama.cpp, else our own."""
        installed = self.installed_python
        return installed if self._host.environment_has(installed, LLAMA_PACKAGE) else self._options.engine_python

    def _program(self, instance: Instance, interpreter: str) -> tuple[str, ...]:
        """The first words of the command. An interpreter that lacks our package runs the engine by its file."""
        launcher = self._options.engine_launcher
        if instance.profile.name == "llama_cpp" and launcher and interpreter != self._options.engine_python:
            return (interpreter, launcher)
        return (interpreter, "-m", self._module(instance))

    def _interpreter_mend(self, instance: Instance) -> str:
        if instance.control.python_path or instance.profile.name == "llama_cpp":
            return "correct python_path"
        if self._options.python:
            return "correct AUTO_INFER_SGLANG_PYTHON"
        if self._master.python_path:
            return "correct python_path"
        return "install the bundle first, or set AUTO_INFER_SGLANG_PYTHON or master.python_path"

    def _module(self, instance: Instance) -> str:
        given = self._master.server_module if instance.profile.name == "sglang" else ""
        return given or instance.profile.module

    def _flags(self, instance: Instance, interpreter: str, *, any_name: bool) -> Flags:
        if instance.profile.name != "sglang":
            return replace(packaged_flags(instance.profile.name), any_name=any_name)
        if interpreter not in self._catalogues:
            found = self._host.sglang_args_source(interpreter)
            self._catalogues[interpreter] = installed_catalogue(*found, self._host) if found else None
        catalogue = self._catalogues[interpreter]
        return sglang_flags(catalogue, installed=True) if catalogue else packaged_flags("sglang")

    def _check_packages(self, instance: Instance, arguments: Arguments, interpreter: str) -> None:
        if instance.profile.name != "llama_cpp":
            return
        words = arguments.words.get("model-package", ())
        path = arguments.origin("model-package", instance)
        if interpreter == self._options.engine_python:
            self._checker.check_package(LLAMA_PACKAGE, instance.path, LLAMA_MEND)
            if words:
                self._checker.check_package(words[-1], path, f"pip install {words[-1]}")
            return
        installed = interpreter == self.installed_python
        if words and installed and not self._host.environment_has(interpreter, words[-1]):
            fault = f"is {words[-1]!r}, which the installed environment lacks"
            self._faults.add(path, fault, "build the bundle with it")

    def _log_file(self, given: str, log_dir: str) -> str:
        if not given:
            return ""
        return self._host.expand(given) if given.startswith("~") else str(PurePosixPath(log_dir) / given)
