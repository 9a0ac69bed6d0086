"""Finds the kernel and the initramfs that an image carries.

While a layer streams by, everything under /boot (and in the root) that looks like a kernel or an initramfs is kept
under names of ours, with what the layer hides of those below it. The choice is made over all layers of an image, by
the rules of whiteouts: the newest kernel that is visible and has an initramfs of its own version, in its own directory.
The names of Debian and Ubuntu (`vmlinuz-6.1`, `initrd.img-6.1`), Alpine and Arch (`vmlinuz-virt`, `initramfs-virt`),
Fedora (`initramfs-6.1.img`) and openSUSE (`initrd-6.1`) are known; links between such names are followed.

    boot/<DiffID>/index.json  vmlinuz.0  initrd.0 ...     no directory: the layer has nothing to do with booting
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from cocoon.errors import Corrupt, NotFound
from cocoon.host.archive import DIRECTORY, HARDLINK, REGULAR, SYMLINK, Sink, TarEntry
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
MAX_LINKS = 8  # In a chain of symbolic links.
_VERSION = "[0-9A-Za-z.+~_-]{1,128}"
_KERNEL = re.compile(rf"vmlinuz(?:-({_VERSION}))?")
# Of two for one kernel the first form is taken.
_INITRDS = (
    re.compile(rf"initrd\.img(?:-({_VERSION}))?"),
    re.compile(rf"initramfs(?:-({_VERSION}?))?(?:\.img)?"),
    re.compile(rf"initrd(?:-({_VERSION}?))?(?:\.img)?"),
)
_LEFTOVERS = (".old", ".bak", ".dpkg-new", ".dpkg-tmp", ".dpkg-bak")


class Candidate(Value):
    """A kernel or initramfs of a layer: its path in the image, `version` from its name, the name it is kept under."""

    path: str
    version: str
    file: str


class BootLink(Value):
    """A symbolic link with a kernel's or initramfs's name, to another such name: both paths in the image."""

    path: str
    target: str


class LayerScan(Value):
    """What one layer says about booting. `hidden` are paths that it takes away from the layers below, with all that is
    beneath them; "" is the root."""

    kernels: tuple[Candidate, ...] = ()
    initrds: tuple[Candidate, ...] = ()
    hidden: tuple[str, ...] = ()
    links: tuple[BootLink, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the layer has nothing to do with booting."""
        return not (self.kernels or self.initrds or self.hidden or self.links)


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
        self._links: dict[str, BootLink] = {}
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
        elif kind := boot_file_kind(name):
            return self._take(entry, kind)
        return None

    def finish(self) -> LayerScan:
        """The result; the index is written beside the files. Raises HostFault."""
        self._end_file()
        found = sorted(self._found.values(), key=lambda candidate: candidate.path)
        scan = LayerScan(
            kernels=tuple(c for c in found if c.file.startswith("vmlinuz")),
            initrds=tuple(c for c in found if c.file.startswith("initrd")),
            hidden=tuple(sorted(self._hidden)),
            links=tuple(sorted(self._links.values(), key=lambda link: link.path)),
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
        if path in ("", BOOT) or boot_file_kind(path.removeprefix(f"{BOOT}/")):
            self._hidden[path] = None
            if len(self._hidden) > MAX_HIDDEN:
                raise Corrupt(f"a layer hides more than {MAX_HIDDEN} boot files")

    def _take(self, entry: TarEntry, kind: str) -> Sink | None:
        """A later entry of one name replaces an earlier one, as it does in a file system."""
        self._found.pop(entry.path, None)
        self._links.pop(entry.path, None)
        self._hide(entry.path)
        if entry.kind in (SYMLINK, HARDLINK):
            self._take_link(entry, kind)
        if entry.kind != REGULAR or not entry.size:
            return None
        limit = KERNEL_LIMIT_BYTES if kind == "vmlinuz" else INITRD_LIMIT_BYTES
        if entry.size > limit:
            shown = render_size(entry.size)
            raise Corrupt(f"boot file {entry.path} of an image has {shown}; the limit is {render_size(limit)}")
        self._number += 1
        if self._number > MAX_CANDIDATES:
            raise Corrupt(f"a layer has more than {MAX_CANDIDATES} kernels and initramfs images")
        file = f"{kind}.{self._number}"
        self._found[entry.path] = Candidate(path=entry.path, version=boot_file_version(entry.parts[-1]), file=file)
        self._file = _Kept(self._directory, file)
        return self._file.write

    def _take_link(self, entry: TarEntry, kind: str) -> None:
        """A hard link is another name of a file that stands before it; a symbolic one may lead to any layer."""
        if entry.kind == HARDLINK:
            other = self._found.get(_resolve("", entry.link))
            if other is not None and other.file.startswith(kind):
                version = boot_file_version(entry.parts[-1])
                self._found[entry.path] = other.replace(path=entry.path, version=version)
            return
        target = _resolve(os.path.dirname(entry.path), entry.link)
        if os.path.dirname(target) in ("", BOOT) and boot_file_kind(os.path.basename(target)) == kind:
            self._links[entry.path] = BootLink(path=entry.path, target=target)
            if len(self._links) > MAX_CANDIDATES:
                raise Corrupt(f"a layer has more than {MAX_CANDIDATES} links to boot files")

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def boot_file_kind(name: str) -> str:
    """`vmlinuz` or `initrd` when a file of this name may be one, else ""; what package managers leave is none."""
    if name.endswith(_LEFTOVERS):
        return ""
    if _KERNEL.fullmatch(name):
        return "vmlinuz"
    return "initrd" if any(form.fullmatch(name) for form in _INITRDS) else ""


def boot_file_version(name: str) -> str:
    """The kernel's release (`6.1.0-18-amd64`) or flavour (`virt`) in such a name, "" for none."""
    for form in (_KERNEL, *_INITRDS):
        if match := form.fullmatch(name):
            return match.group(1) or ""
    return ""


def _resolve(directory: str, link: str) -> str:
    """Where a link in `directory` leads, as a path in the image: `..` ends at the root."""
    parts: list[str] = [] if link.startswith("/") else directory.split("/")
    for part in link.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts = [*parts, part]
    return "/".join(part for part in parts if part)


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
    links = _visible([scan.links for scan in scans], scans)
    pairs = []
    for path in sorted({*kernels, *links}):
        if boot_file_kind(os.path.basename(path)) != "vmlinuz":
            continue
        kernel = _follow(path, kernels, links)
        partner = next((p for name in _partners(path) if (p := _follow(name, initrds, links)) is not None), None)
        if kernel is not None and partner is not None:
            # Of one version, the files themselves before links to them.
            pairs.append((version_key(kernel[1].version), path in kernels, path, (kernel, partner)))
    if not pairs:
        return None
    (kernel_layer, kernel_file), (initrd_layer, initrd_file) = max(pairs, key=lambda pair: pair[:3])[3]
    return Choice(
        version=kernel_file.version,
        kernel_layer=kernel_layer,
        kernel_file=kernel_file.file,
        initrd_layer=initrd_layer,
        initrd_file=initrd_file.file,
    )


def _partners(kernel_path: str) -> Iterator[str]:
    """The paths at which the initramfs of this kernel may be, the likeliest first."""
    directory, name = os.path.split(kernel_path)
    version = name.removeprefix("vmlinuz")
    for form in ("initrd.img{}", "initramfs{}.img", "initramfs{}", "initrd{}", "initrd{}.img"):
        yield os.path.join(directory, form.format(version))


def _follow(
    path: str, files: Mapping[str, tuple[int, Candidate]], links: Mapping[str, tuple[int, BootLink]]
) -> tuple[int, Candidate] | None:
    """The file of this path, through symbolic links; None when there is none."""
    for _ in range(MAX_LINKS):
        if path in files or path not in links:
            break
        path = links[path][1].target
    return files.get(path)


E = TypeVar("E", Candidate, BootLink)


def _visible(found: Sequence[tuple[E, ...]], scans: Sequence[LayerScan]) -> dict[str, tuple[int, E]]:
    """By path, what the stack of layers shows, with the number of its layer."""
    shown: dict[str, tuple[int, E]] = {}
    for number, (entries, scan) in enumerate(zip(found, scans, strict=True)):
        for hidden in scan.hidden:
            for path in list(shown):
                if not hidden or path == hidden or path.startswith(f"{hidden}/"):
                    del shown[path]
        shown.update({entry.path: (number, entry) for entry in entries})
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
