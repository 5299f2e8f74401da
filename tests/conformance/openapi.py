"""Holds HTTP exchanges against cloud-hypervisor's own OpenAPI document."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_DOCUMENT = Path(__file__).parent / "cloud-hypervisor-v53-openapi.yaml"
_FIRST_ERROR = 400

DEVIATIONS = frozenset({("PUT", "vmm.shutdown", 200)})
"""Successes of the real v53 that its document does not list."""


class UndocumentedError(AssertionError):
    """An exchange that the document does not allow."""


def check_request(method: str, action: str, body: Any) -> None:
    """Check a request before it is sent; raises UndocumentedError."""
    operation = _operation(method, action)
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is None:
        if operation.get("requestBody", {}).get("required"):
            raise UndocumentedError(f"{action} needs a body")
        return
    if schema is None:
        raise UndocumentedError(f"{action} takes no body")
    _check(body, schema, f"request of {action}")


def check_answer(method: str, action: str, status: int, body: bytes) -> None:
    """Check an answer; errors, which the document leaves open, must be v53's list of causes."""
    if status >= _FIRST_ERROR:
        causes = json.loads(body)
        if not causes or not all(isinstance(cause, str) for cause in causes):
            raise UndocumentedError(f"{action} answered {status} without causes: {body!r}")
        return
    if (method, action, status) in DEVIATIONS:
        return
    answers = {int(code): answer for code, answer in _operation(method, action)["responses"].items()}
    if status not in answers:
        raise UndocumentedError(f"{action} answered {status}, the document knows {sorted(answers)}")
    content = answers[status].get("content", {}).get("application/json")
    if content is None:
        if body:
            raise UndocumentedError(f"{action} answered {status} with a body: {body!r}")
        return
    _check(json.loads(body), content["schema"], f"answer of {action}")


def _operation(method: str, action: str) -> dict[str, Any]:
    operations = _document()["paths"].get(f"/{action}", {})
    if method.lower() not in operations:
        raise UndocumentedError(f"{method} {action} is not in the document")
    operation: dict[str, Any] = operations[method.lower()]
    return operation


def _check(value: Any, schema: dict[str, Any], what: str) -> None:
    validator = jsonschema.Draft4Validator({**schema, "components": _document()["components"]})
    problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if problem is not None:
        raise UndocumentedError(f"{what}: {problem.json_path} {problem.message}")


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(_DOCUMENT.read_text())
    return document
