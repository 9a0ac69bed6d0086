"""`image tag`: another name for an image that is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocoon.engine.image import find_image_in
from cocoon.engine.image_users import files_of
from cocoon.images.naming import known_name
from cocoon.model.image import Image

if TYPE_CHECKING:
    from cocoon.plan.world import World


def tag_image(world: World, ref: str, name: str) -> Image:
    """Gives the image that `ref` means the name `name` as well; an image that had it loses it.

    One that loses its last name goes, with the files that nothing else needs. Raises NotFound, Ambiguous, InvalidSpec.
    """
    from cocoon.images import blobs
    from cocoon.oci.reference import check_import_name

    check_import_name(name)
    with world.store.write() as transaction:
        image = find_image_in(transaction, ref)
        name = known_name(transaction, name)
        previous = transaction.image_by_name(name)
        replaced = files_of(transaction, previous) if previous is not None else []
        image = image.replace(name=name)
        transaction.put_image(image)
    if replaced:
        blobs.free(world.store, replaced)
    return image
