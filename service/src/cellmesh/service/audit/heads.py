"""Signed heads of an audit log: what one says, who signs it, and the file that keeps them beside the database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cellmesh.mesh import private_file
from cellmesh.service.errors import Unusable
from cellmesh.service.store import to_micros
from cellmesh.service.store.audit import GENESIS, length_prefixed

_DOMAIN = b"cellmesh.audit.head.v1"
_LONGEST_LINE = 1024


@dataclass(frozen=True, slots=True)
class Head:
    """How far the chain had come at a moment, and where it begins since rows before that were pruned."""

    number: int
    """Of this head, from 1, without a gap."""
    sequence: int
    """Of the newest row, 0 if there was none."""
    hash: str
    """Of that row."""
    first: int
    """Sequence of the oldest row that is kept."""
    first_previous: str
    """The hash of the row before that one."""
    time: int
    """When it was signed, in microseconds since 1970."""
    signature: str = ""
    """Ed25519, in hexadecimal."""

    def signed_bytes(self, service: str) -> bytes:
        """Return what is signed."""
        parts = [_DOMAIN, service.encode(), *(str(value).encode() for value in astuple(self)[:-1])]
        return length_prefixed(parts)


class AuditKeyUnusable(Unusable):
    """The file of the audit log's key holds no key."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is no Ed25519 key in PEM; put the right file back. The runbook has the rest.")


class Signer:
    """Signs heads with the key of one service, and knows its own signatures."""

    def __init__(self, key: Ed25519PrivateKey, service: str) -> None:
        self._key = key
        self._public = key.public_key()
        self._service = service

    def sign(self, head: Head) -> Head:
        """Return the head with its signature."""
        return replace(head, signature=self._key.sign(head.signed_bytes(self._service)).hex())

    def is_own(self, head: Head) -> bool:
        """Tell whether a head was signed with this key, and not changed since."""
        try:
            self._public.verify(bytes.fromhex(head.signature), head.signed_bytes(self._service))
        except (InvalidSignature, ValueError):
            return False
        return True


class HeadFile:
    """The heads of one log, a line each, in a file of mode 0600. One process writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, head: Head) -> None:
        """Add a head; it is on disk afterwards. Raises OSError."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            _cut_torn_line(file.fileno())
            file.write(line_of(head))
            os.fsync(file.fileno())

    def keep(self, heads: Iterable[Head]) -> None:
        """Replace all heads by these. Raises OSError."""
        private_file.put(self._path, b"".join(map(line_of, heads)))

    def heads(self) -> Iterator[Head | None]:
        """Yield each head, oldest first; None for a line that is none. What a crash cut short is not a line."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            while line := file.readline(_LONGEST_LINE):
                if line.endswith(b"\n"):
                    yield read(line)
                elif len(line) == _LONGEST_LINE:
                    yield None

    def newest(self) -> Head | None:
        """Return the last line's head; None if there is none."""
        newest = None
        for newest in self.heads():  # noqa: B007  # the last one is wanted
            pass
        return newest


def signer_in(directory: Path, service: str, *, now: Callable[[], datetime]) -> tuple[Signer, HeadFile]:
    """Return the signer and the head file of a service, made with a first head if there is no key yet.

    Raises AuditKeyUnusable, OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_path, file = directory / "key.pem", HeadFile(directory / "heads")
    with private_file.locked(directory / "lock"):
        try:
            return Signer(_key(key_path), service), file
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
        signer = Signer(key, service)
        # Before the key: where there is a key there has been a head, and a log without one was tampered with.
        first = Head(number=1, sequence=0, hash=GENESIS, first=1, first_previous=GENESIS, time=to_micros(now()))
        file.keep([signer.sign(first)])
        private_file.put(
            key_path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return signer, file


def _key(path: Path) -> Ed25519PrivateKey:
    document = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(document, password=None)
    except ValueError:
        raise AuditKeyUnusable(path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise AuditKeyUnusable(path)
    return key


def line_of(head: Head) -> bytes:
    """Return the line of a head."""
    return " ".join(map(str, astuple(head))).encode() + b"\n"


def read(line: bytes) -> Head | None:
    """Return the head of a line, or None if it is not exactly the line of one."""
    try:
        words = line.decode("ascii").split(" ")
        numbers = {"number", "sequence", "first", "time"}
        names = [each.name for each in fields(Head)]
        values = [int(word) if name in numbers else word.rstrip("\n") for name, word in zip(names, words, strict=True)]
        head = Head(*values)  # type: ignore[arg-type]  # in the order of the fields
    except ValueError:
        return None
    return head if line_of(head) == line else None


def _cut_torn_line(descriptor: int) -> None:
    """Remove what a crash left of a line: it was never taken for a head."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _LONGEST_LINE, max(size - _LONGEST_LINE, 0))
    end = tail.rfind(b"\n") + 1
    if end < len(tail):
        os.ftruncate(descriptor, size - len(tail) + end)
