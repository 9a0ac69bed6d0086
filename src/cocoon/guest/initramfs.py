"""The engine's own initramfs: `cocoon-init`, the modules it needs, and their order. Nothing else.

    /init            native/guest
    /modules/order   module file names, one a line, each after all that it depends on
    /modules/*.ko    decompressed on the host, so that the guest need not; slimmed, see `slim_module`
    /dev/console     the kernel opens it for /init before anything is mounted

The archive is cpio in the kernel's `newc` form (Documentation/driver-api/early-userspace/buffer-format.rst), the same
bytes for the same input. Dependencies are read out of the modules themselves (`depends=` in .modinfo, what depmod reads
too), because a Debian package carries no modules.dep.
"""

from __future__ import annotations

import re

from cocoon.errors import Corrupt
from cocoon.units import MIB, printable

# What a guest can meet, in the order in which it should come up: transports first, then disks, since they are waited
# for. A name that a kernel does not have is built in or not needed.
WANTED_MODULES = (
    "virtio_pci", "virtio_mmio", "virtio_blk", "erofs", "ext4", "crc32c", "overlay", "virtio_net", "virtio_console",
    "virtio_rng", "virtio_balloon", "button", "evdev", "vmw_vsock_virtio_transport", "af_packet", "vmgenid",
)  # fmt: skip
MAX_MODULE_BYTES = 32 * MIB

_DEPENDS = re.compile(rb"\0depends=([A-Za-z0-9_,-]*)\0")
_SUFFIX = re.compile(r"\.ko(\.(?:gz|xz|zst))?$")
_SIGNATURE_MAGIC = b"~Module signature appended~\n"
_SIGNATURE_INFO_BYTES = 12
_DIRECTORY, _FILE, _CHARACTER_DEVICE = 0o040000, 0o100000, 0o020000


def module_name(file_name: str) -> str:
    """`virtio_rng` of `virtio-rng.ko.xz`: the kernel writes underscores; "" when it is no module's file name."""
    match = _SUFFIX.search(file_name)
    return file_name[: match.start()].replace("-", "_") if match else ""


def module_dependencies(module: bytes) -> tuple[str, ...]:
    """The names of the modules that `module` (ELF, decompressed) says it depends on."""
    match = _DEPENDS.search(module)
    if match is None:
        return ()
    return tuple(name.replace("-", "_") for name in match.group(1).decode("ascii").split(",") if name)


def slim_module(module: bytes) -> bytes:
    """`module` (ELF, decompressed) without what makes loading it slow: its signature and its BTF.

    Checking the one and parsing the other is nine tenths of the work of loading our modules, 0.7 of 1.7 billion
    instructions of a boot, most of a second under emulation. The initramfs is root's, so the signature guards nothing;
    the kernel notes that the module has none (taint E). BTF only serves tracing tools.
    """
    signature = module.rfind(_SIGNATURE_MAGIC)
    if signature > _SIGNATURE_INFO_BYTES and signature == len(module) - len(_SIGNATURE_MAGIC):
        # struct module_signature (linux/module_signature.h) ends with the big-endian length of what stands before it.
        length = int.from_bytes(module[signature - 4 : signature], "big")
        module = module[: max(0, signature - _SIGNATURE_INFO_BYTES - length)]
    names = _find_section_names(module)
    at = module.find(b"\0.BTF\0", names.start, names.stop)
    # The kernel looks for the section by name; under another one it is just bytes that are not loaded.
    return module[: at + 1] + b".btf" + module[at + 5 :] if at >= 0 else module


def _find_section_names(module: bytes) -> range:
    """Where the section names stand in a little-endian ELF of 64 bits (elf(5)); empty when it is none."""
    if module[:6] != b"\x7fELF\x02\x01" or len(module) < 64:
        return range(0)
    table = int.from_bytes(module[0x28:0x30], "little")
    entry_bytes = int.from_bytes(module[0x3A:0x3C], "little")
    header = table + entry_bytes * int.from_bytes(module[0x3E:0x40], "little")
    start = int.from_bytes(module[header + 0x18 : header + 0x20], "little")
    size_bytes = int.from_bytes(module[header + 0x20 : header + 0x28], "little")
    return range(start, min(start + size_bytes, len(module)))


def order_modules(dependencies: dict[str, tuple[str, ...]], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """`wanted` and all that they depend on, each after its dependencies; names not in `dependencies` are left out.

    Raises Corrupt when modules depend on each other in a circle.
    """
    ordered: list[str] = []
    above: list[str] = []

    def visit(name: str) -> None:
        if name in ordered or name not in dependencies:
            return
        if name in above:
            raise Corrupt(f"module {printable(name)} depends on itself through {' '.join(above)}")
        above.append(name)
        for dependency in dependencies[name]:
            visit(dependency)
        above.pop()
        ordered.append(name)

    for name in wanted:
        visit(name)
    return tuple(ordered)


def render_init(init: bytes) -> bytes:
    """The first part of the initramfs, which changes with every version of the engine. It has no end of its own."""
    entries = (
        ("dev", _DIRECTORY | 0o755, b"", (0, 0)),
        ("dev/console", _CHARACTER_DEVICE | 0o600, b"", (5, 1)),
        ("init", _FILE | 0o755, init, (0, 0)),
    )
    return b"".join(_render_entry(entry, number) for number, entry in enumerate(entries, start=1))


def render_modules(modules: dict[str, bytes], order: tuple[str, ...]) -> bytes:
    """The second part, which belongs to the kernel: the modules, and the end of the archive.

    An entry is padded to four bytes wherever it stands, so that this follows whatever `render_init` gives.
    """
    files = {f"modules/{name}.ko": modules[name] for name in order}
    files["modules/order"] = "".join(f"{name}.ko\n" for name in order).encode()
    entries = [("modules", _DIRECTORY | 0o755, b"", (0, 0))]
    entries += [(path, _FILE | 0o644, files[path], (0, 0)) for path in sorted(files)]
    # Inode numbers after those of the first part: two files of one number and several links would be one.
    parts = [_render_entry(entry, number) for number, entry in enumerate(entries, start=4)]
    parts.append(_render_entry(("TRAILER!!!", 0, b"", (0, 0)), 0))
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % 512)


def _render_entry(entry: tuple[str, int, bytes, tuple[int, int]], inode: int) -> bytes:
    """One `newc` entry: thirteen fields of eight hex digits, the name and the data, both padded to four bytes."""
    path, mode, data, device = entry
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
