"""The rules about provider keys: what they find, what they leave alone, and that host and guest agree."""

from __future__ import annotations

import pytest

from cellmesh.guest.containers import guard as agent_guard
from cellmesh.image import guard


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "anthropic_api_key", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"])
def test_names_of_keys_are_found(name: str) -> None:
    """A variable named like a provider's key counts if it has a value."""
    assert guard.credential_in([f"{name}=x"]) is not None
    assert guard.credential_in([f"{name}="]) is None


def test_what_is_found_names_the_variable_and_not_the_value() -> None:
    """The finding can be shown to anybody."""
    found = guard.credential_in(["SETTING=sk-abcdefghijklmnopqrst"])
    assert found is not None
    assert "SETTING" in found
    assert "sk-" not in found


@pytest.mark.parametrize("entry", ["PATH=/bin", "GPG_KEY=7169605F62C75135", "TASK=risk-assessment", "API_KEY_FILE=/x"])
def test_ordinary_settings_pass(entry: str) -> None:
    """Names and values that only resemble a key are left alone."""
    assert guard.credential_in([entry], [entry]) is None


def test_host_and_guest_have_the_same_rules() -> None:
    """What import lets through, the agent starts: the two copies of the rules are equal."""
    assert guard.KEY_NAME == agent_guard._NAME
    assert guard.KEY_VALUE == agent_guard._VALUE
