"""What is measured of a translation, on translations that are known: the right one, none, one that hides its input."""

import numpy as np
import pytest

from bpgan import data
from bpgan.evaluation import translation
from bpgan.evaluation.translation import Domain, Sides


def invert(x):
    return 255 - x


def nothing(x):
    return x


def sides(name, x, y, test_x, test_y):
    return Sides(name, lambda: Domain(x, y), lambda: Domain(test_x, test_y))


@pytest.fixture(scope="module")
def digits():
    """Both splits, without labels, and their negatives."""
    train, test = (data.load("mnist10k", split).arrays()[0] for split in ("train", "test"))
    train, test = train[:300, ::2, ::2], test[:100, ::2, ::2]
    zeros = [np.zeros(len(x), np.int32) for x in (train, test)]
    a = sides("a", train, zeros[0], test, zeros[1])
    return a, sides("b", invert(train), zeros[0], invert(test), zeros[1])


def test_the_right_translation_has_no_errors(digits):
    a, b = digits
    found = translation.unpaired(invert, invert, a, b, invert, judged=False)
    assert found == {
        "moved": 1.0,
        "l1": 0.0,
        "cycle_a": 0.0,
        "cycle_b": 0.0,
        "hidden": pytest.approx(found["hidden"]),
    }
    pairs = translation.paired(invert, a, b)
    assert pairs["l1"] == 0 and pairs["psnr"] > 58 and pairs["ssim"] == pytest.approx(1)
    # the negative of an image is linear in it, and nothing like it
    assert max(pairs[f"l1/{name}"] for name in ("mean", "nearest", "ridge")) < pairs["l1/identity"]
    assert pairs["l1/ridge"] < pairs["l1/nearest"] < pairs["l1/mean"]


def test_no_translation_is_seen_to_be_none(digits):
    a, b = digits
    found = translation.unpaired(nothing, nothing, a, b, invert, judged=False)
    assert found["moved"] == 0 and found["cycle_a"] == 0
    assert found["l1"] == pytest.approx(np.abs(2 * (a.test.x / 255) - 1).mean())
    no_answer = translation.unpaired(nothing, nothing, a, b, judged=False)
    assert no_answer["moved"] == 0 and "l1" not in no_answer


def test_what_is_hidden_in_the_last_bits_does_not_come_back(digits):
    """The image in between is gray, but for three bits, out of which the input is made again."""
    a, b = digits

    def hide(x):
        return 96 + (x >> 5)

    def find(x):
        return (x - 96).clip(0, 7).astype(np.uint8) * 36

    honest = translation.unpaired(invert, invert, a, b, judged=False)
    found = translation.unpaired(hide, find, a, b, judged=False)
    assert found["cycle_a"] < 0.02
    assert found["hidden"] > 10 > 6 > honest["hidden"]


@pytest.mark.slow
def test_classifiers_tell_what_is_translated(tmp_path, monkeypatch):
    """Labels that survive, realism, and domains that can be told apart."""
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path))
    rng = np.random.default_rng(0)

    def bars(n):
        """Two classes: a bar that stands and one that lies, somewhere."""
        y = rng.integers(0, 2, n).astype(np.int32)
        x = rng.integers(0, 30, (n, 8, 8, 1)).astype(np.uint8)
        at = rng.integers(1, 7, n)
        for i in range(n):
            (x[i, :, at[i]] if y[i] else x[i, at[i]])[:] = 220
        return x, y

    train, test = bars(300), bars(100)
    a = sides("bars", *train, *test)
    b = sides("negatives", invert(train[0]), train[1], invert(test[0]), test[1])
    found = translation.unpaired(invert, invert, a, b, invert)
    assert found["agreement"] == found["agreement/real"] > 0.95
    assert found["fd_b"] == pytest.approx(0, abs=1e-3) and found["agreement_back"] > 0.95
    assert found["told_apart"] < 0.6
    turned = translation.unpaired(lambda x: invert(np.rot90(x, axes=(1, 2))), None, a, b, invert)
    assert turned["agreement"] < 0.05 and not {"cycle_a", "hidden"} & set(turned)
    untouched = translation.unpaired(nothing, nothing, a, b, invert)
    assert untouched["told_apart"] > 0.95 and untouched["fd_b"] > 10 * untouched["fd_b/real"]
