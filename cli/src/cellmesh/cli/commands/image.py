"""`cellmesh image`: guest images and container images of this node."""

from __future__ import annotations

import dataclasses
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellmesh.cli import units
from cellmesh.cli.errors import CliError, ExitCode, NotFoundError, UsageError
from cellmesh.cli.invocation import LocalBody, run
from cellmesh.cli.options import JsonOption, noun
from cellmesh.cli.output import Cell, Output
from cellmesh.cli.progress import ProgressLine
from cellmesh.cli.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmesh.image import ContainerImage, GuestImage, ImageStore

app = noun("Build, import, list and verify images.")

DigestArgument = Annotated[str, typer.Argument(metavar="DIGEST", help="The image's digest, or the start of it.")]
_DEFAULT_MARK = "default"


@app.command()
def build(
    context: typer.Context,
    *,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer packages.")] = False,
    default: Annotated[bool, typer.Option(help="Make it the image new VMs get.")] = True,
    json_output: JsonOption = False,
) -> None:
    """Build the guest image: kernel, initramfs and a root with the agent; minutes at first, seconds later."""

    def body(settings: Settings, output: Output) -> None:
        digest = build_default(settings, output, refresh=refresh, default=default)
        _print_digest(output, digest)

    run(context, _explained(body), json_output=json_output)


@app.command("import")
def import_(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(help="OCI layout (directory or tar), `docker save` archive, skopeo `dir:`; - reads a pipe."),
    ],
    *,
    reference: Annotated[
        str, typer.Option("--ref", metavar="NAME", help="Which of several images: its name, or the digest.")
    ] = "",
    json_output: JsonOption = False,
) -> None:
    """Import a container image."""

    def body(settings: Settings, output: Output) -> None:
        if str(path) != "-" and not path.exists():
            raise NotFoundError(f"There is no {path}.", "Give an OCI layout or an archive.", reason="PATH_NOT_FOUND")
        with ProgressLine(output) as progress:
            digest = _store(settings).import_container(path, reference=reference, progress=progress)
        _print_digest(output, digest)

    run(context, _explained(body), json_output=json_output)


@app.command("ls")
def list_images(context: typer.Context, *, json_output: JsonOption = False) -> None:
    """List the images whose manifest is sound."""

    def body(settings: Settings, output: Output) -> None:
        store = _store(settings)
        default = store.default_guest()
        images = store.list()
        if output.json:
            listed = [_document(image, default=default) for image in images]
            output.document({"images": [{k: v for k, v in image.items() if k != "packages"} for image in listed]})
        else:
            output.table(("IMAGE", "KIND", "SIZE", "WHAT"), [_row(image, default=default) for image in images])

    run(context, _explained(body), json_output=json_output)


@app.command()
def show(context: typer.Context, digest: DigestArgument, *, json_output: JsonOption = False) -> None:
    """Show one image, a guest image with its packages."""

    def body(settings: Settings, output: Output) -> None:
        store = _store(settings)
        image = store.get(_find(store, digest))
        document = _document(image, default=store.default_guest())
        if output.json:
            output.document({"image": document})
            return
        packages = document.pop("packages", [])
        output.fields([(name.replace("_", " "), Cell(text=_flat(value))) for name, value in document.items()])
        if isinstance(packages, list | tuple) and packages:
            rows = [[Cell(text=package["name"]), Cell(text=package["version"])] for package in packages]
            output.table(("PACKAGE", "VERSION"), rows)

    run(context, _explained(body), json_output=json_output)


@app.command()
def verify(
    context: typer.Context,
    digest: Annotated[str | None, typer.Argument(metavar="[DIGEST]", help="One image; all if absent.")] = None,
    *,
    json_output: JsonOption = False,
) -> None:
    """Read every byte of an image and compare with its digest; exit code 1 if it has drifted."""

    def body(settings: Settings, output: Output) -> int:
        store = _store(settings)
        digests = [_find(store, digest)] if digest else list(store.digests())
        is_sound = True
        for found in digests:
            drifts = store.verify(found)
            is_sound = is_sound and not drifts
            if output.json:
                output.document({"digest": found, "drift": [dataclasses.asdict(drift) for drift in drifts]})
                continue
            output.styled(
                Cell(text=found), Cell(text="OK", style="green") if not drifts else Cell(text="DRIFT", style="red")
            )
            for drift in drifts:
                output.line(f"  {drift.file}: {drift.kind}, {drift.detail}")
        return ExitCode.OK if is_sound else ExitCode.FAILED

    run(context, _explained(body), json_output=json_output)


@app.command("default")
def default_image(
    context: typer.Context,
    digest: Annotated[str | None, typer.Argument(metavar="[DIGEST]", help="The image to choose.")] = None,
    *,
    json_output: JsonOption = False,
) -> None:
    """Show or choose the guest image that new VMs get."""

    def body(settings: Settings, output: Output) -> None:
        store = _store(settings)
        if digest:
            store.set_default_guest(_find(store, digest))
        chosen = store.default_guest()
        if chosen is None:
            raise NotFoundError(
                "No guest image was chosen.", "Build one with `cellmesh image build`.", reason="NO_DEFAULT_IMAGE"
            )
        _print_digest(output, chosen)

    run(context, _explained(body), json_output=json_output)


def build_default(settings: Settings, output: Output, *, refresh: bool = False, default: bool = True) -> str:
    """Build a guest image with its progress shown, make it the default if wanted, and return its digest."""
    from cellmesh.image import build_guest

    store = _store(settings)
    with explained_image_errors(), ProgressLine(output) as progress:
        digest = build_guest(store, progress=progress, refresh=refresh)
        if default:
            store.set_default_guest(digest)
    return digest


@contextmanager
def explained_image_errors() -> Iterator[None]:
    """Turn what the image store can't do into one line for the person, with the way out."""
    from cellmesh.image import AmbiguousImage, ArchiveInvalid, BuildFailed, ImageError, ImageNotFound, StoreFull

    try:
        yield
    except ImageNotFound as error:
        raise NotFoundError(
            str(error), "List the images with `cellmesh image ls`.", reason="IMAGE_NOT_FOUND"
        ) from error
    except StoreFull as error:
        fix = "Free space on that disk; `cellmesh image ls` shows what the images take."
        raise CliError(str(error), fix, exit_code=ExitCode.EXHAUSTED, reason="STORE_FULL") from error
    except AmbiguousImage as error:
        raise UsageError(str(error), f"Add `--ref {shlex.quote(error.names[0])}`, or another name.") from error
    except ImageError as error:
        # Their texts say what to do; doctor knows about missing tools.
        fix = "`cellmesh image --help` lists what can be done with images."
        if isinstance(error, ArchiveInvalid):
            fix = "`cellmesh image import --help` says what can be imported."
        elif isinstance(error, BuildFailed):
            fix = "If a tool is missing, `cellmesh doctor` has the command that installs it."
        raise CliError(str(error), fix, exit_code=ExitCode.FAILED, reason=_reason(type(error).__name__)) from error
    except PermissionError as error:
        what = f"{error.filename} can't be written: {error.strerror}."
        raise CliError(what, "Run this as root.", exit_code=ExitCode.DENIED, reason="PERMISSION_DENIED") from error
    except BrokenPipeError:
        raise  # of our own output, whose reader is gone
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        what = f"The disk or the archive can't be used: {where}{error.strerror}."
        raise CliError(what, "See `dmesg` for a faulty disk.", exit_code=ExitCode.FAILED, reason="IO_ERROR") from error


def _explained(body: LocalBody) -> LocalBody:
    def explained(settings: Settings, output: Output) -> int | None:
        with explained_image_errors():
            return body(settings, output)

    return explained


def _reason(name: str) -> str:
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_")


def _store(settings: Settings) -> ImageStore:
    from cellmesh.image import ImageStore

    return ImageStore(settings.images_dir)


def _find(store: ImageStore, start: str) -> str:
    """Return the one digest that starts with `start`, with or without `sha256:`."""
    wanted = start.removeprefix("sha256:")
    found = [digest for digest in store.digests() if digest.removeprefix("sha256:").startswith(wanted)]
    if not found:
        raise NotFoundError(
            f"No image has a digest that starts with {start!r}.",
            "List the images with `cellmesh image ls`.",
            reason="IMAGE_NOT_FOUND",
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} images have a digest that starts with {start!r}.", f"Write more: {found[0]}")
    return found[0]


def _document(image: GuestImage | ContainerImage, *, default: str | None) -> dict[str, object]:
    document: dict[str, object] = {"kind": _kind(image), _DEFAULT_MARK: image.digest == default, "size": image.size}
    for field in dataclasses.fields(image):
        value = getattr(image, field.name)
        if not isinstance(value, Path):
            document[field.name] = _plain(value)
    return document


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _kind(image: GuestImage | ContainerImage) -> str:
    return "guest" if hasattr(image, "kernel") else "container"


def _row(image: GuestImage | ContainerImage, *, default: str | None) -> list[Cell]:
    from cellmesh.image import GuestImage

    if isinstance(image, GuestImage):
        what = f"agent {image.agent_version}, kernel {image.kernel_release}"
    else:
        what = image.source.reference or " ".join((*image.config.entrypoint, *image.config.cmd))
    mark = f" ({_DEFAULT_MARK})" if image.digest == default else ""
    size = Cell(text=units.size(image.size).replace(" ", ""))
    return [Cell(text=image.digest), Cell(text=_kind(image)), size, Cell(text=what + mark)]


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_flat(item)}" for name, item in value.items() if item)
    if isinstance(value, list):
        return "; ".join(_flat(item) for item in value)
    return str(value)


def _print_digest(output: Output, digest: str) -> None:
    if output.json:
        output.document({"digest": digest})
    else:
        output.line(digest)
