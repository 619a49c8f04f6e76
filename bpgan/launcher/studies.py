"""What a study compares: methods, each trained with several seeds. ``experiments.study`` trains and evaluates them."""

from collections.abc import Mapping
from typing import NamedTuple


class Arm(NamedTuple):
    """A method of a study: its name in the table, the experiment that trains it, and the flags of its runs by name."""

    name: str
    experiment: str
    flags: Mapping[str, str] = {}


class Study(NamedTuple):
    """What is compared with what.

    Attributes:
      says: what the study asks, in a sentence.
      arms: the methods.
      seeds: of every method.
    """

    says: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
