"""The configuration Envoy starts with: no way around the authorizer, nothing that tunnels, and Envoy takes it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellmesh.hypervisor.edge.binary import ConfigurationRefused, Envoy
from cellmesh.hypervisor.edge.bootstrap import bootstrap, write
from cellmesh.hypervisor.edge.certificate import EdgeAuthority, secret
from cellmesh.hypervisor.edge.options import EdgeMisconfigured, EdgeOptions, Listener
from cellmesh.hypervisor.edge.proof import (
    AnswersUnfiltered,
    RouteUnauthorized,
    require_authorized,
    require_filtered_answers,
    unfiltered_answers,
    ways_around,
)

Config = dict[str, Any]
AUTHORIZE = "envoy.filters.http.ext_authz"


def options(directory: Path, **changes: Any) -> EdgeOptions:
    """Return options with a listener of each kind."""
    listeners = (
        Listener(path=directory / "in.sock", tls=False),
        Listener(host="127.0.0.1", port=8443),
        Listener(host="127.0.0.1", port=8080, tls=False),
    )
    return EdgeOptions(**{"directory": directory, "listeners": listeners, "domains": ("cell.test",)} | changes)


def manager(config: Config) -> Config:
    """Return the HTTP settings of the first listener."""
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def authorizer(config: Config) -> Config:
    """Return the authorizer's filter."""
    (found,) = (each for each in manager(config)["http_filters"] if each["name"] == AUTHORIZE)
    return found


def host(config: Config) -> Config:
    """Return the virtual host of the first listener."""
    return manager(config)["route_config"]["virtual_hosts"][0]


def of_authorizer(**settings: Any) -> Callable[[Config], None]:
    """Return the change that gives the authorizer these settings."""
    return lambda config: authorizer(config)["typed_config"].update(settings)


PLANTED: dict[str, Callable[[Config], Any]] = {
    "a route that says nothing": lambda config: host(config)["routes"].insert(
        0, {"match": {"prefix": "/free"}, "route": {"cluster_header": "x-cellmesh-route"}}
    ),
    "a route that does not ask": lambda config: host(config)["routes"][-1]["typed_per_filter_config"][AUTHORIZE].update(
        disabled=True
    ),
    "a route with a word of another kind": lambda config: host(config)["routes"][-1].update(
        typed_per_filter_config={
            AUTHORIZE: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
        }
    ),
    "a route that asks somebody else": lambda config: host(config)["routes"][-1]["typed_per_filter_config"][AUTHORIZE][
        "check_settings"
    ].update(grpc_service={}),
    "a host with its own word": lambda config: host(config).update(
        typed_per_filter_config={AUTHORIZE: {"disabled": True}}
    ),
    "another host": lambda config: manager(config)["route_config"]["virtual_hosts"].append(
        {"name": "free", "domains": ["free.test"], "routes": [{"match": {"prefix": "/"}, "redirect": {}}]}
    ),
    "a matcher": lambda config: host(config).update(matcher={}),
    "no authorizer": lambda config: manager(config)["http_filters"].remove(authorizer(config)),
    "an authorizer after the router": lambda config: manager(config)["http_filters"].reverse(),
    "an authorizer that may be left out": lambda config: authorizer(config).update(disabled=True),
    "an authorizer from elsewhere": lambda config: authorizer(config).update(config_discovery={}),
    "another filter of that name": lambda config: authorizer(config).update(
        typed_config={"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}
    ),
    "failure lets pass": of_authorizer(failure_mode_allow=True),
    "asked for some": of_authorizer(filter_enabled={"default_value": {"numerator": 50}}),
    "asked for show": of_authorizer(shadow_mode=True),
    "asked for what has metadata": of_authorizer(filter_enabled_metadata={"filter": "x"}),
    "read again by the authorizer": of_authorizer(clear_route_cache=True),
    "upgrades that do not ask": lambda config: manager(config)["upgrade_configs"][0].update(filters=[]),
    "routes from elsewhere": lambda config: manager(config).pop("route_config"),
    "listeners from elsewhere": lambda config: config["dynamic_resources"].update(lds_config={}),
    "a listener of another kind": lambda config: config["static_resources"]["listeners"].append(
        {"name": "tcp", "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy"}]}]}
    ),
    "a default chain": lambda config: config["static_resources"]["listeners"][0].update(
        default_filter_chain={"filters": [{"name": "envoy.filters.network.tcp_proxy"}]}
    ),
    "a probe that leads somewhere": lambda config: config["static_resources"]["listeners"][-1]["filter_chains"][0][
        "filters"
    ][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"][0].update(route={"cluster": "authorizer"}),
}


def test_every_route_asks(tmp_path: Path) -> None:
    """Prove by a walk of the whole configuration that no request passes unasked."""
    assert list(ways_around(bootstrap(options(tmp_path)))) == []


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_way_around_is_found(planted: str, tmp_path: Path) -> None:
    """Prove that the walk can fail: each way around the authorizer that we know of is found."""
    config = copy.deepcopy(bootstrap(options(tmp_path)))
    PLANTED[planted](config)
    with pytest.raises(RouteUnauthorized):
        require_authorized(config)


def router(config: Config) -> Config:
    """Return the settings of the router."""
    return manager(config)["http_filters"][-1]["typed_config"]


UNFILTERED: dict[str, Callable[[Config], Any]] = {
    "no filters": lambda config: router(config).pop("upstream_http_filters"),
    "cookies pass": lambda config: router(config)["upstream_http_filters"].pop(0),
    "headers pass": lambda config: router(config)["upstream_http_filters"].pop(1),
    "one header passes": lambda config: router(config)["upstream_http_filters"][1]["typed_config"]["mutations"][
        "response_mutations"
    ].pop(3),
    "trailers pass": lambda config: router(config)["upstream_http_filters"][1]["typed_config"]["mutations"].pop(
        "response_trailers_mutations"
    ),
    "a filter that is off": lambda config: router(config)["upstream_http_filters"][0].update(disabled=True),
    "any status": lambda config: manager(config)["http_filters"].pop(0),
    "informational answers": lambda config: manager(config).update(proxy_100_continue=True),
    "a route with settings": lambda config: host(config)["routes"][-1]["typed_per_filter_config"].update(
        {"cellmesh.cookies": {"disabled": True}}
    ),
    "a host with settings": lambda config: host(config).update(typed_per_filter_config={"cellmesh.host_only": {}}),
    "routes with settings": lambda config: manager(config)["route_config"].update(
        typed_per_filter_config={"cellmesh.host_only": {}}
    ),
    "a cluster with filters": lambda config: config["static_resources"]["clusters"][0][
        "typed_extension_protocol_options"
    ]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].update(http_filters=[]),
}


def test_every_answer_is_filtered(tmp_path: Path) -> None:
    """Prove by a walk of the whole configuration that no endpoint's answer passes as it is."""
    assert list(unfiltered_answers(bootstrap(options(tmp_path)))) == []


@pytest.mark.parametrize("planted", UNFILTERED)
@pytest.mark.parametrize("listener", range(3))
def test_an_answer_that_passes_as_it_is_is_found(planted: str, listener: int, tmp_path: Path) -> None:
    """Prove that the walk can fail, whichever listener has the gap."""
    config = copy.deepcopy(bootstrap(options(tmp_path)))
    listeners = config["static_resources"]["listeners"]  # type: ignore[index]
    listeners[0], listeners[listener] = listeners[listener], listeners[0]
    UNFILTERED[planted](config)
    with pytest.raises(AnswersUnfiltered):
        require_filtered_answers(config)


def test_nothing_tunnels_and_no_name_is_any_name(tmp_path: Path) -> None:
    """Prove that there is no CONNECT, no HTTP/2 in HTTP/1.1, no upgrade but WebSockets, and no domain for all."""
    config = bootstrap(options(tmp_path))
    text = json.dumps(config)
    for never in ("connect_matcher", "connect_config", "allow_connect", "original_dst", "dynamic_forward_proxy", "h2c"):
        assert never not in text
    assert manager(config)["upgrade_configs"] == [{"upgrade_type": "websocket"}]
    assert host(config)["domains"] == ["cell.test", "cell.test:8080", "cell.test:8443"]
    assert config["admin"]["address"]["pipe"]["mode"] == 0o600


@pytest.mark.parametrize(
    "wrong",
    [
        {"listeners": ()},
        {"domains": ()},
        {"domains": ("*",)},
        {"domains": ("*.cell.test",)},
        {"domains": ("Cell.test",)},
        {"domains": ("cell.test.",)},
        {"domains": ("cell.test:443",)},
    ],
)
def test_options_that_would_open_the_edge_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    """Prove that there is no edge for every name, and none that nobody can reach."""
    with pytest.raises(EdgeMisconfigured):
        options(tmp_path, **wrong)


def test_without_tls_only_this_host_is_served() -> None:
    """Prove that a listener others can reach has TLS, and that a listener has an address."""
    with pytest.raises(EdgeMisconfigured, match="TLS"):
        Listener(host="192.0.2.1", port=80, tls=False)
    for nowhere in ({}, {"host": "127.0.0.1"}, {"port": 80}, {"host": "127.0.0.1", "port": 70_000}):
        with pytest.raises(EdgeMisconfigured):
            Listener(**nowhere)


def test_files_are_whole_and_not_for_everybody(tmp_path: Path) -> None:
    """Prove that a file replaces the one before at once, with its mode, and that nothing is left beside it."""
    path = tmp_path / "file.json"
    (tmp_path / "file.json.new").write_text("left by a crash")
    write(path, {"a": 1})
    write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.asyncio
@pytest.mark.parametrize("otlp", [None, ("localhost", 4317)])
async def test_envoy_takes_it(otlp: tuple[str, int] | None, tmp_path: Path) -> None:
    """Prove that the real Envoy accepts the configuration, and none with a word it does not know."""
    envoy, chosen = await Envoy.find(), options(tmp_path, otlp=otlp)
    config = bootstrap(chosen)
    write(chosen.certificate_file, secret(EdgeAuthority(tmp_path).issue(chosen.domains)))
    write(chosen.bootstrap_file, config)
    await envoy.validate(chosen.bootstrap_file)
    manager(config)["normalise_path"] = True
    write(chosen.bootstrap_file, config)
    with pytest.raises(ConfigurationRefused, match="normalise_path"):
        await envoy.validate(chosen.bootstrap_file)
