"""The one error tree: every expected failure is an EntryError whose class carries the exit code of the process."""

from __future__ import annotations


class EntryError(Exception):
    """Base of every expected failure; the message is one line that says what, where and the mend."""

    exit_code = 1


def with_exit_code(error: EntryError, code: int) -> EntryError:
    """Return the error with the exit code of the process that it tells of; 1 where that has none, as after a signal."""
    error.exit_code = code if code > 0 else EntryError.exit_code
    return error


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


class GatewayError(EntryError):
    """A gateway's configuration does not pass its own test, or the gateway's program cannot be asked."""

    exit_code = 30


class KeysFileError(EntryError):
    """A file of API keys cannot be used."""

    exit_code = 31


class ClientError(EntryError):
    """A served model cannot be asked: an option that there is not, no `openai` package, or one of the kinds below."""

    exit_code = 40


class UnreachableError(ClientError):
    """Nobody answers at the address."""

    exit_code = 41


class NotReadyError(UnreachableError):
    """The server is known and does not serve yet, or no more; the message has its state and reason."""


class OverloadedError(UnreachableError):
    """The server answers that it takes no more now (429, 503); later it may."""


class AnswerTimeoutError(ClientError):
    """The server did not answer, or fell silent in its answer, within the time given."""

    exit_code = 42


class RefusedKeyError(ClientError):
    """The server wants an API key, or another one (401, 403)."""

    exit_code = 43


class BadRequestError(ClientError):
    """The server refuses the request (4xx); the message has its words."""

    exit_code = 44


class UnknownModelError(BadRequestError):
    """The server has no model, or no path, of that name (404)."""


class BrokenAnswerError(ClientError):
    """The answer cannot be used: an error of the server's own (5xx), no JSON, wrong types, cut off, or far too big."""

    exit_code = 45


class PolicyInputError(EntryError):
    """States, levels or policies cannot be used. Holds every fault found."""

    exit_code = 46

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class PolicyAnswerError(EntryError):
    """The model's answer is no usable list of policies, also after the one repair.

    `raw_text` is the last answer whole, `first_raw_text` the one before the repair; the message quotes a piece alone.
    """

    exit_code = 47

    def __init__(self, message: str, *, faults: tuple[str, ...], raw_text: str, first_raw_text: str) -> None:
        super().__init__(message)
        self.faults = faults
        self.raw_text = raw_text
        self.first_raw_text = first_raw_text


class NoPolicyError(EntryError):
    """No policy has a finite expected free energy, so none can be chosen."""

    exit_code = 48


class PolicyExtraError(EntryError):
    """What scoring or asking needs is not installed."""

    exit_code = 49


class ModelError(EntryError):
    """A model cannot be downloaded: not found, not allowed, offline, no space, or other bytes than the hub lists."""

    exit_code = 23


class ModelFilesError(EntryError):
    """A model's directory is not what its record says, or holds what infer-dev did not put there."""

    exit_code = 24


def render_failure(error: EntryError) -> dict[str, object]:
    """Return an error as a child of PID 1 answers it: `{"faults": […], "exit_code": N}`, for JSON."""
    faults = list(error.faults) if isinstance(error, ConfigError) else [str(error)]
    return {"faults": faults, "exit_code": error.exit_code}
