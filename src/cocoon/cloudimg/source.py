"""Where disks come from, as those see it who convert them: files that a user gives, or a URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from cocoon.cloudimg.checksums import Checksum
from cocoon.cloudimg.download import Download
from cocoon.cloudimg.partial import Partial, part_stem
from cocoon.cloudimg.url import DiskURL
from cocoon.errors import Corrupt, Unsupported
from cocoon.host.failpoint import failpoint
from cocoon.host.files import host_fault, remove_file
from cocoon.images.decompress import ALL_FORMATS, Decompressor, disk_limit
from cocoon.images.given import CHUNK_BYTES, STDIN, GivenFile, end_sparse, write_sparse
from cocoon.images.parts import SUFFIX
from cocoon.units import printable, render_size
from cocoon.value import Value

MAX_GIVEN_BYTES = 256 * 1024**3  # Of an image as it is given, compressed or not.


class GivenDisk(Value):
    """A disk image as it came, in a file of ours; `sha256` in hex, `source` says where from, for the record."""

    sha256: str
    size_bytes: int
    source: str


class DiskSource(Protocol):
    """Files, a URL. `what` names the image in errors; `promised` is the SHA-256 that its bytes will have, "" if nobody
    has said; `outcome` what a progress display says when they are here."""

    what: str
    promised: str
    outcome: str

    def fetch(self, path: str, on_progress: Callable[[int, int], None]) -> GivenDisk:
        """Makes the new file `path` of it. `on_progress` is told how many of how many bytes (0: unknown) are here.

        Raises NotFound, Corrupt, APIFailed, Timeout, HostFault.
        """


class FileSource:
    """One disk in one file, or in several that are its parts, in order."""

    outcome = "read"

    def __init__(self, files: Sequence[GivenFile]) -> None:
        self._files = files
        self.promised = ""
        self.what = files[0].what if len(files) == 1 else f"the disk in {len(files)} parts"

    def fetch(self, path: str, on_progress: Callable[[int, int], None]) -> GivenDisk:
        """See DiskSource. Copied, because somebody might write to the files meanwhile."""
        from hashlib import sha256

        total = sum(file.size for file in self._files)
        if total > MAX_GIVEN_BYTES:
            limit = render_size(MAX_GIVEN_BYTES)
            raise Unsupported(f"{self.what} has {render_size(total)}; the limit is {limit}")
        digest, done = sha256(), 0
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                for chunk in self._chunks():
                    digest.update(chunk)
                    write_sparse(fd, chunk)
                    done += len(chunk)
                    on_progress(done, total)
                end_sparse(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise host_fault(f"copy {self.what}", error) from error
        if done != total:
            raise Corrupt(f"{self.what} changed while it was read", hint="try again when nothing writes to it")
        return GivenDisk(sha256=digest.hexdigest(), size_bytes=total, source=self._describe())

    def _chunks(self) -> Iterator[bytes]:
        for file in self._files:
            for at in range(0, file.size, CHUNK_BYTES):
                yield os.pread(file.fd, min(CHUNK_BYTES, file.size - at), at)

    def _describe(self) -> str:
        paths = [file.path if file.path == STDIN else os.path.abspath(file.path) for file in self._files]
        more = f" and {len(paths) - 1} more parts" if len(paths) > 1 else ""
        return "stdin" if paths[0] == STDIN else f"file {printable(paths[0], 400)[1:-1]}{more}"


def inflate(source: str, target: str, *, what: str) -> None:
    """Makes the new file `target` of the compressed `source`, with holes. Raises Corrupt, Unsupported, HostFault."""
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(source, "rb", buffering=0) as packed:
                limit = disk_limit(os.fstat(packed.fileno()).st_size)
                decompressor = Decompressor(what, limit, formats=ALL_FORMATS)
                while chunk := packed.read(CHUNK_BYTES):
                    for piece in decompressor.feed(chunk):
                        write_sparse(fd, piece)
                for piece in decompressor.finish():
                    write_sparse(fd, piece)
            end_sparse(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise host_fault(f"unpack {what}", error) from error


class URLSource:
    """The disk at a URL; the caller holds the lock of its part. `expected` is None when nothing vouches for it."""

    outcome = "fetched"

    def __init__(self, disk: DiskURL, download: Download, *, parts_dir: str, expected: Checksum | None) -> None:
        self._disk = disk
        self._download = download
        self._parts_dir = parts_dir
        self._expected = expected
        self.what = printable(disk.file_name, 200)
        self.promised = expected.hex if expected is not None and expected.algorithm == "sha256" else ""
        download.is_checked = expected is not None

    def fetch(self, path: str, on_progress: Callable[[int, int], None]) -> GivenDisk:
        """See DiskSource. What is here when it ends early is gone on with the next time, until `drop_part`."""
        partial = Partial(self._parts_dir, self._disk.url)
        try:
            self._download.fetch(partial, on_progress)
            failpoint("image.url:here")
            digest = self._verify(partial)
            partial.link_to(path)
        finally:
            partial.close()
        return GivenDisk(sha256=digest, size_bytes=partial.state.length, source=self._disk.url)

    def drop_part(self) -> None:
        """Removes what is kept of the file: it is an image now, or can never be one."""
        remove_file(f"{part_stem(self._parts_dir, self._disk.url)}{SUFFIX}")

    def _verify(self, partial: Partial) -> str:
        """The SHA-256 of what is here. Raises Corrupt when it is not what was promised."""
        import hashlib

        digests = {name: hashlib.new(name) for name in {"sha256", getattr(self._expected, "algorithm", "sha256")}}
        at = 0
        while at < partial.state.length:
            chunk = partial.read(at, CHUNK_BYTES)
            at += len(chunk)
            for digest in digests.values():
                digest.update(chunk)
        if self._expected is not None and digests[self._expected.algorithm].hexdigest() != self._expected.hex:
            partial.drop()
            found = digests[self._expected.algorithm].hexdigest()
            raise Corrupt(
                f"{self.what} has {self._expected.algorithm} {found[:12]}, not {self._expected.hex[:12]} as it should",
                hint="what was fetched is thrown away; if this happens again, the checksum is of another version",
            )
        return digests["sha256"].hexdigest()
