"""The page a person sees while an app cannot answer: it turns into the app by itself, with scripts or without."""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass

from cellmesh.hypervisor.activator.verdict import Verdict

REASON_HEADER = "x-cellmesh-reason"
"""On every answer of ours, and on none of an app's: how the page's script knows that it still waits."""

_LOOK_AGAIN_SECONDS = 10
"""How often a page looks that waits for somebody to act."""

_HEADINGS = {
    "VM_STOPPED": "Your cell is stopped",
    "VM_STARTING": "Your cell is starting",
    "VM_RESTARTING": "Your cell is being restarted",
    "VM_STOPPING": "Your cell is being stopped",
    "VM_FAILED": "Your cell failed",
    "VM_QUARANTINED": "Your cell is set aside until somebody looks at it",
    "VM_DELETING": "Your cell is being deleted",
    "VM_NOT_FOUND": "You have no cell here",
    "NODE_DRAINING": "This node starts no cells now",
    "CONTAINER_NOT_FOUND": "There is no app here yet",
    "CONTAINER_STOPPED": "The app is stopped",
    "CONTAINER_STARTING": "The app is starting",
    "CONTAINER_RESTARTING": "The app is being restarted",
    "CONTAINER_UNHEALTHY": "The app is not well yet",
    "CONTAINER_FAILED": "The app failed",
    "GENERATION_NOT_FOUND": "This version of the app is gone",
    "ROUTE_NOT_FOUND": "There is nothing here",
    "ROUTE_SERVING": "The app answers now",
    "HYPERVISOR_UNAVAILABLE": "Cells cannot be started right now",
    "TOO_MANY_WAITING": "Too many of your requests wait",
}

_STYLE = """
:root{color-scheme:light dark}
body{font:1.1em/1.5 system-ui,sans-serif;max-width:36em;margin:12vh auto;padding:0 1em;color:#222;background:#fff}
code,footer{color:#595959}
[hidden]{display:none}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}code,footer{color:#a6a6a6}}
"""

# OPTIONS, because of all methods it is the one that no app takes for more than a question: a GET ahead of the page's
# own would use up a link that works once.
_SCRIPT = """
"use strict";
const main = document.querySelector("main");
const data = main.dataset;
const opened = performance.now() - 1000 * data.waited;
const part = (id) => document.getElementById(id);
let strange = 0;
const count = () => {
  const seconds = Math.floor((performance.now() - opened) / 1000);
  if (data.waits) {
    part("waited").textContent = seconds;
    part("late").hidden = seconds < data.budget;
  }
};
const look = async () => {
  let again = Number(data.pause) || 1;
  try {
    const answer = await fetch(location.pathname, {method: "OPTIONS", cache: "no-store", redirect: "manual"});
    if (answer.headers.has("x-cellmesh-reason")) {
      const said = await answer.json();
      if (said.reason !== part("reason").textContent) { location.reload(); return; }
      if (said.message !== part("message").textContent) { part("message").textContent = said.message; }
      strange = 0;
      again = said.retry_after_seconds || again;
    } else if (answer.status < 502 || (strange += 1) > 3) {
      location.reload();
      return;
    }
  } catch {
    again = 3;
  }
  setTimeout(look, 1000 * again);
};
setInterval(count, 1000);
setTimeout(look, 1000 * data.pause);
"""


def _source(text: str) -> str:
    """Name an inline script or style by its hash, so that no other runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_source(_SCRIPT)}",
        f"style-src {_source(_STYLE)}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        # An app at `/` may show the one at `/dev/` in a frame.
        "frame-ancestors 'self'",
    )
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>{style}</style>
{refresh}</head>
<body>
<main data-waits="{waits}" data-pause="{pause}" data-waited="{waited}" data-budget="{budget}">
<h1>{heading}</h1>
<p role="status" id="message">{message}</p>
{progress}</main>
<footer><p>{container}<code id="reason">{reason}</code> &middot; trace <code>{trace_id}</code></p></footer>
<script>{script}</script>
</body>
</html>
"""
_WAITING = """<p>Waiting for <span id="waited">{waited}</span> s.
This page turns into the app as soon as it answers.</p>
<p id="late" role="status"{hidden}>This takes longer than usual. You may go on waiting, or come back later;
if it does not end, tell whoever runs this node the trace id below.</p>
"""
_STANDING = """<p>This does not end by itself: somebody has to act. This page looks every {pause} s whether it has.</p>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How long a person has been waiting."""

    seconds: float
    """Seconds since the first request that had to wait."""
    budget: float
    """Seconds that are usual."""


def render(verdict: Verdict, waiting: Waiting, *, trace_id: str) -> str:
    """Return the whole page as HTML; it needs nothing but itself."""
    waited, budget = int(waiting.seconds), int(waiting.budget)
    pause = _pause(verdict)
    if verdict.waits:
        progress = _WAITING.format(waited=waited, hidden=" hidden" if waited < budget else "")
        # Without scripts the page comes again as a whole.
        refresh = f'<noscript><meta http-equiv="refresh" content="{max(pause, 1)}"></noscript>\n'
    else:
        progress, refresh = _STANDING.format(pause=pause), ""
    container = f"Container <code>{html.escape(verdict.container)}</code> &middot; " if verdict.container else ""
    return _PAGE.format(
        heading=html.escape(_HEADINGS.get(verdict.reason, "The app cannot answer now")),
        style=_STYLE,
        refresh=refresh,
        waits="yes" if verdict.waits else "",
        pause=pause,
        waited=waited,
        budget=budget,
        message=html.escape(verdict.message),
        progress=progress,
        container=container,
        reason=html.escape(verdict.reason),
        trace_id=html.escape(trace_id),
        script=_SCRIPT,
    )


def _pause(verdict: Verdict) -> int:
    """Return the seconds until the page first looks again."""
    if verdict.reason == "ROUTE_SERVING":
        return 0
    return _LOOK_AGAIN_SECONDS if verdict.retry_after is None else verdict.retry_after
