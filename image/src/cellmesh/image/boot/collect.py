"""Run by the guest's own interpreter while an image is built: put all modules the agent imports into one file.

collect.py BUNDLE DIRECTORY=SHOWN…: modules are looked for in each DIRECTORY, which is SHOWN in the guest. The file is
the size of its index in four bytes, the index by module name (origin, whether a package, begin and end), and code, in
the order of imports, what the agent leaves for later at the end.
"""

import importlib
import marshal
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

IMPORTED = ("cellmesh.guest.__main__", "asyncio", "cellmesh.guest.agent", "cellmesh.guest.reaper")
HEADER = 16


def main(bundle: str, *places: str) -> None:
    """Import what the agent imports, and write the bundle."""
    shown = dict(place.split("=") for place in places)
    sys.path[:] = [*shown, *(f"{directory}/lib-dynload" for directory in shown)]
    importlib.import_module("cellmesh.guest.imports").spare()
    for name in IMPORTED:
        importlib.import_module(name)
    later = run_late_modules()
    index: dict[str, tuple[str, bool, int, int]] = {}
    code = bytearray()
    for name in sorted(sys.modules, key=later.__contains__):
        spec = getattr(sys.modules[name], "__spec__", None)
        # What the interpreter has imported by itself is here too: it costs a few pages that nobody reads.
        if spec is None or spec.name != name or not isinstance(spec.loader, SourceFileLoader):
            continue
        content = Path(spec.cached).read_bytes()[HEADER:]
        directory = max((each for each in shown if spec.origin.startswith(f"{each}/")), key=len)
        origin = shown[directory] + spec.origin.removeprefix(directory)
        index[name] = (origin, spec.submodule_search_locations is not None, len(code), len(code) + len(content))
        code += content
    # This version writes the same bytes whoever else refers to a string.
    written = marshal.dumps(index, 2)
    Path(bundle).write_bytes(len(written).to_bytes(4, "little") + written + code)


def run_late_modules() -> set[str]:
    """Run what the agent has imported to be run later, and return its names."""
    late = importlib.import_module("cellmesh.guest.late")
    found: set[str] = set()
    while names := late.waiting():
        found.update(names)
        for name in names:
            late.run(name)
    return found


main(*sys.argv[1:])
