"""An image: an ordered stack of EROFS blobs and what its configuration says about running it, or one bootable disk."""

from __future__ import annotations

from cocoon.value import Value


class Blob(Value):
    """One file of the store that images are made of, by its own SHA-256 in hex; `suffix` is "erofs" or "qcow2"."""

    sha256: str
    size_bytes: int
    suffix: str = "erofs"

    @property
    def file_name(self) -> str:
        """Its name in `Paths.blobs`."""
        return f"{self.sha256}.{self.suffix}"


class Layer(Value):
    """One layer, bottom first in its image.

    `digest` is `sha256:<hex>` of the bytes as the registry or archive has them, `diff_id` of the plain tar,
    `blob` the hex SHA-256 of the EROFS file (its name in `Paths.blob`), `size_bytes` that file's size.
    """

    digest: str
    diff_id: str
    blob: str
    size_bytes: int


def chain_ids(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """For each layer the digest of it and all below it (ChainID, image-spec config.md), from the bottom."""
    from hashlib import sha256

    chains: list[str] = []
    for layer in layers:
        text = f"{chains[-1]} {layer.diff_id}" if chains else ""
        chains.append(f"sha256:{sha256(text.encode()).hexdigest()}" if chains else layer.diff_id)
    return tuple(chains)


class ImageConfig(Value):
    """What the OCI image configuration says (image-spec config.md): argument lists, `K=V` environment, user as
    `name|uid[:group|gid]`, absolute working directory ("" is `/`), stop signal name or ""."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""


class BootFiles(Value):
    """A kernel and its initramfs that an image carries, taken out of its layers: absolute host paths.

    `version` is the kernel's release as its file name has it, "" for a plain `vmlinuz`.
    """

    kernel_path: str
    initrd_path: str
    version: str


class BaseDisk(Value):
    """The disk of a cloud image, converted by us into qcow2 that refers to nothing.

    `blob` is the hex SHA-256 of that file (its name in `Paths.base_disk`), `size_bytes` its size; `virtual_bytes` is
    what a guest sees.
    """

    blob: str
    size_bytes: int
    virtual_bytes: int


class Image(Value):
    """One image: a stack of layers, or one disk (a cloud image), never both.

    `id` is `sha256:<hex>` of its manifest (an archive without one: of its configuration; a cloud image: of the bytes
    that were downloaded or imported). `name` is a normalised reference, a URL or an import name; `platform` is
    `os/arch`; `boot_files` is None for a plain container image and for a disk. `metadata` is what its configuration
    says beyond `config` and the layers (labels, history, author...): a JSON object in the configuration's own form, ""
    when there is nothing.
    """

    id: str
    name: str
    platform: str
    layers: tuple[Layer, ...]
    config: ImageConfig
    boot_files: BootFiles | None
    created_at: float
    source: str
    disk: BaseDisk | None = None
    metadata: str = ""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every file that the image needs, each once, in the order of its layers."""
        found = {layer.blob: Blob(sha256=layer.blob, size_bytes=layer.size_bytes) for layer in self.layers}
        if self.disk is not None:
            found[self.disk.blob] = Blob(sha256=self.disk.blob, size_bytes=self.disk.size_bytes, suffix="qcow2")
        return tuple(found.values())

    @property
    def size_bytes(self) -> int:
        """The size of all these files; what two images share counts in both."""
        return sum(blob.size_bytes for blob in self.blobs)
