"""The guard against provider keys."""

from __future__ import annotations

import pytest

from cellmesh.guest.containers.guard import find_key_in_arguments, find_provider_key
from cellmesh.image.guard import credential_in

_CARRIED = [
    ("OPENAI_API_KEY", "anything"),
    ("anthropic_api_key", "anything"),
    ("AWS_SECRET_ACCESS_KEY", "x"),
    ("INNOCENT", "sk-" + "a1" * 12),
    ("INNOCENT", "AKIA" + "B" * 16),
    ("URL", "https://user:ghp_" + "c" * 36 + "@host"),
]
_CLEAN = [("PATH", "/bin"), ("OPENAI_API_KEY", ""), ("TASK", "task-list-of-the-day-and-more"), ("API_KEYS_DOC", "see")]


@pytest.mark.parametrize("variable", _CARRIED)
def test_a_key_is_found_by_name_or_value(variable: tuple[str, str]) -> None:
    """Names and values of keys are both known, whatever their case."""
    assert find_provider_key([("A", "b"), variable]) == variable[0]


@pytest.mark.parametrize("variable", _CLEAN)
def test_what_is_no_key_passes(variable: tuple[str, str]) -> None:
    """Ordinary variables, and empty ones, start."""
    assert find_provider_key([variable]) is None


@pytest.mark.parametrize("variable", _CARRIED + _CLEAN)
def test_import_and_start_agree(variable: tuple[str, str]) -> None:
    """What the import refuses the start refuses, and nothing else."""
    assert (find_provider_key([variable]) is None) == (credential_in([f"{variable[0]}={variable[1]}"]) is None)


def test_arguments_are_looked_at_too() -> None:
    """A key in an argument is a key."""
    assert find_key_in_arguments(["/bin/app", "--key=sk-" + "z" * 20])
    assert not find_key_in_arguments(["/bin/app", "--task=sk-short"])
