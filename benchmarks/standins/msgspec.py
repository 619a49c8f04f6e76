"""The part of msgspec that bpgan uses, in plain Python: for a machine with a GPU and without a network.

``benchmarks/gpu_run.sh`` puts this folder on the path where msgspec is missing. It is slower.
"""

import dataclasses
import re
import sys
import types
import typing
from typing import Any


class ValidationError(ValueError):
    """``reason - at `$.key```, as msgspec has it."""

    def __init__(self, reason: str, at: str = "$"):
        super().__init__(f"{reason} - at `{at}`" if at != "$" else reason)
        self.at = at


class UnsetType:
    """Of ``UNSET``, the default of a field that tells its absence from null. No document has it."""


UNSET = UnsetType()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """Bounds of a number, the pattern of a text, and the length of a list."""

    ge: int | None = None
    le: int | None = None
    lt: int | None = None
    pattern: str | None = None
    min_length: int | None = None

    def check(self, value: Any, at: str) -> None:
        if self.ge is not None and value < self.ge:
            raise ValidationError(f"Expected `int` >= {self.ge}", at)
        if self.le is not None and value > self.le:
            raise ValidationError(f"Expected `int` <= {self.le}", at)
        if self.lt is not None and value >= self.lt:
            raise ValidationError(f"Expected `int` < {self.lt}", at)
        if self.pattern is not None and not re.search(self.pattern, value):
            raise ValidationError(f"Expected `str` matching regex {self.pattern!r}", at)
        if self.min_length is not None and len(value) < self.min_length:
            raise ValidationError(f"Expected `array` of length >= {self.min_length}", at)


class Struct:
    """A dataclass by another name."""

    def __init_subclass__(
        cls, *, frozen: bool = False, kw_only: bool = False, omit_defaults: bool = False
    ):
        for name in cls.__dict__.get("__annotations__", {}):
            default = cls.__dict__.get(name)
            if isinstance(default, list | dict):
                setattr(cls, name, dataclasses.field(default_factory=type(default)))
        cls.__omit_defaults__ = omit_defaults
        dataclasses.dataclass(cls, frozen=frozen, kw_only=kw_only)


def convert(value: Any, kind: Any, at: str = "$") -> Any:
    """What ``json.loads`` made of a document as a value of a type. Raises ValidationError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Annotated:
        found = convert(value, arguments[0], at)
        for each in arguments[1:]:
            each.check(found, at)
        return found
    if origin in (types.UnionType, typing.Union):
        return _of_union(value, arguments, at)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _of_struct(value, kind, at)
    plain = origin or kind
    if plain is dict:
        _expect(isinstance(value, dict), "object", value, at)
        of_key, of_value = arguments or (Any, Any)
        return {
            convert(k, of_key, f"{at}[...]"): convert(v, of_value, f"{at}[...]")
            for k, v in value.items()
        }
    if plain in (list, tuple):
        _expect(isinstance(value, list | tuple), "array", value, at)
        kinds = list(arguments) or [Any]
        if plain is list or kinds[-1] is ...:
            kinds = [kinds[0]] * len(value)
        if len(kinds) != len(value):
            raise ValidationError(f"Expected `array` of length {len(kinds)}", at)
        return plain(
            convert(v, k, f"{at}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True))
        )
    if plain is float and type(value) is int:
        return float(value)
    _expect(type(value) is (type(None) if plain is None else plain), _name(plain), value, at)
    return value


def _of_union(value: Any, kinds: tuple[Any, ...], at: str) -> Any:
    kinds = tuple(kind for kind in kinds if kind is not UnsetType)
    for kind in sorted(kinds, key=lambda kind: type(value) is not kind):  # its own type first
        try:
            return convert(value, kind, at)
        except ValidationError as error:
            if error.at != at:  # of that type, but not in all its parts
                raise
    raise ValidationError(
        f"Expected `{' | '.join(map(_name, kinds))}`, got `{_name(type(value))}`", at
    )


def _of_struct(value: Any, kind: type, at: str) -> Any:
    _expect(isinstance(value, dict), "object", value, at)
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = convert(value[field.name], hints[field.name], f"{at}.{field.name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValidationError(f"Object missing required field `{field.name}`", at)
    return kind(**found)


def _expect(right: bool, what: str, value: Any, at: str) -> None:
    if not right:
        raise ValidationError(f"Expected `{what}`, got `{_name(type(value))}`", at)


_NAMES = {type(None): "null", None: "null", dict: "object", list: "array", tuple: "array"}


def _name(kind: Any) -> str:
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def to_builtins(value: Any) -> Any:
    """Dictionaries and lists of what is in a record."""
    if isinstance(value, Struct):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        fields = [(f, v) for f, v in fields if v is not UNSET]
        if value.__omit_defaults__:
            fields = [(f, v) for f, v in fields if v != _default(f)]
        return {field.name: to_builtins(v) for field, v in fields}
    if isinstance(value, dict):
        return {k: to_builtins(v) for k, v in value.items()}
    return type(value)(map(to_builtins, value)) if isinstance(value, list | tuple) else value


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


structs = types.ModuleType("msgspec.structs")
structs.replace = dataclasses.replace
if __name__ == "msgspec":
    sys.modules["msgspec.structs"] = structs
