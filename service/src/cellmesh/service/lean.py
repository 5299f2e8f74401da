"""Imported before structlog, which loads rich where it finds it: 4 MB of the 150 a node may take, to colour JSON."""

from __future__ import annotations

import importlib
import sys

if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # how the import system is told that there is none
    importlib.import_module("structlog")
    del sys.modules["rich"]
