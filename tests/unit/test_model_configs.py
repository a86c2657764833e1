"""Every shipped config resolves, without a fault or an unexpected warning, for each SGLang that can serve its model."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_config_resolve import FakeHost, gpu, plan_of

from infer_dev_entry.config.catalogue import load_catalogue
from infer_dev_entry.spec import Plan

CONFIGS = Path(__file__).parents[2] / "model-configs"
EIGHT = tuple(gpu(index) for index in range(8))
VERSIONS = load_catalogue().versions
NEEDS = {  # the oldest catalogued SGLang with the model's code
    "sglang-glm-4.7-flash-tp1.toml": "0.5.17",
    "sglang-glm-4.7-flash-tp1-mtp.toml": "0.5.17",
    "sglang-glm-4.7-flash-tp8.toml": "0.5.17",
    "sglang-glm-4.7-flash-tp8-mtp.toml": "0.5.17",
    "per-gpu-replicas.toml": "0.5.17",
    "gateway-per-gpu-replicas.toml": "0.5.17",
}
EXPECTED_WARNINGS = {"--enable-dp-attention is deprecated in sglang 0.5.23; use --attn-dp-size <dp-size>"}


ENVIRON = {"NODE_RANK": "0", "NODE_0_ADDR": "10.0.0.1", "NODE_IFNAME": "eth0"}  # as its configs ask for


def resolved(name: str, version: str = "", **variables: str) -> Plan:
    host = FakeHost(EIGHT, sglang=version, environ=ENVIRON | variables)
    return plan_of((CONFIGS / name).read_text("utf-8"), host)


def names() -> list[str]:
    return sorted(path.name for path in CONFIGS.glob("*.toml"))


def cases() -> list[tuple[str, str]]:
    return [(name, v) for name in names() for v in VERSIONS if VERSIONS.index(v) >= VERSIONS.index(NEEDS.get(name, v))]


@pytest.mark.parametrize(("name", "version"), cases())
def test_config_resolves_for_every_version_that_can_serve_it(name: str, version: str) -> None:
    plan = resolved(name, version)
    assert plan.servers
    assert {warning.rpartition(": ")[2] for warning in plan.warnings} <= EXPECTED_WARNINGS


@pytest.mark.parametrize("name", names())
def test_config_says_on_which_file_it_is_run(name: str) -> None:
    """Nothing points at a config that is not there, and no line of a comment is cut off in an editor."""
    text = (CONFIGS / name).read_text("utf-8")
    for word in text.replace("/", " ").split():
        if word.rstrip(".,;:)").endswith(".toml"):
            assert (CONFIGS / word.rstrip(".,;:)")).exists(), word
    assert max(map(len, text.splitlines())) <= 140


def test_tensor_parallel_configs_take_the_gpus_they_name() -> None:
    gpus = {name: resolved(name).servers[0].gpu_ids for name in names() if name.startswith("sglang-glm")}
    assert {name: len(ids or ()) for name, ids in gpus.items()} == {
        "sglang-glm-4.7-flash-tp1-mtp.toml": 1,
        "sglang-glm-4.7-flash-tp1.toml": 1,
        "sglang-glm-4.7-flash-tp8-mtp.toml": 8,
        "sglang-glm-4.7-flash-tp8.toml": 8,
        "sglang-glm-4.7-fp8-tp4.toml": 4,
        "sglang-glm-4.7-tp8.toml": 8,
        "sglang-glm-4.7-two-nodes-tp16.toml": 8,
    }


def test_both_nodes_of_one_config_differ_by_their_environment_alone() -> None:
    (first,), (second,) = (resolved("sglang-glm-4.7-two-nodes-tp16.toml", NODE_RANK=rank).servers for rank in "01")
    assert [word for word in second.argv if word not in first.argv] == ["1"]
    assert (first.serves, second.serves) == (True, False)
    assert (first.more_ports, second.more_ports) == ((20000,), ())


def test_mtp_configs_differ_from_their_twins_in_what_mtp_needs() -> None:
    for name in ("sglang-glm-4.7-flash-tp1", "sglang-glm-4.7-flash-tp8"):
        plain, mtp = (set(resolved(f"{name}{tail}.toml").servers[0].argv) for tail in ("", "-mtp"))
        flags = {word for word in mtp - plain if word.startswith("--")}
        assert flags == {
            "--speculative-algorithm",
            "--speculative-num-steps",
            "--speculative-eagle-topk",
            "--speculative-num-draft-tokens",
        }


def test_two_models_share_no_gpu_and_no_port() -> None:
    chat, embed = resolved("sglang-two-models.toml").servers
    assert not set(chat.gpu_ids or ()) & set(embed.gpu_ids or ())
    assert not {chat.port, *chat.more_ports} & {embed.port, *embed.more_ports}


def test_pascal_config_is_for_llama_cpp_and_its_twin_warns_below_8_0() -> None:
    pascal = (CONFIGS / "tesla-p4-phi-3-mini.toml").read_text("utf-8")
    (server,) = plan_of(pascal, FakeHost((gpu(0, (6, 1)),))).servers
    assert server.engine == "llama_cpp"
    twin = (CONFIGS / "sglang-phi-3-mini-awq-sm75.toml").read_text("utf-8")
    plan = plan_of(twin, FakeHost((gpu(0, (7, 5)),), sglang="0.5.23"))
    assert any("compute capability 7.5" in warning for warning in plan.warnings)
