"""Flags read out of SGLang's source: both of its ways to declare them, and sources that are something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer_dev_entry.config import NoHost
from infer_dev_entry.config.installed import FEWEST_FLAGS, installed_catalogue, parse_flags
from infer_dev_entry.engines import FlagSpec
from infer_dev_entry.host import CACHE_NAME, LiveHost

SOURCE = """
from __future__ import annotations
CHOICES = ["auto", "pt"]

class ServerArgs:
    model_path: A[str, Arg(help="x", aliases=["--model"]), NS("model")]
    tokenizer_path: A[Optional[str], "help", NS("serving")] = None
    context_length: A[Optional[int], Arg(help="x", type_parser=human_readable_int)] = None
    mem_fraction: A[float | None, f"help"] = None
    trust: A[bool, "help"] = False
    pair: A[Optional[bool], Arg(help="x", action=argparse.BooleanOptionalAction)] = None
    load_format: A[str, Arg(help="x", choices=CHOICES)] = "auto"
    dynamic: A[str, Arg(help="x", choices=[m for m in X])] = "auto"
    mode: A[Literal["a", "b"], "help"] = "a"
    level: A[Literal[1, 2], "help"] = 1
    sizes: A[Optional[List[int]], "help"] = None
    names: A[List[str], Arg(help="x", nargs="*")] = []
    tokens: A[Optional[List[int]], Arg(help="x", type_parser=json_list_type)] = None
    params: A[Optional[dict], Arg(help="x", type_parser=json.loads)] = None
    checksum: A[Optional[str], Arg(help="x", nargs="?", const="")] = None
    renamed: A[int, Arg(help="x", cli_name="--other-name")] = 1
    lora_paths: A[Optional[list], Arg(help="x", action=LoRAPathAction, action_kwargs={"nargs": "*"})] = None
    hidden: A[int, Arg(no_cli=True)] = 1
    derived: A[int, Derived()] = 1
    plain: int = 3

    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--config", type=str, help="x")
        parser.add_argument("--tp-size", "--tp", type=int, default=1)
        parser.add_argument("--verbose", action="store_true", help="Deprecated. Use nothing.")
        parser.add_argument("--old", action=DeprecatedAliasStoreAction, type=int, nargs="+", new_flag="--new")
        parser.add_argument("--gone", action=DeprecatedStoreTrueAction, new_flag="--new2")
        parser.add_argument("positional")
        parser.add_argument(*names, **kwargs)
"""


def shapes() -> dict[str, FlagSpec]:
    return {form.name: form for form in parse_flags(SOURCE, "9.9.9")}


@pytest.mark.parametrize(
    ("name", "kind", "type_"),
    [
        ("model-path", "value", "str"),
        ("tokenizer-path", "value", "str"),
        ("context-length", "value", "suffixed_int"),
        ("mem-fraction", "value", "float"),
        ("trust", "switch", "str"),
        ("pair", "pair", "str"),
        ("mode", "value", "str"),
        ("level", "value", "int"),
        ("sizes", "list", "int"),
        ("names", "list", "str"),
        ("tokens", "value", "json"),
        ("params", "value", "json"),
        ("checksum", "optional", "str"),
        ("other-name", "value", "int"),
        ("lora-paths", "list", "str"),
        ("tp-size", "value", "int"),
        ("verbose", "switch", "str"),
        ("old", "list", "int"),
        ("gone", "switch", "str"),
    ],
)
def test_flag_has_its_kind_and_type(name: str, kind: str, type_: str) -> None:
    form = shapes()[name]
    assert (form.kind, form.type, form.versions) == (kind, type_, ("9.9.9",))


def test_names_choices_and_deprecations_are_read() -> None:
    forms = shapes()
    assert forms["model-path"].aliases == ("model",)
    assert forms["tp-size"].aliases == ("tp",)
    assert forms["pair"].aliases == ("no-pair",)
    assert forms["load-format"].choices == ("auto", "pt")
    assert forms["mode"].choices == ("a", "b")
    assert forms["dynamic"].choices == ()
    assert (forms["old"].deprecated, forms["gone"].deprecated, forms["verbose"].deprecated) == ("--new", "--new2", "-")
    assert set(forms) & {"hidden", "derived", "plain", "positional", "renamed"} == set()


def test_packaged_version_is_taken_from_the_catalogue() -> None:
    catalogue = installed_catalogue("0.5.7", "not python at all (")
    assert catalogue is not None
    assert catalogue.versions == ("0.5.7",)
    assert "attn-dp-size" not in catalogue.flags


def test_unknown_version_is_read_from_its_source() -> None:
    source = "\n".join(f'parser.add_argument("--flag-{number}", type=int)' for number in range(FEWEST_FLAGS))
    catalogue = installed_catalogue("9.9.9", source)
    assert catalogue is not None
    assert catalogue.flags["flag-7"][0].type == "int"


@pytest.mark.parametrize("source", ["", "def (", "\0", "x = 1", SOURCE, "(" * 1000 + ")" * 1000])
def test_source_of_another_shape_is_left_to_the_catalogue(source: str) -> None:
    assert installed_catalogue("9.9.9", source) is None


# lists of choices that are not literals


def choices_of(source: str, name: str) -> tuple[str, ...]:
    return next(form.choices for form in parse_flags(source, "9.9.9") if form.name == name)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # the registry of parsers, as older versions import it
        (
            "class FunctionCallParser:\n    ToolCallParserEnum: Dict[str, type] = {'glm45': A1, 'glm47': A2}\n"
            "def add(parser):\n    choices = list(FunctionCallParser.ToolCallParserEnum.keys())\n"
            "    parser.add_argument('--x', choices=['auto'] + choices)\n",
            ("auto", "glm45", "glm47"),
        ),
        # a module of names, behind a function, as 0.5.23 has it
        (
            "NAMES = ['glm45', 'glm47']\n"
            "def _choices():\n    if plugin:\n        return list(plugin.names)\n    return list(NAMES)\n"
            "class A0:\n    def add(parser):\n        c = _choices()\n        parser.add_argument('--x', choices=c)\n",
            ("glm45", "glm47"),
        ),
        ("ONE = 'a'\nparser.add_argument('--x', choices=sorted({ONE, 'b'}))\n", ("a", "b")),
        ("BASE = ('a',)\nparser.add_argument('--x', choices=[*BASE, 'b', 'a'])\n", ("a", "b")),
        ("parser.add_argument('--x', choices=['a'] + plugins())\n", ()),
        ("parser.add_argument('--x', choices=[m.name for m in Modes])\n", ()),
        ("parser.add_argument('--x', choices=['a', NOWHERE])\n", ()),
        ("P = Q\nQ = P + ['a']\nparser.add_argument('--x', choices=P)\n", ()),
    ],
)
def test_choices_are_worked_out_as_far_as_the_source_tells(source: str, expected: tuple[str, ...]) -> None:
    assert set(choices_of(source, "x")) == set(expected)


@pytest.mark.parametrize(
    ("help_", "deprecated"),
    [
        ("Deprecated. Use --image-processor-backend=pil instead.", "--image-processor-backend=pil"),
        ("(Deprecated, use --smg-grpc-mode) Legacy selector.", "--smg-grpc-mode"),
        ("[Deprecated] Alias for --elastic-ep-join-mode recover.", "--elastic-ep-join-mode"),
        ("deprecated: has no effect", "-"),
        ("Use the legacy server. Replaces the deprecated --grpc-mode.", ""),
    ],
)
def test_successor_of_a_deprecated_flag_is_read_from_its_help(help_: str, deprecated: str) -> None:
    source = f"class S:\n    x: A[bool, {help_!r}] = False\n    y: A[bool, Arg(help={help_!r})] = False\n"
    assert {form.deprecated for form in parse_flags(source, "9.9.9")} == {deprecated}


# what an earlier run has worked out


class Memory(NoHost):
    """A host that remembers one text, and counts."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text, self.key, self.kept = text, "", 0

    def recall(self, key: str, /) -> str:
        return self.text if not self.key or key == self.key else ""

    def keep(self, key: str, text: str, /) -> None:
        self.key, self.text, self.kept = key, text, self.kept + 1


MANY = SOURCE + "".join(f"parser.add_argument('--x{number}')\n" for number in range(FEWEST_FLAGS))


def test_flags_of_a_source_are_worked_out_once() -> None:
    host = Memory()
    first = installed_catalogue("9.9.9", MANY, host)
    assert installed_catalogue("9.9.9", MANY, host) == first
    assert host.kept == 1
    assert installed_catalogue("9.9.9", MANY + "parser.add_argument('--more')\n", host) != first
    assert host.kept == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"versions": ["9.9.9"], "flags": []}',
        '{"versions": ["9.9.9"], "flags": [[[0], ["x"], "odd", "str", [], ""]]}',
        '{"versions": ["9.9.9"], "flags": [[[0], ["x"], "value", [], [], ""]]}',
        '{"versions": ["9.9.9"], "flags": [[[7], ["x"], "value", "str", [], ""]]}',
        '{"versions": ["9.9.9"], "flags": [[[], [], 0]]}',
        '{"versions": ["9.9.9"], "flags": [[["a"], ["x"], "value", "str", [], ""]]}',
        '{"versions": 7, "flags": 7}',
        "[" * 100_000,
    ],
)
def test_odd_memory_is_worked_out_anew(text: str) -> None:
    host = Memory(text)
    catalogue = installed_catalogue("9.9.9", MANY, host)
    assert catalogue == installed_catalogue("9.9.9", MANY)
    assert host.kept == 1


def test_live_cache_lies_in_its_directory_and_trusts_its_key_alone(tmp_path: Path) -> None:
    host = LiveHost(cache_dir=str(tmp_path))
    assert host.recall("k") == ""
    host.keep("k", "text")
    assert (host.recall("k"), host.recall("other")) == ("text", "")
    assert [path.name for path in tmp_path.iterdir()] == [CACHE_NAME]
    (tmp_path / CACHE_NAME).unlink()
    os.mkfifo(tmp_path / CACHE_NAME)  # hangs nobody
    assert host.recall("k") == ""
    host.keep("k", "text")
    assert host.recall("k") == "text"
    LiveHost(cache_dir=str(tmp_path / "absent")).keep("k", "text")
    assert LiveHost().recall("k") == ""
