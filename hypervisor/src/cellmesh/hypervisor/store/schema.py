"""The tables, and how an older database becomes this one. Times are microseconds since 1970, durations microseconds."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from cellmesh.service.store import AUDIT_STEP, Schema, answers_table, audit_tables, journal_table, state_table

METADATA = MetaData()

NODE = Table(
    "node",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("node_id", String, nullable=False),
    Column("draining", Boolean, nullable=False),
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
    Column("cold_start", String, nullable=False, server_default="ON_REQUEST"),
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
    Column("ingress_slot", Integer, nullable=False, server_default="0"),
    Index("ingress_slots", "vm_id", "ingress_slot", unique=True),
)

ROUTES = Table(
    "routes",
    METADATA,
    Column("vm_id", ForeignKey("vms.vm_id", ondelete="CASCADE"), primary_key=True),
    Column("prefix", String, primary_key=True),
    Column("container", String, nullable=False),
    # 0 follows the container through its generations.
    Column("generation", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)

DRAINS = Table(
    "drains",
    METADATA,
    Column("vm_id", ForeignKey("vms.vm_id", ondelete="CASCADE"), primary_key=True),
    Column("prefix", String, primary_key=True),
    Column("container", String, primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("due", BigInteger, nullable=False),
)

EVENTS = journal_table(
    "events",
    METADATA,
    Column("vm_id", String, nullable=False),
    Column("container_name", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    # Null in an entry that is only a new revision of a VM.
    Column("kind", String),
    Column("payload", Text),
    # The VM as it was after the change; null in an entry that changed none.
    Column("vm", Text),
    Index("events_of_vm", "vm_id", "sequence"),
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

# What a step says is said in SQL: the tables above go on changing, what a step did never does.
_ROUTES = (
    "ALTER TABLE vms ADD COLUMN cold_start VARCHAR DEFAULT 'ON_REQUEST' NOT NULL",
    "ALTER TABLE containers ADD COLUMN ingress_slot INTEGER DEFAULT '0' NOT NULL",
    """UPDATE containers SET ingress_slot = (
           SELECT count(*) FROM containers AS other
           WHERE other.vm_id = containers.vm_id AND other.name < containers.name)""",
    "CREATE UNIQUE INDEX ingress_slots ON containers (vm_id, ingress_slot)",
    """CREATE TABLE routes (
           vm_id VARCHAR NOT NULL REFERENCES vms (vm_id) ON DELETE CASCADE,
           prefix VARCHAR NOT NULL,
           container VARCHAR NOT NULL,
           generation BIGINT NOT NULL,
           revision BIGINT NOT NULL,
           update_time BIGINT NOT NULL,
           PRIMARY KEY (vm_id, prefix))""",
    "INSERT INTO routes SELECT vm_id, '/', 'sandbox-live', 0, 1, create_time FROM vms",
    "INSERT INTO routes SELECT vm_id, '/dev/', 'sandbox-dev', 0, 1, create_time FROM vms",
    """INSERT INTO routes SELECT vm_id, '/_/' || name || '/', name, 0, 1, create_time FROM containers
           WHERE name NOT IN ('sandbox-live', 'sandbox-dev')""",
)
_DRAINS = (
    """CREATE TABLE drains (
           vm_id VARCHAR NOT NULL REFERENCES vms (vm_id) ON DELETE CASCADE,
           prefix VARCHAR NOT NULL,
           container VARCHAR NOT NULL,
           generation BIGINT NOT NULL,
           due BIGINT NOT NULL,
           PRIMARY KEY (vm_id, prefix, container, generation))""",
)


# Answers were JSON of four shapes; who repeats a request across this step is answered anew.
_SERVICE = (
    """CREATE TABLE service_state (
           id INTEGER NOT NULL PRIMARY KEY,
           token_key BLOB NOT NULL,
           pruned_sequence BIGINT NOT NULL)""",
    "INSERT INTO service_state SELECT 1, token_key, pruned_sequence FROM node",
    "ALTER TABLE node DROP COLUMN token_key",
    "ALTER TABLE node DROP COLUMN pruned_sequence",
    "DROP TABLE requests",
    """CREATE TABLE answers (
           method VARCHAR NOT NULL,
           request_id VARCHAR NOT NULL,
           fingerprint BLOB NOT NULL,
           refused BOOLEAN NOT NULL,
           answer BLOB NOT NULL,
           time BIGINT NOT NULL,
           PRIMARY KEY (method, request_id))""",
    "CREATE INDEX answers_by_time ON answers (time)",
)

SCHEMA = Schema(
    service="hypervisor",
    metadata=METADATA,
    journal=EVENTS,
    state=state_table(METADATA),
    answers=answers_table(METADATA),
    audit=audit_tables(METADATA),
    migrations=(_ROUTES, _DRAINS, _SERVICE, AUDIT_STEP),
)
