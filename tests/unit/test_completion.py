"""The completion scripts: made from the tables, and right in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cocoon.cli import completion
from cocoon.config import Config
from cocoon.store.store import Store
from fixtures import PROJECT, clean_environment
from store_examples import make_image, make_kernel, make_record

SCRIPTS = PROJECT / "src" / "cocoon" / "cli" / "completions"


@pytest.mark.parametrize("name", ["cocoon.bash", "_cocoon", "cocoon.fish"])
def test_the_scripts_are_those_of_the_tables(name: str) -> None:
    made = completion.render_all()[name]
    assert (SCRIPTS / name).read_text() == made, "make them anew: python -m cocoon.cli.completion"
    assert "#{" not in made


@pytest.mark.parametrize(("shell", "name"), [("bash", "cocoon.bash"), ("zsh", "_cocoon"), ("fish", "cocoon.fish")])
def test_the_scripts_parse(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(SCRIPTS / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """PATH with a `cocoon`, and a store with names."""
    directory = tmp_path_factory.mktemp("completion")
    command = directory / "bin" / "cocoon"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = [{str(PROJECT / 'src')!r}]\n"
        "from cocoon.cli.main import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    store = Store.open(Config(root_dir=str(directory / "root")).paths(), create=True)
    with store.write() as transaction:
        for number in (1, 2, 13):
            transaction.put_vm(make_record(number))
        transaction.put_image(make_image(1, "localhost:5000/team/app:1"))
        transaction.put_image(make_image(2, "localhost:5000/team/app:2"))
        transaction.put_kernel(make_kernel(1, "cloud"))
    return f"{command.parent}:{os.environ['PATH']}", directory / "root"


# What readline does: splits the line at COMP_WORDBREAKS (these characters are words of their own), calls the function.
DRIVER = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=() COMP_CWORD=0
word=""
for ((i = 0; i < ${#COMP_LINE}; i++)); do
    c=${COMP_LINE:i:1}
    case $c in
        ' ') [[ -n $word ]] && COMP_WORDS+=("$word"); word="" ;;
        '=' | ':') [[ -n $word ]] && COMP_WORDS+=("$word"); COMP_WORDS+=("$c"); word="" ;;
        *) word+=$c ;;
    esac
done
last=${COMP_LINE: -1}
if [[ -n $word || $last == ' ' ]]; then COMP_WORDS+=("$word"); fi
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
_cocoon
printf '%s\n' "${COMPREPLY[@]}"
"""


def complete_in_bash(line: str, surroundings: tuple[str, Path]) -> list[str]:
    path, root = surroundings
    done = subprocess.run(
        ["bash", "--norc", "-c", DRIVER, "driver", str(SCRIPTS / "cocoon.bash"), line],
        capture_output=True,
        text=True,
        env=clean_environment(PATH=path, COCOON_ROOT_DIR=str(root)),
        timeout=100,
    )
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


CASES = [
    ("cocoon v", ["vm", "version"]),
    ("cocoon vm st", ["start", "stop"]),
    ("cocoon vm ", None),
    ("cocoon vm inspect ", ["vm-1", "vm-13", "vm-2"]),
    ("cocoon vm inspect vm-1", ["vm-1", "vm-13"]),
    ("cocoon vm inspect vm-1 ", []),
    ("cocoon vm start vm-1 v", ["vm-1", "vm-13", "vm-2"]),
    ("cocoon vm start --output json vm-2", ["vm-2"]),
    ("cocoon vm start -o json --root-dir /nowhere ", []),
    ("cocoon --verbose vm start vm-2", ["vm-2"]),
    ("cocoon run --hyp", ["--hypervisor"]),
    ("cocoon run --hypervisor f", ["firecracker"]),
    ("cocoon run --hypervisor=f", ["firecracker"]),
    ("cocoon run --hypervisor=", ["auto", "cloud-hypervisor", "firecracker", "qemu"]),
    ("cocoon run --kernel ", ["cloud"]),
    ("cocoon run --name vm --kernel=c", ["cloud"]),
    ("cocoon run --name=x loc", ["localhost:5000/team/app:1", "localhost:5000/team/app:2"]),
    ("cocoon run localhost:", ["5000/team/app:1", "5000/team/app:2"]),
    ("cocoon run localhost:5000/team/app:", ["1", "2"]),
    ("cocoon image rm localhost:5000/team/app:1 localhost:5000/te", ["5000/team/app:1", "5000/team/app:2"]),
    ("cocoon run localhost:5000/team/app:1 ", []),
    ("cocoon completion ", ["bash", "fish", "zsh"]),
    ("cocoon completion bash ", []),
    ("cocoon nonsense ", []),
]


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_bash(line: str, expected: list[str] | None, surroundings: tuple[str, Path]) -> None:
    found = complete_in_bash(line, surroundings)
    if expected is None:
        assert {"run", "list", "ls", "console"} <= set(found)
    else:
        assert sorted(found) == sorted(expected)


def test_bash_offers_every_option(surroundings: tuple[str, Path]) -> None:
    found = complete_in_bash("cocoon vm run --", surroundings)
    assert {"--name", "--memory", "--foreground", "--root-dir", "--help"} <= set(found)
    assert "--tail" not in found
    assert "--root-dir" in complete_in_bash("cocoon --", surroundings)


def test_bash_offers_files(surroundings: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "kernel.deb").touch()
    (tmp_path / "modules").mkdir()
    assert complete_in_bash(f"cocoon kernel add {tmp_path}/k", surroundings) == [f"{tmp_path}/kernel.deb"]
    assert complete_in_bash(f"cocoon kernel add --modules {tmp_path}/", surroundings) == [f"{tmp_path}/modules"]
    assert complete_in_bash(f"cocoon --root-dir={tmp_path}/", surroundings) == [f"{tmp_path}/modules"]
