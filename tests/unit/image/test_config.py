"""How an image wants to be run: what is taken over, what is put right, and what is refused at import."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from cellmesh.image import ArchiveInvalid, config, manifest
from cellmesh.image.limits import MAX_CONFIG, MAX_ID, MAX_STRING, MAX_STRINGS, MAX_WORDS, POINTER


def read(**settings: object) -> manifest.ContainerConfig:
    """Return the checked configuration of an image with these settings."""
    return config.read_config({"config": settings})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("", 15), ("SIGTERM", 15), ("TERM", 15), ("sigquit", 3), ("9", 9), ("64", 64), ("SIGUSR1", 10), ("CLD", 17)),
        *(("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("rtmin+30", 64), ("SIGRTMAX", 64), ("RTMAX-14", 50)),
    ],
)
def test_a_stop_signal_becomes_its_number(text: str, number: int) -> None:
    """Names with and without SIG, numbers and real-time offsets are what container tools write."""
    assert read(StopSignal=text).stop_signal == number
    assert asdict(read(StopSignal=text))["stop_signal"] == number


@pytest.mark.parametrize(
    "text", ["0", "65", "-1", "SIGNOPE", "SIG", "SIGRTMIN-1", "SIGRTMIN+31", "RTMAX+1", "TERM+1", "1५", "9" * 5000, 15]
)
def test_what_is_no_signal_is_refused(text: object) -> None:
    """A signal that does not exist is an error at import."""
    with pytest.raises(ArchiveInvalid, match="StopSignal"):
        read(StopSignal=text)


def test_a_manifest_of_an_earlier_release_has_the_default_signal(tmp_path: Path) -> None:
    """Images that were stored before the field existed can still be read."""
    document = asdict(read())
    del document["stop_signal"]
    source = {"format": "oci", "digest": f"sha256:{'0' * 64}", "reference": ""}
    rootfs = {"file": "rootfs.erofs", "sha256": "0" * 64, "size": 1}
    whole = {"schema": 1, "kind": "container", "rootfs": rootfs, "config": document, "source": source}
    image = manifest.decode(tmp_path, manifest.canonical(whole))
    assert isinstance(image, manifest.ContainerImage)
    assert image.config.stop_signal == 15


def test_an_entry_without_a_value_sets_nothing() -> None:
    """Old builders wrote names without a value, or a value without a name: no reason to refuse an image."""
    assert read(Env=["PATH=/bin", "FOO", "=x", "", "EMPTY="]).env == ("PATH=/bin", "EMPTY=")


def test_a_working_directory_is_absolute() -> None:
    """A relative one counts from the root, as container tools take it."""
    assert [read(WorkingDir=text).working_dir for text in ("", "srv", "/srv", "//srv")] == ["/", "/srv", "/srv", "/srv"]


def test_a_user_stays_as_given_unless_no_container_has_it() -> None:
    """Names are looked up where the image's tables are; a number above the container's ids could never be started."""
    assert [read(User=text).user for text in ("app:video", "1000:1000", "")] == ["app:video", "1000:1000", ""]
    for text in (str(MAX_ID + 1), f"0:{MAX_ID + 1}", "9" * 5000):
        with pytest.raises(ArchiveInvalid, match="User"):
            read(User=text)


def test_strings_are_as_long_as_a_process_can_have() -> None:
    """The longest string counts in bytes; one more is refused, as are texts that are not Unicode."""
    longest = "A=" + "é" * ((MAX_STRING - 2) // 2) + "x"
    assert len(longest.encode()) == MAX_STRING
    assert read(Env=[longest]).env == (longest,)
    for bad in ("A=" + "é" * (MAX_STRING // 2), "A=" + "x" * MAX_STRING, "A=\ud800", "A=\0"):
        with pytest.raises(ArchiveInvalid, match="Env"):
            read(Env=[bad])
    with pytest.raises(ArchiveInvalid, match="Env"):
        read(Env=["A=1"] * (MAX_WORDS + 1))


def test_the_environment_is_as_large_as_can_be_started() -> None:
    """400 kB pass; arguments and environment above the limit in all are refused with both numbers."""
    assert len(read(Env=[f"V{number}={'x' * 100_000}" for number in range(4)]).env) == 4
    count = MAX_STRINGS // 65536
    fits = [f"V{number:02}=".ljust(65536 - 1 - POINTER, "x") for number in range(count)]
    assert len(config.about(read(Env=fits))) < MAX_CONFIG
    with pytest.raises(ArchiveInvalid, match=f"{MAX_STRINGS + 10} bytes, {MAX_STRINGS} can be started"):
        read(Env=fits, Cmd=["x"])


def test_the_written_configuration_is_as_large_as_the_agent_reads() -> None:
    """Characters that JSON writes with six bytes count as six."""
    swelling = read(Env=[f"V{number}={chr(1) * 100_000}" for number in range(4)])
    with pytest.raises(ArchiveInvalid, match="written as JSON"):
        config.about(swelling)
