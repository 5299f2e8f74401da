"""`cellmesh audit`: who did what with a service, and whether its log is whole."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import typer

from cellmesh.api.audit.v1 import audit_service_pb2
from cellmesh.api.common.v1 import page_pb2
from cellmesh.cli import units
from cellmesh.cli.connection import STREAM_SECONDS, Stream, resumed, streaming
from cellmesh.cli.errors import ExitCode, UsageError
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.options import JsonOption, noun
from cellmesh.cli.output import Cell, as_json

app = noun("See who did what, and check that the log of it is whole.")
_VERIFY_SECONDS = 3600.0
_LARGEST_PAGE = 1000
_STYLES = {"ALLOWED": "green", "DENIED": "red", "FAILED": "yellow"}
_DECISIONS = {
    "": audit_service_pb2.DECISION_UNSPECIFIED,
    "allowed": audit_service_pb2.DECISION_ALLOWED,
    "denied": audit_service_pb2.DECISION_DENIED,
    "failed": audit_service_pb2.DECISION_FAILED,
}
_COLUMNS = ("SEQUENCE", "TIME", "CALLER", "FOR_USER", "ACTION", "RESOURCE", "DECISION", "FACTS")
ActingOption = Annotated[str, typer.Option("--user", metavar="UUID", help="Only what was done on behalf of this user.")]
ResourceOption = Annotated[
    str, typer.Option("--resource", metavar="START", help="Only resources that begin so, such as vms/6f1c2d9e.")
]
DecisionOption = Annotated[
    str, typer.Option("--decision", metavar="DECISION", help="Only what was allowed, was denied, or failed.")
]


@app.command()
def ls(
    context: typer.Context,
    *,
    user: ActingOption = "",
    resource: ResourceOption = "",
    decision: DecisionOption = "",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many, counted from the newest.")] = 100,
    json_output: JsonOption = False,
) -> None:
    """List entries, the newest last."""

    async def body(session: Session) -> None:
        entries = await _newest(session, _filter(user, resource, decision), limit)
        if session.output.json:
            for entry in entries:
                session.output.document({"entry": as_json(entry)})
        else:
            session.output.table(_COLUMNS, [_row(entry) for entry in entries])

    call(context, body, json_output=json_output)


@app.command()
def watch(
    context: typer.Context,
    *,
    user: ActingOption = "",
    resource: ResourceOption = "",
    decision: DecisionOption = "",
    json_output: JsonOption = False,
) -> None:
    """Print each entry as it is written."""

    async def body(session: Session) -> None:
        wanted, token = _filter(user, resource, decision), b""

        def opened() -> Stream[audit_service_pb2.WatchAuditResponse]:
            request = audit_service_pb2.WatchAuditRequest(filter=wanted, resume_token=token)
            return streaming(session.node.audit.WatchAudit(request, timeout=STREAM_SECONDS))

        def tell() -> None:
            session.output.note("The watch broke; resuming where it was.")

        async with aclosing(resumed(opened, on_break=tell)) as messages:
            async for message in messages:
                token = message.resume_token
                if session.output.json:
                    session.output.message(message)
                elif message.HasField("entry"):
                    session.output.styled(*_row(message.entry))

    call(context, body, json_output=json_output)


@app.command()
def verify(
    context: typer.Context,
    *,
    after: Annotated[
        int, typer.Option("--after", metavar="SEQUENCE", min=0, help="Leave out entries up to this one.")
    ] = 0,
    json_output: JsonOption = False,
) -> None:
    """Check that no entry was changed, removed, added or moved; exit code 1 if one was."""

    async def body(session: Session) -> int:
        request = audit_service_pb2.VerifyAuditRequest(after_sequence=after)
        answer = await session.node.audit.VerifyAudit(request, timeout=_VERIFY_SECONDS)
        if session.output.json:
            session.output.message(answer)
        else:
            _print_verdict(session, answer)
        return ExitCode.FAILED if answer.fault else ExitCode.OK

    call(context, body, json_output=json_output)


def _print_verdict(session: Session, answer: audit_service_pb2.VerifyAuditResponse) -> None:
    checked = f"{answer.entry_count} entries are in order"
    if answer.first_sequence > 1:
        checked += f"; those before {answer.first_sequence} were pruned"
    signed = f"signed up to entry {answer.signed_sequence}, at {units.clock(answer.sign_time)}"
    if not answer.fault:
        session.output.styled(Cell(text="The audit log is whole.", style="green"))
        session.output.line(f"{checked}; {signed}.")
        return
    session.output.styled(Cell(text="The audit log was tampered with.", style="red"))
    session.output.line(answer.fault)
    session.output.line(f"Before that {checked}.")
    session.output.line("What to do: docs/runbook.md, `cellmesh audit verify` fails.")


async def _newest(
    session: Session, wanted: audit_service_pb2.AuditFilter, limit: int
) -> list[audit_service_pb2.AuditEntry]:
    """Return the newest entries, the newest last."""
    found: list[audit_service_pb2.AuditEntry] = []
    token = ""
    while len(found) < limit:
        page = page_pb2.PageRequest(page_size=min(limit - len(found), _LARGEST_PAGE), page_token=token)
        answer = await session.node.audit.ListAudit(audit_service_pb2.ListAuditRequest(page=page, filter=wanted))
        found.extend(answer.entries)
        token = answer.next_page_token
        if not token:
            break
    return found[::-1]


def _filter(user: str, resource: str, decision: str) -> audit_service_pb2.AuditFilter:
    if decision.lower() not in _DECISIONS:
        raise UsageError(f"{decision!r} is no decision.", "Give allowed, denied or failed.")
    return audit_service_pb2.AuditFilter(user_id=user, resource_prefix=resource, decision=_DECISIONS[decision.lower()])


def _row(entry: audit_service_pb2.AuditEntry) -> list[Cell]:
    decision = audit_service_pb2.Decision.Name(entry.decision).removeprefix("DECISION_")
    is_named = entry.caller_name not in ("", entry.caller_role)
    return [
        Cell(text=str(entry.sequence), style="dim"),
        Cell(text=units.clock(entry.time), style="dim"),
        Cell(text=entry.caller_name if is_named else entry.caller_role),
        Cell(text=entry.user_id or "-"),
        Cell(text=entry.action),
        Cell(text=entry.resource or "-"),
        Cell(text=decision, style=_STYLES.get(decision, "")),
        Cell(text=",".join(map(_fact, entry.facts)) or "-"),
    ]


def _fact(fact: audit_service_pb2.AuditEntry.Fact) -> str:
    if fact.WhichOneof("value") == "flag":
        return f"{fact.name}={'yes' if fact.flag else 'no'}"
    return f"{fact.name}={fact.word or fact.number}"
