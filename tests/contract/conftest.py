"""Tests of contracts run once for each RPC."""

from __future__ import annotations

import pytest

from support.contracts import METHODS, OWN, path_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `method` once for each RPC there is, and one that takes `own` once for each not Envoy's."""
    for name, methods in {"method": METHODS, "own": OWN}.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, methods, ids=path_of)
