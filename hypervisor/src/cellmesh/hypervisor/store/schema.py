"""The tables, and how an older database becomes this one. Times are microseconds since 1970, durations microseconds."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

METADATA = MetaData()

NODE = Table(
    "node",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("node_id", String, nullable=False),
    Column("draining", Boolean, nullable=False),
    # Events up to here are no longer kept.
    Column("pruned_sequence", BigInteger, nullable=False),
    # Signs page and resume tokens, so that they outlive a restart.
    Column("token_key", LargeBinary, nullable=False),
)

VMS = Table(
    "vms",
    METADATA,
    Column("vm_id", String, primary_key=True),
    Column("user_id", String, nullable=False, unique=True),
    Column("guest_image", String, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("data_disk_bytes", BigInteger, nullable=False),
    Column("restart_mode", String, nullable=False),
    Column("max_restarts", Integer, nullable=False),
    Column("initial_backoff", BigInteger, nullable=False),
    Column("max_backoff", BigInteger, nullable=False),
    Column("desired", String, nullable=False),
    Column("state", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("restart_count", Integer, nullable=False),
    Column("recycle_wished", Integer, nullable=False),
    Column("recycle_started", Integer, nullable=False),
    Column("recycle_done", Integer, nullable=False),
    Column("force_delete", Boolean, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("running_time", BigInteger),
    Column("next_try_time", BigInteger),
    Column("vmm_pid", Integer, nullable=False),
    Index("vms_in_order", "create_time", "vm_id"),
)

CONTAINERS = Table(
    "containers",
    METADATA,
    Column("vm_id", ForeignKey("vms.vm_id", ondelete="CASCADE"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("image", String, nullable=False),
    Column("stop_grace", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("wanted", Boolean, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("health", String, nullable=False),
    Column("exit_code", Integer, nullable=False),
    Column("restart_count", BigInteger, nullable=False),
    Column("oom_kills", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("start_time", BigInteger),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("vm_id", String, nullable=False),
    Column("container_name", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("trace_id", String, nullable=False),
    # Null in an entry that is only a new revision of a VM.
    Column("kind", String),
    Column("payload", Text),
    # The VM as it was after the change; null in an entry that changed none.
    Column("vm", Text),
    Index("events_of_vm", "vm_id", "sequence"),
    # A sequence is never given twice, even after the newest rows were pruned.
    sqlite_autoincrement=True,
)

REQUESTS = Table(
    "requests",
    METADATA,
    Column("method", String, primary_key=True),
    Column("request_id", String, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("answer", Text, nullable=False),
    Column("time", BigInteger, nullable=False, index=True),
)

AGENT_BOOTS = Table(
    "agent_boots",
    METADATA,
    Column("vm_id", ForeignKey("vms.vm_id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("boot_id", String, nullable=False),
    Column("discard_layers", Boolean, nullable=False),
    Column("time", BigInteger, nullable=False),
)

# Step n brings a database of version n to version n + 1. Steps are only ever added.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (METADATA.create_all,)


class SchemaTooNew(Exception):
    """The database was written by a later version of the hypervisor."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"The database has schema version {found}, this hypervisor knows up to {len(MIGRATIONS)}; "
            "install the version that wrote it, or a later one."
        )


def migrate(connection: Connection) -> None:
    """Bring the database up to date; SchemaTooNew if a later version wrote it."""
    found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
    if found > len(MIGRATIONS):
        raise SchemaTooNew(found)
    for step in MIGRATIONS[found:]:
        step(connection)
    connection.execute(text(f"PRAGMA user_version = {len(MIGRATIONS)}"))
