"""The last guard against provider keys: a container that carries one does not start.

`cellmesh.image.guard` applies the same rules at import; this copy holds whatever the host was made to send.
"""

import re
from collections.abc import Iterable

_NAME = re.compile(
    r"^(?:[A-Z0-9_]+_API_KEY|[A-Z0-9_]+_API_TOKEN|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|AZURE_OPENAI_KEY"
    r"|GOOGLE_APPLICATION_CREDENTIALS|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|REPLICATE_API_TOKEN|GITHUB_TOKEN)$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?:^|[^A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|gh[pousr]_[A-Za-z0-9]{36}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)


def find_provider_key(environment: Iterable[tuple[str, str]]) -> str | None:
    """Return the name of the first variable that looks like a provider key, never its value; None if none does."""
    for name, value in environment:
        if value and (_NAME.match(name) or _VALUE.search(value)):
            return name
    return None


def find_key_in_arguments(argv: Iterable[str]) -> bool:
    """Say whether an argument carries what looks like a provider key."""
    return any(_VALUE.search(argument) for argument in argv)
