"""The one error tree: every expected failure is an EntryError whose class carries the exit code of the process."""

from __future__ import annotations


class EntryError(Exception):
    """Base of every expected failure; the message is one line that says what, where and the mend."""

    exit_code = 1


class ConfigError(EntryError):
    """A model config cannot be used. Holds every fault found, so that one run of the check shows them all."""

    exit_code = 10

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class SettingsError(EntryError):
    """An environment variable that a requested action needs is missing or unusable."""

    exit_code = 11


class RunDirError(EntryError):
    """The private run directory cannot be made, written or locked."""

    exit_code = 12


class SupervisorError(EntryError):
    """supervisord cannot be started, or does not answer."""

    exit_code = 13


class NotRunningError(EntryError):
    """No infer-dev entry answers on the control socket."""

    exit_code = 14


class UnknownServerError(EntryError):
    """A command names a server that the running fleet does not have."""

    exit_code = 15


class RequestError(EntryError):
    """The running entry refused a request (bad request, no permission, or shutting down)."""

    exit_code = 16


class BundleError(EntryError):
    """A bundle cannot be read or trusted: missing, wrong digest, wrong platform, corrupt or hostile."""

    exit_code = 20


class InstallError(EntryError):
    """A bundle cannot be installed: no space, no permission, a tool failed, or the result does not verify."""

    exit_code = 21


class BuildError(EntryError):
    """A bundle cannot be built."""

    exit_code = 22


class ModelError(EntryError):
    """A model cannot be downloaded: not found, not allowed, offline, no space, or other bytes than the hub lists."""

    exit_code = 23


class ModelFilesError(EntryError):
    """A model's directory is not what its record says, or holds what infer-dev did not put there."""

    exit_code = 24
