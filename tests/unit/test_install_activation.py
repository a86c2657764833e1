"""The activation environment."""

from __future__ import annotations

from infer_dev_entry.install.activation import activated_environ, conda_activation, merge_activation, plain_activation


def test_plain_activation_puts_bin_first() -> None:
    found = dict(plain_activation("/e"))
    assert found["PATH"].startswith("/e/bin:/usr/local/nvidia/bin:") and found["VIRTUAL_ENV"] == "/e"


def test_conda_activation_names_the_prefix() -> None:
    assert dict(conda_activation("/e"))["CONDA_PREFIX"] == "/e"


def test_bundle_variables_expand_prefix_and_each_other() -> None:
    merged = merge_activation(
        (("PATH", "/e/bin"), ("A", "base")),
        (("CUDA_HOME", "$CONDA_PREFIX/cuda"), ("B", "${CUDA_HOME}/lib:$A"), ("PATH", "/x:$PATH"), ("C", "$UNKNOWN $")),
        "/e",
    )
    assert dict(merged) == {
        "A": "base",
        "B": "/e/cuda/lib:base",
        "C": "$UNKNOWN $",
        "CUDA_HOME": "/e/cuda",
        "PATH": "/x:/e/bin",
    }


def test_activated_environ_drops_strays_and_joins_paths() -> None:
    environ = {"PATH": "/own:/usr/bin", "PYTHONPATH": "/x", "UV_INDEX_URL": "u", "CONDA_PREFIX": "/c", "LANG": "C"}
    found = activated_environ(environ, (("PATH", "/e/bin:/usr/bin"), ("VIRTUAL_ENV", "/e")))
    assert found == {"PATH": "/e/bin:/usr/bin:/own", "VIRTUAL_ENV": "/e", "LANG": "C"}
