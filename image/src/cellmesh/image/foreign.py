"""Say what an archive is that is no container image, and how it becomes one."""

from __future__ import annotations

from cellmesh.image.blobs import Blobs

ROOT_DIRECTORIES = ("bin", "etc", "usr")
EXPECTED = "it is neither an OCI layout (oci-layout) nor from `docker save` or skopeo's `dir:` (manifest.json)"


def describe_foreign(blobs: Blobs) -> str:
    """Return a sentence about an archive without the parts that an image has."""
    if sum(blobs.holds(name) for name in ROOT_DIRECTORIES) > 1:
        return (
            "it is a root file system, not an image; make one of it: "
            "`buildah from scratch`, `buildah add CONTAINER ROOT /`, `buildah commit CONTAINER oci:LAYOUT`."
        )
    if blobs.holds("rootfs") and blobs.holds("config.json"):
        return (
            "it is an unpacked runtime bundle, not an image; make one of it: `umoci repack --image LAYOUT:TAG BUNDLE`."
        )
    if blobs.holds("repositories"):
        return "it is from a `docker save` before 1.10; convert it: `docker load`, then `docker save` with a newer one."
    if blobs.holds("overlay-images") or blobs.holds("vfs-images"):
        return "it is the storage of podman; export the image: `podman save --format oci-archive -o app.tar IMAGE`."
    return f"{EXPECTED}; export the image with `skopeo copy SOURCE oci-archive:app.tar`."
