"""Classes of two sets are matched by what they are called, and never by accident."""

import numpy as np
import pytest

from bpgan.metrics.classes import Classes, covered, match


@pytest.mark.parametrize(
    "ours, theirs, labels, wanted, by",
    [
        # A class that is missing moves the numbers of those behind it.
        ("cat eel", "cat dog eel", [0, 1, 1], [0, 2, 2], "name"),
        ("eel cat dog", "cat dog eel", [0, 1, 2], [2, 0, 1], "name"),
        # Only classes with images count; TFDS names those of 1,000 classes of which a few are there.
        ("cat dog eel fox", "cat eel", [0, 2], [0, 1], "name"),
        # Cases, and the two ways to write an umlaut: file systems change both.
        ("Cat EEL", "cat dog eel", [0, 1], [0, 2], "name"),
        ("bar Ba\u0308r", "B\u00e4r bar", [0, 1], [1, 0], "name"),
        ("Cat cat", "cat Cat", [0, 1], [1, 0], "name"),
        ("a a b", "a a b", [0, 1, 2], [0, 1, 2], "name"),  # such as ImageNet's two cranes
        # Folders of digits against digits without names, in either direction.
        ("0 1 3", 10, [0, 1, 2], [0, 1, 3], "name"),
        ("0 1 10 11 2 3 4 5 6 7 8 9", 12, [2, 4], [10, 2], "name"),
        (5, "0 1 2 3 4 5 6 7 8 9", [0, 4], [0, 4], "name"),
        (3, 10, [0, 2], [0, 2], "number"),
        (10, 3, [0, 2], [0, 2], "number"),
    ],
)
def test_classes_are_found_by_name(ours, theirs, labels, wanted, by):
    found = match(np.array(labels), of(ours), of(theirs))
    assert found.labels.tolist() == wanted and found.labels.dtype == np.int32
    assert (found.by, found.doubt) == (by, "")


def of(text):
    if isinstance(text, int):
        return Classes(text)
    return Classes(len(text.split()), tuple(text.split()))


@pytest.mark.parametrize(
    "ours, theirs, labels",
    [
        (3, "cat dog eel", [0, 2]),  # numbers that someone gave
        (2, "cat dog eel", [0, 1]),
        ("cat dog eel", 3, [0, 2]),  # as many names as numbers
        ("1 2 3", 3, [0, 2]),  # folders from 1 on are not the classes 1, 2 and one that is none
        (3, "1 2 3", [1, 2]),
    ],
)
def test_without_names_on_one_side_the_numbers_count_and_that_is_said(ours, theirs, labels):
    found = match(np.array(labels), of(ours), of(theirs))
    assert found.labels.tolist() == labels and found.by == "number"
    assert found.doubt.startswith("matched by number, for lack of names (")


@pytest.mark.parametrize(
    "ours, theirs, labels",
    [
        ("cat fox", "cat dog eel", [0, 1]),
        ("cat", "Cat cAt", [0]),  # which of them?
        ("Cat cat", "CAT dog", [0, 1]),
        ("cat eel", 3, [0, 1]),  # a third class without a name may be any
        (10, "cat dog eel", [0, 9]),
        (10, 3, [0, 9]),
    ],
)
def test_classes_that_do_not_fit_are_refused_with_both_lists(ours, theirs, labels):
    ours, theirs = of(ours), of(theirs)
    with pytest.raises(ValueError) as error:
        match(np.array(labels), ours, theirs)
    assert f"({ours})" in str(error.value) and f"({theirs})" in str(error.value)


def test_a_message_lists_the_first_of_many():
    assert str(Classes(1000, tuple(map(str, range(1000))))).endswith("10, 11 and 988 more")
    assert str(Classes(3)) == "3 without names, 0 to 2"


def test_what_is_covered():
    fake, real = np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 2, 3, 3])
    assert covered(fake).tolist() == [0, 1, 2]
    assert covered(fake, least=2).tolist() == [0, 2]
    assert covered(fake, real).tolist() == [0, 2]
    assert covered(fake, real, least=2).tolist() == [0]
