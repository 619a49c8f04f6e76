"""Images with captions: captions say what images show, words are numbers, and held-out combinations stay out."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from bpgan import data
from bpgan.data import captions
from bpgan.data.captions import Rendering
from bpgan.types import UserError

HOW = Rendering(copies=2, seed=3)


@pytest.fixture(scope="module")
def splits():
    return {name: captions.load("mnist10k", name, HOW) for name in captions.SPLITS}


# What captions say, written down once more.
COLORS = "red|crimson|scarlet green|emerald blue|azure yellow|golden magenta|purple|violet white|colorless"
KINDS = "zero|0 one|1 two|2 three|3 four|4 five|5 six|6 seven|7 eight|8 nine|9"
PLACES = (
    "center|middle",
    "(top|upper) left",
    "(top|upper) right",
    "(bottom|lower) left",
    "(bottom|lower) right",
)
SIZES = "small|tiny|little large|big|huge"


def meant(text):
    """What a caption says: class, color, position, size."""

    def which(patterns):
        found = [i for i, words in enumerate(patterns) if re.search(rf"\b({words})\b", text)]
        assert len(found) == 1, text
        return found[0]

    return [which(p) for p in (KINDS.split(), COLORS.split(), PLACES, SIZES.split())]


@pytest.mark.parametrize("name", captions.SPLITS)
def test_captions_say_what_images_show(splits, name):
    split = splits[name]
    some = range(0, len(split.texts), 7)
    np.testing.assert_array_equal(split.attributes[some], [meant(split.texts[i]) for i in some])
    _, labels = split.images.read(np.arange(split.images.length))
    np.testing.assert_array_equal(split.attributes[:, 0], labels)


@pytest.mark.parametrize("name", captions.SPLITS)
def test_a_foil_is_wrong_in_one_attribute_and_not_held_out(splits, name):
    """Read from its words. Each of the four is wrong as often, and so is each other value of it."""
    split = splits[name]
    words = np.array(split.images.words)
    some = np.arange(0, len(split.texts), 3)
    said = np.array([meant(" ".join(words[row[row > 0]])) for row in split.foils[some]])
    wrong = said != split.attributes[some]
    np.testing.assert_array_equal(wrong.sum(axis=1), 1)
    places, held = captions.combinations(10)
    number = {tuple(place): i for i, place in enumerate(places)}
    assert not any(held[row[0], number[tuple(row[1:])]] for row in said)
    counts = wrong.sum(axis=0)
    # The size has one other value, which is held out for a tenth.
    expected = len(some) * np.array([1, 1, 1, 0.9]) / 3.9
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected)), counts
    shift = (said - split.attributes[some])[wrong[:, 0], 0] % 10
    spread = np.bincount(shift, minlength=10)[1:]
    assert np.all(np.abs(spread - spread.mean()) < 5 * np.sqrt(spread.mean())), spread


def test_there_are_many_ways_to_say_the_same(splits):
    texts = splits["train"].texts
    assert len(set(texts)) > 0.7 * min(len(texts), 10 * 6 * 5 * 2 * 50)
    starts = {re.sub(r"\W.*", "", text) for text in texts}
    assert {"a", "the", "tiny", "crimson", "in", "top"} <= starts


def test_captions_of_the_same_number_mean_the_same(splits):
    split = splits["test"]
    a, b = split.meaning[:200, None], split.meaning[None, :200]
    same = (split.attributes[:200, None] == split.attributes[None, :200]).all(-1)
    np.testing.assert_array_equal(a == b, same)


def combinations_of(split):
    return set(map(tuple, split.attributes.tolist()))


def test_held_out_combinations_never_occur_in_training(splits):
    train, test, held = (combinations_of(splits[name]) for name in captions.SPLITS)
    assert not train & held and not test & held and test <= train
    assert len(held) == 60 and len(train) == 540  # a tenth of 10 x 6 x 5 x 2
    for other in range(5):  # they are those of every seed
        more = captions.draw_attributes(np.arange(5000) % 10, 10, other, "train")
        assert not set(map(tuple, more.tolist())) & held


def test_what_is_held_out_occurs_in_other_combinations(splits):
    """Each class in each color, place and size; and each pair of those three."""
    for columns, count in (([0, 1], 60), ([0, 2], 50), ([0, 3], 20), ([1, 2, 3], 60)):
        seen = {tuple(row) for row in splits["train"].attributes[:, columns].tolist()}
        assert len(seen) == count


@pytest.mark.parametrize("which, others", [("train", 54), ("held_out", 6), ("all", 60)])
def test_combinations_are_equally_frequent(which, others):
    drawn = captions.draw_attributes(np.full(60_000, 4), 10, 0, which)
    _, counts = np.unique(drawn[:, 1:], axis=0, return_counts=True)
    mean = 60_000 / others
    assert len(counts) == others
    assert np.sum((counts - mean) ** 2 / mean) < others + 5 * np.sqrt(2 * others)  # chi-square


def test_example_i_is_a_function_of_the_seed_and_i(splits):
    labels = np.arange(300) % 10
    few, many = (captions.draw_attributes(labels[:n], 10, 5, "train") for n in (40, 300))
    np.testing.assert_array_equal(few, many[:40])
    kinds = captions.kinds_of((), 10)
    whole = captions.describe(many, kinds, 5)
    assert captions.describe(many[100:120], kinds, 5, first=100) == whole[100:120]
    assert captions.describe(many, kinds, 6) != whole
    again = captions.load("mnist10k", "train", HOW)
    assert again.images.sha256 == splits["train"].images.sha256
    others = [HOW._replace(seed=4), HOW._replace(copies=1), HOW._replace(canvas=40)]
    digests = {captions.load("mnist10k", "test", how).images.sha256 for how in (HOW, *others)}
    assert len(digests) == 4


def test_hashes_are_uniform_and_independent():
    columns = [
        captions.hashed(seed, np.arange(20_000), c) for seed in (0, 1) for c in captions.ATTRIBUTES
    ]
    for x in columns:
        assert x.min() >= 0 and x.max() < 1
        assert abs(x.mean() - 0.5) < 4 / np.sqrt(12 * 20_000) and abs(x.var() - 1 / 12) < 0.003
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_objects_are_where_and_what_they_should_be():
    """A white square: its corners, its color; halving a side is the mean of 2 x 2 pixels."""
    attributes = np.array([[0, c, p, s] for c in range(6) for p in range(5) for s in range(2)])
    gray = np.full((len(attributes), 28, 28), 255, np.uint8)
    drawn = captions.render(gray, attributes, 32)
    rgb = [color for color, _ in captions.COLORS.values()]
    corners = {
        14: [(9, 9), (0, 0), (0, 18), (18, 0), (18, 18)],
        22: [(5, 5), (0, 0), (0, 10), (10, 0), (10, 10)],
    }
    for (_, c, p, s), image in zip(attributes, drawn, strict=True):
        side = (14, 22)[s]
        top, left = corners[side][p]
        expected = np.zeros((32, 32, 3), np.uint8)
        expected[top : top + side, left : left + side] = rgb[c]
        np.testing.assert_array_equal(image, expected)
    x = np.random.default_rng(0).integers(0, 256, (1, 28, 28)).astype(np.uint8)
    halved = x.reshape(1, 14, 2, 14, 2).mean((2, 4))
    image = captions.render(x, np.array([[0, 5, 1, 0]]), 32)  # white, top left, small
    np.testing.assert_array_equal(image[0, :14, :14, 1], np.rint(halved[0]))
    assert not image[0, 14:].any() and not image[0, :, 14:].any()


def test_an_area_is_shared_exactly():
    """28 to 22 pixels keeps the mean of the image, and of a ramp the ramp."""
    ramp = np.broadcast_to(np.arange(28) * 9, (1, 28, 28)).astype(np.uint8)
    image = captions.render(ramp, np.array([[0, 5, 1, 1]]), 32)[0, :22, :22, 0].astype(float)
    edges = np.linspace(0, 28, 23)
    integral = np.interp(edges, np.arange(29), np.concatenate([[0], np.cumsum(np.arange(28) * 9)]))
    np.testing.assert_allclose(image[3], np.diff(integral) / (28 / 22), atol=0.51)


def test_words_are_numbers():
    words = captions.vocabulary(["A red seven!", "the seven, top-left"])
    assert words == ("<pad>", "<unk>", "a", "left", "red", "seven", "the", "top")
    tokens = captions.tokenize(["the RED seven.", "pink 7: seven"], words, 5)
    np.testing.assert_array_equal(tokens, [[6, 4, 5, 0, 0], [1, 1, 5, 0, 0]])
    assert tokens.dtype == np.int32
    assert captions.unknown_words("pink 7: Pink seven", words) == ["pink", "7"]
    with pytest.raises(UserError, match="has 6 words, must have at most 5"):
        captions.tokenize(["one two three four five six"], words, 5)
    with pytest.raises(UserError, match="has no words"):
        captions.tokenize(["..."], words, 5)


def test_every_caption_has_known_words(splits):
    train = splits["train"].images.words
    for split in splits.values():
        assert split.images.words == train and not (split.tokens == 1).any()
    assert not {"kind", "color", "position", "size"} & set(train)


def test_a_class_is_called_by_its_name():
    assert captions.kinds_of(("T-shirt/top", "Dress"), 2) == (("t shirt top",), ("dress",))
    assert captions.kinds_of((), 10)[7] == ("seven", "7")
    assert captions.kinds_of(tuple("0123456789"), 10)[7] == ("seven", "7")


def test_batches_hold_images_beside_their_captions():
    split = captions.load("mnist10k", "test")  # no image twice
    source = captions.source(split, seed=1, batch_size=64)
    images = {row.tobytes(): i for i, row in enumerate(split.images.arrays()[0])}
    places = []
    for step in range(2):
        batch = jax.device_get(source.batch_at(source.data, np.int32(step)))
        pixels = np.rint((batch["x"] + 1) * 127.5).astype(np.uint8)
        rows = [images[row.tobytes()] for row in pixels]
        np.testing.assert_array_equal(batch["text"], split.tokens[rows])
        np.testing.assert_array_equal(batch["meaning"], split.meaning[rows])
        np.testing.assert_array_equal(batch["attributes"], split.attributes[rows])
        np.testing.assert_array_equal(batch["foil"], split.foils[rows])
        places += rows
    assert len(set(places)) == 128


def test_what_a_run_remembers_is_all_that_drawing_needs(splits):
    facts = json.loads(
        json.dumps(dict(captions.source(splits["train"], seed=0, batch_size=8).facts))
    )
    with data.without_images(facts):
        found = captions.load("npz:/nowhere.npz", "train", HOW)
        source = captions.source(found, seed=0, batch_size=8)
    assert found.images.is_absent and found.images.words == splits["train"].images.words
    assert (
        found.images.prompts == splits["train"].images.prompts and len(found.images.prompts) == 10
    )
    batch = jax.eval_shape(source.batch_at, source.data, np.int32(0))
    assert batch["x"].shape == (8, 32, 32, 3) and batch["text"].shape == (8, 16)


def test_images_with_colors_or_without_labels_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for name, arrays, reason in (
        (
            "color",
            {"x": rng.integers(0, 255, (40, 8, 8, 3), np.uint8), "y": np.arange(40) % 2},
            "3 channels",
        ),
        ("plain", {"x": rng.integers(0, 255, (40, 8, 8), np.uint8)}, "no labels"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(UserError, match=reason):
            captions.load(f"npz:{tmp_path / name}.npz")


# The user's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((10, 12, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def pairs(n=20):
    return [[f"{i % 4}.png", f"a picture of gray number {i % 4}"] for i in range(n)]


def write(folder, rows, name="dataset.json"):
    path = folder / name
    if name.endswith("json"):
        path.write_text(json.dumps({"captions": rows}))
    else:
        path.write_text("file,caption\n" + "".join(f'{file},"{text}"\n' for file, text in rows))
    return str(path)


@pytest.mark.parametrize("name", ["dataset.json", "mine.csv"])
def test_own_captions(folder, name):
    train, test = (
        captions.load_own(write(folder, pairs(), name), 8, 9, split) for split in ("train", "test")
    )
    assert train.images.length == 18 and test.images.length == 2
    x, _ = train.images.arrays()
    assert x.shape == (18, 8, 8, 3)
    np.testing.assert_array_equal(x[:4].mean((1, 2, 3)), [0, 60, 120, 180])
    assert (
        train.texts[2] == "a picture of gray number 2"
        and test.texts[0] == "a picture of gray number 1"
    )
    np.testing.assert_array_equal(train.meaning[:4], train.meaning[4:8])
    assert len(set(train.meaning)) == 4 and train.attributes is None
    assert train.images.words == test.images.words
    batch = captions.source(train, seed=0, batch_size=4)
    assert "attributes" not in batch.batch_at(batch.data, np.int32(0))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda rows: rows[:5], "has 5 captions, must have at least 20"),
        (lambda rows: [*rows, ["gone.png", "a b"]], "the image gone.png cannot be read"),
        (lambda rows: [*rows, ["0.png", " . "]], "has no words"),
        (lambda rows: [*rows, ["0.png", "a " * 10]], "has 10 words, must have at most 9"),
        (lambda rows: [*rows, ["0.png"]], r"must be {\"captions\": \[\[path, text\], ...\]}"),
        (lambda rows: "none", "must be {"),
    ],
)
def test_own_captions_that_cannot_be_used(folder, change, reason):
    file = write(folder, change(pairs()))
    with pytest.raises(UserError, match=reason) as error:
        captions.load_own(file, 8, 9)
    assert error.value.argument == "captions" and error.value.value == file


def test_files_that_hold_no_captions(folder):
    (folder / "broken.json").write_text("{")
    (folder / "other.csv").write_text("a,b\n1,2\n")
    for name, reason in (
        ("broken.json", "is no JSON"),
        ("other.csv", "columns file and caption"),
        ("no.json", "No such"),
    ):
        with pytest.raises(UserError, match=reason):
            captions.load_own(str(folder / name), 8, 9)
