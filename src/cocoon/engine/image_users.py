"""Who needs an image: the VMs that were made from it, and snapshots of such VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.errors import InvalidState
from cocoon.model.image import Blob, Image
from cocoon.units import printable
from cocoon.value import Value

if TYPE_CHECKING:
    from cocoon.store.reader import Reader

SHOWN_USERS = 5


class ImageUser(Value):
    """`kind` is "vm" or "snapshot"."""

    kind: str
    id: str
    name: str


def files_of(reader: Reader, image: Image) -> list[Blob]:
    """The image's blobs, and what some of them were merged into."""
    return [*image.blobs, *reader.merged_of(image)]


def find_users(reader: Reader, image: Image) -> list[ImageUser]:
    """VMs first, then snapshots. What only shares layers with the image is no user of it."""
    # Not by its pins: those of a VM are on the files that it was made with, which a pull by force replaces.
    users = [ImageUser(kind="vm", id=vm_id, name=name) for vm_id, name in reader.vms_of(image.id)]
    pins = [pin for blob in files_of(reader, image) for pin in reader.users(blob.sha256)]
    snapshots = dict.fromkeys(pin.owner_id for pin in pins if pin.owner_kind == "snapshot")
    found = [key for key in snapshots if _is_of(reader, key, image)]
    return users + [ImageUser(kind="snapshot", id=key, name=reader.snapshot_name(key) or key) for key in found]


def _is_of(reader: Reader, snapshot_id: str, image: Image) -> bool:
    """Whether a snapshot is of a VM of this image: it pins all that the image needs, and no larger image that is here
    is pinned wholly."""
    pinned = {pin.blob for pin in reader.pins("snapshot", snapshot_id)}
    if not _is_pinned(reader, image, pinned):
        return False
    larger = (other for other in reader.images() if set(other.blobs) > set(image.blobs))
    return not any(_is_pinned(reader, other, pinned) for other in larger)


def _is_pinned(reader: Reader, image: Image, pinned: set[str]) -> bool:
    if image.layers and image.layers[-1].blob not in pinned:
        return False
    merged = any(blob.sha256 in pinned for blob in reader.merged_of(image))
    return merged or all(blob.sha256 in pinned for blob in image.blobs)


def check_unused(reader: Reader, image: Image) -> None:
    """Raises InvalidState when this is the image's last name and somebody needs it."""
    if sum(other.id == image.id for other in reader.images()) > 1:
        return
    users = find_users(reader, image)
    if not users:
        return
    words = []
    for kind, word in (("vm", "VM"), ("snapshot", "snapshot")):
        names = [user.name for user in users if user.kind == kind]
        if names:
            more = ", ..." if len(names) > SHOWN_USERS else ""
            count = f"{len(names)} {word}s:" if len(names) > 1 else word
            words.append(f"{count} {', '.join(names[:SHOWN_USERS])}{more}")
    removal = "cocoon vm rm" if any(user.kind == "vm" for user in users) else "cocoon snapshot rm"
    raise InvalidState(
        f"image {printable(image.name, 300)} is in use by {' and '.join(words)}",
        hint=f"remove what uses it first ({removal}), or take only the name away: --force",
    )
