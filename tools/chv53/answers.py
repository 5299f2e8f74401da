"""Answers of the REST API: bodies and statuses as cloud-hypervisor v53 sends them.

An error's body is a JSON list: the outermost cause first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

NOT_CREATED = "VM is not created"
NOT_RUNNING = "VM is not running"
MISSING_CONFIG = "VM config is missing"
ALREADY_CREATED = "VM is already created"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status and the body that goes with it."""

    status: int
    body: bytes | None = None
    server: str = "Cloud Hypervisor API"

    def encode(self) -> bytes:
        """Return the whole HTTP/1.1 message; a body of None has no length, an empty one has."""
        lines = [f"HTTP/1.1 {self.status} ", f"Server: {self.server}", "Connection: keep-alive"]
        if self.body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (self.body or b"")


class ApiError(Exception):
    """An action that failed: what was wanted, and the causes from the outside in."""

    def __init__(self, *causes: str) -> None:
        super().__init__(": ".join(causes))
        self.causes = causes

    @property
    def answer(self) -> Answer:
        """The error as it goes over the wire."""
        missing = len(self.causes) == 2 and self.causes[1] in {NOT_CREATED, MISSING_CONFIG}
        return errors(404 if missing else 500, "Error from API", *self.causes)


def ok(value: Any) -> Answer:
    """Return 200 with a JSON body."""
    return Answer(status=200, body=json.dumps(value, separators=(",", ":")).encode())


def errors(status: int, *causes: str) -> Answer:
    """Return an error with its list of causes."""
    return Answer(status=status, body=json.dumps(list(causes), separators=(",", ":")).encode())


NO_CONTENT = Answer(status=204)
EMPTY_OK = Answer(status=200, body=b"")
BAD_REQUEST = errors(400, "Bad Request")
EMPTY_BAD_REQUEST = Answer(status=400, body=b"")
NOT_FOUND = errors(404, "Not Found")


def malformed(problem: str) -> Answer:
    """Return what the HTTP layer itself answers, before it hangs up; the name is that of the library it came from."""
    text = f'{{ "error": "{problem}\nAll previous unanswered requests will be dropped." }}'
    return Answer(status=400, body=text.encode(), server="Firecracker API")
