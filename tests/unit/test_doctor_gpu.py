"""Driver, GPUs, torch's CUDA and the estimate of GPU memory, against a make-believe NVML and make-believe models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from make import make_spec
from make_model import CONFIG
from test_gpu import FakeNvml

from infer_dev_entry.config import Gpu
from infer_dev_entry.doctor.environment_checks import Environment, check_torch, parse_torch
from infer_dev_entry.doctor.examine import read_gpus
from infer_dev_entry.doctor.found_model import Fault, ModelFiles
from infer_dev_entry.doctor.gguf import GgufHead
from infer_dev_entry.doctor.gpu_checks import GpuFacts, check_gpus
from infer_dev_entry.doctor.rows import GIB, Row
from infer_dev_entry.doctor.vram_checks import check_vram
from infer_dev_entry.doctor.wishes import Wish, read_wish
from infer_dev_entry.gpu import GpuDoor


class FullNvml(FakeNvml):
    """A driver that also tells its versions."""

    def __init__(self, *, cuda: int = 12060, memory: tuple[int, int] = (100, 40), **facts: Any) -> None:
        super().__init__(**facts)
        self.cuda, self.memory = cuda, memory

    def nvmlSystemGetDriverVersion(self) -> str:
        return "560.35.03"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> SimpleNamespace:
        return SimpleNamespace(total=self.memory[0], used=self.memory[1])


def test_driver_tells_its_versions_in_one_connection() -> None:
    nvml = FullNvml(count=2)
    facts = read_gpus(GpuDoor(nvml))
    assert (facts.driver, facts.cuda, len(facts.gpus), facts.free_bytes) == ("560.35.03", (12, 6), 2, {0: 60, 1: 60})
    assert nvml.calls == ["init"]


def test_no_driver_gives_nvmls_reason() -> None:
    facts = read_gpus(GpuDoor(FullNvml(init_fails=True)))
    assert (facts.cuda, facts.problem) == (None, "no driver")


def gpu(index: int = 0, compute: tuple[int, int] = (9, 0), gib: int = 140, mig: tuple[str, ...] = ()) -> Gpu:
    name = "NVIDIA H200" if compute == (9, 0) else "Tesla"
    return Gpu(index=index, uuid=f"GPU-{index}abc", name=name, memory_bytes=gib * GIB, compute=compute, mig_uuids=mig)


def facts_of(*gpus: Gpu, cuda: tuple[int, int] = (12, 6), driver: str = "560.35.03", used: int = 0) -> GpuFacts:
    free = {one.index: one.memory_bytes - used * GIB for one in gpus}
    return GpuFacts(driver=driver, cuda=cuda, gpus=gpus, free_bytes=free)


def wish(name: str = "a", *words: str, engine: str = "sglang", gpu_ids: tuple[str, ...] | None = None) -> Wish:
    flag = "--model-path" if engine == "sglang" else "--model"
    argv = ("/p/env/bin/python", "-m", "x", flag, "/m", *words)
    gpus = 0 if "cpu" in words else int(words[words.index("--tp-size") + 1]) if "--tp-size" in words else 1
    return read_wish(make_spec(name, engine=engine, argv=argv, gpu_ids=gpu_ids, min_gpus=gpus))


def by_check(rows: list[Row]) -> dict[str, Row]:
    return {row.check: row for row in rows}


def test_lost_gpu_fails_alone() -> None:
    lost = Gpu(index=0, uuid="", name="", memory_bytes=0, compute=(0, 0), lost="GPU is lost")
    facts = facts_of(lost, gpu(1))
    rows = by_check(check_gpus(facts, [wish("a", gpu_ids=("0",)), wish("b", gpu_ids=("1",))], require_gpu=True))
    assert {name: str(row.verdict) for name, row in rows.items()} == {
        **{"driver": "ok", "GPU 0": "fail", "GPU 1": "ok", "GPUs of a": "ok", "GPUs of b": "ok"},
        "compute capability": "ok",
    }
    assert rows["GPU 0"].seen == "is lost: GPU is lost"
    (row, _) = check_vram([wish("a", gpu_ids=("0",)), wish("b", gpu_ids=("1",))], {}, facts, {})
    assert (str(row.verdict), row.seen) == ("skip", "one of its GPUs is lost")


@pytest.mark.parametrize(
    ("wishes", "require", "verdict"),
    [
        (None, False, "warn"),
        (None, True, "fail"),
        ([wish()], False, "fail"),
        ([wish("a", "--device", "cpu")], False, "warn"),
        ([wish(gpu_ids=())], False, "warn"),
        ([wish(engine="llama_cpp")], False, "warn"),
        ([wish(engine="llama_cpp", gpu_ids=("0",))], False, "fail"),
    ],
)
@pytest.mark.parametrize("facts", [GpuFacts(problem="NVML Shared Library Not Found"), facts_of()])
def test_no_gpu_fails_only_where_one_is_wanted(
    wishes: list[Wish] | None, require: bool, verdict: str, facts: GpuFacts
) -> None:
    (row,) = check_gpus(facts, wishes, require_gpu=require)
    assert (row.check, str(row.verdict)) == ("driver", verdict)
    assert "--gpus all" in row.mend


@pytest.mark.parametrize(
    ("compute", "wishes", "verdict"),
    [
        ((9, 0), None, "ok"),
        ((8, 0), [wish()], "ok"),
        ((7, 5), [wish()], "warn"),
        ((6, 1), [wish()], "fail"),
        ((6, 1), None, "warn"),
        ((6, 1), [wish(engine="llama_cpp", gpu_ids=("0",))], "skip"),
        ((6, 1), [wish(gpu_ids=("1",))], "skip"),
    ],
)
def test_compute_capability_is_judged_where_sglang_runs(
    compute: tuple[int, int], wishes: list[Wish] | None, verdict: str
) -> None:
    row = by_check(check_gpus(facts_of(gpu(0, compute)), wishes, require_gpu=False))["compute capability"]
    assert str(row.verdict) == verdict
    assert verdict not in ("fail", "warn") or "llama_cpp" in row.mend


def test_gpus_are_described_and_chosen_ones_checked() -> None:
    rows = by_check(check_gpus(facts_of(gpu(0), gpu(1), used=100), [wish("a", gpu_ids=("1", "7"))], require_gpu=True))
    assert rows["driver"].seen == "driver 560.35.03, CUDA 12.6, 2 GPUs"
    assert rows["GPU 1"].seen == "NVIDIA H200, compute capability 9.0, 40.0 GiB of 140.0 GiB free"
    assert (str(rows["GPUs of a"].verdict), "no GPU 7" in rows["GPUs of a"].seen) == ("fail", True)


TORCH = """from typing import Optional
__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip']
__version__ = '2.9.1+cu128'
debug = False
cuda: Optional[str] = '12.8'
hip: Optional[str] = None
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TORCH, ("2.9.1+cu128", (12, 8))),
        (TORCH.replace("'12.8'", "None"), ("2.9.1+cu128", None)),
        ("__version__ = '2.14.1'\ncuda = '13.0'\n", ("2.14.1", (13, 0))),
        ("", None),
        ("__version__ = version()", None),
    ],
)
def test_torch_versions_are_read_as_text(text: str, expected: tuple[str, tuple[int, int] | None] | None) -> None:
    torch = parse_torch(text)
    assert (torch and (torch.version, torch.cuda)) == expected


@pytest.mark.parametrize(
    ("built", "serves", "driver", "verdict", "clause"),
    [
        ((12, 8), (12, 8), "570.86.10", "ok", "serves CUDA 12.8"),
        ((12, 8), (13, 0), "580.65.06", "ok", "serves CUDA 13.0"),
        ((12, 8), (12, 6), "560.35.03", "ok", "minor-version compatibility"),
        ((12, 8), (12, 0), "520.10.01", "fail", "525.60.13"),
        ((13, 0), (12, 6), "560.35.03", "fail", "580.65.06"),
        ((14, 2), (13, 0), "580.65.06", "fail", "a bundle for CUDA 13"),
    ],
)
def test_driver_must_serve_torchs_cuda(
    built: tuple[int, int], serves: tuple[int, int], driver: str, verdict: str, clause: str
) -> None:
    environment = Environment(prefix="/e", torch="2", torch_cuda=built)
    (row,) = check_torch(environment, facts_of(gpu(), cuda=serves, driver=driver), wants_gpu=True)
    assert (str(row.verdict), clause in f"{row.seen} {row.mend}") == (verdict, True)


@pytest.mark.parametrize(
    ("environment", "wants", "verdict"),
    [
        (Environment(prefix="/e", is_there=False), True, "skip"),
        (Environment(prefix="/e"), True, "fail"),
        (Environment(prefix="/e"), False, "skip"),
        (Environment(prefix="/e", torch="2+cpu"), True, "fail"),
        (Environment(prefix="/e", torch="2+cpu"), False, "ok"),
    ],
)
def test_torch_that_is_missing_or_without_cuda(environment: Environment, wants: bool, verdict: str) -> None:
    assert str(check_torch(environment, facts_of(gpu()), wants_gpu=wants)[0].verdict) == verdict


def test_torch_without_a_driver_is_not_compared() -> None:
    environment = Environment(prefix="/e", torch="2", torch_cuda=(12, 8))
    assert str(check_torch(environment, GpuFacts(problem="no driver"), wants_gpu=True)[0].verdict) == "skip"


@pytest.mark.parametrize(("cudnn", "verdict"), [("9.10.2.21", "warn"), ("9.15.0.1", "ok"), ("9.24", "ok")])
def test_cudnn_that_sglang_refuses_beside_torch_is_a_warning(cudnn: str, verdict: str) -> None:
    environment = Environment(prefix="/e", sglang="0.5.10", torch="2.9.1+cu128", torch_cuda=(12, 8), cudnn=cudnn)
    _, row = check_torch(environment, facts_of(gpu()), wants_gpu=True)
    assert str(row.verdict) == verdict


def model(gib: float, config: dict[str, Any] = CONFIG, **changes: Any) -> dict[str, ModelFiles]:
    return {"/m": ModelFiles(path="/m", config=config, is_directory=True, tensor_bytes=int(gib * GIB), **changes)}


def vram(one: Wish, files: dict[str, ModelFiles], facts: GpuFacts, state: str = "") -> Row:
    (row,) = check_vram([one], files, facts, {one.name: state})
    return row


def test_weights_that_do_not_fit_fail_and_tp_mends_it() -> None:
    row = vram(wish(), model(200), facts_of(gpu()))
    assert (str(row.verdict), "the weights do not fit" in row.seen, "raise tp_size" in row.mend) == ("fail", True, True)
    assert row.seen.startswith("estimate")
    row = vram(wish("a", "--tp-size", "2"), model(200), facts_of(gpu(0), gpu(1)))
    assert (str(row.verdict), "200.0 GiB of weights / 2 = 100.0 GiB" in row.seen) == ("ok", True)


def test_kv_cache_is_reckoned_by_layers_heads_and_width() -> None:
    # 2 × 4 layers × 2 heads × 64 × 2 bytes = 2048 bytes a token; 0.5 of (33 - 1) GiB less 8 GiB of weights = 8 GiB.
    one = wish("a", "--mem-fraction-static", "0.5")
    row = vram(one, model(8), facts_of(gpu(gib=33)))
    assert (str(row.verdict), f"about {8 * GIB // 2048} tokens" in row.seen) == ("ok", True)
    # A rank holds at least one of the two heads, and fp8 halves a value: a quarter of the bytes on 4 ranks.
    four = wish("a", "--mem-fraction-static", "0.5", "--tp-size", "4", "--kv-cache-dtype", "fp8_e5m2")
    row = vram(four, model(32), facts_of(*(gpu(index, gib=33) for index in range(4))))
    assert f"about {8 * GIB // 512} tokens" in row.seen


def test_latent_attention_is_not_split_over_ranks() -> None:
    config = {"num_hidden_layers": 4, "kv_lora_rank": 448, "qk_rope_head_dim": 64}
    one = wish("a", "--mem-fraction-static", "0.5", "--tp-size", "2")
    row = vram(one, model(16, {"text_config": config}), facts_of(gpu(0, gib=33), gpu(1, gib=33)))
    assert f"about {8 * GIB // (4 * 512 * 2)} tokens" in row.seen


def test_too_few_tokens_for_one_request_warn() -> None:
    one = wish("a", "--mem-fraction-static", "0.5", "--context-length", "8000000")
    row = vram(one, model(8), facts_of(gpu(gib=33)))
    assert (str(row.verdict), "fewer than one request of 8000000" in row.seen) == ("warn", True)


def test_next_server_gets_what_the_first_leaves() -> None:
    pair = [wish("a", "--mem-fraction-static", "0.5"), wish("b", "--mem-fraction-static", "0.5")]
    first, second = check_vram(pair, model(15), facts_of(gpu(gib=33)), {})
    assert (str(first.verdict), str(second.verdict)) == ("ok", "fail")
    assert "16.0 GiB free" in second.seen


def test_memory_that_others_hold_is_not_free() -> None:
    assert str(vram(wish(), model(30), facts_of(gpu(gib=80), used=0)).verdict) == "ok"
    assert str(vram(wish(), model(30), facts_of(gpu(gib=80), used=60)).verdict) == "fail"


@pytest.mark.parametrize(("state", "verdict"), [("ready", "ok"), ("loading", "skip"), ("failed", "fail")])
def test_server_that_runs_is_not_measured_against_what_it_holds(state: str, verdict: str) -> None:
    assert str(vram(wish(), model(200), facts_of(gpu()), state).verdict) == verdict


def test_quantising_at_the_start_makes_too_large_a_warning() -> None:
    assert str(vram(wish("a", "--quantization", "fp8"), model(200), facts_of(gpu())).verdict) == "warn"


def test_offload_takes_weights_off_the_gpu() -> None:
    assert str(vram(wish("a", "--cpu-offload-gb", "150"), model(200), facts_of(gpu())).verdict) == "ok"


@pytest.mark.parametrize(
    ("files", "gpus"),
    [
        ({}, [gpu()]),
        (model(8, problem="gone"), [gpu()]),
        (model(8, faults=(Fault(text="x"),)), [gpu()]),
        (model(0), [gpu()]),
        (model(8), [gpu(mig=("MIG-1",))]),
    ],
)
def test_what_is_not_known_is_skipped(files: dict[str, ModelFiles], gpus: list[Gpu]) -> None:
    assert str(vram(wish(), files, facts_of(*gpus)).verdict) == "skip"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**CONFIG, "num_hidden_layers": "x"},
        {**CONFIG, "num_hidden_layers": 10**30},
        {**CONFIG, "num_attention_heads": 0, "head_dim": None},
        {"text_config": [1]},
        {**CONFIG, "num_key_value_heads": -3},
    ],
)
def test_odd_configs_still_give_an_estimate(config: dict[str, Any]) -> None:
    assert str(vram(wish(), model(8, config), facts_of(gpu())).verdict) == "ok"


def test_overrides_of_the_model_count() -> None:
    words = ("--mem-fraction-static", "0.5", "--json-model-override-args", '{"num_hidden_layers": 2}')
    assert f"about {8 * GIB // 1024} tokens" in vram(wish("a", *words), model(8), facts_of(gpu(gib=33))).seen


@pytest.mark.parametrize(("gib", "verdict"), [(8, "ok"), (4, "warn")])
def test_llama_cpp_on_a_gpu_is_estimated_by_its_file(gib: int, verdict: str) -> None:
    numbers = {"block_count": 32, "attention.head_count": 32, "embedding_length": 4096}
    keys = {"general.architecture": "phi3", **{f"phi3.{name}": value for name, value in numbers.items()}}
    files = {"/m": ModelFiles(path="/m", head=GgufHead(keys=keys, tensors=9), file_bytes=4 * GIB)}
    one = wish("a", "-c", "2048", engine="llama_cpp", gpu_ids=("0",))
    row = vram(one, files, facts_of(gpu(compute=(6, 1), gib=gib)))
    assert (str(row.verdict), "1.0 GiB of KV cache" in row.seen) == (verdict, True)
