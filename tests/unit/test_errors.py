"""The error tree."""

from __future__ import annotations

from infer_dev_entry import errors, supervisor_rpc
from infer_dev_entry.errors import ConfigError, EntryError


def all_classes() -> list[type[EntryError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EntryError)]


def test_exit_codes_are_unique_but_for_kinds_that_keep_their_parents() -> None:
    codes = [cls.exit_code for cls in all_classes() if "exit_code" in vars(cls)]
    assert len(set(codes)) == len(codes)


def test_exit_codes_stay_clear_of_the_shells() -> None:
    assert all(0 < cls.exit_code < 64 and cls.exit_code != 2 for cls in all_classes())


def test_rpc_fault_belongs_to_the_tree() -> None:
    assert issubclass(supervisor_rpc.RpcFaultError, EntryError)


def test_config_error_shows_every_fault() -> None:
    assert str(ConfigError(("one", "two"))) == "one\ntwo"
