"""`[instance.<n>.model]`: where a download goes, what the server opens of it, and every fault of the table."""

from __future__ import annotations

import pytest
from test_config_resolve import FakeHost, faults_of, one

from infer_dev_entry.config import ResolveOptions
from infer_dev_entry.config.plan import resolve_downloads
from infer_dev_entry.errors import ConfigError
from infer_dev_entry.models.wish import ModelWish

OPTIONS = ResolveOptions(project_dir="/p", engine_python="/py", run_dir="/run", tmp_dir="/tmp", models_dir="/models")


def wishes_of(text: str) -> tuple[ModelWish, ...]:
    return resolve_downloads(text, source="f.toml", options=OPTIONS, host=FakeHost())


def instance(server: str, model: str, name: str = "a", engine: str = "sglang", port: int = 30000) -> str:
    return (
        f'[instance.{name}.control]\nengine = "{engine}"\n[instance.{name}.server]\nport = {port}\n{server}\n'
        f"[instance.{name}.model]\n{model}\n"
    )


REPO = 'repo_id = "org/m"\n'


@pytest.mark.parametrize(
    ("server", "model", "engine", "target", "needed", "allow"),
    [
        ('model_path = "/w/x"', REPO, "sglang", "/w/x", (), ()),
        ('model_path = "/w/x/"', REPO + 'local_dir = "/w/x"', "sglang", "/w/x", (), ()),
        ('model_path = "~/x"', REPO, "sglang", "/home/me/x", (), ()),
        ("", REPO, "sglang", "/models/org/m", (), ()),
        ("", REPO + 'local_dir = "/w/y"', "sglang", "/w/y", (), ()),
        ('model_path = "/w/x/q.gguf"', REPO, "sglang", "/w/x", ("q.gguf",), ("q.gguf",)),
        ('model = "/w/x/q.gguf"', REPO, "llama_cpp", "/w/x", ("q.gguf",), ("q.gguf",)),
        ('model = "/w/x/Q4/q.gguf"', REPO + 'local_dir = "/w/x"', "llama_cpp", "/w/x", ("Q4/q.gguf",), ("Q4/q.gguf",)),
        ('model = "/w/x/q.gguf"', REPO + 'allow_patterns = ["*"]', "llama_cpp", "/w/x", ("q.gguf",), ("*",)),
    ],
)
def test_download_goes_where_the_server_looks(
    server: str, model: str, engine: str, target: str, needed: tuple[str, ...], allow: tuple[str, ...]
) -> None:
    (wish,) = wishes_of(instance(server, model, engine=engine))
    assert (wish.target, wish.needed, wish.allow_patterns) == (target, needed, allow)


def test_server_without_a_model_path_serves_its_download() -> None:
    text = "[instance.a.model]\nrepo_id = 'org/m'\nlocal_dir = '/w/y'\n[instance.a.server]\nport = 30000\n"
    argv = one(text, FakeHost(missing=("/w/y",)), model_download=True).argv
    assert argv[argv.index("--model-path") + 1] == "/w/y"


def test_source_is_the_tables_or_the_environments() -> None:
    assert wishes_of(instance("", REPO))[0].source == "huggingface"
    assert wishes_of(instance("", REPO + 'source = "modelscope"'))[0].source == "modelscope"


def test_instances_that_share_a_directory_share_the_download() -> None:
    text = instance('model_path = "/w/x"', REPO) + instance('model_path = "/w/x"', REPO, "b", port=30001)
    (wish,) = wishes_of(text)
    assert wish.names == ("a", "b")


def test_disabled_instance_and_disabled_fleet_download_nothing() -> None:
    text = instance("", REPO)
    assert wishes_of(text.replace("[instance.a.server]", "enabled = false\n[instance.a.server]")) == ()
    assert wishes_of("[master]\nenable = false\n" + text) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (instance("", 'revision = "main"'), 'instance.a.model: has no repo_id; write repo_id = "org/name"'),
        (instance("", 'repo_id = "gpt2"'), 'instance.a.model.repo_id: expected org/name, got "gpt2"'),
        (instance("", 'repo_id = "../m"'), "instance.a.model.repo_id: expected org/name of letters"),
        (instance("", REPO + 'revision = "a..b"'), "instance.a.model.revision: is no name that git takes"),
        (instance("", REPO + 'source = "s3"'), 'expected "huggingface" or "modelscope", got "s3"'),
        (instance("", REPO + 'allow_patterns = "*"'), "instance.a.model.allow_patterns: expected a list of strings"),
        (instance("", REPO + 'allow_patterns = ["../x"]'), 'allow_patterns: "../x": is matched against paths within'),
        (instance("", REPO + f"ignore_patterns = {['x'] * 201}"), "ignore_patterns: holds 201 patterns, at most 200"),
        (instance("", REPO + 'local_dir = "/w/../x"'), 'instance.a.model.local_dir: "/w/../x" holds ..'),
        (
            instance('model_path = "/w/x"', REPO + 'local_dir = "/w/y"'),
            'instance.a.model.local_dir: "/w/y" is not "/w/x", which is served; remove local_dir',
        ),
        (
            instance('model = "/w/x/q.gguf"', REPO + 'local_dir = "/w/y"', engine="llama_cpp"),
            '"/w/y" does not hold "/w/x/q.gguf", which is served',
        ),
        (
            instance('model_path = "org/m"', REPO),
            'instance.a.server.model_path: is "org/m", which the server fetches itself, so the download would not be',
        ),
        (
            instance('model_path = "/w/x"', REPO) + instance('model_path = "/w/x"', 'repo_id = "org/n"', "b", port=1),
            '"/w/x" is also where instance.a puts org/m, from another repository or revision',
        ),
        (
            instance('model_path = "/w/x"', REPO) + instance('model_path = "/w/x/y"', REPO, "b", port=1),
            '"/w/x/y" and "/w/x" of instance.a lie in one another; give each its own directory',
        ),
    ],
)
def test_model_table_faults(text: str, expected: str) -> None:
    found = faults_of(text, model_download=True)
    assert [fault for fault in found if expected in fault], found
    with pytest.raises(ConfigError) as told:
        wishes_of(text)
    assert expected in str(told.value)


def test_model_table_faults_come_all_at_once() -> None:
    model = 'repo_id = "x"\nrevision = "a b"\nallow_patterns = ["/x", ""]\nbogus = 1'
    found = faults_of(instance('model_path = "/w/x"', model), model_download=True)
    assert len(found) == 5, found


def test_missing_model_with_a_download_names_the_command() -> None:
    text = instance('model_path = "/w/x"', REPO)
    (fault,) = faults_of(text, FakeHost(missing=("/w/x",)))
    assert "download it: infer-dev model pull a, or set AUTO_INFER_SGLANG_MODEL_DOWNLOAD_ON_BOOT=1" in fault
