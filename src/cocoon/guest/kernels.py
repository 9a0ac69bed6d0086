"""Makes a kernel of the engine's own from what a distribution ships: a Debian package, or a kernel file and a module
directory. Pure but for reading its inputs; `engine/kernel.py` keeps the result.

Inputs are strangers' files: sizes are bounded, formats are checked, and only file names of our own are written.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Protocol

from cocoon.errors import Corrupt, InvalidSpec, NotFound, Unsupported
from cocoon.guest.deb import read_deb
from cocoon.guest.initramfs import (
    MAX_MODULE_BYTES,
    WANTED_MODULES,
    module_dependencies,
    module_name,
    order_modules,
    render_init,
    render_modules,
    slim_module,
)
from cocoon.guest.unpack import decompress
from cocoon.guest.vmlinux import MAX_KERNEL_BYTES, check_whole, choose_form, unwrap_kernel
from cocoon.units import printable
from cocoon.value import Value

# A chain of dependencies that needs more rounds than this is none of a real kernel's.
MAX_ROUNDS = 16
MAX_MODULES = 100_000

# Modules that the wanted ones depend on in the kernels that we know: asking for them at once saves a second pass.
LIKELY_MODULES = frozenset({
    "virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "failover", "net_failover", "vsock",
    "vmw_vsock_virtio_transport_common", "libcrc32c", "jbd2", "mbcache", "crc16", "crc32c_generic", "netfs", "rng_core",
    "lz4_decompress", "xz_dec", "zstd_decompress", "zstd_common", "virtio_dma_buf",
})  # fmt: skip

_KERNEL_PATH = re.compile(r"^(?:usr/)?boot/vmlinuz-([^/]+)$")
_MODULE_PATH = re.compile(r"^(?:usr/)?lib/modules/([^/]+)/(?:[^/]+/)*([^/]+\.ko(?:\.(?:xz|gz|zst))?)$")
_RELEASE = re.compile(r"^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,127}$")
_BANNER = re.compile(rb"Linux version ([0-9A-Za-z.+~_-]{1,128}) ")


class KernelSource(Value):
    """Where a kernel comes from: the path of a .deb, or of a kernel file and a directory with its modules (such as
    /lib/modules/<release>; "" when everything is built in)."""

    deb: str = ""
    kernel: str = ""
    modules: str = ""


class BuiltKernel(Value):
    """A kernel ready to be kept: its files' content and what `uname -r` and `uname -m` will say in its guests.

    `archive` is what its initramfs consists of behind the init, and knows nothing of the engine's version.
    """

    id: str
    release: str
    arch: str
    kernel: bytes
    archive: bytes
    modules: tuple[str, ...]

    def initrd(self, init: bytes) -> bytes:
        """The whole initramfs around `init` (cocoon-init's bytes)."""
        return render_init(init) + self.archive


class _Modules(Protocol):
    """A place with modules. `scan` gives the packed content of those named, by name and file suffix, and remembers in
    `names` every module that is there."""

    names: set[str]

    def scan(self, wanted: set[str]) -> Iterator[tuple[str, str, bytes]]: ...


class _Package:
    """A Debian package; the kernel itself falls out of the first scan."""

    def __init__(self, path: str) -> None:
        self.names: set[str] = set()
        self.release = ""
        self.kernel = b""
        self._path = path
        self._module_releases: set[str] = set()

    def scan(self, wanted: set[str]) -> Iterator[tuple[str, str, bytes]]:
        def limit(path: str) -> int:
            if _KERNEL_PATH.match(path):
                return MAX_KERNEL_BYTES
            match = _MODULE_PATH.match(path)
            return MAX_MODULE_BYTES if match and module_name(match.group(2)) in wanted else 0

        for path, data in read_deb(self._path, limit, seen=self._note):
            if match := _MODULE_PATH.match(path):
                yield module_name(match.group(2)), _suffix(path), data
            elif match := _KERNEL_PATH.match(path):
                self._take_kernel(match.group(1), data)

    def finish(self) -> None:
        """Raises Corrupt when the package was not one kernel and its modules."""
        if not self.kernel:
            raise Corrupt(
                f"{printable(self._path, 400)} holds no /boot/vmlinuz-...",
                hint="take a real package like linux-image-6.1.0-30-cloud-amd64, not a metapackage",
            )
        if self._module_releases - {self.release}:
            raise Corrupt(f"{printable(self._path, 400)} holds modules of another kernel than {self.release}")

    def _note(self, path: str) -> None:
        if match := _MODULE_PATH.match(path):
            self._module_releases.add(match.group(1))
            _remember(self.names, module_name(match.group(2)))

    def _take_kernel(self, release: str, data: bytes) -> None:
        if self.release not in ("", release):
            raise Corrupt(f"{printable(self._path, 400)} holds several kernels")
        self.release, self.kernel = release, data


class _Directory:
    """A module directory of a running or unpacked system; symbolic links in it are not followed."""

    def __init__(self, path: str) -> None:
        self.names: set[str] = set()
        self._files: dict[str, str] = {}
        for directory, _, files in os.walk(path):
            for file in files:
                if name := module_name(file):
                    _remember(self.names, name)
                    self._files[name] = os.path.join(directory, file)

    def scan(self, wanted: set[str]) -> Iterator[tuple[str, str, bytes]]:
        for name in sorted(wanted & self.names):
            path = self._files[name]
            yield name, _suffix(path), read_input(path, MAX_MODULE_BYTES)


class _Nothing:
    """A kernel that needs no modules."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def scan(self, wanted: set[str]) -> Iterator[tuple[str, str, bytes]]:
        return iter(())


def _suffix(path: str) -> str:
    return "" if path.endswith(".ko") else path[path.rindex(".") :]


def _remember(names: set[str], name: str) -> None:
    names.add(name)
    if len(names) > MAX_MODULES:
        raise Corrupt(f"there are more than {MAX_MODULES} kernel modules")


def read_input(path: str, limit_bytes: int) -> bytes:
    """The content of a regular file that the user named. Raises NotFound, Corrupt, HostFault."""
    from cocoon.host.files import read_bounded

    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        what = f"cannot open {printable(path, 400)}: {getattr(error, 'strerror', error)}"
        raise NotFound(what, hint="give the path of a file") from error
    if not regular:
        raise InvalidSpec(f"{printable(path, 400)} is not a regular file")
    return read_bounded(path, limit_bytes)


def build_kernel(source: KernelSource, init: bytes) -> BuiltKernel:
    """The kernel of `source`, for guests whose init is `init` (cocoon-init's bytes). Takes about two seconds.

    Raises InvalidSpec (not exactly one kind of source), NotFound, Corrupt, Unsupported (format or architecture).
    """
    if bool(source.deb) == bool(source.kernel) or (source.modules and not source.kernel):
        raise InvalidSpec("a kernel comes from one place", hint="give one package, or a kernel file with --modules DIR")
    modules: dict[str, bytes]
    if source.deb:
        package = _Package(source.deb)
        modules = _collect_modules(package)
        package.finish()
        kernel, release = package.kernel, package.release
    else:
        kernel = read_input(source.kernel, MAX_KERNEL_BYTES)
        modules = _collect_modules(_open_directory(source.modules))
        release = _find_release(kernel, source.modules)
    kernel = unwrap_kernel(kernel)
    arch = find_kernel_arch(kernel)
    check_whole(kernel)
    _check_init(init, arch)
    if not _RELEASE.match(release):
        raise Corrupt(f"{printable(release)} is no kernel release")
    order = order_modules({name: module_dependencies(data) for name, data in modules.items()}, WANTED_MODULES)
    archive = render_modules({name: slim_module(modules[name]) for name in order}, order)
    kernel = choose_form(kernel)
    return BuiltKernel(
        id=_digest(kernel, archive), release=release, arch=arch, kernel=kernel, archive=archive, modules=order
    )


def _open_directory(path: str) -> _Modules:
    if not path:
        return _Nothing()
    if not os.path.isdir(path):
        raise NotFound(f"module directory {printable(path, 400)} does not exist")
    directory = _Directory(path)
    if not directory.names:
        hint = "give a directory like /lib/modules/6.1.0-30-cloud-amd64"
        raise Corrupt(f"{printable(path, 400)} holds no kernel modules", hint=hint)
    return directory


def _collect_modules(place: _Modules) -> dict[str, bytes]:
    """The wanted modules of `place` that it has, and all that they depend on, unpacked."""
    found: dict[str, bytes] = {}
    wanted = set(WANTED_MODULES) | LIKELY_MODULES
    for _ in range(MAX_ROUNDS):
        for name, suffix, data in place.scan(wanted):
            found[name] = decompress(data, suffix, limit_bytes=MAX_MODULE_BYTES)
        needed = {dependency for data in found.values() for dependency in module_dependencies(data)}
        wanted = (needed & place.names) - found.keys()
        if not wanted:
            return found
    raise Corrupt("the kernel's modules depend on each other too deeply")


def find_kernel_arch(kernel: bytes) -> str:
    """`x86_64` or `aarch64`, from the format: x86 bzImage (Documentation/arch/x86/boot.rst), arm64 Image
    (Documentation/arch/arm64/booting.rst) or ELF. Raises Unsupported for anything else."""
    if kernel[0x202:0x206] == b"HdrS":
        return "x86_64"
    if kernel[0x38:0x3C] == b"ARM\x64":
        return "aarch64"
    if kernel[:4] == b"\x7fELF":
        arch = {62: "x86_64", 183: "aarch64"}.get(int.from_bytes(kernel[18:20], "little"), "")
        if arch:
            return arch
    raise Unsupported(
        "this is no kernel that can be booted directly",
        hint="an x86 bzImage (vmlinuz), an arm64 Image or an ELF vmlinux is wanted",
    )


def _check_init(init: bytes, arch: str) -> None:
    found = find_kernel_arch(init)
    if found != arch:
        raise Unsupported(f"the kernel is for {arch}, this engine's guest program for {found}")


def _find_release(kernel: bytes, modules: str) -> str:
    """What `uname -r` will say: a bzImage has it in its header, others in their banner, else the directory's name."""
    if kernel[0x202:0x206] == b"HdrS":
        at = int.from_bytes(kernel[0x20E:0x210], "little") + 0x200
        words = kernel[at : at + 256].split(b"\0", 1)[0].decode("ascii", "replace").split()
        if words:
            return words[0]
    if match := _BANNER.search(kernel):
        return match.group(1).decode("ascii")
    return os.path.basename(os.path.realpath(modules)) if modules else "unknown"


def _digest(kernel: bytes, archive: bytes) -> str:
    from hashlib import sha256

    return sha256(sha256(kernel).digest() + sha256(archive).digest()).hexdigest()
