"""Classes of two sets of images, matched by name: what number a class has depends on which other classes there are."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

_MANY = 12  # names that a message lists


class Classes(NamedTuple):
    """What a set of labeled images calls its classes.

    Attributes:
      count: how many classes there are; labels lie in ``range(count)``.
      names: in the order of the labels, () if unknown.
    """

    count: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.names:
            return f"{self.count} without names, 0 to {self.count - 1}"
        return f"{self.count}: {list_names(self.names)}"


class Matched(NamedTuple):
    """Labels in the numbers of another set.

    Attributes:
      labels: int32 ``[n]``.
      by: ``name`` or ``number``, by which the classes were matched.
      doubt: what speaks against that match, in words; empty if nothing does.
    """

    labels: np.ndarray
    by: str
    doubt: str = ""


def match(labels: Int[np.ndarray, " n"], ours: Classes, theirs: Classes) -> Matched:
    """The labels of one set of images in the numbers that another set has for the same classes.

    Names are compared as they are and, if some are missing then, without regard to case and to the ways to write a
    letter in Unicode. Only classes that occur in ``labels`` must have a counterpart. A class without a name is called
    by its number if the names of the other set are numbers, too. Labels without names keep their numbers. Where only
    the other set has no names, the order of the names counts, and there must be as many classes.

    Args:
      labels: in ``range(ours.count)``.
      ours: the classes of ``labels``.
      theirs: those of the other set.

    Raises:
      ValueError: if a class has no counterpart; the message has both lists.
    """
    used = np.unique(labels)
    numbers = _by_name(used, _called(ours, theirs), _called(theirs, ours))
    if numbers is not None:
        return Matched(numbers[labels], "name" if ours.names or theirs.names else "number")
    explicit = not ours.names and used.max(initial=0) < theirs.count
    if explicit or (not theirs.names and ours.count == theirs.count):
        doubt = f"matched by number, for lack of names ({ours}; {theirs})"
        return Matched(labels.astype(np.int32), "number", doubt)
    raise ValueError(f"the classes ({ours}) are not among those of the reference ({theirs})")


def _called(one: Classes, other: Classes) -> tuple[str, ...]:
    """The names of the classes; their numbers where they have no names, and those of the other set are numbers."""
    if one.names:
        return one.names
    numbers = tuple(map(str, range(one.count)))
    # Folders 1, 2 and 3 are not the classes 0, 1 and 2 less the first.
    alike = not other.names or set(numbers) <= set(other.names) or set(other.names) <= set(numbers)
    return numbers if alike else ()


def _by_name(used: np.ndarray, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray | None:
    """The number in ``theirs`` by the number in ``ours``, -1 for those that are not used; None if one is missing."""
    if not ours or not theirs:
        return None
    if tuple(ours) == tuple(theirs):  # some lists have a name twice
        return np.arange(len(ours), dtype=np.int32)
    keys: tuple[Callable[[str], str], ...] = (str, _folded)
    for key in keys:
        numbers = {key(name): i for i, name in enumerate(theirs)}
        found = [numbers.get(key(ours[int(i)]), -1) for i in used]
        if len(numbers) == len(theirs) and len(set(found)) == len(found) and -1 not in found:
            result = np.full(len(ours), -1, np.int32)
            result[used] = found
            return result
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def covered(
    labels: Int[np.ndarray, " n"], others: Int[np.ndarray, " m"] | None = None, least: int = 1
) -> np.ndarray:
    """The classes, in order, of which there are at least so many among ``labels``, and among ``others`` if given."""
    found, counts = np.unique(labels, return_counts=True)
    enough = found[counts >= least]
    return enough if others is None else np.intersect1d(enough, covered(others, least=least))


def list_names(names: Sequence[str]) -> str:
    """Names for a message, the first of them if they are many."""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more
