"""Choose the backend that turns a bundle into an environment here."""

from __future__ import annotations

from importlib import import_module

from infer_dev_entry.bundle.model import WHEELS, UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.model import Backend, InstallRequest

# name → (module, class); imported when it is asked for, as each brings its own tools.
_BACKENDS = {
    "wheelhouse": ("infer_dev_entry.install.wheelhouse", "WheelhouseBackend"),
    "rattler": ("infer_dev_entry.install.rattler", "RattlerBackend"),
    "pixi-unpack": ("infer_dev_entry.install.pixi_unpack", "PixiUnpackBackend"),
    "pixi": ("infer_dev_entry.install.pixi", "PixiBackend"),
}


def choose_backend(request: InstallRequest, bundle: UnpackedBundle) -> Backend:
    """Return the named backend, or the first that can install this bundle here.

    Raises:
        InstallError: the named one cannot, or none can; the message has each one's reason.
    """
    if request.backend != "auto":
        backend = load_backend(request.backend, request)
        problem = backend.problem(bundle)
        if problem:
            raise InstallError(
                f"cannot install with AUTO_INFER_SGLANG_INSTALLER={request.backend}: {problem}; or use auto"
            )
        return backend
    problems = []
    for name in backend_order(bundle.info.kind):
        backend = load_backend(name, request)
        problem = backend.problem(bundle)
        if not problem:
            return backend
        problems.append(f"{name}: {problem}")
    raise InstallError(f"cannot find an installer for this bundle: {'. '.join(problems)}")


def backend_order(kind: str) -> tuple[str, ...]:
    """Return the backends for a kind of bundle, the best first."""
    return ("wheelhouse",) if kind == WHEELS else ("rattler", "pixi-unpack", "pixi")


def load_backend(name: str, request: InstallRequest) -> Backend:
    """Return the backend of that name.

    Raises:
        InstallError: there is no such backend.
    """
    if name not in _BACKENDS:
        raise InstallError(f"cannot install with {name!r}: no such backend; use auto, {', '.join(_BACKENDS)}")
    module, cls = _BACKENDS[name]
    make = getattr(import_module(module), cls)
    backend: Backend = make(request.pixi_unpack_bin) if name == "pixi-unpack" else make()
    return backend
