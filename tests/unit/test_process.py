"""What runs in the guest: Docker's precedence of flags, files and image, and what cannot be passed on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.cli.create import COMMANDS
from cocoon.cli.grammar import parse
from cocoon.cli.process import read_environment
from cocoon.engine.process import check_applies, check_process, draw_process, merge_environment
from cocoon.errors import InvalidSpec, NotFound
from cocoon.guest.bootconfig import MAX_STRING_BYTES
from cocoon.model.image import ImageConfig
from cocoon.model.vm import ProcessSpec
from store_examples import make_image, make_record

IMAGE = ImageConfig(
    entrypoint=("/entry", "-x"), command=("serve",), environment=("A=image", "B=image"), user="app", working_dir="/app"
)


@pytest.mark.parametrize(
    ("entrypoint", "command", "arguments"),
    [
        (None, (), ("/entry", "-x", "serve")),
        (None, ("sh", "-c", "true"), ("/entry", "-x", "sh", "-c", "true")),
        (("/bin/sh",), (), ("/bin/sh",)),
        (("/bin/sh",), ("-c", "true"), ("/bin/sh", "-c", "true")),
        ((), ("ls",), ("ls",)),
    ],
)
def test_entrypoint_and_command(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    drawn = draw_process(IMAGE, ProcessSpec(entrypoint=entrypoint), command)
    assert drawn.entrypoint + drawn.command == arguments


def test_what_is_not_said_is_the_images() -> None:
    assert draw_process(IMAGE, ProcessSpec(), ()) == IMAGE
    said = draw_process(IMAGE, ProcessSpec(user="1000:50", working_dir="/x", environment=("B=flag", "C=flag")), ())
    assert (said.user, said.working_dir) == ("1000:50", "/x")
    assert said.environment == ("A=image", "B=flag", "C=flag")


def test_a_name_alone_takes_the_variable_away() -> None:
    assert merge_environment(("A=1", "B=2"), ("A",)) == ("B=2",)
    assert merge_environment(("A=1",), ("A", "A=3")) == ("A=3",)
    assert merge_environment(("A=x=y",), ("B=",)) == ("A=x=y", "B=")


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.text("xyz=", max_size=3)), max_size=8))
def test_the_last_value_wins(pairs: list[tuple[str, str]]) -> None:
    merged = merge_environment(tuple(f"{name}={text}" for name, text in pairs))
    assert dict(variable.split("=", 1) for variable in merged) == dict(pairs)
    assert len(merged) == len(dict(pairs))


def environment(*arguments: str) -> tuple[str, ...]:
    return read_environment(parse(COMMANDS["vm run"], (), (*arguments, "image")))


def test_files_come_before_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "from here")
    monkeypatch.delenv("NOBODYS", raising=False)
    file = tmp_path / "env"
    file.write_bytes('\ufeff# comment\nA=file\n  B="as it is" \r\n\nOURS\nNOBODYS\nC=a=b#c\n'.encode())
    found = environment("-e", "A=flag", "--env-file", str(file), "-e", "OURS", "--env=NOBODYS")
    assert found == (
        "A=file", 'B="as it is" ', "OURS=from here", "NOBODYS", "C=a=b#c", "A=flag", "OURS=from here", "NOBODYS",
    )  # fmt: skip
    merged = merge_environment(("NOBODYS=image",), found)
    assert merged == ("A=flag", 'B="as it is" ', "OURS=from here", "C=a=b#c")


@pytest.mark.parametrize("content", ["A B=1\n", "=1\n", "A\x00B=1\n", " \t=x\n"])
def test_a_wrong_line_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("GOOD=1\n" + content)
    with pytest.raises(InvalidSpec, match="line 2"):
        environment("--env-file", str(tmp_path / "env"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--env-file"):
        environment("--env-file", str(tmp_path / "none"))
    (tmp_path / "latin").write_bytes(b"A=\xff\n")
    with pytest.raises(InvalidSpec, match="not UTF-8"):
        environment("--env-file", str(tmp_path / "latin"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"environment": ("A B=1",)}, "'A B'"),
        ({"environment": ("=1",)}, "no name"),
        ({"environment": ("A=\0",)}, "NUL"),
        ({"environment": ("A=" + "x" * MAX_STRING_BYTES,)}, "bytes"),
        ({"environment": tuple(f"A{n}=" + "x" * 1000 for n in range(600))}, "512KiB"),
        ({"environment": ("A=1",) * 5000}, "more than 4096"),
        ({"working_dir": "relative"}, "--workdir"),
        ({"working_dir": "/x" * 4096}, "--workdir"),
        ({"user": "two words"}, "--user"),
        ({"user": "x:"}, "--user"),
        ({"user": "a:b:c"}, "--user"),
        ({"user": "x" * 600}, "--user"),
        ({"hostname": "under_score"}, "--hostname"),
        ({"hostname": "-x"}, "--hostname"),
        ({"hostname": "x" * 64}, "--hostname"),
        ({"hostname": "a." * 40 + "b"}, "--hostname"),
        ({"entrypoint": ("a\0b",)}, "--entrypoint"),
    ],
)
def test_what_no_guest_could_run(changes: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_process(ProcessSpec(**changes))
    assert word in caught.value.message and caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("user", ["", "root", "0", "www-data", "1000:1000", "app:staff"])
def test_users(user: str) -> None:
    check_process(ProcessSpec(user=user, hostname="db-1.example.org", working_dir="/srv/a b"))


def test_an_image_with_its_own_kernel_takes_no_command() -> None:
    image = make_image(1, "localhost:5000/whole:1")
    spec = make_record(1).spec
    for wrong in (
        spec.replace(command=("ls",)),
        spec.replace(command=(), process=ProcessSpec(user="app")),
        spec.replace(command=(), process=ProcessSpec(environment=("A=1",))),
    ):
        with pytest.raises(InvalidSpec, match="own kernel and init") as caught:
            check_applies(wrong, image)
        assert "cocoon exec" in caught.value.hint
    check_applies(spec.replace(command=(), process=ProcessSpec(hostname="web", tty=True, interactive=True)), image)
