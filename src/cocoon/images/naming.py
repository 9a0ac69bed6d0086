"""One record for each image, however its name is spelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cocoon.store.reader import Reader


def known_name(reader: Reader, name: str) -> str:
    """The name of an image that is here and means the same as `name`, however either is spelled; else `name` itself.

    Pulled images have their whole name; those that were imported or tagged have it as it was written. What follows a
    `#` in a URL says how to check it, and is no part of the name. It holds as long as `reader`'s transaction: whoever
    stores a name asks in the one that stores it.
    """
    name = name.partition("#")[0] if "://" in name else name
    if reader.is_image_name(name):
        return name
    from cocoon.oci.reference import normal_name

    normal = normal_name(name)
    if not normal or reader.is_image_name(normal):
        return normal or name
    return next((other for other in reader.image_names() if normal_name(other) == normal), name)
