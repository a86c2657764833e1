"""Put one server together: its exact command line, environment and private file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from infer_dev_entry.config.checks import FleetChecker
from infer_dev_entry.config.facts import GpuSet
from infer_dev_entry.config.faults import Faults
from infer_dev_entry.config.ports import DIST_INIT_RUN, PortDealer
from infer_dev_entry.config.programs import Prepared, ResolveOptions
from infer_dev_entry.config.yaml import render_yaml
from infer_dev_entry.spec import FileSpec, ServerSpec

Words = Mapping[str, tuple[str, ...]]


class ServerBuilder:
    """Builds the servers of one fleet, one after the other."""

    def __init__(self, options: ResolveOptions, dealer: PortDealer, checker: FleetChecker, faults: Faults) -> None:
        self._options = options
        self._dealer = dealer
        self._checker = checker
        self._faults = faults

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
        words, more_ports = self._port_words(item, number, port or 0, name)
        return ServerSpec(
            name=name,
            engine=item.instance.profile.name,
            argv=self._argv(item, {"port": ("--port", str(port or 0)), **words}, files),
            environment=self._environment(item, name, gpu_ids),
            gpu_ids=gpu_ids,
            gpu_auto=control.gpu_ids == "auto",
            host=item.arguments.host,
            port=port or 0,
            log_file=log_file,
            log_max_bytes=control.log_max_bytes,
            log_backups=control.log_backups,
            depends_on=waits,
            start_stagger_s=control.start_stagger_s,
            drain_timeout_s=control.drain_timeout_s,
            gpu_wait_s=control.gpu_wait_s,
            min_gpus=item.arguments.parallel if item.instance.profile.name == "sglang" else 0,
            probe=replace(item.instance.probe, by_pid=bool(item.arguments.nodes.rank)),
            restart=item.instance.restart,
            files=files,
            more_ports=more_ports,
            serves=not item.arguments.nodes.rank,
            note=item.arguments.nodes.note,
            warm_after=item.name_of(0) if number and control.warm_first else "",
        )

    def _argv(self, item: Prepared, ports: Words, files: tuple[FileSpec, ...]) -> tuple[str, ...]:
        words = dict(item.arguments.words)
        words.setdefault("host", ("--host", item.arguments.host))
        words.update(ports)
        if item.instance.profile.name == "llama_cpp":
            words.setdefault("metrics", ("--metrics",))
            if item.instance.control.binary and words["metrics"] == ("--no-metrics",):
                words["metrics"] = ()  # the launcher alone knows that word; llama-server's are off until asked for
        if files:
            words["config"] = (_FILE_FLAGS[item.instance.profile.name], files[0].path)
        return (*item.program, *(word for group in words.values() for word in group), *item.arguments.extra_args)

    def _port_words(self, item: Prepared, number: int, port: int, name: str) -> tuple[Words, tuple[int, ...]]:
        """The ports that SGLang binds beside its own: the words that give it those we deal, and all to look at."""
        if item.instance.profile.name != "sglang":
            return {}, ()
        words, ports = self._nccl(item, number, port, name)
        if item.arguments.dist_init:
            _, dist_init = item.arguments.dist_init
            path = item.arguments.origin("dist-init-addr", item.instance)
            # torch binds it at every address, whatever the one is that it is given
            self._checker.check_port(name, "", dist_init, path, "dist_init_addr")
            return words, (*ports, dist_init)
        if item.arguments.needs_dist_init:
            first = self._deal(item, port, name, "dist_init_addr", DIST_INIT_RUN)
            words = {**words, "dist-init-addr": ("--dist-init-addr", f"127.0.0.1:{first}")}
            ports = (*ports, *range(first, first + DIST_INIT_RUN))
        return words, ports

    def _nccl(self, item: Prepared, number: int, port: int, name: str) -> tuple[Words, tuple[int, ...]]:
        arguments = item.arguments
        path = arguments.origin("nccl-port", item.instance)
        if arguments.data_workers:
            if arguments.nccl_port or arguments.raw_nccl_port:
                problem = "every one of the dp_size workers would bind it"
                self._faults.add(path, problem, "remove it; SGLang then finds a port for each")
            return {}, ()
        if arguments.raw_nccl_port:
            self._checker.check_port(name, "", arguments.raw_nccl_port, path, "nccl_port")
            return {}, (arguments.raw_nccl_port,)
        if arguments.nccl_port:
            given = arguments.nccl_port + number
            self._checker.check_port(name, "", given, path, "nccl_port")
            return {"nccl-port": ("--nccl-port", str(given))}, (given,)
        if arguments.nodes.count > 1:
            return {}, ()  # the nodes meet at dist_init_addr, which takes this port's place
        dealt = self._deal(item, port, name, "nccl_port")
        return {"nccl-port": ("--nccl-port", str(dealt))}, (dealt,)

    def _deal(self, item: Prepared, port: int, name: str, use: str, count: int = 1) -> int:
        dealt = self._dealer.deal(port, count)
        if dealt is None:
            self._faults.add(item.instance.path, f"no port is left for the {use} of a server", "have fewer servers")
            return 0
        mend = f"stop it, or set {use} to what is free"
        self._checker.check_port(name, "", dealt, item.instance.path, use, mend=mend)
        return dealt

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
