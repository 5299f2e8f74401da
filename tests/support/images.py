"""Images that tests, benchmarks and the demo share: built when their inputs change, kept outside the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cellmesh.image import ContainerImage, GuestImage, ImageStore, build_guest
from cellmesh.image.cache import default_cache
from support import oci

EXAMPLES = Path(__file__).parents[2] / "examples"
KEPT = 8
"""How many guest images stay; each is about 120 MB and every change of the agent makes one."""


def shared_store() -> ImageStore:
    """Return the store of this machine's development images."""
    return ImageStore(default_cache() / "images")


def guest_image() -> GuestImage:
    """Return the guest image with the agent as it is in the checkout, building it if there is none yet."""
    store = shared_store()
    image = store.guest(build_guest(store))
    store.set_default_guest(image.digest)
    _forget_old(store, image.digest)
    return image


def example_images() -> dict[str, ContainerImage]:
    """Return the example images by name (`live`, `dev`) as they are in the checkout."""
    store = shared_store()
    with _layouts() as layouts:
        return {path.name: store.container(store.import_container(path)) for path in layouts.iterdir()}


def root_image() -> ContainerImage:
    """Return the example `live`, but run as root: what nothing but the container's own walls holds back."""
    store = shared_store()
    with _layouts() as layouts:
        return store.container(store.import_container(oci.run_as(layouts / "live", "0:0")))


def example_with(store: ImageStore, **settings: object) -> str:
    """Import the example `live` with other settings into a store; return its digest."""
    with _layouts() as layouts:
        return store.import_container(oci.configure(layouts / "live", **settings))


def odd_images(layers: Mapping[str, tuple[bytes, Mapping[str, object]]]) -> dict[str, ContainerImage]:
    """Return, by name, the example `live` with one more layer and other settings for each."""
    store = shared_store()
    with _layouts() as layouts:
        found = {}
        for name, (layer, settings) in layers.items():
            copy = layouts.parent / f"{layouts.name}-{name}"
            shutil.copytree(layouts / "live", copy)
            try:
                found[name] = store.container(store.import_container(oci.extend(copy, layer, **settings)))
            finally:
                shutil.rmtree(copy)
        return found


@contextmanager
def _layouts() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cellmesh-examples-") as name:
        subprocess.run([sys.executable, EXAMPLES / "build.py", name], check=True, stdout=subprocess.DEVNULL)
        yield Path(name)


def _forget_old(store: ImageStore, current: str) -> None:
    guests = [image for image in store.list() if isinstance(image, GuestImage) and image.digest != current]
    guests.sort(key=_made, reverse=True)
    for image in guests[KEPT:]:
        # Another worker begins at the same time, and may be at it too.
        shutil.rmtree(image.path, ignore_errors=True)


def _made(image: GuestImage) -> float:
    try:
        return image.path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
