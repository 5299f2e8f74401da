"""The routes of every user: which part of a path leads to which slot. A user's id makes a cluster's name of it."""

from __future__ import annotations

from cellmesh.hypervisor.domain.route import DEV, LIVE
from cellmesh.hypervisor.edge.options import EdgeOptions, Json, typed

USER_HEADER = "x-cellmesh-user"
"""Who asks; set by the authorizer, never by a client."""
ROUTE_HEADER = "x-cellmesh-route"
"""Name of the cluster a request goes to."""
PREFIX_HEADER = "x-forwarded-prefix"
"""Tells the app what was taken off the path."""

AUTHORIZE = "envoy.filters.http.ext_authz"
NAME_ROUTE = "envoy.filters.http.header_mutation"
NAME_SIDECAR = "envoy.filters.http.header_to_metadata"

# Any length: a name that is too long has no cluster, and a short expression is a cheap one.
_NAME = "[a-z][a-z0-9-]*"
_ESCAPED = "(?i:%2f|%5c)"
_RESERVED = "(?i:dev|_|[.]cellmesh)"
_BAD_REQUEST = 400
_NOT_FOUND = 404
_NOT_ALLOWED = 405
_BODY: Json = {"name": "content-length", "string_match": {"exact": "0"}, "invert_match": True}
_SECRETS = ("cookie", "authorization")
_SIDECAR = f"%DYNAMIC_METADATA({NAME_SIDECAR}:name)%"


def route_configuration(options: EdgeOptions) -> Json:
    """Return the routes; each names itself to the authorizer, so that none is without one."""
    return {
        "name": "edge",
        "virtual_hosts": [
            {
                "name": "cells",
                "domains": options.hosts,
                "routes": [
                    *_refusals(),
                    _route({"path": "/dev"}, DEV, prefix="/dev", rewrite={"prefix_rewrite": "/"}),
                    _route({"prefix": "/dev/"}, DEV, prefix="/dev", rewrite={"prefix_rewrite": "/"}),
                    _route({"safe_regex": {"regex": "//+dev(/.*)?"}}, DEV, prefix="/dev", rewrite=_without("dev")),
                    _sidecar_route(),
                    # Whatever else lies there is reserved, and not for the live app to answer.
                    _refusal({"safe_regex": {"regex": "/+_(/.*)?"}}, _NOT_FOUND),
                    _refusal({"safe_regex": {"regex": "/+[.]cellmesh(/.*)?"}}, _NOT_FOUND),
                    _route({"prefix": "/"}, LIVE),
                ],
                "retry_policy": _retry_policy(),
                # Kept so that they can be sent again; a longer body is not, and its request fails with its container.
                "request_body_buffer_limit": 2 * options.limits.buffer_bytes,
            }
        ],
        "request_headers_to_remove": [ROUTE_HEADER],
        # Names of clusters come by discovery, at any time.
        "validate_clusters": False,
    }


def _route(match: Json, slot: str, *, prefix: str = "", rewrite: Json | None = None) -> Json:
    action: Json = {
        "cluster_header": ROUTE_HEADER,
        "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
        # Answers may take as long as they give signs of life: the stream's idle timeout and lifetime hold.
        "timeout": "0s",
        **(rewrite or {}),
    }
    route: Json = {
        "name": slot,
        "match": match,
        "route": action,
        "typed_per_filter_config": {**_authorized(slot), NAME_ROUTE: _named(slot)},
    }
    if prefix:
        route["request_headers_to_add"] = [_header(PREFIX_HEADER, prefix)]
    return route


def _sidecar_route() -> Json:
    route = _route(
        {"safe_regex": {"regex": f"/+_/+{_NAME}(/.*)?"}},
        f"_{_SIDECAR}",
        prefix=f"/_/{_SIDECAR}",
        rewrite={
            **_without(f"_/+{_NAME}"),
            "cluster_not_found_response_code": "NOT_FOUND",
        },
    )
    name_of_path = {
        "header": ":path",
        "on_header_present": {
            "key": "name",
            "regex_value_rewrite": {"pattern": {"regex": f"^/+_/+({_NAME})([/?].*)?$"}, "substitution": "\\1"},
        },
    }
    rules = typed("envoy.extensions.filters.http.header_to_metadata.v3.Config", request_rules=[name_of_path])
    return {
        **route,
        "name": "sidecar",
        "typed_per_filter_config": {
            **_authorized("sidecar"),
            NAME_ROUTE: _named(f"_{_SIDECAR}"),
            NAME_SIDECAR: rules,
        },
    }


def _refusals() -> list[Json]:
    """Return what is nobody's, whatever its path."""
    return [
        # An app that does not upgrade would take the body for the next request; some clients say that there is none.
        _refusal({"prefix": "/", "headers": [_present("upgrade"), _present("content-length"), _BODY]}, _BAD_REQUEST),
        # An app that answers it shows scripts what the browser keeps from them.
        _refusal({"prefix": "/", "headers": [{"name": ":method", "string_match": {"exact": "TRACE"}}]}, _NOT_ALLOWED),
        # The authorizer would be shown another text than the one that was sent (CVE-2023-27488).
        *(_refusal({"prefix": "/", "headers": [_present(name), _not_ascii(name)]}, _BAD_REQUEST) for name in _SECRETS),
        # A script at `/dev` is allowed by browsers to serve all of `/`, and one at `/_/notes` all sidecars.
        _refusal({"safe_regex": {"regex": f"/+(dev|_/+{_NAME})"}, "headers": [_present("service-worker")]}, _NOT_FOUND),
        # Some apps take `/dev;x/` for `/dev/`.
        _refusal({"safe_regex": {"regex": f"/+{_RESERVED};.*"}}, _BAD_REQUEST),
        _refusal({"safe_regex": {"regex": "/+_/+[^/]*;.*"}}, _BAD_REQUEST),
        *_escapes(),
    ]


def _escapes() -> list[Json]:
    """Return refusals of encoded slashes by which a path could be read as another slot's."""
    end = f"((/|;|{_ESCAPED}).*)?"
    expressions = (
        f"/+{_RESERVED}{_ESCAPED}.*",
        f"/+{_ESCAPED}(/|{_ESCAPED})*{_RESERVED}{end}",
        f"/+_/+[^/]*{_ESCAPED}.*",
        # With the slash decoded these would go up a folder.
        f".*(/|{_ESCAPED})[.][.]?;?{_ESCAPED}.*",
        f".*{_ESCAPED}[.][.]?{end}",
    )
    return [_refusal({"safe_regex": {"regex": each}}, _BAD_REQUEST) for each in expressions]


def _without(slot: str) -> Json:
    return {"regex_rewrite": {"pattern": {"regex": f"^/+{slot}/?"}, "substitution": "/"}}


def _present(name: str) -> Json:
    return {"name": name, "present_match": True}


def _not_ascii(name: str) -> Json:
    return {"name": name, "string_match": {"safe_regex": {"regex": "[ -~]*"}}, "invert_match": True}


def _refusal(match: Json, status: int) -> Json:
    return {
        "name": "refused",
        "match": match,
        "direct_response": {"status": status},
        "typed_per_filter_config": _authorized("refused"),
    }


def _authorized(route: str) -> Json:
    check = {"context_extensions": {"cellmesh-route": route}}
    return {
        AUTHORIZE: typed("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", check_settings=check),
    }


def _named(slot: str) -> Json:
    header = _header(ROUTE_HEADER, f"%REQ({USER_HEADER})%/{slot}")
    return typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
        mutations={"request_mutations": [{"append": header}]},
    )


def _header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _retry_policy() -> Json:
    """Return when a request is sent again: only if nothing of it was sent."""
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": 5,
        # A container that was stopped gives way to another endpoint within milliseconds.
        "retry_back_off": {"base_interval": "0.010s", "max_interval": "0.200s"},
    }
