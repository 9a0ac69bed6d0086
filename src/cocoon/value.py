"""Frozen values without `dataclasses`, whose import alone costs more than the interpreter's start.

    class Disk(Value):
        path: str
        read_only: bool = False

A subclass gets slots, a keyword-only constructor that insists on the right names, equality, a hash, a repr and
`replace`. `to_plain` and `from_plain` turn values into JSON's types and back; reading is strict: an unknown key, a
missing key or a wrong type raises Corrupt. Field types may be: str, int, float, bool, `X | None`, `tuple[X, ...]`,
`dict[str, X]`, `object` (kept as it is), other Values, and unions of Values (told apart by a `kind` key).
"""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, Union, get_args, get_origin

from cocoon.errors import Corrupt
from cocoon.units import printable

if TYPE_CHECKING:
    from typing import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Any:
        """The decorator that type checkers know; at run time it does nothing."""
        return lambda decorated: decorated


class _ValueMeta(type):
    """Turns annotations into slots and keeps the defaults."""

    _fields: dict[str, str]
    _defaults: dict[str, Any]

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _ValueMeta:
        fields: dict[str, str] = {}
        defaults: dict[str, Any] = {}
        for parent in bases:
            fields.update(getattr(parent, "_fields", {}))
            defaults.update(getattr(parent, "_defaults", {}))
        slots = []
        for field, kind in namespace.get("__annotations__", {}).items():
            if kind.startswith("ClassVar"):
                continue
            slots.append(field)
            fields[field] = kind
            if field in namespace:
                defaults[field] = namespace.pop(field)
        namespace["__slots__"] = tuple(slots)
        namespace["_fields"] = fields
        namespace["_defaults"] = defaults
        return super().__new__(mcs, name, bases, namespace)


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=True)
class Value(metaclass=_ValueMeta):
    """Base of every frozen value; see the module's docstring."""

    _fields: ClassVar[dict[str, str]]
    _defaults: ClassVar[dict[str, Any]]

    def __init__(self, **given: Any) -> None:
        if given.keys() != self._fields.keys():
            given = {**self._defaults, **given}
            for field in self._fields:
                if field not in given:
                    raise TypeError(f"{type(self).__name__} needs {field}")
            unknown = [field for field in given if field not in self._fields]
            if unknown:
                raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}")
        put = object.__setattr__
        for field, value in given.items():
            put(self, field, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self._fields)

    def __hash__(self) -> int:
        return hash((type(self).__name__, *(getattr(self, field) for field in self._fields)))

    def __repr__(self) -> str:
        inner = ", ".join(f"{field}={getattr(self, field)!r}" for field in self._fields)
        return f"{type(self).__name__}({inner})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**{field: getattr(self, field) for field in self._fields}, **changes})


# What most fields are: asked for first, since a record has hundreds of them.
_ATOMS: Final = {"str": str, "int": int, "bool": bool, "float": float}
_PLAIN: Final = frozenset({*_ATOMS.values(), NoneType})


def to_plain(value: object) -> Any:
    """`value` in JSON's types: a Value becomes an object with every field."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Value):
        return {field: to_plain(getattr(value, field)) for field in value._fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


V = TypeVar("V", bound=Value)


def from_plain(cls: type[V], plain: object) -> V:
    """The `cls` that `to_plain` made `plain` from.

    Raises Corrupt that names the field when a key is unknown or missing or a value has the wrong type.
    """
    if not isinstance(plain, dict):
        raise Corrupt(f"{cls.__name__} is not an object")
    hints = _hints(cls)
    unknown = [key for key in plain if key not in hints]
    if unknown:
        raise Corrupt(f"{cls.__name__} has an unknown field {printable(str(unknown[0]))}")
    given = {key: _read(hints[key], item, f"{cls.__name__}.{key}") for key, item in plain.items()}
    try:
        return cls(**given)
    except TypeError as error:
        raise Corrupt(str(error)) from error


@cache
def _hints(cls: type[Value]) -> dict[str, Any]:
    """The type of each field: as `typing.get_type_hints` finds it, at half the cost, since all annotations are text."""
    hints: dict[str, Any] = {}
    for owner in reversed(cls.__mro__[:-1]):
        known = vars(sys.modules[owner.__module__])
        for field in vars(owner)["__slots__"]:
            text = vars(owner)["_fields"][field]
            hints[field] = _ATOMS.get(text) or eval(text, known)
    return {field: hints[field] for field in cls._fields}


def _read(kind: Any, plain: object, where: str) -> Any:
    """`plain` as the annotated type `kind`."""
    if type(plain) is kind:
        return plain
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_union(arguments, plain, where)
    if origin is tuple and isinstance(plain, list):
        return tuple(_read(arguments[0], item, where) for item in plain)
    if origin is dict and isinstance(plain, dict):
        return {str(key): _read(arguments[1], item, where) for key, item in plain.items()}
    if kind is object or kind is Any:
        return plain
    if isinstance(kind, type) and issubclass(kind, Value):
        return from_plain(kind, plain)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError as error:
            raise Corrupt(f"{where} is {printable(str(plain))}") from error
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    raise Corrupt(f"{where} has the wrong type")


def _read_union(arguments: tuple[Any, ...], plain: object, where: str) -> Any:
    """One of several types: None first, then Values by their `kind`, then the first that fits."""
    if plain is None and NoneType in arguments:
        return None
    choices = [choice for choice in arguments if choice is not NoneType]
    if len(choices) > 1 and isinstance(plain, dict):
        for choice in choices:
            if choice._defaults.get("kind") == plain.get("kind"):
                return from_plain(choice, plain)
        raise Corrupt(f"{where} has an unknown kind {printable(str(plain.get('kind')))}")
    return _read(choices[0], plain, where)
