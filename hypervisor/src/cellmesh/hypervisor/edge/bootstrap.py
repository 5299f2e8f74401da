"""The configuration Envoy starts with: all that no RPC may change."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cellmesh.hypervisor.edge.admin import DRAIN_PATH
from cellmesh.hypervisor.edge.connections import AUTHORIZER_CLUSTER, OTLP_CLUSTER, connection_manager
from cellmesh.hypervisor.edge.options import EdgeOptions, Json, Listener, seconds, typed
from cellmesh.hypervisor.edge.proof import require_authorized, require_filtered_answers
from cellmesh.hypervisor.limits import Limits

_HYPERVISOR_CLUSTER = "hypervisor"
_CERTIFICATE = "edge"
_OWNER_ONLY = 0o600
_MONITORS = "envoy.extensions.resource_monitors"
# What can be asked of Envoy at its admin socket; neither to end it at once nor to show what it holds.
_ADMIN_PATHS = ("/ready", "/listeners", "/server_info", "/reopen_logs", "/stats/prometheus", DRAIN_PATH)
# 1,500 clusters have 300,000 counters; these are looked at.
_CLUSTER_COUNTERS = (
    "upstream_rq_completed",
    "upstream_rq_5xx",
    "upstream_rq_active",
    "upstream_cx_active",
    "upstream_cx_rx_bytes_total",
    "upstream_cx_tx_bytes_total",
)
_OTHER_COUNTERS = (
    "cluster.authorizer.",
    "cluster.hypervisor.",
    "cluster_manager.",
    "control_plane.",
    "http.edge.",
    "listener.",
    "overload.",
    "server.",
    "sds.",
    "users.",
)


def bootstrap(options: EdgeOptions) -> Json:
    """Return the whole configuration; raise RouteUnauthorized or AnswersUnfiltered if it has a way around."""
    config: Json = {
        "node": {"id": "edge", "cluster": "edge"},
        "admin": {
            "address": _pipe(options.admin_socket, mode=_OWNER_ONLY),
            "ignore_global_conn_limit": True,
            "allow_paths": [*({"exact": path} for path in _ADMIN_PATHS), {"prefix": "/stats?"}],
        },
        "dynamic_resources": _discovery(),
        "static_resources": {
            "listeners": [
                *(_listener(options, index, each) for index, each in enumerate(options.listeners)),
                _probe(options.probe_socket),
            ],
            "clusters": _clusters(options),
        },
        "overload_manager": _overload_manager(options.limits),
        "layered_runtime": {"layers": [{"name": "edge", "static_layer": _runtime()}]},
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _counters()}}},
        # A cluster costs a worker nothing before its first request.
        "cluster_manager": {"enable_deferred_cluster_creation": True},
    }
    require_authorized(config)
    require_filtered_answers(config)
    return config


def write(path: Path, config: Json, *, mode: int = 0o640, group: int | None = None) -> None:
    """Put a file for Envoy in place, whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(config, file, indent=1)
        if group is not None:
            os.fchown(file.fileno(), -1, group)
        os.fchmod(file.fileno(), mode)
    temporary.replace(path)


def _listener(options: EdgeOptions, index: int, listener: Listener) -> Json:
    chain: Json = {
        "filters": [connection_manager(options, tls=listener.tls)],
        "transport_socket_connect_timeout": seconds(options.limits.handshake_timeout),
    }
    if listener.tls:
        chain["transport_socket"] = _tls(options.certificate_file)
    return {
        "name": f"edge_{index}",
        "stat_prefix": f"edge_{index}",
        "address": _address(listener),
        "filter_chains": [chain],
        "per_connection_buffer_limit_bytes": options.limits.buffer_bytes,
        "max_connections_to_accept_per_socket_event": 16,
    }


def _address(listener: Listener) -> Json:
    if listener.path is not None:
        return _pipe(listener.path, mode=listener.mode)
    return {"socket_address": {"address": listener.host, "port_value": listener.port}}


def _pipe(path: Path, *, mode: int = 0) -> Json:
    return {"pipe": {"path": str(path), **({"mode": mode} if mode else {})}}


def _tls(certificate: Path) -> Json:
    source = {"path_config_source": {"path": str(certificate)}, "resource_api_version": "V3"}
    context = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [{"name": _CERTIFICATE, "sds_config": source}],
    }
    config = typed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=context)
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _probe(path: Path) -> Json:
    """Return the listener that answers itself: of its connections each worker gets as many as any other."""
    answer = {
        "name": "here",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 204}}],
    }
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="probe",
        codec_type="HTTP1",
        route_config={"name": "probe", "virtual_hosts": [answer]},
        http_filters=[
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router"),
            }
        ],
    )
    return {
        "name": "probe",
        "stat_prefix": "probe",
        "address": _pipe(path, mode=_OWNER_ONLY),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
        "connection_balance_config": {"exact_balance": {}},
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
    }


def _discovery() -> Json:
    retry = {"retry_back_off": {"base_interval": "0.050s", "max_interval": "1s"}}
    return {
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": _HYPERVISOR_CLUSTER, "retry_policy": retry}}],
        },
        "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "5s"},
    }


def _clusters(options: EdgeOptions) -> list[Json]:
    traces = _grpc_cluster(OTLP_CLUSTER, None)
    if options.otlp is not None:
        host, port = options.otlp
        address: Json = {"socket_address": {"address": host, "port_value": port}}
        traces = {**_grpc_cluster(OTLP_CLUSTER, address), "type": "STRICT_DNS"}
    return [
        _grpc_cluster(_HYPERVISOR_CLUSTER, _pipe(options.hypervisor_socket)),
        _grpc_cluster(AUTHORIZER_CLUSTER, _pipe(options.authorizer_socket)),
        traces,
    ]


def _grpc_cluster(name: str, address: Json | None) -> Json:
    # A connection to a process that is stuck stays open: after a second without a byte the next request pings it.
    keepalive = {"interval": "30s", "connection_idle_interval": "1s", "timeout": "5s"}
    protocol = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": {"connection_keepalive": keepalive}},
    )
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}] if address else []
    thresholds = {"max_requests": 10_000, "max_pending_requests": 10_000}
    return {
        "name": name,
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        "circuit_breakers": {"thresholds": [thresholds]},
    }


def _overload_manager(limits: Limits) -> Json:
    heap = typed(f"{_MONITORS}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=limits.heap_bytes)
    connections = typed(
        f"{_MONITORS}.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=limits.connections,
    )
    steps = {
        "shrink_heap": 0.80,
        "disable_http_keepalive": 0.85,
        "stop_accepting_requests": 0.95,
        "stop_accepting_connections": 0.98,
    }
    actions: list[Json] = [
        {
            "name": f"envoy.overload_actions.{action}",
            "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": value}}],
        }
        for action, value in steps.items()
    ]
    return {
        "refresh_interval": "0.250s",
        "resource_monitors": [
            {"name": "envoy.resource_monitors.fixed_heap", "typed_config": heap},
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections},
        ],
        "actions": actions,
    }


def _runtime() -> Json:
    return {
        # A client that keeps resetting its streams is cut off (CVE-2023-44487).
        "overload.premature_reset_total_stream_count": 200,
        "overload.premature_reset_min_stream_lifetime_seconds": 1,
        # One connection does not keep a worker from the others.
        "http.max_requests_per_io_cycle": 1,
    }


def _counters() -> list[Json]:
    named: list[Json] = [{"suffix": f".{counter}"} for counter in _CLUSTER_COUNTERS]
    others: list[Json] = [{"prefix": prefix} for prefix in _OTHER_COUNTERS]
    return named + others
