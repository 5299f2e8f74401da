"""What a machine needs to run VMs: each check looks, judges, and names the command that helps."""

from cellmesh.cli.checks.finding import Finding, Machine, Verdict
from cellmesh.cli.checks.suite import examine

__all__ = ["Finding", "Machine", "Verdict", "examine"]
