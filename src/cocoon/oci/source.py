"""An image in a registry, as an ImageSource: from its mirrors and itself, with what an earlier pull left of layers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cocoon.config import Config
from cocoon.errors import APIFailed, CocoonError, CommandFailed, Corrupt, HostFault, NotFound, Timeout, Unsupported
from cocoon.host.http import Client, HTTPLimits
from cocoon.host.retry import Patience
from cocoon.images.parts import Part, part_path, remove_part
from cocoon.images.source import Progress, Silent, SourceImage, SourceLayer
from cocoon.oci.content import check_digest, resolve_image
from cocoon.oci.credentials import Credentials, find_credentials
from cocoon.oci.endpoint import Endpoint, find_endpoints
from cocoon.oci.login import Login
from cocoon.oci.manifest import MAX_CONFIG_BYTES, Descriptor, parse_platform
from cocoon.oci.reference import Reference
from cocoon.oci.registry import Registry, Surroundings
from cocoon.oci.transfer import Transfer

# What shows that the bytes, or the room for them, are no good: there is nothing to go on with.
SPOILED = (Corrupt, Unsupported, HostFault, CommandFailed, OSError)


class RegistrySource:
    """The image that `reference` names, for `platform` ("" is the host's).

    Parts of layers are kept in `parts_dir`; whoever opens a layer holds its lock there.
    """

    def __init__(
        self,
        reference: Reference,
        config: Config,
        *,
        platform: str = "",
        parts_dir: str,
        progress: Progress | None = None,
    ) -> None:
        self.stop: Callable[[], None] = lambda: None
        self._reference = reference
        self._wanted = parse_platform(platform)
        self._parts_dir = parts_dir
        self._progress = progress or Silent()
        self._lock = threading.Lock()
        self._parts: set[str] = set()  # Digests of layers that have one.
        self._resumed: set[str] = set()  # Of these, those whose bytes came from one this time.
        self._distrusted: dict[str, int] = {}  # How many endpoints gave wrong bytes, by layer.
        self._surroundings = Surroundings(
            patience=Patience(), stop=lambda: self.stop(), note=lambda words: self._progress.note("", words)
        )
        self._limits = HTTPLimits()
        self._registries = [self._open(endpoint) for endpoint in find_endpoints(reference, config)]

    def resolve(self) -> SourceImage:
        """See ImageSource. The first endpoint that has the image is asked first for its layers."""
        for registry in self._registries:
            try:
                image = self._resolve_at(registry)
            except (APIFailed, NotFound, Timeout, Corrupt) as error:
                if registry is self._registries[-1]:
                    raise
                self._progress.note("", f"mirror {registry.name} is passed over: {error.message}")
            else:
                self._registries.sort(key=lambda other: other is not registry)
                return image
        raise AssertionError("there is always the registry itself")

    @contextmanager
    def open_layer(self, layer: SourceLayer) -> Iterator[Iterator[bytes]]:
        """See ImageSource."""
        part = Part(self._parts_dir, layer.digest, layer.size_bytes)
        with self._lock:
            self._parts.add(layer.digest)
            if part.length:
                self._resumed.add(layer.digest)
            registries = self._registries[self._distrusted.get(layer.digest, 0) :]
        try:
            yield self._chunks(layer, part, registries)
        except SPOILED:
            part.drop()
            raise
        finally:
            part.close()

    def doubt(self, layer: SourceLayer) -> bool:
        """See ImageSource: without the part that was there, or from the next endpoint, other bytes may come."""
        with self._lock:
            if layer.digest in self._resumed:
                self._resumed.remove(layer.digest)
                return True
            wrong = self._distrusted.get(layer.digest, 0) + 1
            self._distrusted[layer.digest] = wrong
            return wrong < len(self._registries)

    def drop_parts(self) -> None:
        """Removes what this pull has kept of layers: they are in the store now, or there is no room for them."""
        for digest in self._parts:
            if os.path.exists(part_path(self._parts_dir, digest)):
                remove_part(part_path(self._parts_dir, digest))

    def _chunks(self, layer: SourceLayer, part: Part, registries: Sequence[Registry]) -> Iterator[bytes]:
        at = 0
        for chunk in part.replay():
            self.stop()
            at += len(chunk)
            yield chunk
        if at == layer.size_bytes and at:
            return

        def note(words: str) -> None:
            self._progress.note(layer.digest, words)

        for chunk in Transfer(registries, layer.digest, layer.size_bytes, note=note).chunks(at):
            part.append(chunk)
            yield chunk

    def _resolve_at(self, registry: Registry) -> SourceImage:
        top, declared = registry.get_manifest(self._reference.digest or self._reference.tag)
        if self._reference.digest:
            check_digest(top, self._reference.digest, f"the manifest of {self._reference}")

        def fetch_manifest(descriptor: Descriptor) -> bytes:
            return registry.get_manifest(descriptor.digest)[0]

        def fetch_config(descriptor: Descriptor) -> bytes:
            return registry.get_blob(descriptor.digest, min(descriptor.size_bytes, MAX_CONFIG_BYTES))

        try:
            image = resolve_image(
                top, declared, fetch_manifest=fetch_manifest, fetch_config=fetch_config, wanted=self._wanted
            )
        except CocoonError as error:
            error.message = f"{self._reference}: {error.message}"
            raise
        return image.replace(source=str(self._reference))

    def _open(self, endpoint: Endpoint) -> Registry:
        unverified = endpoint.host if endpoint.unverified else ""
        client = Client(self._limits, stop=lambda: self.stop(), unverified=unverified)
        repository = f"{endpoint.prefix}{self._reference.repository}"
        login = Login(endpoint, repository, client, find_credentials=self._credentials)
        return Registry(endpoint, self._reference, client=client, login=login, surroundings=self._surroundings)

    def _credentials(self, name: str) -> Credentials | None:
        return find_credentials(name, os.environ, lambda words: self._progress.note("", words))
