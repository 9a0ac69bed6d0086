"""House rules that can be read off the source: imports, sizes, names, docstrings; and what an installation leaves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = PROJECT / "src" / "cocoon"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "libexec" not in path.parts)

# ARCHITECTURE.md: a room may import the rooms below it, and itself. Rooms on one level are siblings.
LEVELS = (
    ("cli",),
    ("engine",),
    ("hypervisors", "images", "network", "guest", "snapshots", "gc", "oci", "cloudimg"),
    ("plan", "store"),
    ("host",),
    ("paths", "config"),
    ("model",),
    ("errors", "units", "value"),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Siblings that build on one another in one direction: the sources of images on what all of them share, the executor
# on the store that it commits to, settings on the paths that they decide; garbage goes by the rules of its makers.
ALLOWED_SIBLINGS = {
    ("oci", "images"), ("images", "oci"), ("cloudimg", "images"), ("plan", "store"), ("config", "paths"),
    ("gc", "images"), ("gc", "network"),
    ("units", "errors"), ("value", "errors"), ("value", "units"),
}  # fmt: skip

FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "misc", "common", "base", "manager"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 5
MAX_POSITIONAL = 3
# Lines of code: without blank lines and comments.
MAX_C_LINES = {"shim": 1000, "guest": 5500}
# Only these may start programs, open sockets and call into the kernel (house rule: the host room).
HOST_ONLY = {"subprocess", "ctypes", "fcntl", "_posixsubprocess"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def label(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    """Every module that is imported, wherever the statement stands, but for those only type checkers see."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module, node.lineno))
    return found


each_module = pytest.mark.parametrize("path", MODULES, ids=label)


@each_module
def test_imports_go_downwards_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in LEVEL_OF, f"{room} is a new room: give it a level"
    for name, line in imports_of(tree_of(path)):
        parts = name.split(".")
        if parts[0] != "cocoon" or len(parts) < 2:
            continue
        other = parts[1]
        downwards = LEVEL_OF[other] > LEVEL_OF[room]
        assert other == room or downwards or (room, other) in ALLOWED_SIBLINGS, f"{label(path)}:{line} imports {name}"


@each_module
def test_backends_do_not_know_one_another(path: Path) -> None:
    parts = path.relative_to(SOURCE).parts
    if parts[0] != "hypervisors" or len(parts) < 3:
        return
    for name, line in imports_of(tree_of(path)):
        other = name.split(".")
        if other[:2] == ["cocoon", "hypervisors"] and len(other) > 2 and (SOURCE / "hypervisors" / other[2]).is_dir():
            assert other[2] == parts[1], f"{label(path)}:{line} imports {name}"


@each_module
def test_only_the_host_room_touches_the_system(path: Path) -> None:
    if room_of(path) in ("host", "cli"):  # the CLI's terminal handling needs fcntl
        return
    for name, line in imports_of(tree_of(path)):
        assert name.split(".")[0] not in HOST_ONLY, f"{label(path)}:{line} imports {name}"


@each_module
def test_sizes(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < MAX_MODULE_LINES, f"{label(path)} has {len(lines)} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{label(path)}:{node.lineno} {node.name} has {length} lines"


@each_module
def test_parameters(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            positional = [a.arg for a in arguments.posonlyargs + arguments.args if a.arg not in ("self", "cls", "mcs")]
            where = f"{label(path)}:{node.lineno} {node.name}"
            dunder = node.name.startswith("__")
            assert len(positional) + len(arguments.kwonlyargs) <= MAX_PARAMETERS or dunder, f"{where}: too many"
            assert len(positional) <= MAX_POSITIONAL or dunder, f"{where}: make some keyword-only"


@each_module
def test_names_and_docstrings(path: Path) -> None:
    assert not FORBIDDEN_NAMES & set(path.relative_to(SOURCE).with_suffix("").parts)
    tree = tree_of(path)
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), f"{label(path)} does not say what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{label(path)}:{node.lineno} {node.name} has no docstring"


@each_module
def test_nothing_is_swallowed(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{label(path)}:{node.lineno} bare except"


@each_module
def test_no_dataclasses(path: Path) -> None:
    """Their import costs more than the interpreter's start; `cocoon.value` serves instead."""
    assert "dataclasses" not in {name for name, _ in imports_of(tree_of(path))}


@pytest.mark.parametrize("part", MAX_C_LINES)
def test_c_programs_stay_small(part: str) -> None:
    sources = [*(PROJECT / "native" / part).glob("*.c"), *(PROJECT / "native" / part).glob("*.h")]
    assert sources
    lines = {path.name: len(path.read_text().splitlines()) for path in sources}
    assert all(count < MAX_MODULE_LINES for count in lines.values()), lines
    code = {path.name: count_code_lines(path.read_text()) for path in sources}
    assert sum(code.values()) < MAX_C_LINES[part], code


def count_code_lines(source: str) -> int:
    """Lines of C that hold more than comments; good enough for sources without comment marks in strings."""
    without_comments = re.sub(r"/\*.*?\*/|//[^\n]*", "", source, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in without_comments.splitlines())


def test_no_dependency_runs_code_at_start() -> None:
    """A `.pth` line that begins with `import` is executed by every start of the interpreter."""
    for path in Path(sys.prefix).glob("lib/python*/site-packages/*.pth"):
        assert not re.search(r"^import[ \t]", path.read_text(), re.MULTILINE), path


def test_the_lock_file_is_current() -> None:
    pyproject = (PROJECT / "pyproject.toml").read_text()
    locked = (PROJECT / "uv.lock").read_text()
    for name in re.findall(r'^    "([A-Za-z0-9.-]+)[>=;]', pyproject, re.MULTILINE):
        assert f'name = "{name.replace(".", "-")}"' in locked, name


def test_python_compiles_without_warnings() -> None:
    command = [sys.executable, "-W", "error", "-m", "compileall", "-q", "-f", "-d", "cocoon", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPYCACHEPREFIX": "/dev/shm/cocoon-pyc"})
    assert done.returncode == 0, done.stdout + done.stderr
