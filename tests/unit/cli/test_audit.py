"""`cellmesh audit` against a node without VMs."""

from __future__ import annotations

import json

from cellmesh.api.audit.v1 import audit_service_pb2 as pb
from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh

VM = "vms/6f1c2d9e-8a55-4f43-9d3c-0c8e1d2b7a10"


def fill(node: FakeNode, count: int = 3) -> None:
    """Add entries of two callers."""
    for number in range(count):
        node.audit.add(
            caller_role="service" if number % 2 else "operator",
            caller_name="spiffe://cell.example/service/web" if number % 2 else "operator",
            action="vm.create",
            resource=VM,
            decision=pb.DECISION_DENIED if number % 2 else pb.DECISION_ALLOWED,
            facts=[pb.AuditEntry.Fact(name="vcpus", number=number), pb.AuditEntry.Fact(name="force", flag=True)],
        )


def test_ls_shows_who_did_what_the_newest_last(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A row has caller, action, resource, decision and facts; a column that is empty is a dash."""
    fill(node)
    header, first, second, _ = (line.split() for line in cellmesh("audit", "ls").stdout.splitlines())
    assert header[0] == "SEQUENCE"
    assert (first[0], first[2:]) == ("1", ["operator", "-", "vm.create", VM, "ALLOWED", "vcpus=0,force=yes"])
    assert second[2:4] == ["spiffe://cell.example/service/web", "-"]
    assert second[6] == "DENIED"


def test_ls_reads_as_many_pages_as_it_is_asked_for(node: FakeNode, cellmesh: Cellmesh) -> None:
    """With --json each entry is an object on a line; a filter goes to the service."""
    fill(node, 2500)
    lines = cellmesh("audit", "ls", "-n", "1200", "--json", "--resource", "vms/", "--decision", "denied").stdout
    entries = [json.loads(line)["entry"] for line in lines.splitlines()]
    assert [int(entry["sequence"]) for entry in entries] == list(range(1301, 2501))
    sizes = [request.page.page_size for request in node.audit.requests]
    assert sizes == [1000, 200]
    assert node.audit.requests[0].filter == pb.AuditFilter(resource_prefix="vms/", decision=pb.DECISION_DENIED)
    assert cellmesh("audit", "ls", "--decision", "maybe").returncode == 2


def test_watch_resumes_where_it_broke(node: FakeNode, cellmesh: Cellmesh) -> None:
    """Each entry is printed once, though the stream broke after the first."""
    fill(node, 4)
    result = cellmesh("audit", "watch")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "2", "3", "4"]
    assert [request.resume_token for request in node.audit.requests] == [b"", b"1"]
    assert "resuming" in result.stderr


def test_verify_says_what_is_wrong_and_fails(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A log that is whole is exit code 0, one that was tampered with is 1, with the row and what to do."""
    node.audit.verdict = pb.VerifyAuditResponse(entry_count=7, first_sequence=3, signed_sequence=9)
    whole = cellmesh("audit", "verify")
    assert (whole.returncode, "The audit log is whole." in whole.stdout) == (0, True)
    assert "7 entries are in order; those before 3 were pruned; signed up to entry 9" in whole.stdout
    node.audit.verdict.fault, node.audit.verdict.wrong_sequence = "Row 5 is missing: row 6 comes in its place.", 5
    broken = cellmesh("audit", "verify", "--after", "2")
    assert broken.returncode == 1
    assert "Row 5 is missing" in broken.stdout
    assert "runbook" in broken.stdout
    assert node.audit.requests[-1].after_sequence == 2
    assert json.loads(cellmesh("audit", "verify", "--json").stdout)["wrong_sequence"] == "5"
