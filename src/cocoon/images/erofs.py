"""Turns a tar stream into an EROFS file with mkfs.erofs, which is not trusted with anything.

The program parses what strangers wrote, so it runs without capabilities, without a network, under a uid that nobody
else has, and reaches two things by descriptors: an empty directory and an empty file of that uid's. What it made
becomes a file of ours, and is hashed, once it is dead; where anything could still write to it, a copy of it does. So
nothing that it left behind can change a blob.

The same tar and the same builder give the same bytes: UUID from the DiffID, no build time, files' own times kept.
"""

from __future__ import annotations

import os
import re

from cocoon.config import Config
from cocoon.errors import CommandFailed, InvalidSpec, NotFound, Unsupported
from cocoon.host.command import Sandbox, find_program, run, start
from cocoon.host.fed_program import FedProgram, make_feed
from cocoon.host.files import host_fault, make_directory
from cocoon.images.untrusted import BuiltFile, adopt, draw_uid
from cocoon.paths import LIBEXEC_DIR
from cocoon.units import GIB, printable
from cocoon.value import Value

OLDEST_VERSION = (1, 8)
VERSION_TIMEOUT_S = 20.0
BUILD_TIMEOUT_S = 6 * 3600.0  # As long as a slow registry may take to deliver a layer.
MEMORY_BYTES = 2 * GIB
# mkfs.erofs stretches a sparse buffer file to 2 TiB before anything else (lib/diskbuf.c); what the layer may become is
# bounded by its decompression.
FILE_BYTES = 4 * 1024**4
# 1.8.6 opens its output once more for every file that waits for a compressing thread, and hangs when it cannot.
OPEN_FILES = 16_384
CPU_S = 3600
COMPRESSION = {
    "none": (),
    "lz4": ("-zlz4", "-C16384"),
    "lz4hc": ("-zlz4hc", "-C16384"),
    "zstd": ("-zzstd", "-C65536"),
}
NAMESPACE_URL = bytes.fromhex("6ba7b8119dad11d180b400c04fd430c8")  # RFC 4122, appendix C
HINT = "./quickstart installs one; or set mkfs_erofs_binary to one of erofs-utils 1.8 or later"
_VERSION = re.compile(rb"mkfs\.erofs \(?(?:erofs-utils\) )?v?([0-9]+)\.([0-9]+)")


class Builder(Value):
    """A mkfs.erofs that can do it: absolute `path`, `version`, and the arguments that choose the compression.

    `has_threads`: it may compress in several, however many the host has cores for; all numbers of them make the same.
    """

    path: str
    version: str
    compression: tuple[str, ...]
    has_threads: bool
    uid_base: int

    def in_one_thread(self) -> Builder:
        """The same, for layers with large files. What it makes is made of the same bytes, but for such files.

        Several threads of 1.8 keep all that becomes of a file in memory until its end: 1 GiB of it for 1 GiB. Threads
        cut a file into segments of 16 MiB first (lib/compress.c), which is all that differs. Raises CommandFailed.
        """
        if not self.has_threads:
            return self
        # A build without threads does not know the option. Asked only here, as few layers have large files.
        known = b"--workers" in run([self.path, "--help"], timeout_s=VERSION_TIMEOUT_S)
        one = ("--workers=0",) if known else ()
        return self.replace(compression=(*self.compression, *one), has_threads=False)


def find_builder(config: Config) -> Builder:
    """The mkfs.erofs that the settings name, else ours, else the system's.

    Raises NotFound when there is none, Unsupported when it is older than 1.8 (no `--tar`) or lacks the compression,
    InvalidSpec for an unknown compression.
    """
    if config.erofs_compression not in COMPRESSION:
        known = ", ".join(COMPRESSION)
        raise InvalidSpec(f"setting erofs_compression is {printable(config.erofs_compression)}", hint=f"use {known}")
    candidates = [config.mkfs_erofs_binary] if config.mkfs_erofs_binary else [f"{LIBEXEC_DIR}/mkfs.erofs", "mkfs.erofs"]
    found = next((path for path in map(find_program, candidates) if path), None)
    if found is None:
        raise NotFound(f"program {printable(candidates[-1])} (erofs-utils) is not installed", hint=HINT)
    # The checkout may lie where an unprivileged uid cannot go; the real file lies where it can.
    path = os.path.realpath(found)
    try:
        said = run([path, "--version"], timeout_s=VERSION_TIMEOUT_S)
    except CommandFailed as error:
        raise Unsupported(f"{path} does not tell its version: {error.message}", hint=HINT) from error
    match = _VERSION.search(said)
    version = tuple(int(number) for number in match.groups()) if match else (0, 0)
    if version < OLDEST_VERSION:
        raise Unsupported(f"{path} has version {'.'.join(map(str, version))}, too old to read layers", hint=HINT)
    _check_compression(config.erofs_compression, said, path)
    return Builder(
        path=path,
        version=".".join(map(str, version)),
        compression=COMPRESSION[config.erofs_compression],
        has_threads=config.erofs_compression != "none",
        uid_base=config.uid_base,
    )


def _check_compression(wanted: str, said: bytes, path: str) -> None:
    """Raises Unsupported when the program lists the compressions that it was built with, and this is none of them."""
    _, found, rest = said.partition(b"available compressors:")
    known = [word.strip().decode("ascii", "replace") for word in rest.split(b"\n")[0].split(b",")]
    if found and wanted != "none" and wanted not in known:
        usable = ", ".join(name for name in COMPRESSION if name in (*known, "none"))
        hint = f"set erofs_compression to one of: {usable}; or mkfs_erofs_binary to another program"
        raise Unsupported(f"{path} cannot compress with {wanted}", hint=hint)


def blob_uuid(diff_id: str) -> str:
    """The UUID of a layer's file system: version 5 of its DiffID (RFC 4122, 4.3; `uuid` is slow to import)."""
    from hashlib import sha1

    digest = bytearray(sha1(NAMESPACE_URL + diff_id.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Build:
    """One run of mkfs.erofs in the new directory `directory`: `write` the tar, then `finish`; `kill` in any case.

    `diff_id` makes the UUID. Without `whiteouts` a file whose name begins with `.wh.` is a file like any other.
    """

    def __init__(self, builder: Builder, directory: str, diff_id: str, *, whiteouts: bool = True) -> None:
        self._directory = directory
        self._fd = self._tmp_fd = -1
        uid = draw_uid(builder.uid_base)
        make_directory(directory)
        try:
            make_directory(f"{directory}/tmp", uid=uid)
            self._tmp_fd = os.open(f"{directory}/tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fd = os.open(f"{directory}/out", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.fchown(self._fd, uid, uid)
            self._program = self._start(builder, uid, diff_id, reading=("--aufs",) if whiteouts else ())
        except OSError as error:
            self._close()
            raise host_fault(f"prepare {directory}", error) from error
        except BaseException:
            self._close()
            raise

    def _start(self, builder: Builder, uid: int, diff_id: str, *, reading: tuple[str, ...]) -> FedProgram:
        # A stream that ends too early makes 1.8.6 spin for ever; but the sandbox dies with the thread that feeds it.
        argv = [builder.path, "--quiet", "--tar=f", *reading]
        argv += [*builder.compression, "-T0", "--mkfs-time", "-U", blob_uuid(diff_id), f"/proc/self/fd/{self._fd}"]
        sandbox = Sandbox(
            uid=uid, gid=uid, memory_bytes=MEMORY_BYTES, file_bytes=FILE_BYTES, cpu_s=CPU_S, open_files=OPEN_FILES
        )
        read_end, write_end = make_feed()
        try:
            running = start(
                argv,
                environment={"TMPDIR": f"/proc/self/fd/{self._tmp_fd}"},
                sandbox=sandbox,
                stdin_fd=read_end,
                pass_fds=(self._fd, self._tmp_fd),
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        return FedProgram(running, write_end, name="mkfs.erofs", timeout_s=BUILD_TIMEOUT_S)

    def write(self, data: memoryview | bytes) -> None:
        """Hands the next piece of the tar on. Raises CommandFailed when mkfs.erofs has ended."""
        self._program.write(data)

    def finish(self, path: str) -> BuiltFile:
        """Waits for mkfs.erofs and makes the durable file `path` of its result. Raises CommandFailed, HostFault."""
        self._program.finish()
        self._close()
        try:
            return adopt(f"{self._directory}/out", path, suffix="erofs")
        except OSError as error:
            raise host_fault(f"write {path}", error) from error

    def kill(self) -> None:
        """Ends mkfs.erofs if it still runs. The directory is the caller's to remove."""
        self._program.kill()
        self._close()

    def _close(self) -> None:
        for fd in (self._fd, self._tmp_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._tmp_fd = -1
