"""Put one server together: its exact command line, environment and private file."""

from __future__ import annotations

from infer_dev_entry.config.checks import FleetChecker
from infer_dev_entry.config.gpus import GpuSet
from infer_dev_entry.config.ports import NcclPorts
from infer_dev_entry.config.programs import Prepared, ResolveOptions
from infer_dev_entry.config.yaml import render_yaml
from infer_dev_entry.spec import FileSpec, ServerSpec


class ServerBuilder:
    """Builds the servers of one fleet, one after the other."""

    def __init__(self, options: ResolveOptions, nccl: NcclPorts, checker: FleetChecker) -> None:
        self._options = options
        self._nccl = nccl
        self._checker = checker

    def build(
        self, item: Prepared, number: int, gpu_ids: GpuSet, port: int | None, waits: tuple[str, ...]
    ) -> ServerSpec:
        """Build one server and check what it shares with the machine. A `port` of None was reported as a fault."""
        name = item.name_of(number)
        control = item.instance.control
        files = self._files(item, name)
        log_file = item.log_file_of(number)
        log_key = "log_file" if control.log_file else "log_dir"
        self._checker.check_log_file(name, log_file, item.instance.origin(log_key))
        if port:
            path = item.arguments.origin("port", item.instance)
            self._checker.check_port(name, item.arguments.host, port, path)
        return ServerSpec(
            name=name,
            engine=item.instance.profile.name,
            argv=self._argv(item, number, port or 0, files, name),
            environment=self._environment(item, name, gpu_ids),
            gpu_ids=gpu_ids,
            host=item.arguments.host,
            port=port or 0,
            log_file=log_file,
            log_max_bytes=control.log_max_bytes,
            log_backups=control.log_backups,
            depends_on=waits,
            start_stagger_s=control.start_stagger_s,
            drain_timeout_s=control.drain_timeout_s,
            probe=item.instance.probe,
            restart=item.instance.restart,
            files=files,
        )

    def _argv(self, item: Prepared, number: int, port: int, files: tuple[FileSpec, ...], name: str) -> tuple[str, ...]:
        words = dict(item.arguments.words)
        words.setdefault("host", ("--host", item.arguments.host))
        words["port"] = ("--port", str(port))
        if item.instance.profile.name == "sglang":
            words.update(self._nccl_words(item, number, port, name))
        elif "metrics" not in words:
            words["metrics"] = ("--metrics",)
        elif item.instance.control.binary and words["metrics"] == ("--no-metrics",):
            words["metrics"] = ()  # the launcher alone knows that word; llama-server's are off until asked for
        if files:
            words["config"] = (_FILE_FLAGS[item.instance.profile.name], files[0].path)
        return (*item.program, *(word for group in words.values() for word in group), *item.arguments.extra_args)

    def _nccl_words(self, item: Prepared, number: int, port: int, name: str) -> dict[str, tuple[str, ...]]:
        given = item.arguments.nccl_port
        if any(word.partition("=")[0] == "--nccl-port" for word in item.arguments.extra_args):
            return {}
        if given is None:
            return {"nccl-port": ("--nccl-port", str(self._nccl.deal(port)))}
        path = item.arguments.origin("nccl-port", item.instance)
        self._checker.check_port(name, "", given + number, path, "nccl_port")
        return {"nccl-port": ("--nccl-port", str(given + number))}

    def _environment(self, item: Prepared, name: str, gpu_ids: GpuSet) -> tuple[tuple[str, str], ...]:
        variables = {"TMPDIR": f"{self._options.tmp_dir.rstrip('/')}/{name}", **item.instance.profile.environment}
        if gpu_ids is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
            if any(gpu_id.isdigit() for gpu_id in gpu_ids):
                # CUDA numbers the fastest GPU first unless told otherwise; the ids are meant as nvidia-smi shows them.
                variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        return tuple(sorted({**variables, **item.instance.environment}.items()))

    def _files(self, item: Prepared, name: str) -> tuple[FileSpec, ...]:
        private = item.arguments.private
        if not private:
            return ()
        directory = f"{self._options.run_dir.rstrip('/')}/config"
        if item.instance.profile.name == "sglang":
            return (FileSpec(path=f"{directory}/{name}.yaml", text=render_yaml(private)),)
        return (FileSpec(path=f"{directory}/{name}.key", text=f"{private['api-key']}\n"),)


_FILE_FLAGS = {"sglang": "--config", "llama_cpp": "--api-key-file"}
