"""The audit log, on each database: what an entry has, that it is one with its change, its heads, its retention."""

from __future__ import annotations

import asyncio
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from cellmesh.service.audit.heads import AuditKeyUnusable, HeadFile
from cellmesh.service.audit.seals import Seals
from cellmesh.service.audit.verify import verify
from cellmesh.service.store import AUDIT_STEP, Action, Decision, Fact, Who
from support import tampering
from support.notes import Notes

pytestmark = pytest.mark.asyncio
SECONDS = 120
KEY = "sk-ant-api03-" + "Ab1_" * 12
ACT = Action("note.act", {"mode": Fact.NAME, "count": Fact.NUMBER, "forced": Fact.FLAG, "digest": Fact.DIGEST})


async def rows_of(notes: Notes) -> list[tampering.Row]:
    """Return all rows of the log."""
    table = notes.schema.audit.rows
    async with notes.reading() as reading:
        found = await reading.step(lambda c: c.execute(select(table).order_by(table.c.sequence)).mappings().all())
    return [dict(row) for row in found]


async def add(notes: Notes, count: int) -> None:
    """Write some rows."""
    for _ in range(count):
        async with notes.transaction() as tx:
            await tx.audit(ACT, resource="notes/1", facts={"count": count})


async def test_an_entry_says_who_did_what(location: Path | str) -> None:
    """The caller of the transaction is in it unless another is named; outside of a call it is the service itself."""
    who: Who | None = Who(role="operator", name="operator", user_id="7")
    async with Notes.opened(location, who=lambda: who, trace_id=lambda: "ab" * 16) as notes:
        async with notes.transaction() as tx:
            await tx.audit(ACT, resource="notes/1", facts={"mode": "quick", "count": 3, "forced": True})
            await tx.audit(ACT, resource="", decision=Decision.DENIED, who=Who(role="edge", name="edge"))
        who = None
        await add(notes, 1)
        first, second, third = await rows_of(notes)
    assert (first["sequence"], first["caller_role"], first["caller_name"], first["user_id"]) == (
        1,
        "operator",
        "operator",
        "7",
    )
    assert (first["action"], first["resource"], first["decision"]) == ("note.act", "notes/1", "ALLOWED")
    assert (first["trace_id"], first["facts"]) == ("ab" * 16, '{"count":3,"forced":true,"mode":"quick"}')
    assert (second["caller_role"], second["user_id"], second["decision"]) == ("edge", "", "DENIED")
    assert (third["caller_role"], third["caller_name"]) == ("self", "notes")


async def test_what_was_not_declared_is_refused_and_stored_nowhere(notes: Notes, tmp_path: Path) -> None:
    """A key that is passed in every place is in no file of the service, and in no error."""
    places: list[tuple[str, dict[str, object]]] = [
        (KEY + "/…", {}),
        ("notes/1", {"mode": KEY}),
        ("notes/1", {"count": KEY}),
        ("notes/1", {"forced": KEY}),
        ("notes/1", {"digest": KEY}),
        ("notes/1", {"token": KEY}),
        ("notes/1", {KEY: 1}),
        ("notes/1", {"count": True}),
        ("notes/1", {"count": -1}),
        ("notes/1", {"mode": "two words"}),
        ("x" * 301, {}),
    ]

    async def write(resource: str, facts: dict[str, object]) -> None:
        async with notes.transaction() as tx:
            await tx.audit(ACT, resource=resource, facts=facts)  # type: ignore[arg-type]  # what is tried here

    async with Seals.opened(notes, tmp_path / "audit") as seals:
        for resource, facts in places:
            with pytest.raises(ValueError, match=r"note\.act") as refused:
                await write(resource, facts)
            assert KEY not in str(refused.value)
        await write(KEY, {})
        await write("notes/1", {"mode": "sk-" + "a" * 40})
        assert [row["resource"] for row in await rows_of(notes)] == ["[redacted]", "notes/1"]
        assert "sk-a" not in (await rows_of(notes))[1]["facts"]
        await seals.seal()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize("name", ["create", "Vm.create", "vm.", "vm create"])
async def test_an_action_is_declared_by_a_plain_name(name: str) -> None:
    """What cannot be one is refused where it is declared, too many facts as well."""
    with pytest.raises(ValueError, match="name of an action"):
        Action(name)
    with pytest.raises(ValueError, match="more than 8"):
        Action("vm.create", {f"fact_{number}": Fact.FLAG for number in range(9)})


async def test_the_chain_is_whole_whatever_becomes_of_transactions(notes: Notes, tmp_path: Path) -> None:
    """Of many transactions that share commits some fail: their entries are gone, and the others follow one another."""

    async def one(number: int) -> None:
        async with notes.transaction(alone=number % 11 == 0) as tx:
            await tx.add_audited(f"{number:03}")
            if number % 5 == 1:
                raise RuntimeError("planted")
            if number % 5 == 2:
                await tx.add_named(f"{number:03}")
            if number % 5 == 3:
                await tx.note("a statement, after which the entry is written")
                await tx.add_audited(f"{number:03} again")
                raise RuntimeError("planted")

    async with Seals.opened(notes, tmp_path / "audit") as seals, asyncio.timeout(SECONDS):
        outcomes = await asyncio.gather(*(one(number) for number in range(200)), return_exceptions=True)
        done = sum(outcome is None for outcome in outcomes)
        assert done == 80
        assert [row["sequence"] for row in await rows_of(notes)] == list(range(1, done + 1))
        verdict = await verify(seals)
        assert (verdict.fault, verdict.rows) == ("", done)


async def test_an_old_database_gets_its_log_and_ends_up_as_a_new_one(location: Path | str) -> None:
    """One step of SQL brings the tables to both databases, with the same columns and keys."""

    class Newer(Notes):
        schema = replace(Notes.schema, migrations=(AUDIT_STEP,))

    async def shape(notes: Notes) -> list[object]:
        async with notes.reading() as reading:
            return await reading.step(
                lambda c: [
                    (
                        [(x["name"], str(x["type"]), x["nullable"]) for x in inspect(c).get_columns(table)],
                        inspect(c).get_pk_constraint(table)["constrained_columns"],
                    )
                    for table in ("audit", "audit_heads")
                ]
            )

    async with Notes.opened(location) as notes:
        new = await shape(notes)
        async with notes.transaction() as tx:
            for table in ("audit", "audit_heads"):
                await tx.step(lambda c, table=table: c.execute(text(f"DROP TABLE {table}")) and None)
    async with Newer.opened(location) as notes:
        assert await shape(notes) == new
        await add(notes, 1)


async def test_the_head_is_signed_at_the_end_and_at_the_start(location: Path | str, tmp_path: Path) -> None:
    """A log has a head from its first moment on, and its last row is signed when the service has ended."""
    directory = tmp_path / "audit"
    async with Notes.opened(location) as notes:
        async with Seals.opened(notes, directory) as seals:
            first = await verify(seals)
            assert first.newest is not None
            assert (first.fault, first.newest.sequence) == ("", 0)
            await add(notes, 3)
        newest = HeadFile(directory / "heads").newest()
        assert newest is not None
        assert newest.sequence == 3
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"heads": 0o600, "key.pem": 0o600, "lock": 0o600}
    (directory / "key.pem").write_text("no key")
    async with Notes.opened(location) as notes:
        with pytest.raises(AuditKeyUnusable, match="runbook"):
            async with Seals.opened(notes, directory):
                pytest.fail("it was opened")


async def test_a_crash_between_file_and_table_is_no_tampering(notes: Notes, tmp_path: Path) -> None:
    """A head that only the file has is taken over, with the rows it prunes; half a line is as if there was none."""
    file = tmp_path / "audit" / "heads"
    async with Seals.opened(notes, file.parent) as seals:
        await add(notes, 9)
        await seals.seal()
        before = await tampering.load(notes, file)
        await seals.prune(keep=4)
        after = await tampering.load(notes, file)
        assert [row["sequence"] for row in after.rows] == [6, 7, 8, 9]
    before.file = after.file + b"17 5"
    await tampering.put(notes, file, before)
    async with Seals.opened(notes, file.parent) as seals:
        assert (await verify(seals)).fault == ""
        assert [row["sequence"] for row in await rows_of(notes)] == [6, 7, 8, 9]
        await add(notes, 1)
        await seals.seal()
        assert (await verify(seals)).fault == ""
        assert b"17 5" not in file.read_bytes()


async def test_only_what_is_signed_is_pruned(notes: Notes, tmp_path: Path) -> None:
    """Rows after the newest head stay, however few are to be kept; a check knows where the log begins."""
    async with Seals.opened(notes, tmp_path / "audit") as seals:
        await add(notes, 5)
        await seals.seal()
        await add(notes, 5)
        await seals.prune(keep=1)
        assert [row["sequence"] for row in await rows_of(notes)] == [5, 6, 7, 8, 9, 10]
        verdict = await verify(seals)
        assert (verdict.fault, verdict.first, verdict.rows) == ("", 5, 6)


async def test_heads_are_kept_up_to_a_number(notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old heads leave the table and the file, and that is no tampering."""
    for module in ("seals", "verify"):
        monkeypatch.setattr(f"cellmesh.service.audit.{module}.KEPT_HEADS", 4)
    file = tmp_path / "audit" / "heads"
    async with Seals.opened(notes, file.parent) as seals:
        for _ in range(15):
            await add(notes, 1)
            await seals.seal()
            assert (await verify(seals)).fault == ""
        log = await tampering.load(notes, file)
        assert len(log.heads) == 4
        assert len(log.lines) <= 8


async def test_a_database_that_was_replaced_is_noticed(location: Path | str, tmp_path: Path) -> None:
    """The file outside of it says how far the log had come, and the rows that come later do not hide it."""
    directory = tmp_path / "audit"
    async with Notes.opened(location) as notes:
        async with Seals.opened(notes, directory) as seals:
            await add(notes, 5)
        await tampering.put(notes, directory / "heads", tampering.Log([], [], (directory / "heads").read_bytes()))
        async with Seals.opened(notes, directory) as seals:
            assert "cut off" in (await verify(seals)).fault
            await add(notes, 9)
            await seals.seal()
            verdict = await verify(seals)
            assert verdict.wrong_row == 5
            assert "not as it is now" in verdict.fault
            # What an incident left behind can be passed over.
            assert (await verify(seals, after=6)).wrong_row == 0


async def test_a_fault_is_a_sentence(notes: Notes, tmp_path: Path) -> None:
    """Each begins with a capital and ends with a full stop, and names a row."""
    async with Seals.opened(notes, tmp_path / "audit") as seals:
        await add(notes, 3)
        async with notes.transaction() as tx:
            await tx.step(lambda c: c.execute(text("UPDATE audit SET user_id = 'x' WHERE sequence = 2")) and None)
        fault = (await verify(seals)).fault
    assert re.fullmatch(r"Row 2 was changed .*\.", fault)
