"""One field of a config and its flag: what it allows, how its text is read, what is said where that fails."""

import dataclasses
import difflib
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from absl import flags

from bpgan.types import UserError

T = TypeVar("T")


class Parsed(str, Generic[T]):
    """The text of a flag that has a grammar, and what the text says.

    It is equal to its text, and hashed, written and saved as it. A copy or pickle of it alone is the plain text, as in
    ``dataclasses.asdict``; that of a ``Config`` is whole.

    Attributes:
      value: what ``parse`` made of the text.
      parse: the parser.
    """

    value: T
    parse: Callable[[str], T]

    def __new__(cls, text: str, parse: Callable[[str], T]) -> "Parsed[T]":
        """Raises ValueError if the text is none of the grammar."""
        self = super().__new__(cls, text)
        self.parse, self.value = parse, parse(str(text))
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def field(
    default: Any,
    help: str | Callable[[], str] = "",
    *,
    choices: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    low: float | None = None,
    high: float | None = None,
    exclusive_low: bool = False,
    restart_safe: bool = False,
    sweepable: bool | None = None,
    locates_data: bool = False,
    check: Callable[[Any], object] | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that becomes a flag, annotated ``bool``, ``int``, ``float``, ``str`` or ``Parsed[...]``.

    What is left out is inherited from the field of the same name in a base class.

    Args:
      default: the value without flag and preset.
      help: one sentence for ``--help``, or a function that says it when it is asked, of a table that may grow.
      choices: the allowed values; where there is a parser, which decides, those that it knows by name. A table, or a
        function without arguments, is read whenever the flag is: what was added to it meanwhile is allowed.
      low, high: bounds, both allowed values themselves unless ``exclusive_low``.
      restart_safe: an interrupted run may be resumed with another value.
      sweepable: ``build`` never branches on it in Python, so it may be a tracer; None: as in a base class.
      locates_data: it only says where the data are: an interrupted run may be resumed with another value if they are
        the same there.
      check: called with the value; raises ValueError("must be ...") to refuse it.
      parse: called with the text, ``parse(text) -> value``, and raises ValueError("must be ..."). In a config the
        field is then a ``Parsed``: the text, with the value as ``cfg.name.value``. Parsers that are heavy to import are
        imported by a function that is given here.
    """
    given = dict(
        help=help,
        choices=choices
        if isinstance(choices, Mapping) or callable(choices)
        else choices and tuple(choices),
        low=low,
        high=high,
        exclusive_low=exclusive_low,
        restart_safe=restart_safe,
        sweepable=sweepable,
        locates_data=locates_data,
        check=check,
        parse=parse,
    )
    metadata = {k: v for k, v in given.items() if v is not None and v is not False and v != ""}
    if sweepable is not None:
        metadata["sweepable"] = sweepable
    return dataclasses.field(default=default, metadata=metadata)


def show(value: object) -> str:
    """A flag's value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Flag(NamedTuple):
    """One field of a config: its flag, and what it allows. See ``field``."""

    name: str
    type: type
    default: Any
    help: str = ""
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False
    restart_safe: bool = False
    sweepable: bool = False
    locates_data: bool = False
    check: Callable[[Any], object] | None = None
    parse: Callable[[str], Any] | None = None

    def read(self, text: str) -> Any:
        """The value written as ``text``. Raises UserError, saying what is allowed."""
        value: Any = text
        if self.type is bool:
            value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
        elif self.type in (int, float):
            try:
                value = self.type(text)
            except ValueError:
                value = None
        elif text.startswith("--"):  # `--workdir --epochs=5`: the value was forgotten
            self._accept(text)  # can say which
            raise UserError("needs a value", argument=self.name, value=text)
        return self.validate(value, text)

    def validate(self, value: Any, text: str | None = None) -> Any:
        """``value``, or what is made of ``text``, in the field's type. Raises UserError, saying what is allowed."""
        if self.type is float and type(value) is int:
            value = float(value)
        good = self._fits(value)
        if good and self.type is float:
            good = math.isfinite(value)
        if good and self.low is not None:
            good = value > self.low if self.exclusive_low else value >= self.low
        if good and self.high is not None:
            good = value <= self.high
        if good and self.choices is not None and self.parse is None:
            good = value in self.choices
        if not good:
            given = value if text is None else text
            reason = f"must be {self.allowed}{self._hint(given)}"
            raise UserError(reason, argument=self.name, value=given)
        return self._accept(value)

    def _fits(self, value: object) -> bool:
        return self.type is str if isinstance(value, Parsed) else type(value) is self.type

    def _accept(self, value: Any) -> Any:
        """``value``, as a ``Parsed`` if the flag has a grammar. Raises UserError for what its function refuses."""
        try:
            if self.check is not None:
                self.check(value)
            if self.parse is None or isinstance(value, Parsed) and value.parse == self.parse:
                return value
            return Parsed(value, self.parse)
        except ValueError as error:
            hint = self._hint(value) if value.isidentifier() else ""
            raise UserError(f"{error}{hint}", argument=self.name, value=value) from None

    def _hint(self, value: Any) -> str:
        return did_you_mean(show(value), map(show, self.choices)) if self.choices else ""

    @property
    def bounds(self) -> str:
        """``> 0``, ``in [1, 10]``, ``one of a, b``; empty where everything is allowed."""
        if self.choices is not None:
            names = "one of " + ", ".join(map(show, self.choices))
            return f"{names}, or module:name of your own" if self.parse else names
        if self.low is not None and self.high is not None:
            return f"in {'(' if self.exclusive_low else '['}{self.low}, {self.high}]"
        if self.low is not None:
            return f"{'>' if self.exclusive_low else '>='} {self.low}"
        return f"<= {self.high}" if self.high is not None else ""

    @property
    def allowed(self) -> str:
        """What a value must be, in words."""
        if self.choices is not None:
            return self.bounds
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        bounds = self.bounds or ("that is finite" if self.type is float else "")
        return f"{kind[self.type]} {bounds}".strip()


def define(values: flags.FlagValues, spec: Flag) -> None:
    """Adds a flag whose value is None, and whose ``present`` is 0, until it is given."""
    values[spec.name] = flags.Flag(
        _Parser(spec), None, spec.name, None, spec.help, boolean=spec.type is bool
    )


class _Parser(flags.ArgumentParser):
    """Reads a flag's text; absl lets the UserError pass."""

    def __init__(self, spec: Flag):
        self._spec = spec

    def parse(self, argument: str) -> Any:
        return self._spec.read(argument)


def parse(
    values: flags.FlagValues,
    argv: Sequence[str],
    *,
    known_only: bool,
    other_flags: Iterable[str] = (),
) -> list[str]:
    """Sets ``values`` from ``argv`` and returns the arguments left; errors become ``UserError``."""
    try:
        return values(["", *argv], known_only=known_only)[1:]
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, [*values, *other_flags], "--")
        hint = hint or "; --help lists the flags"
        raise UserError(f"unknown flag{hint}", argument=error.flagname) from None
    except flags.CantOpenFlagFileError as error:
        reason = str(error).replace("ERROR:: Unable", "unable")
        raise UserError(reason, argument="flagfile") from None
    except (flags.Error, ValueError, UnicodeDecodeError) as error:
        message = str(error).removeprefix("flag ")
        if missing := re.fullmatch(r"Missing value for flag -*(.*)", message):
            raise UserError("needs a value", argument=missing[1]) from None
        raise UserError(message) from None


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """``; did you mean NAME?`` for the nearest of ``names``, or nothing if none is near.

    Names that contain the word come first. Others are near if they are nearly the same, or begin alike and are similar.
    """
    word, names = word.replace("-", "_"), list(names)
    near = sorted((name for name in names if len(word) > 2 and word in name), key=len)
    near += difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    near += difflib.get_close_matches(word, [n for n in names if n[:2] == word[:2]], n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def columns(rows: Sequence[tuple[str, str]], width: int = 100) -> list[str]:
    """Lines with the first texts on the left and the second ones aligned and wrapped."""
    left = 4 + max((len(first) for first, _ in rows if len(first) <= 36), default=0)
    lines = []
    for first, second in rows:
        start = f"  {first}"
        if len(start) > left - 2:
            lines.append(start)
            start = ""
        indent = " " * left
        lines += textwrap.wrap(
            second or "-",
            width,
            initial_indent=start.ljust(left),
            subsequent_indent=indent,
            break_on_hyphens=False,  # names are to be copied
        )
    return lines
