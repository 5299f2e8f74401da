"""The agent inside a cell: PID 1, the containers, and the two sides of its conversation with the host."""

AGENT_VERSION = "0.1.0"
PROTOCOL_VERSIONS = (1,)

__all__ = ["AGENT_VERSION", "PROTOCOL_VERSIONS"]
