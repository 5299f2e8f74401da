"""Checks a configuration: each request is authorized, and each answer loses what only the edge may say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cellmesh.hypervisor.edge.answers import COOKIES, HOST_ONLY, STATUS, status_filter, upstream_filters
from cellmesh.hypervisor.edge.options import Json
from cellmesh.hypervisor.edge.routes import AUTHORIZE

_HCM = "envoy.filters.network.http_connection_manager"
_AUTHORIZER_TYPE = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
_PER_ROUTE_TYPE = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_ROUTER = "envoy.filters.http.router"
# Each of them lets requests pass that nobody was asked about.
_WAYS_AROUND = (
    "failure_mode_allow",
    "filter_enabled",
    "filter_enabled_metadata",
    "shadow_mode",
    "with_request_body",
    "clear_route_cache",
)


class RouteUnauthorized(ValueError):
    """A configuration has a way around the authorizer; the message says where."""


def require_authorized(config: Json) -> None:
    """Raise RouteUnauthorized unless every route to a cluster asks the authorizer."""
    if faults := list(ways_around(config)):
        raise RouteUnauthorized("A request could pass without the authorizer's word: " + "; ".join(faults) + ".")


class AnswersUnfiltered(ValueError):
    """A configuration lets an app's answer pass as it is; the message says where."""


def require_filtered_answers(config: Json) -> None:
    """Raise AnswersUnfiltered unless every answer of an endpoint passes the filters of answers."""
    if faults := list(unfiltered_answers(config)):
        raise AnswersUnfiltered("An app's answer could pass as it is: " + "; ".join(faults) + ".")


def unfiltered_answers(config: Json) -> Iterator[str]:
    """Yield where an endpoint's answer could pass without the filters of answers."""
    static = _dict(config.get("static_resources"))
    for cluster in _dicts(static.get("clusters")):
        # Filters of a cluster replace those of the router.
        options = _dict(_dict(cluster.get("typed_extension_protocol_options")).get(_PROTOCOL_OPTIONS))
        if "http_filters" in options:
            yield f"cluster {cluster.get('name')} has filters of its own"
    for listener in _dicts(static.get("listeners")):
        for chain in _dicts(listener.get("filter_chains")):
            for network_filter in _dicts(chain.get("filters")):
                manager = _dict(network_filter.get("typed_config"))
                yield from (f"{listener.get('name')}: {fault}" for fault in _of_answers(manager))


def _of_answers(manager: Json) -> Iterator[str]:
    configuration = _dict(manager.get("route_config"))
    hosts = _dicts(configuration.get("virtual_hosts"))
    routes = [route for host in hosts for route in _routes(host)]
    if all("route" not in route for _, route in routes):
        return
    filters = _dicts(manager.get("http_filters"))
    routers = [_dict(each.get("typed_config")) for each in filters if each.get("name") == _ROUTER]
    if [router.get("upstream_http_filters") for router in routers] != [upstream_filters()]:
        yield "the router has other filters of answers"
    if status_filter() not in filters:
        yield "a status that does not exist passes"
    if manager.get("proxy_100_continue"):
        yield "informational answers pass"
    scopes = [("route_config", configuration), *((str(host.get("name")), host) for host in hosts), *routes]
    for label, scope in scopes:
        if {COOKIES, HOST_ONLY, STATUS} & set(_dict(scope.get("typed_per_filter_config"))):
            yield f"{label} has its own settings of these filters"


def ways_around(config: Json) -> Iterator[str]:
    """Yield where a request could reach a cluster, or be answered, without the authorizer's word."""
    dynamic = _dict(config.get("dynamic_resources"))
    if "lds_config" in dynamic:
        yield "listeners come by discovery"
    for listener in _dicts(_dict(config.get("static_resources")).get("listeners")):
        name = str(listener.get("name"))
        chains = [*_dicts(listener.get("filter_chains"))]
        if "default_filter_chain" in listener:
            chains.append(_dict(listener["default_filter_chain"]))
        for chain in chains:
            for network_filter in _dicts(chain.get("filters")):
                yield from (f"{name}: {fault}" for fault in _of_filter(network_filter))


def _of_filter(network_filter: Json) -> Iterator[str]:
    if network_filter.get("name") != _HCM:
        yield f"{network_filter.get('name')} is not one we know"
        return
    manager = _dict(network_filter.get("typed_config"))
    if "route_config" not in manager:
        yield "routes come from elsewhere"
        return
    routes = [route for host in _dicts(_dict(manager["route_config"]).get("virtual_hosts")) for route in _routes(host)]
    filters = _dicts(manager.get("http_filters"))
    if not any(each.get("name") == AUTHORIZE for each in filters):
        # Without an authorizer a listener may say that it is there, and nothing more.
        yield from (
            f"route {label} leads somewhere" for label, route in routes if set(route) != {"match", "direct_response"}
        )
        return
    yield from _of_chain(filters)
    for upgrade in _dicts(manager.get("upgrade_configs")):
        if "filters" in upgrade:
            yield f"upgrades to {upgrade.get('upgrade_type')} have filters of their own"
    for host in _dicts(_dict(manager["route_config"]).get("virtual_hosts")):
        if AUTHORIZE in _dict(host.get("typed_per_filter_config")):
            yield f"virtual host {host.get('name')} has its own word on the authorizer"
    for label, route in routes:
        yield from (f"route {label} {fault}" for fault in _of_route(route))


def _of_chain(filters: list[Json]) -> Iterator[str]:
    before_router = True
    for position, each in enumerate(filters):
        if each.get("name") == _ROUTER:
            before_router = False
        if each.get("name") != AUTHORIZE:
            continue
        if not before_router:
            yield "the authorizer is asked after the router"
        if each.get("disabled") or each.get("is_optional") or "config_discovery" in each:
            yield f"filter {position} may be left out"
        settings = _dict(each.get("typed_config"))
        if settings.get("@type") != _AUTHORIZER_TYPE:
            yield f"filter {position} is not the authorizer"
        yield from (f"the authorizer has {way}" for way in _WAYS_AROUND if settings.get(way))


def _of_route(route: Json) -> Iterator[str]:
    proof = _dict(_dict(route.get("typed_per_filter_config")).get(AUTHORIZE))
    if proof.get("@type") != _PER_ROUTE_TYPE or proof.get("disabled"):
        yield "does not ask"
        return
    if set(proof) != {"@type", "check_settings"} or set(_dict(proof["check_settings"])) != {"context_extensions"}:
        yield "asks in a way of its own"


def _routes(host: Json) -> Iterator[tuple[str, Json]]:
    if "matcher" in host:
        yield f"{host.get('name')} (matcher)", _dict(host["matcher"])
    for index, route in enumerate(_dicts(host.get("routes"))):
        yield f"{host.get('name')}[{index}]", route


def _dict(value: object) -> Json:
    return dict(value) if isinstance(value, Mapping) else {}


def _dicts(value: object) -> list[Json]:
    return [_dict(each) for each in value] if isinstance(value, list | tuple) else []
