"""The one reader of command lines: what it takes, what it refuses, and what it says then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.cli.docker import INSTEAD
from cocoon.cli.grammar import Call, Command, HelpWanted, Option, parse
from cocoon.cli.tree import ALIASES, COMMANDS, GLOBAL_OPTIONS, GROUPS, load, split
from cocoon.errors import InvalidSpec

COMMAND = Command(
    path="vm try",
    summary="Try",
    run=lambda context, call: 0,
    usage="IMAGE [COMMAND...]",
    least=1,
    most=None,
    tail_after=1,
    options=(
        Option(name="name", value="NAME", help="name"),
        Option(name="memory", short="m", value="SIZE", help="memory"),
        Option(name="output", short="o", value="FORMAT", choices=("table", "json"), help="output"),
        Option(name="interactive", short="i", help="i"),
        Option(name="tty", short="t", help="t"),
        Option(name="timeout", value="DURATION", help="t"),
        Option(name="cpu", value="N", help="t"),
        Option(name="env", short="e", value="K=V", help="e", many=True),
    ),
    examples=("cocoon vm try x",),
)


def read(*arguments: str) -> Call:
    return parse(COMMAND, GLOBAL_OPTIONS, arguments)


@pytest.mark.parametrize(
    ("arguments", "words", "name"),
    [
        (["debian"], ("debian",), ""),
        (["--name", "x", "debian"], ("debian",), "x"),
        (["--name=x", "debian"], ("debian",), "x"),
        (["debian", "--name", "x"], ("debian",), "x"),
        (["debian", "--name", "x", "ls", "-la", "--name", "y"], ("debian", "ls", "-la", "--name", "y"), "x"),
        (["debian", "ls", "--help"], ("debian", "ls", "--help"), ""),
        (["--", "debian", "--name", "y"], ("debian", "--name", "y"), ""),
        (["debian", "--", "-x", "--name"], ("debian", "-x", "--name"), ""),
        (["debian", "sh", "--", "-x"], ("debian", "sh", "--", "-x"), ""),
        (["--name", "a", "--name", "b", "debian"], ("debian",), "b"),
        (["--name=", "debian"], ("debian",), ""),
        (["--name", "--memory", "debian"], ("debian",), "--memory"),
        (["--name=a=b", "debian"], ("debian",), "a=b"),
        (["-"], ("-",), ""),
    ],
)
def test_words_and_values(arguments: list[str], words: tuple[str, ...], name: str) -> None:
    call = read(*arguments)
    assert call.words == words
    assert call.text("name") == name


def test_short_options_cluster() -> None:
    call = read("-it", "-ojson", "-m", "1G", "debian")
    assert call.is_on("interactive") and call.is_on("tty")
    assert call.text("output") == "json"
    assert call.size("memory", 0) == 1 << 30
    assert read("-itm512M", "debian").size("memory", 0) == 512 << 20
    assert read("-o=json", "debian").text("output") == "json"


def test_an_option_with_many_values_keeps_them_in_order() -> None:
    call = read("-e", "A=1", "--env=B=2", "-eC", "debian", "-e", "A=3")
    assert call.texts("env") == ("A=1", "B=2", "C", "A=3")
    assert read("debian").texts("env") == ()
    assert read("debian", "sh", "-e", "A=1").texts("env") == ()


def test_switches_can_be_switched_off() -> None:
    assert not read("--tty=false", "debian").is_on("tty")
    assert read("--tty=true", "debian").is_on("tty")


def test_global_options_anywhere() -> None:
    assert read("--root-dir", "/x", "debian").text("root-dir") == "/x"
    assert read("debian", "--root-dir=/x").text("root-dir") == "/x"
    path, rest = split(["--root-dir", "/x", "vm", "--verbose", "run", "--name", "vm", "debian"])
    assert (path, rest) == ("vm run", ["--root-dir", "/x", "--verbose", "--name", "vm", "debian"])
    assert split(["--config", "vm", "run", "list"])[0] == "vm run"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "needs IMAGE", "usage:"),
        (["--nmae", "x", "debian"], "no option '--nmae'", "did you mean --name?"),
        (["-q", "debian"], "no option '-q'", "--help"),
        (["debian", "-c", "true"], "no option '-c'", "put -- before a command"),
        (["--name"], "--name needs a value (NAME)", "--help"),
        (["--tty=maybe", "x"], "--tty takes no value", "--help"),
        (["-o", "yaml", "x"], "--output cannot be 'yaml'", "table, json"),
        (["--na", "x", "debian"], "no option", "--help"),
        (["---x"], "no option", "--help"),
    ],
)
def test_refusals(arguments: list[str], message: str, hint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(*arguments)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["1Q", "", "-1", "1G1", "\u0661", "1e3", "9" * 40, "\x1b[31m", "0x10", "1..5G"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read("--memory", text, "x").size("memory", 0)
    assert "--memory" in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "x", "1.5", "--1", "\u0663", "1" * 13, "1 "])
def test_bad_numbers(text: str) -> None:
    with pytest.raises(InvalidSpec, match="--cpu must be a whole number"):
        read(f"--cpu={text}", "x").number("cpu", 1)


def test_durations() -> None:
    assert read("--timeout", "500ms", "x").duration("timeout", 1.0) == 0.5
    assert read("x").duration("timeout", 1.0) == 1.0
    with pytest.raises(InvalidSpec, match="--timeout"):
        read("--timeout", "soon", "x").duration("timeout", 1.0)


def test_help_wins_wherever_it_stands() -> None:
    for arguments in (["--help"], ["-h", "x"], ["x", "--help"], ["-ith"], ["--name", "x", "--help"]):
        with pytest.raises(HelpWanted):
            read(*arguments)


@given(st.lists(st.text(max_size=12), max_size=6))
def test_never_anything_but_a_call_or_a_refusal(arguments: list[str]) -> None:
    try:
        call = read(*arguments)
    except (InvalidSpec, HelpWanted):
        return
    assert call.words


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_the_tail_is_left_alone(tail: list[str]) -> None:
    """Whatever follows IMAGE and `--` reaches the guest byte for byte."""
    assert read("debian", "--", *tail).words == ("debian", *tail)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_is_consistent(path: str) -> None:
    command = load(path)
    assert command.path == path
    assert command.summary == COMMANDS[path][1]
    assert command.examples, "every help has an example"
    names = [option.name for option in (*command.options, *GLOBAL_OPTIONS)]
    shorts = [option.short for option in (*command.options, *GLOBAL_OPTIONS) if option.short]
    assert len(set(names)) == len(names)
    assert len(set(shorts)) == len(shorts)
    words = [word for word in command.usage.split() if not word.startswith("[")]
    assert len(words) == command.least


def test_every_alias_leads_somewhere() -> None:
    assert set(ALIASES.values()) <= set(COMMANDS)
    assert not set(ALIASES) & set(COMMANDS)
    assert all(path.split()[0] in GROUPS for path in COMMANDS if " " in path)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["vm", "strat"], "cocoon vm start"),
        (["strat"], "cocoon start"),
        (["console"], "cocoon vm console"),
        (["vmm"], "cocoon vm"),
        (["image", "lst"], "cocoon image list"),
        (["pul"], "cocoon pull"),
        (["immages"], "cocoon images"),
        (["verson"], "cocoon version"),
    ],
)
def test_suggestions(words: list[str], meant: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        split(words)
    assert caught.value.hint == f"did you mean '{meant}'?"


@pytest.mark.parametrize("word", INSTEAD)
def test_words_of_docker_without_a_command_say_what_to_use(word: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        split([word, "--whatever"])
    assert word in caught.value.message and "cocoon" in caught.value.message
    assert caught.value.hint
    assert word not in {spelling.split()[0] for spelling in (*ALIASES, *COMMANDS, *GROUPS)}


@pytest.mark.parametrize("word", ["bogus", "../x", "\x1b[2J", "x" * 10_000, "", " "])
def test_hostile_commands(word: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        split(["vm", word])
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_fc_is_of_create_run_and_debug_only() -> None:
    """Every other command finds a VM's backend by itself."""
    assert [path for path in COMMANDS if any(option.name == "fc" for option in load(path).options)] == [
        "vm create", "vm debug", "vm run",
    ]  # fmt: skip
    assert "fc" not in [option.name for option in GLOBAL_OPTIONS]
