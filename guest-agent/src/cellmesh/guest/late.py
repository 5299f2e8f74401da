"""Modules that are run when something of them is first asked for, and not when they are imported.

They must be used as `module.name`: `from module import name` asks at once. The standard library's LazyLoader has the
same aim, but runs a module already when a second one imports it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

# One for all, as late modules import each other.
_running = threading.RLock()
_waiting: dict[str, Loader] = {}


def put_off(names: Collection[str]) -> None:
    """Make these modules late, except those that are imported already."""
    sys.meta_path.insert(0, _Finder(frozenset(names)))


def waiting() -> tuple[str, ...]:
    """Return the names of the modules that are imported and have not been run."""
    return tuple(_waiting)


def run(name: str) -> None:
    """Run a late module, unless somebody has; raises what it raises, and then it stays late."""
    with _running:
        loader = _waiting.pop(name, None)
        if loader is None:
            return
        module = sys.modules[name]
        try:
            loader.exec_module(module)
        except BaseException:
            _waiting[name] = loader
            raise
        module.__class__ = ModuleType


class _Late(ModuleType):
    def __getattr__(self, attribute: str) -> object:
        # The import system asks for the path of what may be no package: that is no use of the module.
        if attribute != "__path__":
            run(self.__name__)
        return object.__getattribute__(self, attribute)


class _Finder:
    """Finds the modules that are to be late, by whoever finds them otherwise."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Collection[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a late module comes from, None for any other."""
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            # Late once is late enough, even if it was asked for twice.
            others = not isinstance(finder, _Finder)
            spec = finder.find_spec(name, path, target) if others else None  # type: ignore[arg-type]  # sequences
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # the two methods that are called
                return spec
        return None


class _Loader:
    """Makes a module and leaves it to be run later."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that has nothing yet."""
        return _Late(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Note what runs the module when it is used."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        _waiting[module.__name__] = self._loader
