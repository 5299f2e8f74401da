"""Tests of contracts run once for each RPC."""

from __future__ import annotations

import pytest

from support.contracts import METHODS, path_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `method` once for each RPC there is."""
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", METHODS, ids=path_of)
