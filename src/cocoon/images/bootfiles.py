"""Finds the kernel and the initramfs that an image carries.

While a layer streams by, everything under /boot (and in the root) that looks like a kernel or an initramfs is kept
under names of ours, with what the layer hides of those below it. The choice is made over all layers of an image, by
the rules of whiteouts: the newest kernel that is visible and has an initramfs of its own version.

    boot/<DiffID>/index.json  vmlinuz.0  initrd.0 ...     no directory: the layer has nothing to do with booting
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from cocoon.errors import Corrupt, NotFound
from cocoon.host.archive import DIRECTORY, REGULAR, Sink, TarEntry
from cocoon.units import MIB, render_size
from cocoon.value import Value

BOOT = "boot"
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"  # image-spec layer.md
INDEX = "index.json"
INDEX_LIMIT_BYTES = 4 * MIB
KERNEL_LIMIT_BYTES = 256 * MIB
INITRD_LIMIT_BYTES = 512 * MIB
MAX_CANDIDATES = 16  # Kernels or initramfs images in one layer.
MAX_HIDDEN = 10_000
_NAME = re.compile(r"(vmlinuz|initrd\.img)(?:-([0-9A-Za-z.+~_-]{1,128}))?")


class Candidate(Value):
    """A kernel or initramfs of a layer: its path in the image, `version` from its name, the name it is kept under."""

    path: str
    version: str
    file: str


class LayerScan(Value):
    """What one layer says about booting. `hidden` are paths that it takes away from the layers below, with all that is
    beneath them; "" is the root."""

    kernels: tuple[Candidate, ...] = ()
    initrds: tuple[Candidate, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the layer has nothing to do with booting."""
        return not (self.kernels or self.initrds or self.hidden)


class Choice(Value):
    """The pair to boot: the numbers of the layers (from the bottom) and the names that the files are kept under."""

    version: str
    kernel_layer: int
    kernel_file: str
    initrd_layer: int
    initrd_file: str


class BootScanner:
    """Looks at every entry of one layer and keeps what may be needed in `directory`, which it makes when it has to."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._found: dict[str, Candidate] = {}
        self._hidden: dict[str, None] = {}
        self._number = 0
        self._file: _Kept | None = None

    def look(self, entry: TarEntry) -> Sink | None:
        """Takes note of `entry`; returns a sink when its content is to be kept. Raises Corrupt, HostFault."""
        self._end_file()
        parts = entry.parts
        if not parts or len(parts) > 2 or (len(parts) == 2 and parts[0] != BOOT):
            return None
        name, directory = parts[-1], BOOT if len(parts) == 2 else ""
        if name.startswith(WHITEOUT):
            self._hide(directory if name == OPAQUE else f"{directory}/{name.removeprefix(WHITEOUT)}".lstrip("/"))
        elif parts == (BOOT,):
            if entry.kind != DIRECTORY:
                self._hide(BOOT)
        elif match := _NAME.fullmatch(name):
            return self._take(entry, match)
        return None

    def finish(self) -> LayerScan:
        """The result; the index is written beside the files. Raises HostFault."""
        self._end_file()
        found = sorted(self._found.values(), key=lambda candidate: candidate.path)
        scan = LayerScan(
            kernels=tuple(c for c in found if c.file.startswith("vmlinuz")),
            initrds=tuple(c for c in found if c.file.startswith("initrd")),
            hidden=tuple(sorted(self._hidden)),
        )
        if not scan.is_empty:
            write_index(self._directory, scan)
        return scan

    def close(self) -> None:
        """Lets go of a file that is not finished; does nothing otherwise."""
        if self._file is not None:
            self._file.abandon()
            self._file = None

    def _hide(self, path: str) -> None:
        if path in ("", BOOT) or _NAME.fullmatch(path.removeprefix(f"{BOOT}/")):
            self._hidden[path] = None
            if len(self._hidden) > MAX_HIDDEN:
                raise Corrupt(f"a layer hides more than {MAX_HIDDEN} boot files")

    def _take(self, entry: TarEntry, match: re.Match[str]) -> Sink | None:
        """A later entry of one name replaces an earlier one, as it does in a file system."""
        self._found.pop(entry.path, None)
        self._hide(entry.path)
        if entry.kind != REGULAR or not entry.size or (match.group(2) or "").endswith(".old"):
            return None
        kind = "vmlinuz" if match.group(1) == "vmlinuz" else "initrd"
        limit = KERNEL_LIMIT_BYTES if kind == "vmlinuz" else INITRD_LIMIT_BYTES
        if entry.size > limit:
            shown = render_size(entry.size)
            raise Corrupt(f"boot file {entry.path} of an image has {shown}; the limit is {render_size(limit)}")
        self._number += 1
        if self._number > MAX_CANDIDATES:
            raise Corrupt(f"a layer has more than {MAX_CANDIDATES} kernels and initramfs images")
        file = f"{kind}.{self._number}"
        self._found[entry.path] = Candidate(path=entry.path, version=match.group(2) or "", file=file)
        self._file = _Kept(self._directory, file)
        return self._file.write

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Kept:
    """A file being copied out of a layer, under a name of ours."""

    def __init__(self, directory: str, name: str) -> None:
        from cocoon.host.files import make_directory

        make_directory(directory)
        self._fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        os.fchmod(self._fd, 0o444)
        os.fsync(self._fd)
        os.close(self._fd)

    def abandon(self) -> None:
        os.close(self._fd)


def write_index(directory: str, scan: LayerScan) -> None:
    """Writes the scan's result into its directory, made if it is not there."""
    from json import dumps

    from cocoon.host.files import make_directory, write_atomic
    from cocoon.value import to_plain

    make_directory(directory)
    write_atomic(f"{directory}/{INDEX}", dumps(to_plain(scan), indent=2).encode(), 0o444)


def read_index(directory: str) -> LayerScan | None:
    """What was found in a layer before; None when something of it is missing or damaged, so that it must be repeated.

    No directory: there was nothing.
    """
    from json import JSONDecodeError, loads

    from cocoon.host.files import read_bounded
    from cocoon.value import from_plain

    if not os.path.isdir(directory):
        return LayerScan()
    try:
        scan = from_plain(LayerScan, loads(read_bounded(f"{directory}/{INDEX}", INDEX_LIMIT_BYTES)))
    except (JSONDecodeError, UnicodeDecodeError, Corrupt, NotFound):
        return None
    whole = all(os.path.isfile(f"{directory}/{c.file}") for c in (*scan.kernels, *scan.initrds))
    return scan if whole else None


def choose_boot_files(scans: Sequence[LayerScan]) -> Choice | None:
    """The newest visible kernel that has a visible initramfs of the same version and directory; `scans` from the
    bottom layer up."""
    kernels = _visible([scan.kernels for scan in scans], scans)
    initrds = _visible([scan.initrds for scan in scans], scans)
    pairs = []
    for path, (layer, kernel) in kernels.items():
        partner = initrds.get(path.replace("vmlinuz", "initrd.img", 1))
        if partner is not None:
            pairs.append((version_key(kernel.version), path, layer, kernel, partner))
    if not pairs:
        return None
    _, _, layer, kernel, (initrd_layer, initrd) = max(pairs, key=lambda pair: pair[:2])
    return Choice(
        version=kernel.version,
        kernel_layer=layer,
        kernel_file=kernel.file,
        initrd_layer=initrd_layer,
        initrd_file=initrd.file,
    )


def _visible(found: Sequence[tuple[Candidate, ...]], scans: Sequence[LayerScan]) -> dict[str, tuple[int, Candidate]]:
    """By path, what the stack of layers shows, with the number of its layer."""
    shown: dict[str, tuple[int, Candidate]] = {}
    for number, (candidates, scan) in enumerate(zip(found, scans, strict=True)):
        for hidden in scan.hidden:
            for path in list(shown):
                if not hidden or path == hidden or path.startswith(f"{hidden}/"):
                    del shown[path]
        shown.update({candidate.path: (number, candidate) for candidate in candidates})
    return shown


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Orders kernel releases as people do: 6.9 before 6.12, 6.1.0-9 before 6.1.0-18, 6.1~rc1 before 6.1."""
    key = []
    for number, text in re.findall(r"([0-9]+)|([^0-9]+)", version):
        if number:
            key.append((2, int(number), ""))
        else:
            key.append((0 if text.startswith("~") else 1, 0, text))
    return (*key, (0 if version == "" else 1, -1, ""))
