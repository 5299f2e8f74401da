"""The access log: who asked for what, who answered, and how it went; no query, no cookie, no credential."""

from __future__ import annotations

from pathlib import Path

from cellmesh.hypervisor.edge.options import Json, typed
from cellmesh.hypervisor.edge.resources import METADATA

USER_STATE = "cellmesh.user"
"""Filter state that holds who the authorizer said it is."""
PATH_STATE = "cellmesh.path"
"""Filter state that holds the path as it came, without its query, before a prefix is taken off."""
_PATH_CHARACTERS = 1024


def access_log(path: Path) -> Json:
    """Return the configuration of the log at `path`."""
    log = typed(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=str(path),
        log_format={"json_format": _fields(), "omit_empty_values": False},
    )
    return {"name": "envoy.access_loggers.file", "typed_config": log}


def _fields() -> Json:
    return {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY):256%",
        "path": f"%FILTER_STATE({PATH_STATE}:PLAIN):{_PATH_CHARACTERS}%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "user": f"%FILTER_STATE({USER_STATE}:PLAIN)%",
        "route": "%ROUTE_NAME%",
        **{name: f"%UPSTREAM_METADATA({METADATA}:{name})%" for name in ("vm_id", "container", "epoch", "generation")},
        "trace_id": "%TRACE_ID%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": "%RESPONSE_DURATION%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    }
