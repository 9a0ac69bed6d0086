"""Which kernel of an image is booted: names of all distributions, links of both kinds, layers over layers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from cocoon.host.archive import TarScanner
from cocoon.images.bootfiles import BootScanner, Choice, boot_file_kind, boot_file_version, choose_boot_files
from image_scene import Entry, make_tar, special


def choose(directory: Path, *layers: list[Entry]) -> tuple[str, bytes, bytes] | None:
    """Version and content of the pair that a stack of these layers boots."""
    directory.mkdir(exist_ok=True)
    scans = []
    for number, entries in enumerate(layers):
        scanner = BootScanner(str(directory / str(number)))
        tar = TarScanner(scanner.look, "layer")
        tar.feed(make_tar(entries))
        tar.finish()
        scans.append(scanner.finish())
    choice = choose_boot_files(scans)
    if choice is None:
        return None
    return choice.version, *(_content(directory, choice, part) for part in ("kernel", "initrd"))


def _content(directory: Path, choice: Choice, part: str) -> bytes:
    layer, file = getattr(choice, f"{part}_layer"), getattr(choice, f"{part}_file")
    return (directory / str(layer) / file).read_bytes()


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return special(name, tarfile.SYMTYPE, link=target)


def hardlink(name: str, target: str) -> tarfile.TarInfo:
    return special(name, tarfile.LNKTYPE, link=target)


@pytest.mark.parametrize(
    ("kernel", "initrd", "version"),
    [
        ("boot/vmlinuz-6.1.0-18-amd64", "boot/initrd.img-6.1.0-18-amd64", "6.1.0-18-amd64"),  # Debian, Ubuntu
        ("boot/vmlinuz-virt", "boot/initramfs-virt", "virt"),  # Alpine
        ("boot/vmlinuz-6.8.5-301.fc40.x86_64", "boot/initramfs-6.8.5-301.fc40.x86_64.img", "6.8.5-301.fc40.x86_64"),
        ("boot/vmlinuz-6.4.0-1-default", "boot/initrd-6.4.0-1-default", "6.4.0-1-default"),  # openSUSE
        ("boot/vmlinuz-linux", "boot/initramfs-linux.img", "linux"),  # Arch
        ("vmlinuz", "initrd.img", ""),
        ("boot/vmlinuz", "boot/initrd", ""),
        ("./boot/vmlinuz-1", "/boot//initrd.img-1", "1"),
        ("/boot/vmlinuz-1", "./boot/./initrd.img-1", "1"),
    ],
)
@pytest.mark.parametrize("kernel_first", [True, False])
def test_names(tmp_path: Path, kernel: str, initrd: str, version: str, kernel_first: bool) -> None:
    entries: list[Entry] = [(kernel, b"K"), (initrd, b"I")]
    assert choose(tmp_path, entries if kernel_first else entries[::-1]) == (version, b"K", b"I")


@pytest.mark.parametrize(
    "names",
    [
        ("boot/vmlinuz-1", "boot/initrd.img-2"),
        ("boot/vmlinuz-1", "initrd.img-1"),  # not in one directory
        ("boot/vmlinuz-1.old", "boot/initrd.img-1.old"),
        ("boot/vmlinuz-1.dpkg-new", "boot/initrd.img-1.dpkg-new"),
        ("boot/vmlinuz-linux", "boot/initramfs-linux-fallback.img"),
        ("boot/grub/vmlinuz-1", "boot/grub/initrd.img-1"),
        ("usr/boot/vmlinuz-1", "usr/boot/initrd.img-1"),
    ],
)
def test_no_pair(tmp_path: Path, names: tuple[str, str]) -> None:
    assert choose(tmp_path, [(name, b"x") for name in names]) is None


def test_a_rescue_kernel_is_older_than_any(tmp_path: Path) -> None:
    entries: list[Entry] = []
    for version in ("0-rescue-4d2c", "6.9.1-200.fc40.x86_64", "6.12.0-1.fc40.x86_64"):
        entries += [(f"boot/vmlinuz-{version}", version.encode()), (f"boot/initramfs-{version}.img", b"I")]
    assert choose(tmp_path, entries) == ("6.12.0-1.fc40.x86_64", b"6.12.0-1.fc40.x86_64", b"I")


def test_debians_links_in_the_root(tmp_path: Path) -> None:
    """They lead to the older kernel, on purpose: the newest is booted all the same."""
    pairs: list[Entry] = [(f"boot/{n}-6.{v}", f"{n}{v}".encode()) for v in (1, 2) for n in ("vmlinuz", "initrd.img")]
    links: list[Entry] = [symlink("vmlinuz", "boot/vmlinuz-6.1"), symlink("initrd.img", "/boot/initrd.img-6.1")]
    assert choose(tmp_path / "a", pairs + links) == ("6.2", b"vmlinuz2", b"initrd.img2")
    assert choose(tmp_path / "b", links + pairs) == ("6.2", b"vmlinuz2", b"initrd.img2")
    # In a layer of their own, and as the only pair that is whole.
    assert choose(tmp_path / "c", [*pairs[:1], ("boot/initrd.img-other", b"I")], [
        symlink("boot/vmlinuz", "vmlinuz-6.1"), symlink("boot/initrd.img", "../boot/initrd.img-other")
    ]) == ("6.1", b"vmlinuz1", b"I")  # fmt: skip


@pytest.mark.parametrize(
    "target", ["vmlinuz", "boot/none", "../../etc/shadow", "/proc/kcore", "", "x" * 200, "vmlinuz-2"]
)
def test_links_that_lead_nowhere(tmp_path: Path, target: str) -> None:
    entries = [symlink("boot/vmlinuz", target), symlink("boot/vmlinuz-2", "vmlinuz"), ("boot/initrd.img", b"I")]
    assert choose(tmp_path, [*entries, ("boot/initrd.img-2", b"I")]) is None


def test_a_link_replaces_the_file_of_a_lower_layer(tmp_path: Path) -> None:
    base: list[Entry] = [("boot/vmlinuz-1", b"K"), ("boot/initrd.img-1", b"I")]
    assert choose(tmp_path / "a", base, [symlink("boot/vmlinuz-1", "/opt/kernel")]) is None
    assert choose(tmp_path / "b", base, [symlink("boot", "usr/boot")]) is None
    assert choose(tmp_path / "c", [symlink("boot/vmlinuz-1", "/opt/kernel"), base[1]], base[:1]) == ("1", b"K", b"I")


def test_hard_links(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("boot/vmlinuz-1", b"K"), hardlink("boot/vmlinuz", "./boot/vmlinuz-1"),
        ("boot/initrd.img", b"I"), hardlink("boot/initrd.img-3", "boot/vmlinuz-1"),  # of the other kind: none
    ]  # fmt: skip
    assert choose(tmp_path / "a", entries) == ("", b"K", b"I")
    # The content of a file that was not kept is gone with the stream.
    outside: list[Entry] = [("lib/modules/1/vmlinuz", b"K"), hardlink("boot/vmlinuz-1", "lib/modules/1/vmlinuz")]
    assert choose(tmp_path / "b", [*outside, ("boot/initrd.img-1", b"I")]) is None
    # It is the file that is linked, not the name: what replaces that later changes nothing.
    later: list[Entry] = [*entries[:3], ("boot/vmlinuz-1", b"new")]
    assert choose(tmp_path / "c", later) == ("", b"K", b"I")


def test_whiteouts_over_other_distributions_names(tmp_path: Path) -> None:
    base: list[Entry] = [("boot/vmlinuz-virt", b"K"), ("boot/initramfs-virt", b"I")]
    assert choose(tmp_path / "a", base, [("boot/.wh.initramfs-virt", b"")]) is None
    assert choose(tmp_path / "b", base, [("boot/.wh..wh..opq", b"")]) is None
    assert choose(tmp_path / "c", base, [(".wh.boot", b"")], base) == ("virt", b"K", b"I")
    assert choose(tmp_path / "d", base, [("boot/initramfs-virt", b"new")]) == ("virt", b"K", b"new")


def test_debians_form_of_two_for_one_kernel(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("boot/initramfs-1.img", b"dracut"),
        ("boot/initrd.img-1", b"debian"),
        ("boot/vmlinuz-1", b"K"),
    ]
    assert choose(tmp_path, entries) == ("1", b"K", b"debian")


@pytest.mark.parametrize(
    "name", ["vmlinux", "vmlinuz-", "vmlinuz-a b", "vmlinuz-" + "x" * 129, "initramfs-.img.x y", ""]
)
def test_names_that_are_none(name: str) -> None:
    assert boot_file_kind(name) == "" and boot_file_version(name) == ""
