"""Properties of `resolve` and its merging: any input gives a plan or a ConfigError, never anything else."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from infer_dev_entry.config import NoHost, ResolveOptions, resolve
from infer_dev_entry.config.flags import Setting, merge_settings
from infer_dev_entry.config.instances import Control
from infer_dev_entry.config.keys import CONTROL, INSTANCE_TABLES, MASTER, PROBE, RESTART
from infer_dev_entry.config.parse import deep_merge, parse_gpu_ids
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.spec import Plan

settings.register_profile("config", deadline=None)  # a shared machine is slow at times
settings.load_profile("config")

INSTANCE = '[instance.a.server]\nmodel_path = "org/a"\n'


def outcome(text: str, overrides: str = "", gpus: int | None = None) -> Plan | None:
    """Resolve; None for a ConfigError, whose faults must then be there, one line each, and the same next time."""
    options = ResolveOptions(
        overrides=overrides, project_dir="/p", engine_python="/usr/bin/python3", run_dir="/run/x", tmp_dir="/tmp/x"
    )
    try:
        return resolve(text, source="f.toml", options=options, host=NoHost(gpus))
    except ConfigError as error:
        assert error.faults
        assert all(fault and len(fault.splitlines()) == 1 for fault in error.faults)
        assert len(set(error.faults)) == len(error.faults)
        try:
            resolve(text, source="f.toml", options=options, host=NoHost(gpus))
        except ConfigError as again:
            assert again.faults == error.faults
        return None


names = st.sampled_from(
    [
        *["instance", "master", "control", "server", "env", "yaml", "probe", "restart", "model", "a", "b", "glm-0"],
        *["model_path", "port", "host", "tp_size", "tp"],
        *["lora_paths", "enable_metrics", "api_key", "nccl_port", "chat_template", "cuda_graph_bs"],
        *["enable_tf32_matmul", "no_enable_tf32_matmul", "max_model_len", "ctx_size", "json_model_override_args"],
        "model_checksum",
        *["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "CUDA_VISIBLE_DEVICES"],
        *(key.name for keys in (CONTROL, PROBE, RESTART, MASTER) for key in keys),
        *(key.name for keys, _ in INSTANCE_TABLES.values() for key in keys),
    ]
) | st.text(max_size=8)  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["all", "none", "auto", "per-gpu", "0-3", "0,1", "llama_cpp", "sglang", "32k", "-x", "glm47", "{}", "a"]
    )
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=5)
instances = st.fixed_dictionaries(
    {}, optional={name: st.dictionaries(names, values, max_size=6) for name in INSTANCE_TABLES}
)
documents = st.fixed_dictionaries(
    {
        "instance": st.dictionaries(
            st.sampled_from(["a", "b", "c", "control", "server", "a-0"]), instances | tables, max_size=4
        )
    },
    optional={"master": tables},
)


@given(st.text())
def test_resolve_any_text_gives_plan_or_faults(text: str) -> None:
    outcome(text)


@given(st.text(alphabet="[]{}\".=,\n #'abinstce0123456789-_\\u"))
def test_resolve_any_toml_like_text_gives_plan_or_faults(text: str) -> None:
    outcome(text)


@settings(max_examples=50)
@given(documents, st.sampled_from([None, 0, 2, 8]))
def test_resolve_any_document_gives_plan_or_faults(document: dict[str, object], gpus: int | None) -> None:
    plan = outcome(INSTANCE, json.dumps(document), gpus)
    for server in plan.servers if plan else ():
        assert all("\0" not in word and "\r" not in word for word in server.argv)
        assert 1 <= server.port <= 65535


@given(st.text())
def test_resolve_any_overrides_text_gives_plan_or_faults(text: str) -> None:
    outcome(INSTANCE, text)


nested = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
trees = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


@given(trees)
def test_deep_merge_with_nothing_or_itself_changes_nothing(tree: dict[str, object]) -> None:
    assert deep_merge(tree, {}) == deep_merge(tree, tree) == tree


@given(trees, trees)
def test_deep_merge_keeps_every_leaf_of_the_upper_tree(low: dict[str, object], high: dict[str, object]) -> None:
    merged = deep_merge(low, high)
    assert deep_merge(merged, high) == merged
    assert set(merged) == set(low) | set(high)


@given(trees)
def test_deep_merge_null_deletes(tree: dict[str, object]) -> None:
    assert deep_merge(tree, dict.fromkeys(tree)) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(), max_size=2))))
def test_merge_settings_concatenates_lists_in_order(pairs: list[tuple[str, list[int]]]) -> None:
    layers = [Setting(name=name, value=value, path=(name,)) for name, value in pairs]
    merged = merge_settings((), layers)
    for setting in merged:
        assert setting.value == [number for name, value in pairs if name == setting.name for number in value]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True))
def test_gpu_ids_list_and_text_mean_the_same(numbers: list[int]) -> None:
    expected = tuple(str(number) for number in numbers)
    assert parse_gpu_ids(numbers) == parse_gpu_ids(",".join(expected)) == expected


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 24))
def test_fan_out_deals_each_gpu_once_and_ports_in_a_row(replicas: int, size: int, spare: int) -> None:
    gpus = replicas * size + spare
    text = (
        f'[instance.a.control]\nreplicas = {replicas}\ngpus_per_replica = {size}\ngpu_ids = "0-{gpus - 1}"\n'
        '[instance.a.server]\nmodel_path = "org/a"\nport = 4000\n'
    )
    plan = outcome(text, gpus=gpus)
    assert plan is not None
    dealt = [gpu for server in plan.servers for gpu in server.gpu_ids or ()]
    assert len(dealt) == len(set(dealt))
    if replicas > 1:
        assert [server.name for server in plan.servers] == [f"a-{number}" for number in range(replicas)]
        assert [server.port for server in plan.servers] == list(range(4000, 4000 + replicas))
        assert {len(server.gpu_ids or ()) for server in plan.servers} == {size}


def test_control_has_a_field_for_every_key() -> None:
    assert set(Control.__dataclass_fields__) == {key.name for key in CONTROL}
