"""Which backend installs what, and why another was passed over; and what the wheelhouse needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from install_fakes import make_request, make_unpacked

from infer_dev_entry.bundle.model import PIXI_PACK, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install import backends, wheelhouse
from infer_dev_entry.install.model import Backend, InstallRequest

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


class FakeBackend:
    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    def problem(self, bundle: UnpackedBundle) -> str:
        return self.reason


def use_fakes(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str]) -> None:
    load: Callable[[str, InstallRequest], object] = lambda name, request: FakeBackend(name, reasons[name])  # noqa: E731
    monkeypatch.setattr(backends, "load_backend", load)


def choose(kind: str = PIXI_PACK, **changes: object) -> Backend:
    return backends.choose_backend(make_request(Path("/p"), Path("/b"), **changes), make_unpacked(kind=kind))


def test_wheels_go_to_the_wheelhouse(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, {"wheelhouse": ""})
    assert choose("wheels").name == "wheelhouse"


@pytest.mark.parametrize(
    ("reasons", "chosen"),
    [
        ({"rattler": "", "pixi-unpack": "", "pixi": ""}, "rattler"),
        ({"rattler": "none", "pixi-unpack": "", "pixi": ""}, "pixi-unpack"),
        ({"rattler": "none", "pixi-unpack": "none", "pixi": ""}, "pixi"),
    ],
)
def test_pixi_pack_goes_to_the_first_that_can(
    monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str], chosen: str
) -> None:
    use_fakes(monkeypatch, reasons)
    assert choose().name == chosen


def test_no_backend_names_each_ones_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, {"rattler": "no py-rattler; pip", "pixi-unpack": "no binary", "pixi": "no pixi"})
    with pytest.raises(InstallError, match=r"rattler: no py-rattler; pip\. pixi-unpack: no binary\. pixi: no pixi"):
        choose()


def test_named_backend_that_cannot_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, {"pixi": "no pixi; install it"})
    with pytest.raises(InstallError, match="AUTO_INFER_SGLANG_INSTALLER=pixi: no pixi; install it"):
        choose(backend="pixi")


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(InstallError, match="no such backend; use auto, wheelhouse"):
        choose(backend="conda")


def test_every_backend_that_settings_allow_can_be_loaded() -> None:
    for name in ("wheelhouse", "rattler", "pixi", "pixi-unpack"):
        assert backends.load_backend(name, make_request(Path("/p"), Path("/b"))).name == name


def test_wheelhouse_refuses_a_conda_bundle() -> None:
    assert "kind pixi-pack" in wheelhouse.WheelhouseBackend().problem(make_unpacked(kind=PIXI_PACK))


def test_wheelhouse_without_uv_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse, "find_uv", lambda: "")
    assert "pip install uv" in wheelhouse.WheelhouseBackend().problem(make_unpacked(python=OWN))


def test_wheelhouse_for_another_python_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse, "find_uv", lambda: "/uv")
    problem = wheelhouse.WheelhouseBackend().problem(make_unpacked(python="3.99"))
    assert "Python 3.99" in problem and f"this is {OWN}" in problem and "install python3.99" in problem


def test_wheelhouse_python_is_never_that_of_a_venv() -> None:
    assert wheelhouse.find_python(OWN) == sys._base_executable  # type: ignore[attr-defined]
    assert wheelhouse.find_python("") == wheelhouse.find_python(OWN)
