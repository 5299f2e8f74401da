"""Ways to tamper with an audit log, each chosen by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, insert, select

from cellmesh.service.audit.heads import Head, Signer, line_of, read
from cellmesh.service.store import audit
from support.notes import Notes

Row = dict[str, Any]


@dataclass
class Log:
    """All that is kept of an audit log."""

    rows: list[Row]
    heads: list[Head]
    file: bytes
    wrong_row: int | None = field(default=None)
    """The first row that is wrong after it was tampered with, where only one answer is right."""

    @property
    def lines(self) -> list[Head]:
        """Return the heads of the file."""
        found = [read(line) for line in self.file.splitlines(keepends=True)]
        return [head for head in found if head is not None]

    def write(self, heads: list[Head]) -> None:
        """Replace the heads of the file."""
        self.file = b"".join(map(line_of, heads))


async def load(notes: Notes, file: Path) -> Log:
    """Return what is there."""
    rows, heads = notes.schema.audit

    def step(connection: sqlalchemy.Connection) -> tuple[list[Row], list[Head]]:
        found = connection.execute(select(rows).order_by(rows.c.sequence)).mappings()
        signed = connection.execute(select(heads).order_by(heads.c.number)).mappings()
        return [dict(row) for row in found], [Head(**row) for row in signed]

    async with notes.reading() as reading:
        return Log(*await reading.step(step), file=file.read_bytes())


async def put(notes: Notes, file: Path, log: Log) -> None:
    """Put what is to be there, around all that the store does."""
    rows, heads = notes.schema.audit

    def step(connection: sqlalchemy.Connection) -> None:
        for table, values in ((rows, log.rows), (heads, [asdict(head) for head in log.heads])):
            connection.execute(delete(table))
            if values:
                connection.execute(insert(table), values)

    async with notes.transaction() as tx:
        await tx.step(step)
    file.write_bytes(log.file)


def rehash(log: Log, index: int, count: int | None = None) -> None:
    """Give rows from an index on hashes that fit, as whoever knows the format can."""
    for place in range(index, len(log.rows) if count is None else min(index + count, len(log.rows))):
        previous = log.rows[place - 1]["hash"] if place else log.heads[-1].first_previous
        log.rows[place]["hash"] = audit.row_hash(previous, log.rows[place])


def _other(value: Any) -> Any:
    if isinstance(value, int):
        return value + 1
    return value[:-1] + ("0" if value.endswith("1") else "1") if value else "x"


def edit(log: Log, chosen: random.Random) -> None:
    """Change one column of one row."""
    row = chosen.choice(log.rows)
    column = chosen.choice([name for name in row if name != "sequence"])
    log.wrong_row = row["sequence"]
    row[column] = _other(row[column])


def edit_and_hash(log: Log, chosen: random.Random) -> None:
    """Change a row and give it the hash that fits."""
    index = chosen.randrange(len(log.rows) - 1)
    log.rows[index]["user_id"] = "someone else"
    rehash(log, index, 1)


def edit_and_hash_all(log: Log, chosen: random.Random) -> None:
    """Change a row and give all from there on hashes that fit."""
    index = chosen.randrange(len(log.rows))
    log.rows[index]["decision"] = "DENIED"
    rehash(log, index)


def remove(log: Log, chosen: random.Random) -> None:
    """Remove rows from the midst or the beginning."""
    index = chosen.randrange(len(log.rows) - 5)
    log.wrong_row = log.rows[index]["sequence"]
    del log.rows[index : index + chosen.randrange(1, 4)]


def remove_and_number(log: Log, chosen: random.Random) -> None:
    """Remove a row, and number and hash what follows anew."""
    index = chosen.randrange(len(log.rows) - 1)
    del log.rows[index]
    for row in log.rows[index:]:
        row["sequence"] -= 1
    rehash(log, index)


def cut(log: Log, chosen: random.Random) -> None:
    """Cut off the tail."""
    del log.rows[chosen.randrange(len(log.rows)) :]
    log.wrong_row = log.rows[-1]["sequence"] + 1 if log.rows else None


def add(log: Log, chosen: random.Random) -> None:
    """Insert a row, number what follows anew, and hash it or all or none."""
    index = chosen.randrange(1, len(log.rows))
    for row in log.rows[index:]:
        row["sequence"] += 1
    log.rows.insert(index, {**log.rows[index], "sequence": log.rows[index]["sequence"] - 1, "resource": "planted"})
    rehash(log, index, chosen.choice([0, 1, None]))


def append(log: Log, _: random.Random) -> None:
    """Add a row at the end whose hash does not fit."""
    log.rows.append({**log.rows[-1], "sequence": log.rows[-1]["sequence"] + 1})
    log.wrong_row = log.rows[-1]["sequence"]


def put_before(log: Log, chosen: random.Random) -> None:
    """Add a row before the first."""
    log.rows.insert(0, {**log.rows[0], "sequence": log.rows[0]["sequence"] - chosen.randrange(1, 9)})


def swap(log: Log, chosen: random.Random) -> None:
    """Exchange two rows."""
    first, second = sorted(chosen.sample(range(len(log.rows)), 2))
    log.wrong_row = log.rows[first]["sequence"]
    for name in log.rows[first]:
        if name != "sequence":
            log.rows[first][name], log.rows[second][name] = log.rows[second][name], log.rows[first][name]


def replay_head(log: Log, chosen: random.Random) -> None:
    """Put an old head in the place of the newest: in the table, in the file, or in both."""
    old = chosen.choice(log.heads[:-1])
    if chosen.random() < 0.7:
        log.heads[-1] = replace(old, number=log.heads[-1].number) if chosen.random() < 0.5 else old
        log.heads = list({head.number: head for head in log.heads}.values())
    if log.heads[-1].number == old.number or chosen.random() < 0.5 or log.heads[-1].signature != old.signature:
        log.write([*log.lines[:-1], replace(old, number=log.lines[-1].number)])


def replace_signature(log: Log, chosen: random.Random) -> None:
    """Sign a head, as it is or with a cut tail, with another key; in the table, or in the file as well."""
    signer = Signer(Ed25519PrivateKey.generate(), Notes.schema.service)
    index = chosen.randrange(len(log.heads))
    log.heads[index] = signer.sign(log.heads[index])
    if chosen.random() < 0.5:
        log.write(log.heads)


def edit_head(log: Log, chosen: random.Random) -> None:
    """Change one column of one head."""
    index = chosen.randrange(len(log.heads))
    column = chosen.choice([name for name in asdict(log.heads[index]) if name != "number"])
    log.heads[index] = replace(log.heads[index], **{column: _other(getattr(log.heads[index], column))})


def remove_head(log: Log, chosen: random.Random) -> None:
    """Remove a head from the table or the file, or the file, or all heads."""
    index = chosen.randrange(len(log.heads))
    match chosen.randrange(4):
        case 0:
            del log.heads[index]
        case 1:
            log.write([head for head in log.lines if head.number != log.heads[index].number])
        case 2:
            log.file = b""
        case _:
            log.file, log.heads = b"", []


def edit_file(log: Log, chosen: random.Random) -> None:
    """Change one byte of the file that is not of its last line's end."""
    index = chosen.randrange(len(log.file) - 1)
    log.file = log.file[:index] + bytes([log.file[index] ^ 1]) + log.file[index + 1 :]


def roll_back(log: Log, chosen: random.Random) -> None:
    """Put the database back as it was at a signed head; the file beside it is not touched."""
    index = chosen.randrange(1, len(log.heads) - 1)
    log.rows = [row for row in log.rows if row["sequence"] <= log.heads[index].sequence]
    del log.heads[index + 1 :]


WAYS: Mapping[str, Callable[[Log, random.Random], None]] = {
    way.__name__: way
    for way in (
        edit,
        edit_and_hash,
        edit_and_hash_all,
        remove,
        remove_and_number,
        cut,
        add,
        append,
        put_before,
        swap,
        replay_head,
        replace_signature,
        edit_head,
        remove_head,
        edit_file,
        roll_back,
    )
}
