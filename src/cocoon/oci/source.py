"""An image in a registry, as an ImageSource."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from cocoon.config import Config
from cocoon.errors import CocoonError
from cocoon.host.http import Client, HTTPLimits
from cocoon.images.source import SourceImage, SourceLayer
from cocoon.oci.content import check_digest, resolve_image
from cocoon.oci.credentials import Credentials, find_credentials
from cocoon.oci.manifest import MAX_CONFIG_BYTES, Descriptor, parse_platform
from cocoon.oci.reference import Reference
from cocoon.oci.registry import Registry, is_loopback


class RegistrySource:
    """The image that `reference` names, for `platform` ("" is the host's)."""

    def __init__(
        self, reference: Reference, config: Config, *, platform: str = "", report: Callable[[str], None]
    ) -> None:
        self._reference = reference
        self._wanted = parse_platform(platform)
        self._report = report
        self.limits = HTTPLimits()
        self.stop: Callable[[], None] = lambda: None
        insecure = {host.strip() for host in config.insecure_registries.replace(",", " ").split()}
        self._insecure = bool({reference.api_host, reference.registry} & insecure)
        self._registry: Registry | None = None

    def resolve(self) -> SourceImage:
        """See ImageSource."""
        registry = self._open()
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

    def open_layer(self, layer: SourceLayer) -> AbstractContextManager[Iterator[bytes]]:
        """See ImageSource."""
        return self._open().open_blob(layer.digest)

    def _open(self) -> Registry:
        if self._registry is None:
            host = self._reference.api_host
            client = Client(self.limits, stop=lambda: self.stop(), unverified=host if self._insecure else "")
            plain_http = self._insecure or is_loopback(host)
            self._registry = Registry(self._reference, client, credentials=self._credentials, plain_http=plain_http)
        return self._registry

    def _credentials(self) -> Credentials | None:
        return find_credentials(self._reference.registry, os.environ, self._report)
