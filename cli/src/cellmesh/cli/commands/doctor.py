"""`cellmesh doctor`: what this machine lacks, and the commands that mend it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import typer

from cellmesh.cli.checks import Finding, Machine, Verdict, examine
from cellmesh.cli.errors import ExitCode
from cellmesh.cli.invocation import run
from cellmesh.cli.options import JsonOption
from cellmesh.cli.output import Cell, Output
from cellmesh.cli.render import styled
from cellmesh.cli.settings import Settings


def doctor(context: typer.Context, *, json_output: JsonOption = False) -> None:
    """Check what this machine needs to run VMs; exit code 1 if something it can't do without is missing."""

    def body(settings: Settings, output: Output) -> int:
        findings = examine(Machine.here(settings, os.environ))
        is_fit = all(finding.verdict is not Verdict.FAIL for finding in findings)
        if output.json:
            output.document({"ok": is_fit, "checks": [dataclasses.asdict(finding) for finding in findings]})
        else:
            print_findings(output, findings)
        return ExitCode.OK if is_fit else ExitCode.FAILED

    run(context, body, json_output=json_output)


def print_findings(output: Output, findings: Sequence[Finding]) -> None:
    """Print findings, one line each, with what to do below those that are not well."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        verdict = styled(finding.verdict)
        padded = Cell(text=verdict.text.ljust(4), style=verdict.style)
        output.styled(padded, Cell(text=finding.name.ljust(width), style="bold"), Cell(text=finding.message))
        if finding.fix:
            output.styled(Cell(text=" " * (width + 5)), Cell(text=f"→ {finding.fix}"))
