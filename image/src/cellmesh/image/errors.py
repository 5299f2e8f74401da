"""What can go wrong with an image, each a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path


class ImageError(Exception):
    """Anything that keeps an image from being built, imported, found or trusted."""


class ImageNotFound(ImageError):
    """The store has no image of this digest."""

    def __init__(self, digest: str, root: Path) -> None:
        super().__init__(f"There is no image {digest} in {root}; build or import it first, or list what is there.")
        self.digest = digest


class InvalidDigest(ImageError):
    """A digest is not `sha256:` and 64 hex digits."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"{digest!r:.100} is not a digest; write sha256: and 64 lower-case hex digits.")


class ImageCorrupt(ImageError):
    """A stored image is not what its digest says."""

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(f"Image {digest} is damaged: {why}. Remove its directory, then build or import it again.")
        self.digest = digest


class BuildFailed(ImageError):
    """A step of a build did not work."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"The guest image could not be built, at {step}: {why}")
        self.step = step


class ToolMissing(BuildFailed):
    """A program the build runs is not installed."""

    def __init__(self, program: str, package: str) -> None:
        super().__init__(program, f"the program is not installed; install the package {package}.")


class ArchiveInvalid(ImageError):
    """A container archive is malformed, incomplete, too large or tries to leave its root."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what!r:.200} cannot be imported: {why}")


class ImageTooLarge(ImageError):
    """A container archive holds more than an image may."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"The image has more than {limit} {what}; make it smaller, or split it.")
        self.limit = limit


class StoreFull(ImageError):
    """The disk of the store has no room for what is imported or built."""

    def __init__(self, root: Path, why: str) -> None:
        super().__init__(f"The image store {root} has no room for it ({why}); free some space there and try again.")
        self.root = root


class AmbiguousImage(ImageError):
    """An archive holds several images and none was chosen, or none has the name that was asked for."""

    def __init__(self, archive: str, names: tuple[str, ...], wanted: str) -> None:
        asked = f"none called {wanted!r:.100}" if wanted else "no choice was made between them"
        listed = ", ".join(names)
        super().__init__(f"{archive!r:.200} holds {len(names)} images, {asked}; choose one: {listed:.2000}")
        self.names = names


class CredentialInImage(ImageError):
    """A container image carries something that looks like a provider's key."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The image carries what looks like a provider's key: {found}. "
            "Keys never enter a cell: remove it, rebuild the image, and call the provider through the gateway."
        )


class InvalidImagePath(ImageError):
    """A path inside an image is absolute, climbs out, or leads through something that is no directory."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"The path {path!r:.200} inside the image is refused: {why}.")
