"""What a laboratory is made of: its system, built once; and a disk with this checkout, made for each session."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import fixtures
from cocoon.paths import LIBEXEC_DIR
from cocoon.value import Value

HERE = Path(__file__).resolve().parent
LEFT_OUT = (
    ".git",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "mypy",
    "mypyc",
    "*__mypyc.*.so",
    "ruff",
)
HIDDEN = ("/dev", "/proc", "/sys", "/run")  # Mounted over in the laboratory.


class System(Value):
    """Root file system, kernel and initramfs."""

    root: Path
    kernel: Path
    initrd: Path


def find_obstacle() -> str:
    """Why no laboratory can run here; "" when it can."""
    if platform.machine() != "x86_64":
        return "the laboratory needs an x86-64 machine"
    if _distribution("ID") != "debian":
        return "the laboratory is built on Debian 12 or 13"
    if missing := [name for name in ("mmdebstrap", "qemu-system-x86_64", "busybox", "cpio") if not shutil.which(name)]:
        return f"the laboratory needs {' and '.join(missing)}"
    if str(fixtures.PROJECT).startswith(HIDDEN):
        return f"the checkout is in {fixtures.PROJECT}, which the laboratory mounts over"
    return ""


def ensure_system() -> System:
    """The system, built if it is not there: about two minutes."""
    newer = _distribution("VERSION_CODENAME") == "bookworm"  # 6.12 in both, where it was tried.
    kernel_deb = fixtures.fetch_other_kernel_deb() if newer else fixtures.fetch_kernel_deb()
    inputs = [HERE / "build", HERE / "initramfs-init", fixtures.PROJECT / "setup" / "packages.sh", kernel_deb]
    command = [str(HERE / "build"), mkfs_erofs(), str(kernel_deb)]
    built = fixtures.build_once("lab", inputs, command)
    return System(root=built / "root.erofs", kernel=built / "vmlinuz", initrd=built / "initrd")


def _distribution(field: str) -> str:
    return platform.freedesktop_os_release().get(field, "")


def mkfs_erofs() -> str:
    """The project's own, or the distribution's where that is new enough."""
    own = Path(LIBEXEC_DIR) / "mkfs.erofs"
    return str(own) if own.exists() else "mkfs.erofs"


def pack_checkout(target: Path, extra: list[Path]) -> Path:
    """An EROFS with this checkout, the interpreter's packages and `extra`, each under its own absolute path."""
    trees = {fixtures.PROJECT, Path(sys.prefix), *extra}
    if Path(mkfs_erofs()).is_symlink():
        trees.add(Path(mkfs_erofs()).resolve().parent)  # The checkout's is a link to where it was built.
    words = [str(path.absolute()).lstrip("/") for path in sorted(trees) if not _is_inside(path, trees)]
    excludes = [f"--exclude={name}" for name in LEFT_OUT]
    with subprocess.Popen(["tar", "-c", "-C", "/", *excludes, "--", *words], stdout=subprocess.PIPE) as tar:
        subprocess.run([mkfs_erofs(), "--quiet", "--tar=f", str(target)], stdin=tar.stdout, check=True)
    if tar.returncode not in (0, 1):  # 1: a file changed while it was read.
        raise RuntimeError(f"tar ended with {tar.returncode}")
    return target


def _is_inside(path: Path, trees: set[Path]) -> bool:
    return any(parent in trees for parent in path.parents)
