"""Makes a tar of EROFS blobs: of one layer as it was, or of a whole stack as an overlay would show it.

    one layer, whiteouts kept     what `image export` writes
    a stack down to the bottom    what several layers are merged into: what is hidden is not there, nor what hides it

The order is that of names, parents first; the same blobs give the same bytes. Whiteouts and opaque directories, which
overlayfs marks by a device 0:0 and an attribute, become `.wh.` files again (image-spec layer.md).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence

from cocoon.errors import Corrupt
from cocoon.host.archive import DIRECTORY, END_MARKER, HARDLINK, MAX_ENTRIES, MAX_PATH_BYTES, REGULAR, SYMLINK
from cocoon.host.archive_writer import BLOCK_DEVICE, CHARACTER, FIFO, Entry, padding, render_header
from cocoon.images.erofs_reader import ErofsReader, Inode
from cocoon.units import printable

WHITEOUT, OPAQUE = b".wh.", b".wh..wh..opq"
OVERLAY_XATTRS, OPAQUE_XATTR = b"trusted.overlay.", b"trusted.overlay.opaque"
_KINDS = {
    stat.S_IFREG: REGULAR, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO,
}  # fmt: skip

Write = Callable[[bytes], object]


class _Shown:
    """What a name shows: the layers that have it, top first. Directories add up until something hides the rest."""

    __slots__ = ("found", "is_closed", "xattrs")

    def __init__(self, layer: int, inode: Inode, xattrs: dict[bytes, bytes]) -> None:
        self.found = [(layer, inode)]
        self.xattrs = xattrs
        self.is_closed = not stat.S_ISDIR(inode.mode) or xattrs.get(OPAQUE_XATTR) == b"y"

    @property
    def is_whiteout(self) -> bool:
        inode = self.found[0][1]
        return stat.S_ISCHR(inode.mode) and inode.device == (0, 0)

    def add(self, layer: int, inode: Inode, xattrs: dict[bytes, bytes]) -> None:
        """The same name in a layer below."""
        if stat.S_ISDIR(inode.mode):
            self.found.append((layer, inode))
            self.is_closed = xattrs.get(OPAQUE_XATTR) == b"y"
        else:
            self.is_closed = True


class LayerTar:
    """The tar of `layers`, top first. `keep_whiteouts`: there are layers below these."""

    def __init__(self, layers: Sequence[ErofsReader], *, keep_whiteouts: bool) -> None:
        self._layers = layers
        self._keep = keep_whiteouts
        self._links: dict[tuple[int, int], bytes] = {}
        self._seen: set[tuple[int, int]] = set()
        self._entries = 0

    def write(self, write: Write) -> None:
        """Hands the whole archive to `write`, in pieces. Raises Corrupt, Unsupported, and what `write` raises."""
        for path, shown in self._walk():
            layer, inode = shown.found[0]
            entry = self._entry(path, shown)
            write(render_header(entry))
            if entry.kind == REGULAR and entry.size:
                for piece in self._layers[layer].content(inode):
                    write(piece)
                write(padding(entry.size))
            if entry.kind == DIRECTORY and self._keep and shown.xattrs.get(OPAQUE_XATTR) == b"y":
                write(render_header(Entry(path=_join(path, OPAQUE), kind=REGULAR, mode=0)))
        write(END_MARKER)

    def _walk(self) -> Iterator[tuple[bytes, _Shown]]:
        """Every name with its path, parents first. No recursion: a tree may be deeper than Python's stack."""
        root: _Shown | None = None
        for number, layer in enumerate(self._layers):
            inode = layer.inode(layer.root)
            if root is None:
                root = _Shown(number, inode, layer.xattrs(inode))
            elif not root.is_closed:
                root.add(number, inode, layer.xattrs(inode))
        assert root is not None, "there is no image without layers"
        if not stat.S_ISDIR(root.found[0][1].mode):
            raise Corrupt(f"{self._layers[0].what} has a root that is no directory")
        yield b"", root
        stack = [(b"", self._children(root))]
        while stack:
            directory, children = stack[-1]
            following = next(children, None)
            if following is None:
                stack.pop()
                continue
            name, shown = following
            path = _join(directory, name)
            if len(path) > MAX_PATH_BYTES:
                raise Corrupt(f"{self._layers[0].what} has a path of more than {MAX_PATH_BYTES} bytes")
            if shown.is_whiteout and not self._keep:
                continue
            yield path, shown
            if stat.S_ISDIR(shown.found[0][1].mode):
                stack.append((path, self._children(shown)))

    def _children(self, directory: _Shown) -> Iterator[tuple[bytes, _Shown]]:
        """What a directory shows, sorted by name."""
        names: dict[bytes, _Shown] = {}
        for number, inode in directory.found:
            layer = self._layers[number]
            if (number, inode.number) in self._seen:
                raise Corrupt(f"{layer.what} has a directory in two places")
            self._seen.add((number, inode.number))
            for name, child_number in layer.names(inode):
                self._entries += 1
                if self._entries > MAX_ENTRIES * len(self._layers):
                    raise Corrupt(f"{layer.what} has more than {MAX_ENTRIES} entries")
                shown = names.get(name)
                if shown is None:
                    child = layer.inode(child_number)
                    names[name] = _Shown(number, child, layer.xattrs(child))
                elif shown.found[-1][0] == number:
                    raise Corrupt(f"{layer.what} has {printable(name.decode('latin-1'))} twice in one directory")
                elif not shown.is_closed:
                    child = layer.inode(child_number)
                    shown.add(number, child, layer.xattrs(child))
        return iter(sorted(names.items()))

    def _entry(self, path: bytes, shown: _Shown) -> Entry:
        layer, inode = shown.found[0]
        if shown.is_whiteout:
            directory, slash, name = path.rpartition(b"/")
            return Entry(path=directory + slash + WHITEOUT + name, kind=REGULAR, mode=0)
        kind = _KINDS.get(stat.S_IFMT(inode.mode))
        if kind is None:
            raise Corrupt(f"{self._layers[layer].what} has an inode of mode {inode.mode:o}")
        link, size = b"", inode.size if kind == REGULAR else 0
        if kind == SYMLINK:
            link = self._layers[layer].link(inode)
        elif kind != DIRECTORY and inode.links > 1:
            link = self._links.setdefault((layer, inode.number), path)
            if link != path:
                kind, size = HARDLINK, 0
            else:
                link = b""
        xattrs = {key: value for key, value in shown.xattrs.items() if not key.startswith(OVERLAY_XATTRS)}
        return Entry(
            path=path,
            kind=kind,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            mtime_ns=inode.mtime_ns,
            size=size,
            link=link,
            device=inode.device if kind in (CHARACTER, BLOCK_DEVICE) else (0, 0),
            xattrs={} if kind == HARDLINK else xattrs,
        )


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
