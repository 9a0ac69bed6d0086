"""References, the choice of boot files, decompression, tar scanning: the pure parts of images, with properties."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.errors import CocoonError, Corrupt, InvalidSpec, Unsupported
from cocoon.host.archive import TarScanner, directory_block
from cocoon.host.locks import try_lock
from cocoon.images import parts
from cocoon.images.bootfiles import Candidate, LayerScan, choose_boot_files, version_key
from cocoon.images.decompress import Decompressor, plain_limit
from cocoon.images.erofs import blob_uuid
from cocoon.oci.manifest import (
    Platform,
    choose_platform,
    media_type_of,
    parse_configuration,
    parse_manifest,
    parse_platform,
)
from cocoon.oci.reference import check_import_name, parse_reference
from image_scene import compress, make_tar, special

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("user/app", "docker.io/user/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("ghcr.io/Owner".lower() + "/app:V1", "ghcr.io/owner/app:V1"),
        ("REGISTRY/app", "REGISTRY/app:latest"),
        ("Registry/app", "Registry/app:latest"),
        ("registry:5000", "docker.io/library/registry:5000"),
        ("[fe80::1]/a/b:t", "[fe80::1]/a/b:t"),
        ("a__b/c--d.e_f:T_1.2-3", "docker.io/a__b/c--d.e_f:T_1.2-3"),
        ("docker.io/user/app", "docker.io/user/app:latest"),
        ("r.example:443/a@sha256:" + HEX, f"r.example:443/a@sha256:{HEX}"),
        (f"alpine@sha256:{HEX}", f"docker.io/library/alpine@sha256:{HEX}"),
        (f"alpine:3@sha256:{HEX}", f"docker.io/library/alpine@sha256:{HEX}"),
    ],
)
def test_references(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full
    assert parse_reference(full) == parse_reference(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "A", "alpine:", ":tag", "a@sha256:12", "a@md5:" + HEX, "../x", "-x", "a//b", "a/", "/a", "a b", "a\n",
        "a:b\n", "a\x1b[31m", "x" * 300, "http://x/y", HEX, "a:" + "t" * 129, "host:port/x", "host.:5/x", "a..b", "ä",
        f"a@sha256:{HEX}\n", "r.example/App", "a___b", "a._b", "a_", "_a", "[::1/a", "[::g]/a", "a:-t", "a:.t",
        "r.example:port/a", "r.example:123456/a", "-r.example/a", "r-.example/a", f"a@sha256:{HEX.upper()}", "a@",
        f"a@sha256:{HEX}@sha256:{HEX}",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidSpec):
        parse_reference(text)


def test_docker_hub_answers_elsewhere() -> None:
    assert parse_reference("alpine").api_host == "registry-1.docker.io"
    assert parse_reference("r.example/a").api_host == "r.example"


def test_names_for_imports() -> None:
    assert check_import_name("app") == "app"
    with pytest.raises(InvalidSpec, match="has a digest"):
        check_import_name(f"app@sha256:{HEX}")


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidSpec):
        reference = parse_reference(text)
        assert parse_reference(str(reference)) == reference


# Platforms, manifests


def index_of(*platforms: dict | None) -> dict:
    entries = []
    for number, platform in enumerate(platforms):
        entry = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{number:064x}",
            "size": 1,
        }
        entries.append(entry if platform is None else {**entry, "platform": platform})
    return {"manifests": entries}


def chosen(wanted: Platform, *platforms: dict | None) -> int:
    return int(choose_platform(index_of(*platforms), wanted).digest[7:], 16)


def test_choice_of_platform() -> None:
    amd, arm = Platform(os="linux", architecture="amd64"), Platform(os="linux", architecture="arm64")
    plain = {"os": "linux", "architecture": "amd64"}
    assert chosen(amd, {"os": "windows", "architecture": "amd64"}, {**plain, "variant": "v3"}, plain) == 2
    assert chosen(amd, {**plain, "variant": "v3"}) == 0
    assert chosen(arm, plain, {"os": "linux", "architecture": "arm64", "variant": "v8"}) == 1
    assert chosen(arm, {"os": "unknown", "architecture": "unknown"}, None) == 1
    v7 = Platform(os="linux", architecture="arm", variant="v7")
    both = [{"os": "linux", "architecture": "arm", "variant": variant} for variant in ("v6", "v7")]
    assert chosen(v7, *both) == 1
    with pytest.raises(CocoonError, match="not there for linux/arm64"):
        chosen(arm, plain)


def test_platforms_as_text() -> None:
    assert str(parse_platform("linux/aarch64")) == "linux/arm64"
    assert parse_platform("").os == "linux"
    for text in ("linux", "a/b/c/d", "linux/", "../x"):
        with pytest.raises(InvalidSpec):
            parse_platform(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just(f"sha256:{HEX}"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from([
            "manifests", "layers", "config", "digest", "size", "mediaType", "platform", "os", "architecture", "rootfs",
            "diff_ids", "Env", "Cmd", "Entrypoint", "User", "schemaVersion", "annotations", "variant",
        ]), inner, max_size=6),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(["manifests", "layers", "config", "rootfs", "os", "mediaType"]), json_values))
def test_any_json_is_a_manifest_or_refused(plain: dict) -> None:
    wanted = Platform(os="linux", architecture="amd64")
    for read in (
        lambda: media_type_of(plain, "x"),
        lambda: parse_manifest(plain),
        lambda: choose_platform(plain, wanted),
        lambda: parse_configuration(json.dumps(plain).encode(), 1, wanted),
    ):
        with contextlib.suppress(CocoonError):
            read()


# Boot files


def scan(kernels: str = "", initrds: str = "", hidden: tuple[str, ...] = ()) -> LayerScan:
    def candidates(versions: str, start: str) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                path=f"boot/{start}-{v}" if v != "-" else f"boot/{start}", version=v.strip("-"), file=f"{start}.{v}"
            )
            for v in versions.split()
        )

    return LayerScan(kernels=candidates(kernels, "vmlinuz"), initrds=candidates(initrds, "initrd.img"), hidden=hidden)


@pytest.mark.parametrize(
    ("scans", "version"),
    [
        ([scan("1 2", "1 2")], "2"),
        ([scan("1 2", "1")], "1"),
        ([scan("1", "2")], None),
        ([scan("6.9 6.12", "6.9 6.12")], "6.12"),
        ([scan("6.1.0-9 6.1.0-18", "6.1.0-9 6.1.0-18")], "6.1.0-18"),
        ([scan("6.1~rc1 6.1", "6.1~rc1 6.1")], "6.1"),
        ([scan("- 1", "- 1")], "1"),
        ([scan("-", "-")], ""),
        ([scan("1 2", "1 2"), scan(hidden=("boot/vmlinuz-2",))], "1"),
        ([scan("1 2", "1 2"), scan(hidden=("boot/initrd.img-2",))], "1"),
        ([scan("1", "1"), scan(hidden=("boot",))], None),
        ([scan("1", "1"), scan(hidden=("",))], None),
        ([scan("1", "1"), scan("2", "2", hidden=("boot",))], "2"),
        ([scan("1", ""), scan("", "1")], "1"),
        ([scan("", "1"), scan("1", "")], "1"),
        ([scan("1", "1", hidden=("boot/vmlinuz-1",))], "1"),
        ([], None),
    ],
)
def test_choice_of_boot_files(scans: list[LayerScan], version: str | None) -> None:
    choice = choose_boot_files(scans)
    assert (choice.version if choice else None) == version


def test_versions_in_order() -> None:
    ordered = ["", "5.10.0-9-amd64", "5.10.0-28-amd64", "6.1~rc2", "6.1", "6.1-2", "6.1.0-18-cloud-amd64", "6.12.1"]
    assert sorted(set(ordered), key=version_key) == ordered


# Decompression


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.sampled_from(["gzip", "zstd", "none"]), st.integers(1, 700))
def test_decompression_in_pieces(data: bytes, how: str, step: int) -> None:
    if how == "none" and data.startswith((b"\x1f\x8b", b"BZh", b"PK", b"\xfd7z", b"\x28\xb5")):
        return  # It is taken for what it looks like.
    packed = compress(data, how)
    decompressor = Decompressor("x", 10_000)
    found = b"".join(
        piece for at in range(0, len(packed), step) for piece in decompressor.feed(packed[at : at + step])
    ) + b"".join(decompressor.finish())
    assert found == data


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\x00"]))
def test_rubbish_is_refused(data: bytes, magic: bytes) -> None:
    decompressor = Decompressor("x", 10_000)
    with contextlib.suppress(Corrupt):
        assert sum(map(len, [*decompressor.feed(magic + data), *decompressor.finish()])) <= 10_000


def test_limits_of_decompression() -> None:
    assert plain_limit(0) == plain_limit(1000) == 256 << 20
    assert plain_limit(10 << 20) == 2000 << 20
    decompressor = Decompressor("x", 1000)
    with pytest.raises(Corrupt, match="bomb"):
        list(decompressor.feed(gzip.compress(bytes(1001))))
    with pytest.raises(Unsupported, match="xz"):
        list(Decompressor("x", 10).feed(b"\xfd7zXZ\0aaa"))


# Tar


def names_in(tar: bytes, step: int) -> list[tuple[str, str, int]]:
    found = []
    scanner = TarScanner(lambda entry: found.append((entry.path, entry.kind, entry.size)), "x")
    for at in range(0, len(tar), step):
        scanner.feed(tar[at : at + step])
    scanner.finish()
    return found


name_parts = st.text("abcäß. _-", min_size=1, max_size=60).filter(lambda t: t not in (".", ".."))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(name_parts, min_size=1, max_size=6), st.binary(max_size=1500)), max_size=5),
       st.integers(1, 3000), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))  # fmt: skip
def test_tars_in_pieces(files: list[tuple[list[str], bytes]], step: int, form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for parts, content in files:
            info = tarfile.TarInfo("/".join(parts))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    expected = [("/".join(parts), "file", len(content)) for parts, content in files]
    assert names_in(out.getvalue(), step) == expected


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_tars_are_read_or_refused(data: st.DataObject) -> None:
    tar = bytearray(make_tar([("a/b", b"x" * 600), special("l", tarfile.SYMTYPE, link="a"), ("d/" * 60 + "f", b"y")]))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CocoonError):
        names_in(bytes(tar), 512)


def test_the_root_entry_that_we_add() -> None:
    with tarfile.open(fileobj=io.BytesIO(directory_block("./", 0o755) + bytes(1024))) as tar:
        (info,) = tar
    assert info.isdir() and info.mode == 0o755 and info.uid == 0 and info.mtime == 0 and info.name == "."


def test_uuids() -> None:
    import uuid

    assert blob_uuid("sha256:abc") == str(uuid.uuid5(uuid.NAMESPACE_URL, "sha256:abc"))


def test_a_lock_is_removed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the second removal takes the lock of a command that has come between the two."""
    path = tmp_path / f"{'a' * 64}.lock"
    path.touch()
    came_between = []

    def remove(name: str) -> None:
        Path(name).unlink(missing_ok=True)
        came_between.append(try_lock(str(path)))

    monkeypatch.setattr(parts, "remove_file", remove)
    assert parts.remove_part(str(path))
    assert path.exists() == bool(came_between)
    path.with_suffix(".part").touch()
    assert parts.remove_part(str(path.with_suffix(".part")))
    assert list(tmp_path.iterdir()) == []
