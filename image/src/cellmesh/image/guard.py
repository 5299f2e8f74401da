"""Which settings of a container image are a provider's key; the agent has the same rules, for what the host sends."""

from __future__ import annotations

import re
from collections.abc import Iterable

KEY_NAME = re.compile(
    r"^(?:[A-Z0-9_]+_API_KEY|[A-Z0-9_]+_API_TOKEN|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|AZURE_OPENAI_KEY"
    r"|GOOGLE_APPLICATION_CREDENTIALS|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|REPLICATE_API_TOKEN|GITHUB_TOKEN)$",
    re.IGNORECASE,
)
KEY_VALUE = re.compile(
    r"(?:^|[^A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|gh[pousr]_[A-Za-z0-9]{36}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)


def credential_in(env: Iterable[str], arguments: Iterable[str] = ()) -> str | None:
    """Return where a key is, never the key itself: in `env` (`NAME=value`) or in `arguments`; None if there is none."""
    for entry in env:
        name, _, value = entry.partition("=")
        if value and (KEY_NAME.match(name) or KEY_VALUE.search(value)):
            return f"environment variable {name!r:.100}"
    if any(KEY_VALUE.search(argument) for argument in arguments):
        return "an argument of its entrypoint or command"
    return None
