"""Text of untrusted origin, made safe for a terminal."""

from __future__ import annotations

import codecs

# Both are layout, and harmless: no terminal takes them for a command.
_LAYOUT = "\n\t"


def printable(text: str) -> str:
    """Return `text` with everything a terminal could obey or hide (controls, bidi, zero width) as an escape."""
    return _escape(text, keep="")


def _escape(text: str, *, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


class TerminalText:
    """Turns a stream of bytes into text for a terminal, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes) -> str:
        """Return the text that `data` completes; newlines and tabs stay, other controls become escapes."""
        return _escape(self._decoder.decode(data), keep=_LAYOUT)

    def finish(self) -> str:
        """Return what an unfinished character left behind."""
        return _escape(self._decoder.decode(b"", final=True), keep=_LAYOUT)
