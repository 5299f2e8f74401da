"""A database of the first hypervisor becomes one of this, with nothing lost and nothing missing."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cellmesh.hypervisor.domain.route import RouteState
from cellmesh.hypervisor.domain.vm import ColdStart
from cellmesh.hypervisor.store import Store
from support import contracts

pytestmark = pytest.mark.asyncio
RUNS, RESTS = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002"


@pytest_asyncio.fixture
async def migrated(tmp_path: Path) -> AsyncIterator[Store]:
    """Give a store that was opened on what the first hypervisor left."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((contracts.ROOT / "tests/support/schema_version_1.sql").read_text())
    async with Store.opened(path) as store:
        yield store


async def test_vms_get_the_routes_they_would_have_been_made_with(migrated: Store) -> None:
    """Every VM has its two default routes, and each other container its own."""
    led = {r.route.prefix: (r.route.target.container, r.route.target.generation) for r in migrated.mirror.routes(RUNS)}
    assert led == {"/": ("sandbox-live", 0), "/dev/": ("sandbox-dev", 0), "/_/search/": ("search", 0)}
    assert [route.route.prefix for route in migrated.mirror.routes(RESTS)] == ["/", "/dev/"]
    live = migrated.mirror.routes(RUNS)[0]
    assert (live.status.state, live.status.epoch, live.status.generation) == (RouteState.SERVING, 3, 4)
    assert live.route.revision == 1


async def test_vms_keep_what_they_had_and_start_on_request(migrated: Store) -> None:
    """What was stored is there, and what is new has its default, in the log of old times too."""
    async with migrated.reading() as reading:
        vm = await reading.vm(RUNS)
        (entry,) = await reading.entries(after=0, limit=10)
    assert vm is not None
    assert (vm.epoch, vm.vmm_pid, vm.spec.cold_start) == (3, 77, ColdStart.ON_REQUEST)
    assert entry.vm == vm


async def test_containers_get_slots_of_their_own(migrated: Store) -> None:
    """No two containers of a VM share a port of its vsock."""
    slots = {container.name: container.ingress_slot for container in migrated.mirror.containers(RUNS)}
    assert slots == {"sandbox-live": 0, "search": 1}


async def test_an_old_database_ends_up_as_a_new_one(migrated: Store, tmp_path: Path) -> None:
    """The same tables, columns, defaults, keys and indexes, whichever way a database came to its version."""
    async with Store.opened(tmp_path / "new.db"):
        pass
    assert _shape(tmp_path / "old.db") == _shape(tmp_path / "new.db")


async def test_a_migration_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    """A step and its version are one transaction: what fails half way leaves the database as it was."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((contracts.ROOT / "tests/support/schema_version_1.sql").read_text())
        connection.execute("CREATE TABLE routes (in_the_way INTEGER)")
    before = _shape(path)
    with pytest.raises(Exception, match="routes already exists"):
        async with Store.opened(path):
            pytest.fail("it was opened")
    assert _shape(path) == before
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE routes")
    async with Store.opened(path) as store:
        assert len(store.mirror.routes(RUNS)) == 3


def _shape(path: Path) -> dict[str, Any]:
    """Return what a database is made of; the order of columns is of no matter, as rows are written by name."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        shape: dict[str, Any] = {"version": connection.execute("PRAGMA user_version").fetchone()}
        for table in tables:
            columns = sorted(row[1:] for row in connection.execute(f"PRAGMA table_info({table})"))
            keys = sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({table})"))
            indexes = sorted(
                (row[2], [column[2] for column in connection.execute(f"PRAGMA index_info({row[1]})")])
                for row in connection.execute(f"PRAGMA index_list({table})")
            )
            shape[table] = columns, keys, indexes
    return shape
