"""Flags read out of SGLang's source: both of its ways to declare them, and sources that are something else."""

from __future__ import annotations

import pytest

from infer_dev_entry.config.installed import FEWEST_FLAGS, installed_catalogue, parse_flags
from infer_dev_entry.engines import FlagSpec

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
