"""Modules that are run when something of them is first asked for."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellmesh.guest import late

_COUNTING = "import sys\nsys.late_runs = getattr(sys, 'late_runs', 0) + 1\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the directory of a package `tardy`, of which `a`, `b` and the package `inner` are late."""
    directory = tmp_path / "tardy"
    directory.mkdir()
    (directory / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "late_runs", 0, raising=False)
    monkeypatch.setattr(sys, "late_gate", threading.Event(), raising=False)
    monkeypatch.setattr(late, "_waiting", {})
    late.put_off(("tardy.a", "tardy.b", "tardy.inner"))
    yield directory
    for name in [name for name in sys.modules if name.partition(".")[0] == "tardy"]:
        del sys.modules[name]


def _runs() -> int:
    return getattr(sys, "late_runs", 0)


def test_a_late_module_is_run_once_at_its_first_use(package: Path) -> None:
    """Importing it, even twice and from elsewhere, runs nothing; using it does, once; then it is like any other."""
    (package / "a.py").write_text(f"{_COUNTING}value = 7\n")
    (package / "user.py").write_text("import tardy.a\nfrom tardy import a\n")
    module = importlib.import_module("tardy.a")
    user = importlib.import_module("tardy.user")
    assert (_runs(), late.waiting()) == (0, ("tardy.a",))
    assert (user.a.value, module.value, _runs(), late.waiting()) == (7, 7, 1, ())
    assert type(module) is type(sys)
    assert Path(module.__file__ or "") == package / "a.py"


def test_a_module_that_is_put_off_twice_is_run_all_the_same(package: Path) -> None:
    """Whoever starts the agent with something beside it may put the same modules off once more."""
    (package / "a.py").write_text(f"{_COUNTING}value = 7\n")
    late.put_off(("tardy.a",))
    assert importlib.import_module("tardy.a").value == 7
    assert _runs() == 1


def test_from_a_late_module_runs_it(package: Path) -> None:
    """`from module import name` is a use."""
    (package / "a.py").write_text(f"{_COUNTING}value = 7\n")
    (package / "user.py").write_text("from tardy.a import value\n")
    assert importlib.import_module("tardy.user").value == 7
    assert _runs() == 1


def test_late_modules_may_import_each_other(package: Path) -> None:
    """A circle of late modules runs like a circle of others."""
    (package / "a.py").write_text("from tardy import b\nvalue = 1\n\ndef both():\n    return value + b.value\n")
    (package / "b.py").write_text("from tardy import a\nvalue = a.value + 1\n")
    assert importlib.import_module("tardy.a").both() == 3


def test_a_late_package_finds_its_modules(package: Path) -> None:
    """A package may be late as well, and a module below it does not run it."""
    (package / "inner").mkdir()
    (package / "inner" / "__init__.py").write_text(f"{_COUNTING}value = 7\n")
    (package / "inner" / "leaf.py").write_text("value = 8\n")
    assert importlib.import_module("tardy.inner.leaf").value == 8
    assert _runs() == 0
    assert importlib.import_module("tardy.inner").value == 7


def test_a_late_module_that_fails_is_run_again(package: Path) -> None:
    """Its error reaches who used it, and the next use runs it once more."""
    (package / "a.py").write_text(f"{_COUNTING}if sys.late_runs == 1:\n    raise RuntimeError('broken')\nvalue = 7\n")
    module = importlib.import_module("tardy.a")
    with pytest.raises(RuntimeError, match="broken"):
        _ = module.value
    assert (module.value, _runs()) == (7, 2)


def test_an_attribute_that_is_not_there_is_an_attribute_error(package: Path) -> None:
    """What a module has not, it has not when it is late either."""
    (package / "a.py").touch()
    with pytest.raises(AttributeError):
        _ = importlib.import_module("tardy.a").nothing


def test_two_threads_run_it_once(package: Path) -> None:
    """A thread that uses a module another one is running waits until it is whole."""
    (package / "a.py").write_text(f"{_COUNTING}sys.late_gate.wait()\nvalue = 7\n")
    module = importlib.import_module("tardy.a")
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(module.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    sys.late_gate.set()  # type: ignore[attr-defined]  # as the fixture made it
    for thread in threads:
        thread.join()
    assert (seen, _runs()) == ([7, 7, 7, 7], 1)
