"""What an app's answer may not say: headers, trailers and cookies that speak for the whole host, and not for one app.

The filters run for each request to an endpoint, so they never touch an answer of Envoy's own or of the authorizer's.
"""

from __future__ import annotations

from cellmesh.hypervisor.edge.options import Json, typed

HOST_PREFIXES = ("x-cellmesh-", "x-envoy-")
"""Prefixes of headers that only the edge sends."""
HOST_HEADERS = (
    # A browser applies these to every page of the host, and keeps most of them when the app is gone.
    "clear-site-data",
    "strict-transport-security",
    "public-key-pins",
    "public-key-pins-report-only",
    "expect-ct",
    "nel",
    "report-to",
    "alt-svc",
    "service-worker-allowed",
    # A session that is bound to a device sets cookies without another answer of the app.
    "sec-session-registration",
    "secure-session-registration",
    # The software behind the edge is not named.
    "server",
    "via",
    "x-powered-by",
    # Some clients still read the older form of Set-Cookie.
    "set-cookie2",
)
"""Headers that only the edge sends."""
RESERVED_COOKIES = ("__host-", "__secure-", "__http-", "cellmesh")
"""Beginnings of cookie names, in lower case, that no app may set.

With the first three a browser promises that the host set the cookie; authorizers rely on that.
"""
REASON_HEADER = "x-cellmesh-reason"
"""The one header of the edge's that comes from an endpoint, the activator."""
HOST_ONLY = "cellmesh.host_only"
"""Name of the filter that removes headers and trailers."""
COOKIES = "cellmesh.cookies"
"""Name of the filter that removes cookies."""
ROLE = "role"
"""Key in the metadata of an endpoint that is a service of the node; a container's endpoint has none."""
ACTIVATOR = "activator"
"""Role of the activator."""
NOT_LISTENING = 998
"""Status that the guest answers with when nobody listens on a container's port; see `cellmesh.guest`."""
STATUS = "envoy.filters.http.custom_response"
"""Name of the filter that replaces an answer whose status does not exist."""

_KEPT_HEADER = "cellmesh-kept-reason"
_ROLE_HEADER = "x-cellmesh-role"
_UPGRADE_HEADER = "x-cellmesh-upgrade"
_FILTERS = "envoy.extensions.filters.http"
_COOKIES_SCRIPT = """
local reserved = {%(reserved)s}

local function is_reserved(cookie)
  -- A cookie without a name is sent back as its value alone, which may look like a name.
  local pair = string.gsub(string.lower(string.match(cookie, "^[^;]*")), "^[%%s=]+", "")
  for _, beginning in ipairs(reserved) do
    if string.sub(pair, 1, #beginning) == beginning then return true end
  end
  return false
end

local function for_this_host(cookie)
  local kept = {}
  for part in string.gmatch(cookie .. ";", "([^;]*);") do
    local name = string.lower(string.match(part, "^%%s*([^%%s=]*)"))
    if #kept == 0 or name ~= "domain" then kept[#kept + 1] = part end
  end
  return table.concat(kept, ";")
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local reason = headers:get("%(kept)s")
  if reason then
    headers:remove("%(kept)s")
    if headers:get("%(role)s") == "%(activator)s" then headers:add("%(reason)s", reason) end
  end
  headers:remove("%(role)s")
  -- Envoy passes on an upgrade that was not asked for; the client would wait for the end of something.
  if headers:get(":status") == "101" and not headers:get("%(upgrade)s") then headers:replace(":status", "999") end
  headers:remove("%(upgrade)s")
  local count = headers:getNumValues("set-cookie")
  if count == 0 then return end
  local cookies = {}
  for index = 0, count - 1 do cookies[#cookies + 1] = headers:getAtIndex("set-cookie", index) end
  -- Removed first: if this script fails, no cookie passes.
  headers:remove("set-cookie")
  for _, cookie in ipairs(cookies) do
    if not is_reserved(cookie) then headers:add("set-cookie", for_this_host(cookie)) end
  end
end
"""


def upstream_filters() -> list[Json]:
    """Return the filters of an answer on its way from an endpoint; the last of them comes first."""
    script = _COOKIES_SCRIPT % {
        "reserved": ", ".join(f'"{beginning}"' for beginning in RESERVED_COOKIES),
        "kept": _KEPT_HEADER,
        "role": _ROLE_HEADER,
        "activator": ACTIVATOR,
        "reason": REASON_HEADER,
        "upgrade": _UPGRADE_HEADER,
    }
    mutations = {
        "response_mutations": [
            _set(_KEPT_HEADER, f"%RESP({REASON_HEADER})%"),
            *_removed(),
            _set(_ROLE_HEADER, f"%UPSTREAM_METADATA(cellmesh:{ROLE})%"),
            _set(_UPGRADE_HEADER, "%REQ(UPGRADE)%"),
        ],
        "response_trailers_mutations": [*_removed(), {"remove": "set-cookie"}],
    }
    return [
        _filter(COOKIES, typed(f"{_FILTERS}.lua.v3.Lua", default_source_code={"inline_string": script})),
        _filter(HOST_ONLY, typed(f"{_FILTERS}.header_mutation.v3.HeaderMutation", mutations=mutations)),
        _filter("envoy.filters.http.upstream_codec", typed(f"{_FILTERS}.upstream_codec.v3.UpstreamCodec")),
    ]


def status_filter() -> Json:
    """Return the filter that makes a 502 of a status above 599, and of an upgrade that was not asked for.

    NOT_LISTENING becomes a 503. Envoy refuses statuses below 100 itself.
    """
    above: Json = {"safe_regex": {"google_re2": {}, "regex": "[6-9][0-9]{2}|[0-9]{4,}"}}
    matchers = [_replaced({"exact": str(NOT_LISTENING)}, 503), _replaced(above, 502)]
    return _filter(
        STATUS,
        typed(
            f"{_FILTERS}.custom_response.v3.CustomResponse",
            custom_response_matcher={"matcher_list": {"matchers": matchers}},
        ),
    )


def _replaced(value: Json, status: int) -> Json:
    """Return the matcher that puts a status in the place of one that matches."""
    found = {"name": "status", "typed_config": typed("envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput")}
    policy = typed(
        "envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy", status_code=status
    )
    return {
        "predicate": {"single_predicate": {"input": found, "value_match": value}},
        "on_match": {"action": {"name": str(status), "typed_config": policy}},
    }


def _removed() -> list[Json]:
    prefixes: list[Json] = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in HOST_PREFIXES]
    names: list[Json] = [{"remove": name} for name in HOST_HEADERS]
    return prefixes + names


def _set(name: str, value: str) -> Json:
    """Return the mutation that sets a header, and removes it if the value is empty."""
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _filter(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}
