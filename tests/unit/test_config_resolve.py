"""`resolve` by table: what a config becomes, and how every kind of fault is worded."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from infer_dev_entry.config import Gpu, NoHost, ResolveOptions, resolve
from infer_dev_entry.config.facts import GpuSet, Placed
from infer_dev_entry.config.installed import FEWEST_FLAGS
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.spec import Plan, ServerSpec


def gpu(index: int, compute: tuple[int, int] = (9, 0)) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index:08x}-aaaa", name="H200", memory_bytes=1, compute=compute)


class FakeHost(NoHost):
    """A machine with given GPUs, used ports and missing things; it records what it was asked."""

    def __init__(
        self,
        gpus: tuple[Gpu, ...] | None = None,
        ports: dict[int, str] | None = None,
        missing: tuple[str, ...] = (),
        sglang: str = "",
        environ: dict[str, str] | None = None,
        held: dict[str, int] | None = None,
    ) -> None:
        super().__init__(gpus=gpus, environ=environ)
        self.held = held or {}
        self.running: list[Collection[str]] = []
        self.ports = ports or {}
        self.missing = missing
        self.sglang = sglang
        self.asked: list[str] = []

    def held_bytes(self, units: Sequence[str], running: Collection[str], /) -> dict[str, int]:
        self.running.append(running)
        return {unit: self.held[unit] for unit in units if unit in self.held}

    def expand(self, path: str, /) -> str:
        return path.replace("~", "/home/me", 1)

    def port_holder(self, host: str, port: int, /) -> str | None:
        return self.ports.get(port)

    def model_problem(self, path: str, /) -> str | None:
        self.asked.append(path)
        return "no such file" if path in self.missing else None

    log_dir_problem = log_file_problem = program_problem = package_problem = model_problem

    def sglang_args_source(self, python: str, /) -> tuple[str, str] | None:
        return (self.sglang, "") if self.sglang else None


def plan_of(text: str, host: NoHost | None = None, **options: object) -> Plan:
    known = {"project_dir": "/p", "engine_python": "/own/python", "run_dir": "/run/x", "tmp_dir": "/tmp/x", **options}
    return resolve(text, source="f.toml", options=ResolveOptions(**known), host=host or FakeHost())  # type: ignore[arg-type]


def faults_of(text: str, host: NoHost | None = None, **options: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        plan_of(text, host, **options)
    return caught.value.faults


def one(text: str, host: NoHost | None = None, **options: object) -> ServerSpec:
    (server,) = plan_of(text, host, **options).servers
    return server


def server(lines: str, engine: str = "sglang") -> str:
    model = 'model_path = "org/m"' if engine == "sglang" else 'model = "/m.gguf"'
    return f'[instance.a.control]\nengine = "{engine}"\n[instance.a.server]\n{model}\n{lines}\n'


def words(lines: str, engine: str = "sglang", **options: object) -> tuple[str, ...]:
    """The words after the model, without the ports that every server gets."""
    argv = one(server(lines, engine), **options).argv
    start = argv.index("org/m" if engine == "sglang" else "/m.gguf") + 1
    tail = ("--host", "127.0.0.1", "--port", "30000")
    rest = argv[start:]
    cut = next(index for index in range(len(rest)) if rest[index : index + 4] == tail)
    return rest[:cut]


FULL = """
[master]
enable = true
project_dir = "/proj"
server_module = "sglang.launch_server"
[instance.control]
log_dir = "/logs"
[instance.server]
host = "0.0.0.0"
port = 30000
mem_fraction_static = 0.85
[instance.glm.server]
model_path = "org/glm"
tp_size = 2
port = 31000
extra_args = ["--raw", "tokens"]
[instance.glm.env]
B = true
A = 1
"""


def test_resolve_full_file_gives_the_exact_server() -> None:
    glm = one(FULL)
    assert glm.argv == (
        "/proj/env/bin/python", "-m", "sglang.launch_server", "--host", "0.0.0.0", "--port", "31000",
        "--mem-fraction-static", "0.85", "--model-path", "org/glm", "--tp-size", "2", "--nccl-port", "21000",
        "--raw", "tokens",
    )  # fmt: skip
    assert glm.environment == (
        ("A", "1"),
        ("B", "1"),
        ("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "0"),
        ("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "0"),
        ("TMPDIR", "/tmp/x/glm"),
    )
    assert (glm.name, glm.engine, glm.host, glm.port, glm.gpu_ids) == ("glm", "sglang", "0.0.0.0", 31000, None)
    assert (glm.log_file, glm.log_max_bytes, glm.log_backups) == ("/logs/sglang-server-glm.log", 50_000_000, 3)
    assert (glm.probe.startup_path, glm.probe.period_s, glm.probe.timeout_s) == ("/health", 20.0, 15.0)
    assert (glm.restart.backoff_initial_s, glm.restart.backoff_max_s, glm.restart.max_restarts) == (1.0, 60.0, 8)
    assert glm.files == ()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("tp_size = 8", ("--tp-size", "8")),
        ("tp-size = 8", ("--tp-size", "8")),
        ("tensor_parallel_size = 8", ("--tp-size", "8")),
        ("tp = 8", ("--tp-size", "8")),
        ('tp_size = "8"', ("--tp-size", "8")),
        ("enable_metrics = true", ("--enable-metrics",)),
        ("enable_metrics = false", ()),
        ("enable_tf32_matmul = true", ("--enable-tf32-matmul",)),
        ("enable_tf32_matmul = false", ("--no-enable-tf32-matmul",)),
        ("no_enable_tf32_matmul = true", ("--no-enable-tf32-matmul",)),
        ("cuda_graph_bs_decode = [1, 2, 4]", ("--cuda-graph-bs-decode", "1", "2", "4")),
        ("cuda_graph_bs_decode = 4", ("--cuda-graph-bs-decode", "4")),
        ("cuda_graph_bs_decode = []", ()),
        ('lora_paths = ["a=/x", {lora_name = "b"}]', ("--lora-paths", "a=/x", '{"lora_name": "b"}')),
        ('served_model_name = ["only"]', ("--served-model-name", "only")),
        ("served_model_name = 7", ("--served-model-name", "7")),
        ("mem_fraction_static = 0.5", ("--mem-fraction-static", "0.5")),
        ("mem_fraction_static = 1", ("--mem-fraction-static", "1")),
        ("mem_fraction_static = 1e-7", ("--mem-fraction-static", "0.0000001")),
        ("stream_interval = -1", ("--stream-interval", "-1")),
        ('chat_template = "-odd"', ("--chat-template=-odd",)),
        ('chat_template = ""', ("--chat-template", "")),
        ('chat_template = "~/t.jinja"', ("--chat-template", "/home/me/t.jinja")),
        ("json_model_override_args = {a = 1, b = [true]}", ("--json-model-override-args", '{"a": 1, "b": [true]}')),
        ("preferred_sampling_params = {temperature = 0}", ("--preferred-sampling-params", '{"temperature": 0}')),
        ("preferred_sampling_params = '{\"a\": 1}'", ("--preferred-sampling-params", '{"a": 1}')),
        ("model_checksum = true", ("--model-checksum",)),
        ('model_checksum = "x"', ("--model-checksum", "x")),
        ("context_length = 32768", ("--context-length", "32768")),
        ('context_length = "32k"', ("--context-length", "32k")),
        ('reasoning_parser = "glm45"', ("--reasoning-parser", "glm45")),
        ("log_requests_level = 2", ("--log-requests-level", "2")),
    ],
)  # fmt: skip
def test_sglang_flag_renders_as_its_arity_asks(lines: str, expected: tuple[str, ...]) -> None:
    assert words(lines) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("ctx_size = 2048", ("--ctx-size", "2048")),
        ("context_length = 2048", ("--ctx-size", "2048")),
        ("jinja = true", ("--jinja",)),
        ("jinja = false", ("--no-jinja",)),
        ("no_jinja = true", ("--no-jinja",)),
        ("metrics = false", ("--no-metrics",)),
        ("enable_metrics = false", ("--no-metrics",)),
        ("slots = false", ("--no-slots",)),
        ("cont_batching = true", ("--cont-batching",)),
        ("cb = false", ("--no-cont-batching",)),
        ('pooling = "last"', ("--pooling", "last")),
        ("flash_attn = true", ("--flash-attn",)),
        ('flash_attn = "auto"', ("--flash-attn", "auto")),
        ("tp_size = 8\nmem_fraction_static = 0.8", ()),
        ('served_model_name = "x"', ("--alias", "x")),
    ],
)
def test_llama_flag_renders_as_the_launcher_reads_it(lines: str, expected: tuple[str, ...]) -> None:
    assert words(lines, "llama_cpp") == expected


def test_port_that_is_switched_off_is_the_default() -> None:
    spec = one(server("port = false\nnccl_port = false"))
    assert spec.port == 30000
    assert spec.argv[5:] == ("--port", "30000", "--nccl-port", "20000", "--host", "127.0.0.1")


def test_llama_server_has_metrics_unless_told_otherwise() -> None:
    assert one(server("", "llama_cpp")).argv[-1] == "--metrics"
    assert "--metrics" not in one(server("metrics = false", "llama_cpp")).argv
    assert one(server("", "llama_cpp")).argv[:3] == ("/own/python", "-m", "infer_dev_entry.llama_server")


class BundleHost(FakeHost):
    """A host whose installed environment, under /p, holds these distributions."""

    def __init__(self, *packages: str) -> None:
        super().__init__()
        self.packages = packages

    def environment_has(self, python: str, name: str, /) -> bool:
        return python == "/p/env/bin/python" and name in self.packages


def test_llama_server_runs_in_the_installed_environment_that_has_llama_cpp() -> None:
    argv = one(server("", "llama_cpp"), BundleHost("xllamacpp"), engine_launcher="/own/launch.py").argv
    assert argv[:2] == ("/p/env/bin/python", "/own/launch.py")
    argv = one(server("", "llama_cpp"), BundleHost(), engine_launcher="/own/launch.py").argv
    assert argv[:3] == ("/own/python", "-m", "infer_dev_entry.llama_server")


def test_llama_server_of_a_named_interpreter_is_run_by_its_file() -> None:
    text = server("", "llama_cpp").replace("control]\n", 'control]\npython_path = "/other/python"\n')
    argv = one(text, BundleHost("xllamacpp"), engine_launcher="/own/launch.py").argv
    assert argv[:2] == ("/other/python", "/own/launch.py")


def test_llama_model_package_must_be_in_the_installed_environment_too() -> None:
    text = '[instance.a.control]\nengine = "llama_cpp"\n[instance.a.server]\nmodel_package = "tiny"\n'
    assert one(text, BundleHost("xllamacpp", "tiny")).name == "a"
    (fault,) = faults_of(text, BundleHost("xllamacpp"))
    assert "instance.a.server.model_package" in fault
    assert "the installed environment lacks" in fault


def test_llama_binary_that_knows_no_such_word_is_not_told_no_metrics() -> None:
    text = server("metrics = false", "llama_cpp").replace("control]\n", 'control]\nbinary = "/llama-server"\n')
    assert one(text).argv == ("/llama-server", "--model", "/m.gguf", "--host", "127.0.0.1", "--port", "30000")


def test_llama_binary_takes_any_flag_and_repeats_lists() -> None:
    text = (
        '[instance.a.control]\nengine = "llama_cpp"\nbinary = "~/llama-server"\n'
        '[instance.a.server]\nmodel = "/m.gguf"\nport = 5\nlora = ["x", "y"]\nmlock = true\n'
    )
    plan = plan_of(text)
    assert plan.servers[0].argv == (
        "/home/me/llama-server", "--model", "/m.gguf", "--port", "5", "--lora", "x", "--lora", "y", "--mlock",
        "--host", "127.0.0.1", "--metrics",
    )  # fmt: skip
    assert any("does not know --lora" in warning for warning in plan.warnings)


def test_model_path_of_an_llama_instance_is_accepted_with_a_warning() -> None:
    plan = plan_of('[instance.a.control]\nengine = "llama_cpp"\n[instance.a.server]\nmodel_path = "/m.gguf"\n')
    assert plan.servers[0].argv[3:5] == ("--model", "/m.gguf")
    assert plan.warnings == ("f.toml: instance.a.server.model_path: read as model, llama_cpp's name for it",)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("port = \"30k\"", 'instance.a.server.port: expected int, got "30k"'),
        ("port = 0", "instance.a.server.port: expected a port from 1 to 65535, got 0; choose a free port"),
        ("port = 70000", "expected a port from 1 to 65535, got 70000"),
        ("port = true", "instance.a.server.port: expected int, got true; --port needs a value"),
        ('enable_metrics = "true"', 'expected true or false, got "true"; --enable-metrics is a switch'),
        ("enable_metrics = 1", "expected true or false, got 1"),
        ("tp_size = 1.0", "expected int, got 1.0"),
        ("tp_size = [1, 2]", "expected one value, got a list; --tp-size takes no list"),
        ("tp_size = {}", "expected int, got a table"),
        ('mem_fraction_static = "lots"', 'expected float, got "lots"'),
        ("mem_fraction_static = nan", "expected a finite number, got nan"),
        ('context_length = "32K"', 'expected int, got "32K"; write digits, or 32k for 32000'),
        ('preferred_sampling_params = "{"', "expected JSON, got"),
        ('reasoning_parser = "glm47"', 'expected one of the choices, got "glm47"; write "glm45"; choices: glm45'),
        ('tool_call_parser = "glm48"', "choices: glm47, glm45"),
        ("max_model_len = 8", "sglang has no such flag; sglang calls it context_length"),
        ("max_context_length = 8", "sglang calls it context_length"),
        ("gpu_memory_utilization = 0.9", "sglang calls it mem_fraction_static"),
        ('api_keys_file = "/x"', "sglang takes one key: use api_key_file"),
        ("tp_sizes = 8", "sglang has no such flag; did you mean tp_size?"),
        ("tp_size = 1\ntensor_parallel_size = 2", "the same flag as tp_size; remove one of them"),
        ("max_running_requests = 2020-01-01", "expected a str, a number or a bool, got a date; quote it"),
        ('chat_template = "a\\u0000b"', "holds a NUL character; remove the character"),
        ('chat_template = "a\\rb"', "holds a carriage return"),
        ("tp_size = 99999999999999999999", "expected a 64-bit int"),
        ('extra_args = "--x"', "expected a list of strings"),
        ('extra_args = ["--port", "5"]', "write port in the server table"),
        ('cuda_graph_bs_decode = ["-x"]', "expected int"),
        ('allowed_media_domains = ["-x"]', "expected values without a leading dash"),
        ("host = 0", "instance.a.server.host: expected a host, got 0; quote it"),
        ('max_total_tokens = "x"', 'expected int, got "x"'),
        ("api_key = 5", "instance.a.server.api_key: expected a non-empty string"),
    ],
)  # fmt: skip
def test_sglang_flag_fault_says_what_is_wrong(lines: str, expected: str) -> None:
    (fault,) = faults_of(server(lines))
    assert fault.startswith("f.toml: instance.a.server.")
    assert expected in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.toml: has no instance; add [instance.<name>.server]"),
        ("[instance.control]\n", "has no instance"),
        ("a = ", "f.toml: line 1, column 5: Invalid value"),
        ("\n\nx = [1,,]\n", "f.toml: line 3, column 8:"),
        ("x = '", "f.toml: line 1, column 6: "),
        ("x = " + "9" * 5000, "f.toml: not TOML"),
        ("x = " + "[" * 5000, "nested more than 24 deep"),
        ("a." * 40 + "b = 1", "nested more than 24 deep"),
        ("[masters]\n" + server(""), "f.toml: masters: unknown table; did you mean master?"),
        ("master = 3\n" + server(""), "f.toml: master: expected a table, got 3"),
        ("instance = 3", "f.toml: instance: expected a table, got 3"),
        ("[master]\nenabled = true\n" + server(""), "master.enabled: unknown key; did you mean enable?"),
        ("[instance]\na = 3", "instance.a: expected a table, got 3; write [instance.a.server]"),
        (server("") + '[instance."a b".server]\nmodel_path = "x"', 'instance."a b": not a usable name'),
        (server("") + "[instance.a.contrl]\n", "instance.a.contrl: unknown table; did you mean control?"),
        (server("") + "[instance.a.probe]\nperiod = 1", "instance.a.probe.period: unknown key; did you mean period_s?"),
        (server("") + "[instance.a.probe]\nperiod_s = 10", "timeout_s 15 is not below period_s 10"),
        (server("") + "[instance.a.probe]\nperiod_s = 0", "period_s: expected a number above 0, got 0"),
        (server("") + "[instance.a.probe]\nperiod_s = inf", "expected a finite number, got inf"),
        (server("") + "[instance.a.probe]\nfailure_threshold = 0", "expected int of at least 1, got 0"),
        (server("") + "[instance.a.probe]\nfailure_threshold = true", "expected int, got true"),
        (server("") + "[instance.a.restart]\nbackoff_initial_s = 90", "backoff_initial_s 90 is above backoff_max_s 60"),
        (server("") + "[instance.a.env]\nA-B = 1", "instance.a.env.A-B: not a usable name of a variable"),
        (server("") + "[instance.a.env]\nA = [1]", "instance.a.env.A: expected a str, a number or a bool, got a list"),
        (server("") + "[instance.a.env]\nINFER_DEV_MARK = 1", "infer-dev sets this variable itself"),
        (
            server("") + '[instance.a.env]\nSGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION = "0"',
            "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION: must not be 0; it makes /health answer 200",
        ),
        (server("") + "[instance.a.model]\nrepo = 'x'", "instance.a.model.repo: unknown key; did you mean repo_id?"),
        ("[instance.a.server]\nport = 1", "instance.a.server: has no model_path"),
        (
            '[instance.a.control]\nengine = "llama_cpp"\n[instance.a.server]\nport = 1',
            'has no model; write model = "/path/x.gguf"',
        ),
        (
            '[instance.a.control]\nengine = "llama_cpp"\n[instance.a.server]\nmodel = "m.gguf"',
            '"m.gguf" is not an absolute path',
        ),
        (
            '[instance.a.control]\nengine = "vllm"\n[instance.a.server]\nmodel_path = "x"',
            'instance.a.control.engine: expected "sglang" or "llama_cpp", got "vllm"',
        ),
        (server("") + "[instance.a.yaml]\nlora_paths = ['x']", "SGLang's --config refuses --lora-paths"),
        (server("") + "[instance.a.yaml]\nenable_tf32_matmul = true", "SGLang's --config refuses --enable-tf32-matmul"),
        (server("") + "[instance.a.yaml]\nmodel_checksum = true", "cannot give --model-checksum without a value"),
        (server("") + "[instance.a.yaml]\nchat_template = '-x'", "would read a value with a leading dash as a flag"),
        (server("") + "[instance.a.yaml]\ntp_size = 'x'", 'instance.a.yaml.tp_size: expected int, got "x"'),
        (server("") + "[instance.a.yaml]\nport = 3", "the command line decides it; move it to the server table"),
        (server("") + "[instance.a.yaml]\ntp_sizes = 3", "instance.a.yaml.tp_sizes: sglang has no such flag"),
        (server('config = "/x.yaml"\napi_key = "k"'), "SGLang reads one --config file"),
        (server("", "llama_cpp") + "[instance.a.yaml]\nctx_size = 3", "llama_cpp reads no yaml"),
    ],
)
def test_file_fault_says_where_and_what(text: str, expected: str) -> None:
    faults = faults_of(text)
    assert len(faults) == 1, faults
    assert expected in faults[0]


def test_all_faults_come_at_once_in_file_order() -> None:
    text = (
        "[master]\nenable = 1\n[instance.b.server]\nmodel_path = 'x'\nport = 'y'\n[instance.b.control]\nlogdir = 1\n"
        "[instance.a.control]\ngpu_ids = 'x'\n"
    )
    starts = [fault.split(": ")[1] for fault in faults_of(text)]
    assert starts == ["master.enable", "instance.b.control.logdir", "instance.a.control.gpu_ids",
                      "instance.b.server.port", "instance.a.server"]  # fmt: skip


# secrets


def test_api_key_goes_to_a_private_file_not_to_argv() -> None:
    spec = one(
        server('api_key = "sk-secret\\u2028"\nadmin_api_key = "adm"') + "[instance.a.yaml]\nmax_running_requests = 4\n"
    )
    assert not any("secret" in word or word == "adm" for word in spec.argv)
    assert spec.argv[-2:] == ("--config", "/run/x/config/a.yaml")
    (file,) = spec.files
    assert file.path == "/run/x/config/a.yaml"
    assert json.loads(file.text) == {"max-running-requests": 4, "api-key": "sk-secret\u2028", "admin-api-key": "adm"}
    assert "\u2028" not in file.text  # YAML would read a line break


def test_api_key_among_raw_words_is_moved_out_of_argv() -> None:
    plan = plan_of(server('extra_args = ["--a", "--api-key", "k1", "--admin-api-key=k2", "b"]'))
    (spec,) = plan.servers
    assert spec.argv[-2:] == ("--a", "b")
    assert json.loads(spec.files[0].text) == {"api-key": "k1", "admin-api-key": "k2"}
    assert not any("k1" in warning or "k2" in warning for warning in plan.warnings)


def test_llama_api_key_goes_to_a_key_file() -> None:
    spec = one(server('api_key = "k"', "llama_cpp"))
    assert spec.argv[-2:] == ("--api-key-file", "/run/x/config/a.key")
    assert spec.files[0].text == "k\n"


def test_yaml_table_writes_what_sglang_can_read_back() -> None:
    text = server("") + (
        "[instance.a.yaml]\nenable_metrics = true\ncuda_graph_bs_decode = [1, 2]\n"
        "json_model_override_args = {a = 1}\ntrust_remote_code = false\nchat_template = false\n"
        "mem_fraction_static = 1e-7\npreferred_sampling_params = [1]\n"
    )
    assert json.loads(one(text).files[0].text) == {
        "enable-metrics": True,
        "cuda-graph-bs-decode": [1, 2],
        "json-model-override-args": '{"a": 1}',
        "mem-fraction-static": "0.0000001",
        "preferred-sampling-params": "[1]",
    }


def test_fault_in_a_secret_does_not_show_it() -> None:
    text = server('api_key = ["hunter2"]') + '[instance.a.env]\nHF_TOKEN = ["hunter2"]\n'
    assert not any("hunter2" in fault for fault in faults_of(text))


# merging and overrides


def test_lists_concatenate_global_first_and_scalars_are_replaced() -> None:
    text = (
        '[instance.server]\nextra_args = ["--g"]\ncuda_graph_bs_decode = [1]\ntp_size = 8\n'
        '[instance.a.server]\nmodel_path = "m"\nextra_args = ["--i"]\ncuda_graph_bs_decode = [2]\n'
        "tensor_parallel_size = 4\n"
    )
    argv = one(text).argv
    assert argv[3:8] == ("--cuda-graph-bs-decode", "1", "2", "--tp-size", "4")
    assert argv[-2:] == ("--g", "--i")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"instance": {"a": {"server": {"tp_size": 2}}}}, ("--tp-size", "2")),
        ({"instance": {"a": {"server": {"tensor_parallel_size": 2}}}}, ("--tp-size", "2")),
        ({"instance": {"a": {"server": {"tp_size": None}}}}, ()),
        (
            {"instance": {"a": {"server": {"tp_size": None, "cuda_graph_bs_decode": [7]}}}},
            ("--cuda-graph-bs-decode", "7"),
        ),
    ],
)
def test_overrides_win_and_null_deletes(overrides: object, expected: tuple[str, ...]) -> None:
    assert words("tp_size = 1", overrides=json.dumps(overrides)) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("{", "AUTO_INFER_SGLANG_OVERRIDES: not JSON"),
        ("[1]", "AUTO_INFER_SGLANG_OVERRIDES: expected a JSON object, got a list"),
        ("[" * 100_000, "AUTO_INFER_SGLANG_OVERRIDES: tables or lists nested"),
        ('{"instance": {"b": {"control": {}}}}', "instance.b (set by AUTO_INFER_SGLANG_OVERRIDES): is not an instance"),
        ('{"instance": {"aa": {}}}', "did you mean a?"),
        ('{"instance": {"a": {"server": {"port": "x"}}}}', 'OVERRIDES): expected int, got "x"'),
        ('{"instance": {"a": {"server": {"port": [null]}}}}', "expected a value, got null"),
        ('{"instance": {"a": {"server": {"tp_size": NaN}}}}', "expected a finite number"),
        ('{"instance": {"a": {"server": {"chat_template": "\\ud800"}}}}', "holds a lone surrogate"),
    ],
)  # fmt: skip
def test_overrides_fault_names_the_variable(overrides: str, expected: str) -> None:
    (fault,) = faults_of(server(""), overrides=overrides)
    assert expected in fault
    assert "AUTO_INFER_SGLANG_OVERRIDES" in fault


def test_overrides_with_a_server_table_make_a_new_instance() -> None:
    overrides = json.dumps({"instance": {"b": {"server": {"model_path": "org/b", "port": 1234}}}})
    assert [spec.name for spec in plan_of(server(""), overrides=overrides).servers] == ["a", "b"]


def test_disabled_master_or_instances_start_nothing_and_say_so() -> None:
    plan = plan_of("[master]\nenable = false\n" + server(""))
    assert (plan.servers, plan.warnings) == ((), ("f.toml: master.enable: is false, so nothing starts",))
    plan = plan_of("[instance.control]\nenabled = false\n" + server(""))
    assert (plan.servers, len(plan.warnings)) == ((), 1)


# interpreters


@pytest.mark.parametrize(
    ("master", "control", "option", "expected"),
    [
        ("", "", "", "/p/env/bin/python"),
        ('project_dir = "~/q"', "", "", "/home/me/q/env/bin/python"),
        ('python_path = "/m/python"', "", "", "/m/python"),
        ('python_path = "/m/python"', "", "/o/python", "/o/python"),
        ('python_path = "/m/python"', 'python_path = "/c/python"', "/o/python", "/c/python"),
    ],
)
def test_interpreter_precedence(master: str, control: str, option: str, expected: str) -> None:
    text = f"[master]\n{master}\n[instance.a.control]\n{control}\n[instance.a.server]\nmodel_path = 'm'\n"
    assert one(text, python=option).argv[0] == expected


# GPUs

EIGHT = tuple(gpu(index) for index in range(8))


def fleet(**controls: str) -> str:
    return "".join(
        f"[instance.{name}.control]\n{control}\n"
        f"[instance.{name}.server]\nmodel_path = 'm'\nport = {4000 + 100 * number}\n"
        for number, (name, control) in enumerate(controls.items())
    )


@pytest.mark.parametrize(
    ("control", "gpus", "expected"),
    [
        ('gpu_ids = "all"', EIGHT, [None]),
        ('gpu_ids = "none"', EIGHT, [()]),
        ("gpu_ids = []", EIGHT, [()]),
        ("gpu_ids = 3", EIGHT, [("3",)]),
        ('gpu_ids = "0-2, 5"', EIGHT, [("0", "1", "2", "5")]),
        ("gpu_ids = [1, 0]", EIGHT, [("1", "0")]),
        ('gpu_ids = "GPU-00000001-aaaa"', EIGHT, [("GPU-00000001-aaaa",)]),
        ('gpu_ids = "MIG-abc"', EIGHT, [("MIG-abc",)]),
        ('gpu_ids = "auto"', EIGHT, [("0",)]),
        ('replicas = "per-gpu"\ngpus_per_replica = 4', EIGHT, [("0", "1", "2", "3"), ("4", "5", "6", "7")]),
        ('replicas = "per-gpu"\ngpu_ids = "2,3"', EIGHT, [("2",), ("3",)]),
        ('replicas = "per-gpu"\ngpu_ids = "2,3"', None, [("2",), ("3",)]),
        ("replicas = 2", EIGHT, [("0",), ("1",)]),
        ("replicas = 2", None, [("0",), ("1",)]),
        ('replicas = 2\ngpu_ids = "none"', None, [(), ()]),
        ('replicas = 2\ngpu_ids = "auto"', EIGHT, [("0",), ("1",)]),
        ('replicas = 3\ngpu_ids = "0-1"\nshare_gpu = true', EIGHT, [("0",), ("1",), ("0",)]),
        ('engine = "llama_cpp"\nbinary = "/l"', None, [None]),
        ('engine = "llama_cpp"\ngpu_ids = "auto"', None, [()]),
        ('engine = "llama_cpp"\nreplicas = 2', None, [None, None]),
        ('engine = "llama_cpp"\nreplicas = 2', (), [None, None]),
        ('engine = "llama_cpp"\nreplicas = 2', EIGHT, [("0",), ("1",)]),
    ],
)
def test_gpu_ids_deal_the_sets(control: str, gpus: tuple[Gpu, ...] | None, expected: list[object]) -> None:
    text = fleet(a=control)
    text = text.replace("model_path = 'm'", "model = '/m'") if "llama" in control else text
    assert [spec.gpu_ids for spec in plan_of(text, FakeHost(gpus)).servers] == expected


@pytest.mark.parametrize(
    ("text", "gpus", "expected"),
    [
        (fleet(a='gpu_ids = "x"'), EIGHT, 'expected GPU ids, got "x"; write "all"'),
        (fleet(a='gpu_ids = "0,0"'), EIGHT, "each GPU once"),
        (fleet(a='gpu_ids = "3-1"'), EIGHT, "expected GPU ids"),
        (fleet(a="gpu_ids = 9"), EIGHT, "this machine has no GPU 9; it has 0, 1, 2, 3, 4, 5, 6, 7; correct gpu_ids"),
        (fleet(a="gpu_ids = 0"), (), "this machine has no GPU 0; it has none"),
        (fleet(a="gpu_ids = 1", b='gpu_ids = "1-2"'), EIGHT, "b.control.gpu_ids: GPU 1 is also used by instance.a"),
        (fleet(a="gpu_ids = 1", b='gpu_ids = "1-2"'), None, "GPU 1 is also used by instance.a"),
        (fleet(a="gpu_ids = 1", b='gpu_ids = "GPU-00000001"'), EIGHT, "is also used by instance.a"),
        (fleet(a="gpu_ids = 0") + "tp_size = 2", EIGHT, "tp_size × pp_size needs 2 GPUs, and there is 1"),
        (fleet(a="gpu_ids = 0") + "tp_size = 2", None, "tp_size × pp_size needs 2 GPUs, and there is 1"),
        (fleet(a="") + "tp_size = 16", EIGHT, "needs 16 GPUs, and there are 8"),
        (fleet(a='replicas = "per-gpu"'), None, "answers here; list gpu_ids, or set replicas to a number"),
        (fleet(a='gpu_ids = "auto"'), None, '"auto" needs the list of GPUs'),
        (fleet(a='gpu_ids = "0-7"', b='gpu_ids = "auto"'), EIGHT, "no other instance names, 0 are left"),
        (fleet(a="replicas = 3\ngpu_ids = '0-1'"), EIGHT, "3 replicas of 1 GPUs need 3, and there are 2"),
        (fleet(a="gpus_per_replica = 1\nreplicas = 2") + "tp_size = 2", EIGHT, "needs 2 GPUs, and there is 1"),
        (fleet(a='replicas = "per-gpu"\ngpu_ids = "none"'), EIGHT, "has no GPU to count"),
        (fleet(a='replicas = "many"'), EIGHT, "expected an int from 1 to 1024, or \"per-gpu\""),
        (fleet(a=""), (gpu(0, (6, 1)),), 'compute capability 6.1, and SGLang needs 7.5; use engine = "llama_cpp"'),
    ],
)  # fmt: skip
def test_gpu_fault_says_what_is_lacking(text: str, gpus: tuple[Gpu, ...] | None, expected: str) -> None:
    faults = faults_of(text, FakeHost(gpus))
    assert len(faults) == 1, faults
    assert expected in faults[0]


def test_shared_gpus_and_explicit_ids_without_a_driver_pass() -> None:
    shared = fleet(a="gpu_ids = 1", b="gpu_ids = 1\nshare_gpu = true")
    assert len(plan_of(shared, FakeHost(EIGHT)).servers) == 2
    plan = plan_of(fleet(a="gpu_ids = 1", b="gpu_ids = 2"))
    assert [warning for warning in plan.warnings if "no NVIDIA driver" in warning] == list(plan.warnings)
    assert len(plan.warnings) == 1


def test_turing_gpu_and_two_instances_on_all_gpus_warn() -> None:
    assert "SGLang is known to fail below 8.0" in plan_of(fleet(a=""), FakeHost((gpu(0, (7, 5)),))).warnings[0]
    (warning,) = plan_of(fleet(a="", b=""), FakeHost(EIGHT)).warnings
    assert "instance.a: sees all GPUs, and so may use the same ones as b" in warning


def test_auto_takes_gpus_that_no_other_instance_names() -> None:
    text = fleet(a='gpu_ids = "auto"', b='gpu_ids = "0,2"', c='gpu_ids = "auto"')
    dealt = {spec.name: spec.gpu_ids for spec in plan_of(text, FakeHost(EIGHT)).servers}
    assert dealt == {"a": ("1",), "b": ("0", "2"), "c": ("3",)}


def deal(
    text: str, host: FakeHost, placed: dict[str, GpuSet] | None = None, *, leaving: str = "", engine: str = "sglang"
) -> dict[str, object]:
    """What a text deals where servers run already: name → GPUs."""
    there = {
        name: Placed(gpu_ids=gpus, engine=engine, leaving=name == leaving) for name, gpus in (placed or {}).items()
    }
    return {spec.name: spec.gpu_ids for spec in plan_of(text, host, placed=there).servers}


def llama(**controls: str) -> str:
    text = fleet(**{name: f'engine = "llama_cpp"\nbinary = "/l"\n{lines}' for name, lines in controls.items()})
    return text.replace("model_path = 'm'", "model = '/m'")


_GB = 10**9


@pytest.mark.parametrize(
    ("control", "held", "expected"),
    [
        ("", {"0": 70 * _GB}, ("1",)),
        ("", {"0": 70 * _GB, "1": 2 * _GB, "2": 3 * _GB}, ("3",)),
        ("", {str(number): (9 - number) * 10 * _GB for number in range(8)}, ("7",)),  # all are held: the least
        ("", {"0": 1 * _GB}, ("0",)),  # the driver's own, or a desktop's
        ("gpus_per_replica = 2", {"0": 70 * _GB, "2": 70 * _GB}, ("1", "3")),
        ("gpus_per_replica = 2", {str(number): (9 - number) * 10 * _GB for number in range(8)}, ("6", "7")),
        ("gpus_per_replica = 8", {"0": 70 * _GB}, tuple("01234567")),  # there is no choice, and the start waits
    ],
)
def test_auto_prefers_gpus_that_others_leave_free(control: str, held: dict[str, int], expected: object) -> None:
    text = fleet(a=f'gpu_ids = "auto"\n{control}')
    assert deal(text, FakeHost(EIGHT, held=held)) == {"a": expected}


def test_auto_takes_the_free_gpu_for_the_first_and_the_held_one_for_the_last() -> None:
    text = fleet(a='gpu_ids = "auto"', b='gpu_ids = "auto"')
    assert deal(text, FakeHost(EIGHT[:2], held={"0": 70 * _GB})) == {"a": ("1",), "b": ("0",)}


@pytest.mark.parametrize("held", [{}, {"0": 70 * _GB}, {"5": 70 * _GB}])
def test_running_server_keeps_its_gpus_whatever_is_free_now(held: dict[str, int]) -> None:
    text = fleet(new='gpu_ids = "auto"', old='gpu_ids = "auto"')
    dealt = deal(text, FakeHost(EIGHT, held=held), {"old": ("5",)})
    assert dealt["old"] == ("5",)
    assert dealt["new"] == (("1",) if "0" in held else ("0",))


def test_running_server_gives_way_to_who_names_its_gpu_and_to_its_own_new_size() -> None:
    text = fleet(a='gpu_ids = "auto"', b="gpu_ids = 5", c='gpu_ids = "auto"\ngpus_per_replica = 2')
    dealt = deal(text, FakeHost(EIGHT), {"a": ("5",), "c": ("6",)})
    assert dealt == {"a": ("0",), "b": ("5",), "c": ("1", "2")}


def test_replicas_keep_their_own_sets_and_new_ones_get_the_rest() -> None:
    text = fleet(a='gpu_ids = "auto"\nreplicas = 3\ngpus_per_replica = 2')
    placed: dict[str, GpuSet] = {"a-0": ("6", "7"), "a-2": ("0", "1"), "other": ("2",)}
    assert deal(text, FakeHost(EIGHT), placed) == {"a-0": ("6", "7"), "a-1": ("3", "4"), "a-2": ("0", "1")}
    fewer = fleet(a='gpu_ids = "auto"\nreplicas = "per-gpu"', b='gpu_ids = "0-5"')
    placed = {"a-0": ("5",), "a-1": ("6",), "a-7": ("7",)}
    assert deal(fewer, FakeHost(EIGHT), placed) == {"a-0": ("7",), "a-1": ("6",), "b": tuple("012345")}


def test_running_server_keeps_the_very_words_of_its_gpu() -> None:
    placed: dict[str, GpuSet] = {"a": ("GPU-00000003-aaaa",)}
    text = fleet(a='gpu_ids = "auto"', b='gpu_ids = "auto"\nreplicas = 4')
    dealt = deal(text, FakeHost(EIGHT), placed)
    assert dealt == {"a": ("GPU-00000003-aaaa",), "b-0": ("0",), "b-1": ("1",), "b-2": ("2",), "b-3": ("4",)}


@pytest.mark.parametrize(
    ("placed", "engine", "running"),
    [
        ({}, "", set()),
        ({"x": ("GPU-00000002", "4"), "y": ()}, "sglang", {"2", "4"}),
        ({"x": None, "y": ("0",)}, "sglang", set("01234567")),
        ({"x": None, "y": ("0",)}, "llama_cpp", {"0"}),  # a helper on the CPU, most often
    ],
)
def test_memory_that_nobody_visible_holds_is_ours_where_our_servers_run(
    placed: dict[str, GpuSet], engine: str, running: set[str]
) -> None:
    host = FakeHost(EIGHT)
    deal(fleet(a='gpu_ids = "auto"', b='gpu_ids = "auto"'), host, placed, engine=engine)
    assert [set(item) for item in host.running] == [running]  # the driver is asked once


@pytest.mark.parametrize(
    ("held", "expected"), [({}, "1"), ({"1": 1.5 * _GB, "2": 70 * _GB}, "1"), ({"1": 3 * _GB, "2": 2.5 * _GB}, "0")]
)
def test_gpu_that_a_server_is_about_to_leave_is_not_free_yet(held: dict[str, int], expected: str) -> None:
    three = EIGHT[:3]
    assert deal(fleet(new='gpu_ids = "auto"'), FakeHost(three, held=held), {"old": ("0",)}) == {"new": (expected,)}


def test_server_that_was_told_to_stop_gives_way_to_one_that_was_not() -> None:
    text = fleet(a='gpu_ids = "auto"', b='gpu_ids = "auto"')
    assert deal(text, FakeHost(EIGHT), {"a": ("0",), "b": ("0",)}, leaving="a") == {"a": ("1",), "b": ("0",)}
    assert deal(text, FakeHost(EIGHT), {"a": ("3",), "b": ("0",)}, leaving="a") == {"a": ("3",), "b": ("0",)}


def test_update_moves_nobody_while_the_driver_is_silent() -> None:
    for text in (fleet(a='gpu_ids = "auto"'), llama(a='gpu_ids = "auto"')):
        assert deal(text, FakeHost(None), {"a": ("3",)}) == {"a": ("3",)}
    with pytest.raises(ConfigError, match="no NVIDIA driver answers here"):
        deal(fleet(a='gpu_ids = "auto"\nreplicas = 2'), FakeHost(None), {"a-0": ("3",)})
    for text in (fleet(a='gpu_ids = "auto"\nreplicas = "per-gpu"'), llama(a='gpu_ids = "auto"\nreplicas = "per-gpu"')):
        with pytest.raises(ConfigError, match="no NVIDIA driver answers here"):  # nobody knows how many there are
            deal(text, FakeHost(None), {"a-0": ("0",), "a-2": ("2",)})


def test_replicas_of_llama_cpp_for_which_no_gpu_is_left_run_on_the_cpu() -> None:
    text = llama(a='gpu_ids = "auto"\nreplicas = 3')
    assert deal(text, FakeHost(EIGHT[:2])) == {"a-0": ("0",), "a-1": ("1",), "a-2": ()}
    assert deal(text, FakeHost(EIGHT[:2]), {"a-0": ("1",)}) == {"a-0": ("1",), "a-1": ("0",), "a-2": ()}


def test_instance_that_has_moved_to_the_cpu_keeps_no_gpu() -> None:
    text = fleet(a='gpu_ids = "auto"', b='gpu_ids = "auto"\nreplicas = 2')
    text = text.replace("port = 4000", 'port = 4000\ndevice = "cpu"')
    assert deal(text, FakeHost(EIGHT[:2]), {"a": ("0",)}) == {"a": (), "b-0": ("0",), "b-1": ("1",)}


@pytest.mark.parametrize("held", [{}, {"0": 70 * _GB, "1": 70 * _GB}])
def test_auto_leaves_what_the_replicas_on_all_were_dealt(held: dict[str, int]) -> None:
    text = fleet(a='gpu_ids = "all"\nreplicas = 2', b='gpu_ids = "auto"')
    assert deal(text, FakeHost(EIGHT, held=held)) == {"a-0": ("0",), "a-1": ("1",), "b": ("2",)}


def test_auto_leaves_the_slices_of_a_gpu_that_is_named_by_its_number() -> None:
    sliced = replace(gpu(0), mig_uuids=("MIG-a", "MIG-b"))
    text = fleet(a="gpu_ids = 0", b='gpu_ids = "auto"')
    assert deal(text, FakeHost((sliced, gpu(1)))) == {"a": ("0",), "b": ("1",)}
    assert deal(fleet(b='gpu_ids = "auto"'), FakeHost((sliced, gpu(1)))) == {"b": ("MIG-a",)}


def test_memory_is_not_asked_for_where_there_is_nothing_to_choose() -> None:
    host = FakeHost(EIGHT)
    deal(fleet(a='gpu_ids = "0"', b='gpu_ids = "auto"\nreplicas = 7', c='gpu_ids = "none"'), host)
    assert host.running == []


def test_auto_leaves_gpus_alone_that_the_engine_does_not_run_on() -> None:
    old, turing, new = gpu(0, (6, 1)), gpu(1, (7, 5)), gpu(2)
    text = fleet(a='gpu_ids = "auto"')
    assert deal(text, FakeHost((old, turing, new), held={"2": 70 * _GB})) == {"a": ("2",)}
    assert deal(text, FakeHost((old, turing))) == {"a": ("1",)}
    (fault,) = faults_of(text, FakeHost((old,)))
    assert "GPU 0 (H200) has compute capability 6.1, and SGLang needs 7.5" in fault
    (fault,) = faults_of(text + "tp_size = 3\n", FakeHost((old, new)))
    assert '"auto" needs 3 GPUs that no other instance names, 1 are left' in fault
    assert deal(llama(a='gpu_ids = "auto"'), FakeHost((old, new))) == {"a": ("0",)}


LOST = Gpu(index=0, uuid="", name="", memory_bytes=0, compute=(0, 0), lost="GPU is lost")
_TOLD = (
    "GPU 0 is lost: GPU is lost; look at it with nvidia-smi on the host, and re-create the container when it is well"
)


@pytest.mark.parametrize(
    ("text", "dealt", "told"),
    [
        (fleet(a="gpu_ids = 0", b="gpu_ids = 1"), {"a": ("0",), "b": ("1",)}, ["f.toml: instance.a.control.gpu_ids: "]),
        (fleet(a='gpu_ids = "GPU-00000000"'), {"a": ("GPU-00000000",)}, []),  # it may be any
        (fleet(a="gpu_ids = 1"), {"a": ("1",)}, []),
        (fleet(a='replicas = "per-gpu"'), {"a-0": ("0",), "a-1": ("1",)}, ["f.toml: instance.a: "]),
        (fleet(a="") + "tp_size = 2", {"a": None}, ["f.toml: instance.a: "]),
        (fleet(a='gpu_ids = "auto"'), {"a": ("1",)}, []),
        (
            fleet(a='gpu_ids = "auto"\nreplicas = 2'),
            {"a-0": ("0",), "a-1": ("1",)},
            ["f.toml: instance.a.control.gpu_ids: "],
        ),
    ],
)
def test_lost_gpu_is_told_and_hides_no_other(text: str, dealt: dict[str, object], told: list[str]) -> None:
    """Its servers are held at their start; a config of several must not be refused for it."""
    plan = plan_of(text, FakeHost((LOST, gpu(1))))
    assert {spec.name: spec.gpu_ids for spec in plan.servers} == dealt
    assert list(plan.warnings) == [path + _TOLD for path in told]


def test_servers_that_share_a_gpu_call_it_the_same() -> None:
    """By different words nobody would know that they share it."""
    text = fleet(a="gpu_ids = 1", b='gpu_ids = ["GPU-00000001", "GPU-00000002"]\nshare_gpu = true')
    assert deal(text, FakeHost(EIGHT)) == {"a": ("1",), "b": ("1", "GPU-00000002")}
    running: dict[str, GpuSet] = {"b": ("GPU-00000001", "GPU-00000002")}
    assert deal(text, FakeHost(EIGHT), running) == {"a": ("GPU-00000001",), "b": running["b"]}


@pytest.mark.parametrize(
    ("lines", "gpus"),
    [("", 1), ("tp_size = 2\npp_size = 2", 4), ("tp_size = 2\ndp_size = 2", 4), ('device = "cpu"', 0)],
)
def test_spec_says_how_many_gpus_it_takes_at_least(lines: str, gpus: int) -> None:
    assert one(fleet(a="") + lines, FakeHost(EIGHT)).min_gpus == gpus


def test_auto_counts_gpus_against_tp_size() -> None:
    (fault,) = faults_of(fleet(a='gpu_ids = "auto"\ngpus_per_replica = 1') + "tp_size = 2\n", FakeHost(EIGHT))
    assert "tp_size × pp_size needs 2 GPUs, and there is 1" in fault


@pytest.mark.parametrize("log_dir", ["/tmp/a%b", "/tmp/a ;b"])
def test_log_dir_that_supervisord_cannot_express_is_a_fault(log_dir: str) -> None:
    text = f'[instance.a.control]\nlog_dir = "{log_dir}"\n[instance.a.server]\nmodel_path = "org/m"\n'
    (fault,) = faults_of(text)
    assert "instance.a.control.log_dir" in fault
    assert "cannot be a log file" in fault


def test_cuda_visible_devices_follows_gpu_ids() -> None:
    def variables(control: str, env: str = "") -> dict[str, str]:
        return dict(one(fleet(a=control) + f"[instance.a.env]\n{env}\n", FakeHost(EIGHT)).environment)

    assert "CUDA_VISIBLE_DEVICES" not in variables("")
    assert variables("", 'CUDA_VISIBLE_DEVICES = "3"')["CUDA_VISIBLE_DEVICES"] == "3"
    assert variables('gpu_ids = "none"')["CUDA_VISIBLE_DEVICES"] == ""
    assert variables('gpu_ids = "1,0"')["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert variables('gpu_ids = "1,0"')["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    (fault,) = faults_of(fleet(a="gpu_ids = 0") + '[instance.a.env]\nCUDA_VISIBLE_DEVICES = "3"\n', FakeHost(EIGHT))
    assert "CUDA_VISIBLE_DEVICES: gpu_ids decides it" in fault


# replicas, ports, logs


def test_replicas_get_names_ports_logs_and_files_of_their_own() -> None:
    text = (
        fleet(a='replicas = 2\nlog_dir = "/logs"\nlog_file = "x.log"\ngpu_ids = "none"')
        + 'api_key = "k"\nnccl_port = 9000\n'
    )
    first, second = plan_of(text).servers
    assert (first.name, second.name, first.port, second.port) == ("a-0", "a-1", 4000, 4001)
    assert (first.log_file, second.log_file) == ("/logs/x-0.log", "/logs/x-1.log")
    assert second.files[0].path == "/run/x/config/a-1.yaml"
    assert dict(second.environment)["TMPDIR"] == "/tmp/x/a-1"
    assert second.argv[second.argv.index("--nccl-port") + 1] == "9001"


@pytest.mark.parametrize(
    ("version", "lines", "warns"),
    [
        ("0.5.7", "", True),
        ("0.5.7", "enable_metrics = true", False),
        ("0.5.7", 'extra_args = ["--enable-metrics"]', False),
        ("0.5.17", "", False),
        ("", "", False),  # any version may come
    ],
)
def test_sglang_without_counters_is_told(version: str, lines: str, warns: bool) -> None:
    warnings = plan_of(server(lines), FakeHost(sglang=version)).warnings
    told = [warning for warning in warnings if "no counters without enable_metrics" in warning]
    assert len(told) == warns


def test_port_that_is_given_among_raw_words_is_dealt_to_nobody_else() -> None:
    raw = '[instance.a.server]\nmodel_path = "m"\nport = 30100\nextra_args = ["--nccl-port", "20000"]\n'
    a, b = plan_of(raw + '[instance.b.server]\nmodel_path = "m"\nport = 30000\n').servers
    assert (a.more_ports, b.more_ports) == ((20000,), (20001,))


@pytest.mark.parametrize(
    ("control", "stagger_s"),
    [
        ('replicas = "per-gpu"', 2.0),
        ('replicas = "per-gpu"\nstart_stagger_s = 0', 0.0),
        ('replicas = "per-gpu"\nstart_stagger_s = 7', 7.0),
        ("replicas = 2", 0.0),
    ],
)
def test_servers_of_a_gpu_each_start_one_after_the_other(control: str, stagger_s: float) -> None:
    assert {spec.start_stagger_s for spec in plan_of(fleet(a=control), FakeHost(EIGHT)).servers} == {stagger_s}


def test_nccl_ports_are_unique_and_avoid_http_ports() -> None:
    text = (
        "[instance.a.server]\nmodel_path='m'\nport=20000\n[instance.b.server]\nmodel_path='m'\nport=30000\n"
        "[instance.c.server]\nmodel_path='m'\nport=60000\n[instance.d.server]\nmodel_path='m'\nport=5488\n"
        "[instance.e.server]\nmodel_path='m'\nport=10000\nhost='10.0.0.1'\n"
    )
    ports = [spec.argv[spec.argv.index("--nccl-port") + 1] for spec in plan_of(text).servers]
    assert len(set(ports)) == 5
    assert "30000" not in ports
    assert all(1024 <= int(port) <= 65535 for port in ports)


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        (server("") + "[instance.b.server]\nmodel_path='m'\n", None, "port 30000 of b is also used by a"),
        (fleet(a="replicas = 200\ngpu_ids='none'", b=""), None, "port 4100 of b is also used by a-100"),
        (server(""), FakeHost(ports={30000: "pid 4242 (python3)"}), "port 30000 of a is in use by pid 4242 (python3)"),
        (server("port = 65535") + "[instance.a.control2]\n", None, "unknown table"),
        (fleet(a='log_file = "/l"', b='log_file = "/l"'), None, '"/l" is also the log file of a'),
        (server(""), FakeHost(missing=("/tmp",)), 'cannot write logs to "/tmp": no such file; choose another log_dir'),
        (server(""), FakeHost(missing=("/p/env/bin/python",)), 'run "/p/env/bin/python": no such file; install'),
        ("[instance.a.server]\nmodel_path='/no'", FakeHost(missing=("/no",)), 'path: cannot read "/no": no such file'),
        ("[instance.a.server]\nmodel_path='~/no'", FakeHost(missing=("/home/me/no",)), 'cannot read "/home/me/no"'),
        (server("", "llama_cpp"), FakeHost(missing=("xllamacpp",)), "pip install 'infer-dev-entry[cpu]'"),
        (fleet(**{"a": "replicas = 2\ngpu_ids='none'", "a-1": ""}), None, "server a-1 also comes from instance.a"),
    ],
)  # fmt: skip
def test_machine_and_fleet_faults(text: str, host: FakeHost | None, expected: str) -> None:
    faults = faults_of(text, host)
    assert len([fault for fault in faults if expected in fault]) == 1, faults


def test_model_path_is_not_looked_for_when_it_is_downloaded() -> None:
    text = "[instance.a.server]\nmodel_path='/no'\n[instance.a.model]\nrepo_id='org/m'\n"
    assert one(text, FakeHost(missing=("/no",)), model_download=True).argv[4] == "/no"


def test_last_replica_past_the_last_port_is_a_fault() -> None:
    text = "[instance.a.control]\nreplicas = 3\ngpu_ids='none'\n[instance.a.server]\nmodel_path='m'\nport=65534\n"
    (fault,) = faults_of(text)
    assert "replica 2 would need port 65536; begin at a lower port" in fault


def test_host_is_asked_once_for_what_instances_share() -> None:
    host = FakeHost()
    plan_of(fleet(a="", b="", c=""), host)
    assert host.asked.count("/tmp") == host.asked.count("/p/env/bin/python") == 1


# order


def test_depends_on_and_background_order_the_start() -> None:
    text = fleet(a='depends_on = ["c"]', b="background = false", c="replicas = 2\ngpu_ids = 'none'")
    plan = plan_of(text)
    assert [spec.name for spec in plan.servers] == ["b", "c-0", "c-1", "a"]
    waits = {spec.name: spec.depends_on for spec in plan.servers}
    assert waits == {"a": ("c-0", "c-1"), "b": (), "c-0": ("b",), "c-1": ("b",)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fleet(a='depends_on = ["b"]', b='depends_on = ["a"]'), "wait for each other"),
        (fleet(a='depends_on = ["a"]'), "a cannot depend on itself"),
        (fleet(a='depends_on = ["glm"]', glm2=""), 'no enabled instance is called "glm"; did you mean glm2?'),
        (fleet(a='depends_on = ["b"]', b="enabled = false"), 'no enabled instance is called "b"'),
        (fleet(a='depends_on = ["b"]\nbackground = false', b=""), "wait for each other"),
        (fleet(a='depends_on = "b"'), "expected a list of strings"),
    ],
)
def test_order_fault(text: str, expected: str) -> None:
    (fault,) = faults_of(text)
    assert expected in fault


# versions


def test_flag_of_some_versions_is_noted_once() -> None:
    text = fleet(a="", b="") + "cuda_graph_bs_decode = [1]\n" + "[instance.server]\ncuda_graph_bs_decode = [2]\n"
    notes = [warning for warning in plan_of(text).warnings if "cuda-graph-bs-decode" in warning]
    assert len(notes) == 1
    assert notes[0].endswith("sglang 0.5.17, 0.5.23 has --cuda-graph-bs-decode; 0.5.7 has not")


def test_installed_version_decides_which_flags_there_are() -> None:
    text = server("cuda_graph_bs_decode = [1]")
    (fault,) = faults_of(text, FakeHost(sglang="0.5.7"))
    assert "sglang 0.5.7 has no such flag" in fault
    assert plan_of(text, FakeHost(sglang="0.5.23")).warnings == ()


def test_deprecated_flag_warns_with_its_successor() -> None:
    plan = plan_of(server("cuda_graph_max_bs = 4"), FakeHost(sglang="0.5.17"))
    assert "--cuda-graph-max-bs is deprecated in sglang 0.5.17; use --cuda-graph-max-bs-decode" in plan.warnings[0]


def test_mixed_engines_share_the_global_table() -> None:
    text = (
        "[instance.server]\nhost='0.0.0.0'\nmem_fraction_static=0.5\nthreads=2\n"
        "[instance.a.server]\nmodel_path='m'\n[instance.b.control]\nengine='llama_cpp'\n[instance.b.server]\nmodel='/m'\nport=1\n"
    )
    plan = plan_of(text)
    sglang, llama = plan.servers
    assert "--mem-fraction-static" in sglang.argv and "--threads" not in sglang.argv
    assert "--threads" in llama.argv and "--mem-fraction-static" not in llama.argv
    assert len([warning for warning in plan.warnings if "left out for engine" in warning]) == 2


# ports beside the server's own, and replicas that wait


def test_dealt_ports_are_told_to_the_starter_and_lie_below_the_ephemeral_range() -> None:
    plan = plan_of(fleet(a="", b="") + "enable_dp_attention = true\ndp_size = 4\ntp_size = 4\n")
    a, b = plan.servers
    assert a.more_ports == (int(a.argv[a.argv.index("--nccl-port") + 1]),)
    nccl, first, *rest = b.more_ports
    assert b.argv[b.argv.index("--dist-init-addr") + 1] == f"127.0.0.1:{first}"
    assert rest == list(range(first + 1, first + 14))
    every = [a.port, *a.more_ports, b.port, *b.more_ports]
    assert len(set(every)) == len(every)
    assert max(nccl, first + 13, *a.more_ports) < 32768


def test_data_parallel_workers_find_their_own_nccl_ports() -> None:
    spec = one(server("dp_size = 2"))
    assert "--nccl-port" not in spec.argv
    assert spec.more_ports == ()
    (fault,) = faults_of(server("dp_size = 2\nnccl_port = 9000"))
    assert "nccl_port: every one of the dp_size workers would bind it; remove it" in fault


def test_data_parallel_workers_count_as_gpus() -> None:
    text = "[instance.a.control]\ngpu_ids = '0,1'\n[instance.a.server]\nmodel_path='m'\ndp_size=4\n"
    (fault,) = faults_of(text, FakeHost(EIGHT))
    assert "needs 4 GPUs" in fault


@pytest.mark.parametrize(
    ("lines", "ports", "expected"),
    [
        (
            "",
            {20000: "pid 7 (x)"},
            "nccl_port 20000 of a is in use by pid 7 (x); stop it, or set nccl_port to what is free",
        ),
        ("nccl_port = 9000", {9000: "pid 7 (x)"}, "nccl_port 9000 of a is in use by pid 7 (x)"),
        ('extra_args = ["--nccl-port", "9001"]', {9001: "pid 7 (x)"}, "nccl_port 9001 of a is in use by pid 7 (x)"),
        ('dist_init_addr = "127.0.0.1:9002"', {9002: "pid 7 (x)"}, "dist_init_addr 9002 of a is in use by pid 7 (x)"),
        ('dist_init_addr = "127.0.0.1:30000"', {}, "dist_init_addr 30000 of a is also used by a"),
    ],
)
def test_port_beside_the_servers_own_is_checked(lines: str, ports: dict[int, str], expected: str) -> None:
    (fault,) = faults_of(server(lines), FakeHost(ports=ports))
    assert expected in fault


def test_dist_init_address_of_another_node_is_not_bound_here() -> None:
    lines = 'nnodes = 2\ntp_size = 2\nnode_rank = 1\ndist_init_addr = "10.0.0.1:9002"\nnccl_port = 9000'
    assert one(server(lines), FakeHost(ports={9002: "pid 7 (x)"})).more_ports == (9000,)


def test_replicas_of_sglang_wait_for_the_first_to_warm_the_page_cache() -> None:
    def waits(control: str, engine: str = "sglang") -> list[str]:
        model = "model" if engine == "llama_cpp" else "model_path"
        control = f'replicas = 3\ngpu_ids = "none"\nengine = "{engine}"\n{control}'
        text = f"[instance.a.control]\n{control}\n[instance.a.server]\n{model} = '/m'\n"
        return [spec.warm_after for spec in plan_of(text).servers]

    assert waits("") == ["", "a-0", "a-0"]
    assert waits("warm_first = false") == waits("", "llama_cpp") == ["", "", ""]
    assert waits("warm_first = true", "llama_cpp") == ["", "a-0", "a-0"]


@pytest.mark.parametrize(
    ("version", "lines", "expected"),
    [
        ("0.5.7", 'tool_call_parser = "gemma4"', "needs sglang >= 0.5.17, the oldest known to have it; choices: glm47"),
        ("0.5.23", 'reasoning_parser = "nano_v3"', "sglang 0.5.7 is the last known to have it"),
        ("0.5.7", "attn_dp_size = 2", "sglang 0.5.7 has no such flag; needs sglang >= 0.5.23"),
        ("0.5.23", 'tool_call_parser = "glm48"', "choices: glm47"),
    ],
)
def test_installed_version_that_lacks_something_says_which_one_has_it(version: str, lines: str, expected: str) -> None:
    (fault,) = faults_of(server(lines), FakeHost(sglang=version))
    assert expected in fault


def test_installed_sglang_without_a_parser_for_glm_names_the_version_that_has_it() -> None:
    class OldHost(FakeHost):
        """An SGLang that no catalogue knows, older than all of them, is read from its source."""

        def sglang_args_source(self, python: str, /) -> tuple[str, str] | None:
            flags = [f'parser.add_argument("--flag-{number}", type=int)' for number in range(FEWEST_FLAGS)]
            flags += ['parser.add_argument("--tool-call-parser", choices=["qwen25", "glm45"])']
            flags += [f'parser.add_argument("--{name}")' for name in ("model-path", "host", "port", "config")]
            return "0.5.2", "\n".join(flags)

    (fault,) = faults_of(server('tool_call_parser = "glm47"'), OldHost())
    assert "needs sglang >= 0.5.7, the oldest known to have it; choices: glm45, qwen25" in fault


def test_deprecated_flag_names_its_successor_also_when_only_its_help_does() -> None:
    assert plan_of(server("grpc_mode = true"), FakeHost(sglang="0.5.23")).warnings[0].endswith("use --smg-grpc-mode")
    assert not plan_of(server("smg_grpc_mode = true"), FakeHost(sglang="0.5.23")).warnings
