"""From a name to a SourceImage: index, manifest and configuration, wherever they lie, each checked by its digest."""

from __future__ import annotations

from collections.abc import Callable

from cocoon.errors import Corrupt
from cocoon.images.source import SourceImage, SourceLayer
from cocoon.oci.manifest import (
    INDEX_TYPES,
    MAX_INDEX_DEPTH,
    Descriptor,
    Platform,
    choose_platform,
    media_type_of,
    parse_configuration,
    parse_json,
    parse_manifest,
)

Fetch = Callable[[Descriptor], bytes]


def check_digest(data: bytes, digest: str, what: str) -> None:
    """Raises Corrupt when `data` does not have this digest."""
    from hashlib import sha256

    found = f"sha256:{sha256(data).hexdigest()}"
    if found != digest:
        raise Corrupt(f"{what} has digest {found[:19]}, not {digest[:19]}: it was damaged or replaced on its way")


def check_content(data: bytes, descriptor: Descriptor, what: str) -> bytes:
    """`data` when it has the size and digest that were announced. Raises Corrupt."""
    if len(data) != descriptor.size_bytes:
        raise Corrupt(f"{what} {descriptor.digest[:19]} has {len(data)} bytes, not {descriptor.size_bytes}")
    check_digest(data, descriptor.digest, what)
    return data


def resolve_image(
    top: bytes, declared: str, *, fetch_manifest: Fetch, fetch_config: Fetch, wanted: Platform
) -> SourceImage:
    """The image of the manifest or index `top` (already checked) of media type `declared`.

    The `fetch` functions give a descriptor's content. Raises Corrupt, Unsupported, NotFound (the platform).
    """
    from hashlib import sha256

    data = top
    for _ in range(MAX_INDEX_DEPTH + 1):
        plain = parse_json(data, "the manifest")
        if media_type_of(plain, declared) not in INDEX_TYPES:
            break
        descriptor = choose_platform(plain, wanted)
        data, declared = check_content(fetch_manifest(descriptor), descriptor, "manifest"), descriptor.media_type
    else:
        raise Corrupt("an index leads to an index, again and again")
    manifest = parse_manifest(plain)
    config = check_content(fetch_config(manifest.config), manifest.config, "image configuration")
    configuration = parse_configuration(config, len(manifest.layers), wanted)
    pairs = zip(manifest.layers, configuration.diff_ids, strict=True)
    return SourceImage(
        id=f"sha256:{sha256(data).hexdigest()}",
        platform=str(configuration.platform.replace(variant="")),
        config=configuration.config,
        layers=check_layers(
            tuple(
                SourceLayer(digest=layer.digest, size_bytes=layer.size_bytes, diff_id=diff_id)
                for layer, diff_id in pairs
            )
        ),
        source="",
        metadata=configuration.metadata,
    )


def check_layers(layers: tuple[SourceLayer, ...]) -> tuple[SourceLayer, ...]:
    """`layers` when those that have one digest agree about everything else. Raises Corrupt."""
    seen: dict[str, SourceLayer] = {}
    for layer in layers:
        if seen.setdefault(layer.digest, layer) != layer:
            raise Corrupt(f"the image says two things about layer {layer.digest[:19]}")
    return layers
