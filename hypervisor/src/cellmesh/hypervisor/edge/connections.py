"""What happens to a request between its socket and its container: what is believed, asked, limited and hidden."""

from __future__ import annotations

from cellmesh.hypervisor.edge.access_log import PATH_STATE, USER_STATE, access_log
from cellmesh.hypervisor.edge.answers import status_filter, upstream_filters
from cellmesh.hypervisor.edge.options import EdgeOptions, Json, seconds, typed
from cellmesh.hypervisor.edge.replies import local_replies
from cellmesh.hypervisor.edge.routes import AUTHORIZE, NAME_ROUTE, NAME_SIDECAR, USER_HEADER, route_configuration
from cellmesh.hypervisor.limits import Limits

AUTHORIZER_CLUSTER = "authorizer"
OTLP_CLUSTER = "otlp"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = "envoy.extensions.filters.http"
_DENIED_BODY_BYTES = 64 << 10
_WINDOW_BYTES = 256 << 10
_FILLS_PER_SECOND = 10

# A client's word on what only the edge, the authorizer or an app may say.
_NOT_BELIEVED_PREFIXES = ("x-cellmesh-", "x-forwarded-", "x-envoy-", "x-b3-", "x-original-")
_NOT_BELIEVED = (
    "forwarded",
    "x-request-id",
    "x-client-trace-id",
    "x-real-ip",
    "x-rewrite-url",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
)
# What it takes to say who asks, and whether a browser does.
_SHOWN_TO_AUTHORIZER = ("cookie", "authorization", "origin", "accept", "upgrade", "user-agent", "x-request-id")
_CHANGED_BY_AUTHORIZER = (USER_HEADER, "cookie", "authorization")


def connection_manager(options: EdgeOptions, *, tls: bool) -> Json:
    """Return the network filter that speaks HTTP with clients."""
    limits = options.limits
    config = typed(
        _HCM,
        stat_prefix="edge",
        codec_type="AUTO",
        route_config=route_configuration(options),
        http_filters=_http_filters(options),
        early_header_mutation_extensions=[_nothing_believed()],
        upgrade_configs=[{"upgrade_type": "websocket"}],
        access_log=[access_log(options.access_log)],
        local_reply_config=local_replies(),
        tracing=_tracing(options),
        **_timeouts(limits),
        **_protocols(limits),
        **_paths_and_names(tls=tls),
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _http_filters(options: EdgeOptions) -> list[Json]:
    return [
        status_filter(),
        # Kept from here, as the log cannot see it once a prefix is taken off, or the authorizer has refused.
        _filter("cellmesh.path", _state(PATH_STATE, "%PATH(NQ)%")),
        _filter(AUTHORIZE, _authorizer(options)),
        _filter("envoy.filters.http.local_ratelimit", _rate_limit(options.limits)),
        _filter(
            "envoy.filters.http.body_size_limit",
            typed(f"{_FILTERS}.body_size_limit.v3.BodySizeLimit", max_request_bytes=options.limits.body_bytes),
        ),
        _filter(NAME_SIDECAR, typed(f"{_FILTERS}.header_to_metadata.v3.Config")),
        _filter(NAME_ROUTE, typed(f"{_FILTERS}.header_mutation.v3.HeaderMutation")),
        # The cluster's header is read when the route is; only now there is one to read.
        _filter("cellmesh.user", _state(USER_STATE, f"%REQ({USER_HEADER})%", clear_route_cache=True)),
        _filter(
            "envoy.filters.http.router",
            typed(
                f"{_FILTERS}.router.v3.Router", suppress_envoy_headers=True, upstream_http_filters=upstream_filters()
            ),
        ),
    ]


def _filter(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}


def _state(key: str, value: str, *, clear_route_cache: bool = False) -> Json:
    return typed(
        f"{_FILTERS}.set_filter_state.v3.Config",
        clear_route_cache=clear_route_cache,
        on_request_headers=[
            {
                "object_key": key,
                "factory_key": "envoy.string",
                "format_string": {"text_format_source": {"inline_string": value}},
            }
        ],
    )


def _authorizer(options: EdgeOptions) -> Json:
    may_change = "|".join(_CHANGED_BY_AUTHORIZER)
    return typed(
        f"{_FILTERS}.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        grpc_service={
            "envoy_grpc": {"cluster_name": AUTHORIZER_CLUSTER, "max_receive_message_length": 256 << 10},
            "timeout": seconds(options.authorizer_timeout),
        },
        failure_mode_allow=False,
        clear_route_cache=False,
        status_on_error={"code": "ServiceUnavailable"},
        validate_mutations=True,
        allowed_headers={
            "patterns": [*({"exact": name} for name in _SHOWN_TO_AUTHORIZER), {"prefix": "sec-fetch-"}],
        },
        decoder_header_mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": f"({may_change})"},
            "disallow_is_error": True,
        },
        enable_dynamic_metadata_ingestion=False,
        max_denied_response_body_bytes=_DENIED_BODY_BYTES,
        enforce_response_header_limits=True,
    )


def _rate_limit(limits: Limits) -> Json:
    per_fill = max(1, limits.requests_per_second // _FILLS_PER_SECOND)
    bucket = {"max_tokens": limits.requests_burst, "tokens_per_fill": per_fill, "fill_interval": "0.100s"}
    everybody = {"max_tokens": 1 << 31, "tokens_per_fill": 1 << 31, "fill_interval": "1s"}
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return typed(
        f"{_FILTERS}.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="users",
        # Only the users' buckets count; the filter wants one for all as well.
        token_bucket=everybody,
        rate_limits=[{"actions": [{"request_headers": {"header_name": USER_HEADER, "descriptor_key": "user"}}]}],
        descriptors=[{"entries": [{"key": "user"}], "token_bucket": bucket}],
        always_consume_default_token_bucket=False,
        max_dynamic_descriptors=limits.users_counted,
        filter_enabled=always,
        filter_enforced=always,
    )


def _nothing_believed() -> Json:
    mutations: list[Json] = [{"remove_on_match": {"key_matcher": {"prefix": each}}} for each in _NOT_BELIEVED_PREFIXES]
    mutations += [{"remove": name} for name in _NOT_BELIEVED]
    config = typed("envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=mutations)
    return {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": config}


def _tracing(options: EdgeOptions) -> Json:
    """Return what gives every request a trace id of ours, and sends spans where there is somebody to take them."""
    # The tracer wants to be told where to send; what is not sampled is not sent.
    provider = typed(
        "envoy.config.trace.v3.OpenTelemetryConfig",
        service_name="edge",
        grpc_service={"envoy_grpc": {"cluster_name": OTLP_CLUSTER}, "timeout": "1s"},
    )
    return {
        "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": provider},
        "random_sampling": {"value": 100 if options.otlp else 0},
        "client_sampling": {"value": 0},
        "spawn_upstream_span": False,
    }


def _timeouts(limits: Limits) -> Json:
    return {
        "common_http_protocol_options": {
            "idle_timeout": seconds(limits.connection_idle_timeout),
            "max_stream_duration": seconds(limits.stream_lifetime),
            "max_headers_count": limits.headers,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "request_headers_timeout": seconds(limits.header_timeout),
        "request_timeout": seconds(limits.request_timeout),
        "stream_idle_timeout": seconds(limits.stream_idle_timeout),
    }


def _protocols(limits: Limits) -> Json:
    return {
        "max_request_headers_kb": limits.header_kib,
        "http_protocol_options": {"accept_http_10": False, "allow_chunked_length": False},
        # No allow_connect: a WebSocket takes a connection of its own, and nothing else tunnels.
        "http2_protocol_options": {
            "max_concurrent_streams": limits.streams_per_connection,
            "initial_stream_window_size": _WINDOW_BYTES,
            "initial_connection_window_size": 4 * _WINDOW_BYTES,
            "max_outbound_frames": 10_000,
            "max_outbound_control_frames": 1_000,
            "max_consecutive_inbound_frames_with_empty_payload": 1,
            "max_inbound_priority_frames_per_stream": 100,
            "max_inbound_window_update_frames_per_data_frame_sent": 10,
            "stream_reset_burst": 100,
            "stream_reset_rate": 33,
            "disallow_obs_text": True,
            "connection_keepalive": {"interval": "30s", "timeout": "10s"},
        },
    }


def _paths_and_names(*, tls: bool) -> Json:
    return {
        "normalize_path": True,
        # Slashes, encoded or several, are the app's own; the routes guard the part that names a slot.
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        # The address of the connection is the client's: there is nobody in between.
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": False,
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "scheme_header_transformation": {"scheme_to_overwrite": "https" if tls else "http"},
    }
