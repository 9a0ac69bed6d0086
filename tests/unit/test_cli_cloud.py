"""The options for cloud images: what is read, from where, and what is refused."""

from __future__ import annotations

import ctypes
import ctypes.util
import io
import sys
from pathlib import Path

import pytest

from cocoon.cli import cloud
from cocoon.cli.create import COMMANDS
from cocoon.cli.grammar import parse
from cocoon.errors import CocoonError, InvalidSpec, NotFound
from cocoon.model.vm import FirstBoot, ProcessSpec, VMSpec
from image_scene import make_world
from qemu_examples import make_cloud_image, make_image, make_spec

ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIUFB0Dg2cjGdFllBF4kEYyaQPnDsT+cSVhh+bul4LBo"
RSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAA"


def read(*arguments: str) -> FirstBoot | None:
    return cloud.read_first_boot(parse(COMMANDS["vm run"], (), [*arguments, "image"]))


def verifies(password: str, digest: str) -> bool:
    name = ctypes.util.find_library("crypt")
    if name is None:
        pytest.skip("this machine has no libcrypt")
    crypt = ctypes.CDLL(name).crypt
    crypt.restype = ctypes.c_char_p
    return bool(crypt(password.encode(), digest.encode()) == digest.encode())


def test_nothing_given_is_nothing_wanted() -> None:
    assert read("--user", "bob") is None


def test_a_password_is_hashed_at_once() -> None:
    first = read("--password", "ge heim")
    assert first is not None and first.password_for_ssh
    assert verifies("ge heim", first.password_hash)
    assert "ge heim" not in repr(first)


def test_a_password_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("of stdin\nsecond line\n"))
    first = read("--password", "-")
    assert first is not None and verifies("of stdin", first.password_hash)


@pytest.mark.parametrize("password", ["", "a\nb", "a\x1b", "x" * 256])
def test_passwords_that_nobody_can_type(password: str) -> None:
    with pytest.raises(InvalidSpec, match="--password must be") as caught:
        read("--password", password)
    assert not password or password not in caught.value.message


def test_keys_from_text_and_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text(f"# work\n\n{RSA}  me@work\n{ED}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    first = read("--ssh-key", f"{ED}  at home ", "--ssh-key", "~/keys", "--ssh-key", ED)
    assert first is not None
    assert first.ssh_keys == (f"{ED} at home", f"{RSA} me@work", ED)
    assert not first.password_hash and not first.password_for_ssh


def test_a_document_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "doc").write_text("#cloud-config\npackages: [ä]\n")
    first = read("--user-data", str(tmp_path / "doc"))
    assert first == FirstBoot(user_data="#cloud-config\npackages: [ä]\n")


@pytest.mark.parametrize(
    ("option", "content", "kind", "words"),
    [
        ("--ssh-key", None, NotFound, "--ssh-key '/nonexistent' does not exist"),
        ("--ssh-key", b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", InvalidSpec, "is a private key"),
        ("--ssh-key", b"# nothing\n", InvalidSpec, "holds no key"),
        ("--ssh-key", b"", InvalidSpec, "is empty"),
        ("--ssh-key", b"x" * 70_000, InvalidSpec, "longer than 64KiB"),
        ("--user-data", None, NotFound, "--user-data '/nonexistent' does not exist"),
        ("--user-data", b"", InvalidSpec, "is empty"),
        ("--user-data", b"\x1f\x8b\x08\xff", InvalidSpec, "is not UTF-8 text"),
        ("--user-data", b"a\0b", InvalidSpec, "NUL"),
    ],
)
def test_files_that_cannot_be_used(
    option: str, content: bytes | None, kind: type[CocoonError], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "file" if content is not None else Path("/nonexistent")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read(option, str(path))
    assert words in caught.value.message


def test_only_a_cloud_image_gets_a_password_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(tmp_path / "root")
    with world.store.write() as transaction:
        transaction.put_image(make_cloud_image())
        transaction.put_image(make_image().replace(name="layers", id="sha256:" + "9" * 64))
    spec = make_spec(image="cloud", process=ProcessSpec(user="bob"))
    given = spec.replace(first_boot=FirstBoot(ssh_keys=(ED,)))
    assert cloud.Login(world, given).used_by(lambda made: made) == given
    assert cloud.Login(world, spec.replace(image="layers")).used_by(lambda made: made.first_boot) is None
    assert capsys.readouterr().err == ""
    first = cloud.Login(world, spec).used_by(lambda made: made.first_boot)
    said = capsys.readouterr().err
    password = said.split("password ")[1].split()[0]
    assert "log in as bob" in said and first is not None
    assert verifies(password, first.password_hash) and not first.password_for_ssh

    def refuse(made: VMSpec) -> None:
        raise InvalidSpec("no")

    with pytest.raises(InvalidSpec):
        cloud.Login(world, spec).used_by(refuse)
    assert capsys.readouterr().err == ""
