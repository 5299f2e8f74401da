"""The page stands alone, says what it waits for, and lets nothing it shows become a part of it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cellmesh.hypervisor.activator import page
from cellmesh.hypervisor.activator.page import Waiting
from cellmesh.hypervisor.activator.verdict import Verdict
from cellmesh.mesh.errors import Code

TRACE = "0123456789abcdef0123456789abcdef"
STARTING = Verdict(
    code=Code.UNAVAILABLE,
    reason="VM_STARTING",
    message="The VM is starting.",
    retry_after=2,
    container="sandbox-live",
)
FAILED = replace(STARTING, code=Code.FAILED_PRECONDITION, reason="VM_FAILED", message="It died.", retry_after=None)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class _Parsed(HTMLParser):
    """A page as a browser sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag: str) -> None:
        """Every element that begins ends, in order."""
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        """Note text by the elements it is in."""
        for tag, name in self._open:
            for key in {tag, name}:
                if key:
                    self.texts[key] = self.texts.get(key, "") + data

    def one(self, tag: str) -> dict[str, str | None]:
        """Return the attributes of the only element of a kind."""
        (found,) = (attributes for kind, attributes in self.tags if kind == tag)
        return found


def _page(verdict: Verdict = STARTING, *, seconds: float = 12.7, budget: float = 60.0) -> _Parsed:
    return _Parsed(page.render(verdict, Waiting(seconds=seconds, budget=budget), trace_id=TRACE))


def test_page_says_what_waits_and_since_when() -> None:
    """Which container, for what, for how many seconds, and under which trace its log lines are found."""
    shown = _page()
    assert shown.texts["h1"] == shown.texts["title"] == "Your cell is starting"
    assert shown.texts["message"] == "The VM is starting."
    assert shown.texts["reason"] == "VM_STARTING"
    assert shown.texts["waited"] == "12"
    assert "sandbox-live" in shown.texts["footer"]
    assert TRACE in shown.texts["footer"]


def test_page_comes_again_without_scripts() -> None:
    """Where scripts are off the page loads itself again; where they are on only the script decides."""
    text = page.render(STARTING, Waiting(seconds=0, budget=60), trace_id=TRACE)
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in text
    assert text.count("http-equiv") == 1


def test_wait_within_the_budget_is_not_called_long() -> None:
    """The words about a long wait are there for the script, and hidden until it is one."""
    (late,) = (attributes for _, attributes in _page(seconds=59.9).tags if attributes.get("id") == "late")
    assert "hidden" in late


def test_wait_beyond_the_budget_says_what_to_do() -> None:
    """Who has waited for too long reads so, with or without scripts."""
    shown = _page(seconds=60.0)
    (late,) = (attributes for _, attributes in shown.tags if attributes.get("id") == "late")
    assert "hidden" not in late
    assert "longer than usual" in shown.texts["late"]
    assert "trace id" in shown.texts["late"]


def test_failure_says_that_somebody_has_to_act() -> None:
    """A page of what failed counts no seconds, does not load itself again and again, and still looks now and then."""
    shown = _page(FAILED)
    assert shown.texts["h1"] == "Your cell failed"
    assert "waited" not in shown.texts
    assert "somebody has to act" in shown.texts["main"]
    assert [tag for tag, attributes in shown.tags if attributes.get("http-equiv")] == []
    assert shown.one("main")["data-waits"] == ""
    assert int(shown.one("main")["data-pause"] or 0) >= 5


def test_race_that_was_lost_is_looked_at_at_once() -> None:
    """A page whose app answers by now does not wait to find out."""
    assert _page(replace(STARTING, reason="ROUTE_SERVING", retry_after=1)).one("main")["data-pause"] == "0"


@pytest.mark.parametrize("field", ["reason", "message", "container"])
def test_nothing_shown_becomes_markup(field: str) -> None:
    """Whatever a message holds, the page has the elements it always has, and shows the text as it is."""
    plain, evil = _page(), _page(replace(STARTING, **{field: EVIL}))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert EVIL in evil.texts["main"] + evil.texts["footer"]


def test_trace_id_is_escaped_too() -> None:
    """Though it should be hexadecimal by then."""
    assert EVIL not in page.render(STARTING, Waiting(seconds=0, budget=1), trace_id=EVIL)


@pytest.mark.parametrize("verdict", [STARTING, FAILED])
def test_page_takes_nothing_from_elsewhere(verdict: Verdict) -> None:
    """No image, font, frame, form or script by address: the page works while nothing else does."""
    tags = _page(verdict).tags
    assert not any({"src", "href", "action", "srcset", "style"} & set(attributes) for _, attributes in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    text = page.render(verdict, Waiting(seconds=0, budget=60), trace_id=TRACE)
    assert not re.search(r"url\(|@import|https?://", text)


def test_policy_lets_this_script_and_style_run_and_no_other() -> None:
    """The browser checks the hashes: they are those of what stands in the page, to the last byte."""
    text = page.render(STARTING, Waiting(seconds=0, budget=60), trace_id=TRACE)
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in page.CONTENT_SECURITY_POLICY
    assert "unsafe" not in page.CONTENT_SECURITY_POLICY


def test_page_can_be_read_by_everybody() -> None:
    """It names its language, scales, and tells a screen reader of changes without being looked at."""
    shown = _page()
    assert shown.one("html")["lang"] == "en"
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in shown.tags
    roles = {attributes.get("id"): attributes.get("role") for _, attributes in shown.tags}
    assert (roles["message"], roles["waited"]) == ("status", None)
    assert len([tag for tag, _ in shown.tags if tag == "h1"]) == 1
