"""Recipes: what is understood, what is refused and how it is told, and how a build is confined."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from cocoon.errors import CocoonError, CommandFailed, InvalidSpec, NotFound, Unsupported
from cocoon.images import recipe_build
from cocoon.images.recipe import Recipe, find_recipe, list_recipes, parse_recipe
from cocoon.images.recipe_build import Voice, build_command, confine, lay_files
from fixtures import PROJECT

PLAIN = 'base = "debian:13"\npackages = ["bash"]\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "mine"
    (directory / "files" / "etc").mkdir(parents=True)
    (directory / "files" / "etc" / "motd").write_text("hello\n")
    (directory / "finish").write_text("#!/bin/sh\n")
    return directory


def test_a_whole_recipe(own: Path) -> None:
    (own / "recipe.toml").write_text(
        'summary = "mine"\nbase = "debian:12"\npackages = ["linux-image-cloud-{arch}"]\n'
        'files = ["shared/systemd", "files"]\nscripts = ["finish"]\n'
        '[image]\ncommand = ["/sbin/init"]\nenvironment = ["A=b"]\nworking_dir = "/srv"\n'
    )
    recipe = find_recipe(str(own))
    assert (recipe.name, recipe.distribution, recipe.release, recipe.variant) == (
        "mine", "debian", "bookworm", "minbase"
    )  # fmt: skip
    assert recipe.files == (str(PROJECT / "guests" / "shared" / "systemd"), str(own / "files"))
    assert recipe.scripts == (str(own / "finish"),)
    assert recipe.config.command == ("/sbin/init",) and recipe.config.working_dir == "/srv"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("base = ", "is not TOML"),
        ('packages = ["a"]', "it has no base"),
        ('base = "fedora:40"\npackages = ["a"]', "base 'fedora:40' is not known"),
        ('base = "debian:../x"\npackages = ["a"]', "is not known"),
        ('base = "debian:13"', "names no packages"),
        ('base = "debian:13"\npackages = ["-o=Dir::Etc=/"]', "no name of a package"),
        ('base = "debian:13"\npackages = ["./x.deb"]', "no name of a package"),
        ('base = "debian:13"\npackages = "bash"', "packages is no list"),
        ('base = "debian:13"\npackages = [1]', "packages has '1'"),
        ('base = "debian:13"\npackages = ["a\\u001b[31m"]', r"a\x1b[31m"),
        ('base = "alpine:3.22"\nvariant = "extract"\npackages = ["a"]', "is not known for alpine"),
        ('base = "debian:13"\nvariant = "full"\npackages = ["a"]', "variant 'full' is not known"),
        (PLAIN + 'files = ["../files"]', "no path within the recipe"),
        (PLAIN + 'files = ["/etc"]', "no path within the recipe"),
        (PLAIN + 'files = ["nothing"]', "no such directory"),
        (PLAIN + 'scripts = ["files"]', "no such file"),
        (PLAIN + 'scripts = ["shared/nothing"]', "no such file"),
        (PLAIN + 'scripts = ["shared/../busybox/finish"]', "no path within the recipe"),
        (PLAIN + 'files = ["out"]', "leads out of the recipe"),
        (PLAIN + 'hooks = ["x"]', "'hooks' is no key"),
        (PLAIN + "image = 3", "image is no table"),
        (PLAIN + '[image]\nCmd = ["x"]', "'Cmd' is no key of [image]"),
        (PLAIN + '[image]\nenvironment = ["A"]', "environment has 'A'"),
        (PLAIN + '[image]\nworking_dir = "srv"', "does not begin with a slash"),
    ],
)
def test_what_is_wrong_is_named(own: Path, text: str, complaint: str) -> None:
    (own / "out").symlink_to("/etc")
    with pytest.raises(InvalidSpec) as caught:
        parse_recipe(text, str(own))
    assert complaint in caught.value.message
    assert "mine/recipe.toml" in caught.value.message


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    for word in ("nonsense", "shared", "", "\x1b[2J", "a" * 5000, "../debian"):
        with pytest.raises(NotFound) as caught:
            find_recipe(word)
        assert len(caught.value.message) < 500 and caught.value.message.isprintable() and caught.value.hint
    with pytest.raises(NotFound, match="has no recipe"):
        find_recipe(str(tmp_path))
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSpec, match="not UTF-8"):
        find_recipe(str(tmp_path))
    (tmp_path / "recipe.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(CocoonError, match="longer than"):
        find_recipe(str(tmp_path))


def test_every_shipped_recipe_is_read() -> None:
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    assert {"busybox", "debian", "debian-12", "debian-13", "alpine"} <= set(recipes)
    for recipe in recipes.values():
        assert 20 < len(recipe.summary) <= 70
        build_command(recipe, "/w", "")
    for name in ("debian-12", "debian-13"):
        assert "linux-image-cloud-{arch}" in recipes[name].packages
        assert recipes[name].agent
        assert not any("ssh" in package for package in recipes[name].packages)


def test_the_agent_comes_with_what_installs_it(tmp_path: Path) -> None:
    recipe_build._copy_agent(str(tmp_path / "agent"))
    assert os.access(tmp_path / "agent" / "program", os.X_OK) and (tmp_path / "agent" / "install").is_file()
    root = tmp_path / "root"
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").touch()
    command = ["sh", str(tmp_path / "agent" / "install"), str(root), str(tmp_path / "agent" / "program")]
    subprocess.run(command, check=True)
    assert (root / "etc/systemd/system/multi-user.target.wants/cocoon-agent.service").resolve().is_file()
    assert os.access(root / "usr/local/sbin/cocoon-agent", os.X_OK)


def test_the_command_is_confined() -> None:
    recipe = find_recipe("debian-13")
    command = confine(build_command(recipe, "/w", "http://mirror/debian"))
    bounding = next(word for word in command if word.startswith("--bounding-set="))
    for name in ("sys_module", "sys_rawio", "sys_boot", "sys_time", "sys_ptrace", "net_admin", "bpf"):
        assert name not in bounding
    for word in ("--no-new-privs", "--pdeathsig", "--kill-child", "--mount", "--pid"):
        assert word in command
    at = command.index("/bin/sh")
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    assert command[at + 2 : at + 7] == ["/w", "minbase", "trixie", arch, "http://mirror/debian"]
    assert f"linux-image-cloud-{arch}" in command[at:]


def test_other_machines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uname:
        machine = "riscv64"

    monkeypatch.setattr(recipe_build.os, "uname", lambda: Uname)
    with pytest.raises(Unsupported, match="riscv64"):
        build_command(find_recipe("debian"), "/w", "")


def test_files_become_roots(own: Path, tmp_path: Path) -> None:
    program = own / "files" / "bin-of-mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o740)
    os.link(program, own / "files" / "twin")
    (own / "files" / "etc" / "link").symlink_to("/anywhere/at/all")
    over = tmp_path / "over" / "etc"
    over.mkdir(parents=True)
    (over / "motd").write_text("over\n")
    target = tmp_path / "files.tar"
    lay_files((str(own / "files"), str(over.parent)), str(target))
    with tarfile.open(target) as tar:
        entries = tar.getmembers()
        assert [entry.name for entry in entries] == [
            "bin-of-mine", "etc", "twin", "etc/link", "etc/motd", "etc", "etc/motd"
        ]  # fmt: skip
        assert {(entry.uid, entry.gid, entry.mtime, entry.uname) for entry in entries} == {(0, 0, 0, "")}
        modes = {entry.name: entry.mode for entry in entries if not entry.issym()}
        assert modes == {"bin-of-mine": 0o755, "twin": 0o755, "etc": 0o755, "etc/motd": 0o644}
        assert tar.getmember("twin").isreg()
        motd = tar.extractfile(entries[-1])
        assert motd is not None and motd.read() == b"over\n"
    first = target.read_bytes()
    lay_files((str(own / "files"), str(over.parent)), str(target))
    assert target.read_bytes() == first


def test_what_is_no_file_is_refused(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(own / "files" / "pipe")
    with pytest.raises(CommandFailed, match="neither file, directory nor link"):
        lay_files((str(own / "files"),), str(tmp_path / "t"))
    (own / "files" / "pipe").unlink()
    monkeypatch.setattr(recipe_build, "MAX_LAID_BYTES", 3)
    with pytest.raises(CommandFailed, match="more than"):
        lay_files((str(own / "files"),), str(tmp_path / "t"))


def test_the_voice_tells_phases_and_keeps_the_end() -> None:
    said: list[str] = []
    voice = Voice("mine", said.append)
    voice.hear(b"I: running apt-get up")
    voice.hear(b"date...\nnoise\n\nI: running script 0001-finish\n\x1b[31mred\n" + b"x" * 10_000)
    voice.hear(b"\n" + b"line\n" * 100)
    assert said == ["mine: fetching the lists of packages", "mine: running script finish"]
    assert len(voice.last) == recipe_build.SHOWN_LINES and set(voice.last) == {"line"}
    assert all(len(line) <= 220 for line in voice.last)


def test_a_recipe_survives_the_journal() -> None:
    from cocoon.value import from_plain, to_plain

    recipe = find_recipe("debian")
    assert from_plain(Recipe, to_plain(recipe)) == recipe
