"""What a study compares: methods, each trained with several seeds. ``experiments.study`` trains and evaluates them."""

from collections.abc import Mapping
from typing import NamedTuple


class Arm(NamedTuple):
    """A method of a study.

    Attributes:
      name: in the table.
      experiment: that trains it.
      flags: of its runs, by name.
      seeds: of this method; empty: those of the study.
      samples: flags that are other than those of the runs where samples are drawn, by name. Methods that differ in
        these alone have the same runs.
    """

    name: str
    experiment: str
    flags: Mapping[str, str] = {}
    seeds: tuple[int, ...] = ()
    samples: Mapping[str, str] = {}


class Study(NamedTuple):
    """What is compared with what.

    Attributes:
      says: what the study asks, in a sentence.
      arms: the methods.
      seeds: of every method.
      results: names of the numbers, without ``test/``, that a run measures itself at its end: the columns of the table,
        in the place of an evaluation of samples.
      beside: names of such numbers that stand beside those of the samples.
    """

    says: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    results: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
