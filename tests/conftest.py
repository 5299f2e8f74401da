"""What every test shares: the machine's state before the run, and the order that lets the last test compare."""

from __future__ import annotations

import pytest

from cellmesh.image import ContainerImage, GuestImage
from support import images, leftovers

BEFORE = pytest.StashKey[leftovers.Snapshot]()


def pytest_configure(config: pytest.Config) -> None:
    """Remember the machine as it was before the first test."""
    config.stash[BEFORE] = leftovers.take()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run quick tests first and the look at what is left behind last."""
    items.sort(key=lambda item: ("leftovers" in item.nodeid, item.get_closest_marker("guest") is not None))


@pytest.fixture
def machine_before(pytestconfig: pytest.Config) -> leftovers.Snapshot:
    """Give the machine as it was before the first test."""
    return pytestconfig.stash[BEFORE]


@pytest.fixture(scope="session")
def guest_image() -> GuestImage:
    """Give the guest image with the agent of this checkout; the first build of a machine takes half a minute."""
    return images.guest_image()


@pytest.fixture(scope="session")
def example_images() -> dict[str, ContainerImage]:
    """Give the example images of this checkout, by name: `live` and `dev`."""
    return images.example_images()
