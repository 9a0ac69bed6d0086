"""Values and their JSON form: whatever can be said comes back the same, and whatever is not ours is refused."""

from __future__ import annotations

import json
import subprocess
import tempfile
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.errors import Corrupt
from cocoon.model.capsule import CapsuleSpec
from cocoon.model.host import CgroupFacts, HostFacts
from cocoon.model.image import Image
from cocoon.model.kernel import Kernel
from cocoon.model.operation import Debt, Operation
from cocoon.model.vm import VMRecord, VMSpec
from cocoon.plan.disks import CopyFile, MakeOverlay, MakeSeed
from cocoon.plan.plan import Plan, plan_from_plain, plan_to_plain
from cocoon.plan.rows import DeleteVM, MarkRunning, SetVMState
from cocoon.plan.steps import MakeCgroup, MakeDirectory, MakeSparseDisk, RemoveCgroup, RemoveTree, WriteFile
from cocoon.store.codec import decode, encode
from cocoon.value import Value, from_plain, to_plain

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Anything of an annotated type."""
    plain = {
        str: TEXT,
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        object: JSON,
        type(None): st.none(),
    }
    if kind in plain:
        return plain[kind]
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
    if get_origin(kind) is dict:
        return st.dictionaries(TEXT, of_type(arguments[1]), max_size=3)
    if arguments:
        return st.one_of([of_type(argument) for argument in arguments])
    if issubclass(kind, Value):
        return of_value(kind)
    return st.sampled_from(list(kind))


def of_value(cls: type[Value]) -> st.SearchStrategy[Any]:
    """Any value of a class; `kind` fields, which tell unions apart, keep their default."""
    hints = get_type_hints(cls)
    fields = {
        name: st.just(cls._defaults["kind"]) if name == "kind" and "kind" in cls._defaults else of_type(hints[name])
        for name in cls._fields
    }
    return st.fixed_dictionaries(fields).map(lambda given: cls(**given))


KINDS = (VMRecord, VMSpec, Image, Kernel, CapsuleSpec, HostFacts, CgroupFacts, Operation, Debt)
STEPS = (
    MakeDirectory, MakeSparseDisk, WriteFile, RemoveTree, MakeCgroup, RemoveCgroup, CopyFile, MakeOverlay, MakeSeed,
)  # fmt: skip
CHANGES = (SetVMState, MarkRunning, DeleteVM)


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_every_value_survives_json(cls):
    @settings(max_examples=60, deadline=None)
    @given(of_value(cls))
    def check(value):
        text = encode(value)
        assert text.isascii()
        again = decode(cls, text, "it")
        assert again == value
        assert type(again) is type(value)
        assert encode(again) == text
        assert value.replace() == value

    check()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of([of_value(step) for step in STEPS]), max_size=5),
    st.lists(st.one_of([of_value(change) for change in CHANGES]), max_size=3),
    TEXT,
)
def test_every_plan_survives_json(steps, changes, kind):
    plan = Plan(kind=kind, vm_id="x", steps=tuple(steps), recovery="undo", on_success=tuple(changes), on_undo=())
    recorded = plan.replace(steps=tuple(step.recorded() for step in steps))
    assert plan_from_plain(json.loads(encode(plan_to_plain(plan)))) == recorded


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_strange_json_is_refused_by_name(plain):
    for cls in KINDS:
        with pytest.raises(Corrupt):
            from_plain(cls, plain)
    with pytest.raises(Corrupt):
        plan_from_plain(plain)


@settings(max_examples=100, deadline=None)
@given(of_value(VMRecord), st.data())
def test_a_changed_record_is_refused_or_readable(record, data):
    plain = to_plain(record)
    where = data.draw(st.sampled_from(sorted(plain)))
    match data.draw(st.sampled_from(["drop", "add", "change"])):
        case "drop":
            del plain[where]
        case "add":
            plain[where + "x"] = 1
        case "change":
            plain[where] = data.draw(JSON)
    try:
        again = from_plain(VMRecord, plain)
    except Corrupt as error:
        assert error.message.isprintable()
        return
    assert {**to_plain(again), **plain} == to_plain(again), "what was dropped has its default"


@given(st.binary(max_size=200))
def test_bytes_of_files_survive_their_step(data):
    step = WriteFile.from_bytes("/x", data)
    assert step.data() == data
    assert from_plain(WriteFile, to_plain(step)).data() == data


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 4096))
def test_the_printed_file_is_the_written_one_without_a_screen_of_zeros(data, zeros):
    data += bytes(zeros)
    with tempfile.TemporaryDirectory() as place:
        filling = WriteFile.from_bytes(f"{place}/x", data).describe()[:-1]
        subprocess.run(["/bin/sh", "-ec", "\n".join(filling)], check=True, timeout=60)
        with open(f"{place}/x", "rb") as file:
            assert file.read() == data
    assert len("".join(filling)) < 700


def test_values_are_frozen_and_strict():
    step = RemoveTree(path="/x")
    with pytest.raises(AttributeError):
        step.path = "/y"
    with pytest.raises(TypeError):
        RemoveTree()
    with pytest.raises(TypeError):
        RemoveTree(path="/x", more=1)
    assert step != MakeDirectory(path="/x")
    assert len({step, RemoveTree(path="/x"), RemoveTree(path="/y")}) == 2
