"""Users' datasets from file to array, what is said of them, and the cache between."""

import errno
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
from checks.rows import random_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from bpgan import data, memory
from bpgan.data import cache, convert, datasets, images, tfds
from bpgan.types import UserError

ROOT = pathlib.Path(__file__).parent.parent


pytestmark = pytest.mark.usefixtures("own_cache")


def png(x, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x).save(path)


def tree(root, files):
    """Writes images by path; a number is a gray 4x4 image of that value with one pixel that differs."""
    for name, x in files.items():
        if isinstance(x, int):
            x = np.full((4, 4), x, np.uint8)
            x[0, 0] += 1
        png(np.asarray(x, np.uint8), root / name)
    return root


def zipped(root, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for f in sorted(root.rglob("*")):
            file.write(f, prefix + str(f.relative_to(root)))
    return path


def write_idx(path, array, kind=8, magic=b"\0\0"):
    body = magic + bytes([kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    body += array.tobytes()
    path.write_bytes(gzip.compress(body, 1) if path.suffix == ".gz" else body)
    return path


def every_tenth(labels):
    """The split spelled out: class after class, the 10th, 20th, ... of that sequence."""
    in_order = [i for c in sorted(set(labels)) for i, label in enumerate(labels) if label == c]
    return {i for place, i in enumerate(in_order) if place % 10 == 9}


def both(name):
    return [data.load(name, split) for split in ("train", "test")]


def check(dataset, x, y):
    """Everything a dataset says of itself, against the arrays it should hold."""
    found_x, found_y = dataset.arrays()
    assert found_x.dtype == np.uint8 and found_y.dtype == np.int32
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_y, y)
    assert dataset.shape == x.shape[1:] and dataset.length == len(x)
    assert list(dataset.counts) == [sum(y == c) for c in range(dataset.classes)]
    assert (dataset.low, dataset.high) == (x.min(), x.max())
    np.testing.assert_allclose(dataset.mean, (x / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, (x / 255).std((0, 1, 2)), rtol=1e-9, atol=1e-12)
    content = np.array(x.shape[1:], "<i4").tobytes() + x.tobytes() + np.array(y, "<i4").tobytes()
    assert dataset.sha256 == hashlib.sha256(content).hexdigest()
    indices = np.random.default_rng(1).integers(0, len(x), 7)
    for read in (dataset.read, pickle.loads(pickle.dumps(dataset.read))):
        some_x, some_y = read(indices)
        np.testing.assert_array_equal(some_x, x[indices])
        np.testing.assert_array_equal(some_y, y[indices])
    none_x, none_y = dataset.read(np.zeros(0, int))
    assert none_x.shape == (0, *x.shape[1:]) and none_y.shape == (0,)
    for wrong in (-1, len(x)):
        with pytest.raises(IndexError):
            dataset.read(np.array([0, wrong]))


def check_split(name, x, y):
    """Both splits of a dataset without splits of its own."""
    test = np.array([i in every_tenth(list(y)) for i in range(len(y))])
    for dataset, part in zip(both(name), (~test, test), strict=True):
        check(dataset, x[part], y[part])


def refused(name, *messages, split="train"):
    with pytest.raises(UserError) as caught:
        data.load(name, split)
    assert (caught.value.argument, caught.value.value) == ("dataset", name)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"dataset={name}: "), text
    for message in messages:
        assert message in text, text
    return text


# The embedded digits -------------------------------------------------------------------------------------------------


def test_mnist10k(own_cache):
    train, test = both("mnist10k")
    x, y = train.arrays()
    test_x, test_y = test.arrays()
    assert x.shape == (9000, 28, 28, 1) and test_x.shape == (1000, 28, 28, 1)
    assert x.dtype == np.uint8 and y.dtype == np.int32 and train.classes == 10
    total = np.bincount(y) + np.bincount(test_y)
    np.testing.assert_array_equal(total, [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978])
    assert np.abs(np.bincount(test_y) - total / 10).max() < 1
    seen = {image.tobytes() for image in x}
    assert not any(image.tobytes() in seen for image in test_x)
    # MNIST's own statistics (mean 0.1307, std 0.3081 of the 60,000) hold for this part to sampling error.
    assert abs(train.mean[0] - 0.1307) < 0.003 and abs(train.std[0] - 0.3081) < 0.003
    check(train, x, y)
    check(test, test_x, test_y)
    assert train.warnings == test.warnings == () and not list(own_cache.iterdir())


def test_mnist10k_is_what_it_was():
    """The content before there were other datasets; runs of then can be repeated."""
    stored = np.load(pathlib.Path(data.__file__).parent / "mnist10k.npz")
    x, y = stored["x"].reshape(-1, 28, 28, 1), stored["y"]
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[9::10]] = True
    for dataset, part in zip(both("mnist10k"), (~test, test), strict=True):
        np.testing.assert_array_equal(dataset.arrays()[0], x[part])
        np.testing.assert_array_equal(dataset.arrays()[1], y[part])


# Every kind of file, any shape ---------------------------------------------------------------------------------------


@st.composite
def labeled_images(draw, channels=(1, 3, 4), classes=4):
    n = draw(st.integers(10, 45))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from(channels)))
    seed = draw(st.integers(0, 999))
    y = np.random.default_rng(seed).integers(0, draw(st.integers(1, classes)), n)
    return random_bytes(n, *shape, seed=seed), y


@settings(max_examples=12, deadline=None)
@given(
    labeled_images(), st.sampled_from(["npz", "npz-flat", "fortran", "idx", "idx.gz"]), st.data()
)
def test_arrays_come_back(tmp_path_factory, examples, form, more):
    x, y = examples
    directory = tmp_path_factory.mktemp("arrays")
    if form.startswith("idx"):
        suffix = form.removeprefix("idx")
        flat = x.shape[3] == 1 and more.draw(st.booleans())
        rank = 3 if flat else 4
        images_file = directory / f"digits-images-idx{rank}-ubyte{suffix}"
        write_idx(images_file, x[..., 0] if flat else x)
        write_idx(directory / "digits-labels-idx1-ubyte", y.astype(np.uint8))
        check_split(f"idx:{images_file}", x, y)
        return
    kind = more.draw(st.sampled_from([np.uint8, np.int16, np.int64, np.uint64]))
    stored = {"npz": x, "npz-flat": x[..., 0], "fortran": np.asfortranarray(x)}[form]
    x = stored[..., None] if form == "npz-flat" else x
    save = more.draw(st.sampled_from([np.savez, np.savez_compressed]))
    column = more.draw(st.booleans())
    save(
        directory / "a.npz", x=stored, y=y.astype(kind).reshape(-1, 1) if column else y.astype(kind)
    )
    check_split(f"npz:{directory}/a.npz", x, y)


@settings(max_examples=10, deadline=None)
@given(labeled_images(channels=(1, 3)), st.sampled_from(["folder", "zip", "json"]), st.data())
def test_image_files_come_back(tmp_path_factory, examples, form, more):
    x, y = examples
    directory = tmp_path_factory.mktemp("files")
    suffix = more.draw(st.sampled_from([".png", ".BMP", ".tiff"]))
    paths = []
    for i in more.draw(
        st.permutations(range(len(x)))
    ):  # written in no order, read in that of names
        place = f"{i // 7}" if form == "json" else f"c{y[i]}/{'deeper/' * (i % 2)}"
        paths.append((f"{place}/{i:03}{suffix}".replace("//", "/"), i))
        png(x[i], directory / "root" / paths[-1][0])
    if form == "json":
        labels = {"labels": [[path, int(y[i])] for path, i in paths]}
        (directory / "root" / "dataset.json").write_text(json.dumps(labels))
    order = [i for _, i in sorted(paths)]
    numbers = y if form == "json" else np.searchsorted(np.unique(y), y)
    name = f"folder:{directory}/root"
    if form == "zip":
        name = f"zip:{zipped(directory / 'root', directory / 'a.zip')}"
    check_split(name, x[order], numbers[order])
    if form != "json":
        assert data.load(name).class_names == tuple(f"c{c}" for c in np.unique(y))


@pytest.mark.medium
@pytest.mark.skipif(
    not os.path.exists("/usr/share/datasets/fashion-mnist"),
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_fashion_mnist():
    train, test = both("idx:/usr/share/datasets/fashion-mnist")
    assert train.counts == (6000,) * 10 and test.counts == (1000,) * 10
    assert train.shape == (28, 28, 1) and train.warnings == test.warnings == ()
    assert abs(train.mean[0] - 0.2860) < 5e-5 and abs(train.std[0] - 0.3530) < 5e-5
    raw = gzip.open("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz").read()[16:]
    x, y = train.arrays()
    assert x.tobytes() == raw
    rows = np.random.default_rng(0).integers(0, 60000, 500)
    np.testing.assert_array_equal(train.read(rows)[0], x[rows])
    np.testing.assert_array_equal(train.read(rows)[1], y[rows])


# Splits and classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"),
              ("train_images", "train_labels", "test_images", "test_labels")]
)  # fmt: skip
def test_npz_with_splits(tmp_path, names):
    x, y = random_bytes(30, 5, 4, 3), np.arange(30).reshape(-1, 1) % 3
    values = (x[:18], y[:18], x[18:], y[18:])
    np.savez(tmp_path / "a.npz", **dict(zip(names, values, strict=True)))
    train, test = both(f"npz:{tmp_path}/a.npz")
    check(train, x[:18], y[:18, 0])
    check(test, x[18:], y[18:, 0])
    assert train.classes == test.classes == 3


def test_npz_with_class_names(tmp_path):
    x, y = random_bytes(20, 4, 4), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y, class_names=["cat", "eel\n", "dog"])
    train = data.load(f"npz:{tmp_path}/a.npz")
    assert train.class_names == ("cat", r"'eel\n'", "dog") and train.counts == (9, 9, 0)
    np.savez(tmp_path / "a.npz", x=x, class_names=["cat", "eel"])
    assert data.load(f"npz:{tmp_path}/a.npz").class_names == ()
    for names, message in (
        (["cat"], "1 'class_names' for labels up to 1"),
        ([1, 2], "'class_names' is int64[2], must be a text for each class"),
        ([["cat", "eel"]], "'class_names' is <U3[1, 2], must be a text for each class"),
        (np.array(["cat", None]), "'class_names' is object[2], must be a text for each class"),
    ):
        np.savez(tmp_path / "a.npz", x=x, y=y, class_names=names)
        refused(f"npz:{tmp_path}/a.npz", message)


def test_no_labels_are_one_class(tmp_path):
    x = random_bytes(20, 4, 4, 1)
    np.savez(tmp_path / "a.npz", x=x)
    check_split(f"npz:{tmp_path}/a.npz", x, np.zeros(20, int))
    write_idx(tmp_path / "images.idx", x[..., 0])
    check_split(f"idx:{tmp_path}/images.idx", x, np.zeros(20, int))
    for i in range(20):
        png(x[i], tmp_path / "flat" / f"{i:02}.png")
    check_split(f"folder:{tmp_path}/flat", x, np.zeros(20, int))
    (tmp_path / "flat" / "dataset.json").write_text('{"labels": null}')
    check_split(f"folder:{tmp_path}/flat", x, np.zeros(20, int))
    train = data.load(f"folder:{tmp_path}/flat")
    assert train.classes == 1 and train.class_names == () and train.warnings == ()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_directory(tmp_path, suffix):
    x, y = random_bytes(24, 3, 5), np.arange(24, dtype=np.uint8) % 4
    for prefix, part in (("train", slice(0, 16)), ("t10k", slice(16, 24))):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", x[part])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", y[part])
    train, test = both(f"idx:{tmp_path}")
    check(train, x[:16, ..., None], y[:16])
    check(test, x[16:, ..., None], y[16:])
    os.remove(tmp_path / f"t10k-labels-idx1-ubyte{suffix}")
    refused(f"idx:{tmp_path}", "labels of train only")
    os.remove(tmp_path / f"train-images-idx3-ubyte{suffix}")
    refused(f"idx:{tmp_path}", "no train-images-idx3-ubyte")


def test_an_idx_file_and_its_gzip_are_one(tmp_path):
    x = random_bytes(12, 3, 3)
    for suffix in ("", ".gz"):
        write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", x)
    check_split(f"idx:{tmp_path}", x[..., None], np.zeros(12, int))


def test_idx_directory_with_several_sets(tmp_path):
    for kind in ("letters", "digits"):
        write_idx(tmp_path / f"emnist-{kind}-train-images-idx3-ubyte.gz", random_bytes(12, 3, 3))
    refused(f"idx:{tmp_path}", "emnist-digits-train", "emnist-letters-train", "name one")
    assert data.load(f"idx:{tmp_path}/emnist-digits-train-images-idx3-ubyte.gz").length == 11


@pytest.mark.parametrize("name", ["test", "Test", "val", "valid", "validation"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folders_that_are_splits(tmp_path, name, kind):
    files = {f"train/{'ab'[i % 2]}/{i}.png": i for i in range(8)}
    files |= {f"{name}/{'ab'[i % 2]}/{i}.png": 100 + i for i in range(4)}
    root = tree(tmp_path / "root", files)
    dataset = f"folder:{root}" if kind == "folder" else f"zip:{zipped(root, tmp_path / 'a.zip')}"
    train, test = both(dataset)
    assert sorted(train.arrays()[0][:, 1, 1, 0]) == list(range(8))
    assert sorted(test.arrays()[0][:, 1, 1, 0]) == list(range(100, 104))
    assert train.class_names == ("a", "b") and train.counts == (4, 4) and test.counts == (2, 2)
    assert train.warnings == test.warnings == ()


def in_classes(*folders):
    """Images in two classes in each folder, all different."""
    names = [f"{folder}/{c}/{i}.png" for folder in folders for c in "ab" for i in range(6)]
    return {name: i for i, name in enumerate(names)}


def as_kind(kind, root):
    return f"folder:{root}" if kind == "folder" else f"zip:{zipped(root, root.with_suffix('.zip'))}"


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    "train,test",
    [
        ("training", "testing"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("Training", "Validation"),
        ("seg_train/seg_train", "seg_test/seg_test"),  # as Kaggle packs archives
        ("training_set/training_set", "test_set/test_set"),
        ("train2017", "val2017"),
        ("train-images", "test-images"),
        ("archive/archive/dataset/train", "archive/archive/dataset/valid"),
    ],
)
def test_splits_in_their_usual_spellings_and_folders(tmp_path, kind, train, test):
    root = tree(tmp_path / "root", in_classes(train, test))
    for dataset, values in zip(both(as_kind(kind, root)), (range(12), range(12, 24)), strict=True):
        assert sorted(dataset.arrays()[0][:, 1, 1, 0]) == list(values)
        assert dataset.class_names == ("a", "b") and dataset.warnings == ()


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    "around", ["archive", "archive/archive", "a/b/c/d", "train", "pets/Training", "test"]
)
def test_folders_around_everything_are_no_classes(tmp_path, kind, around):
    root = tree(tmp_path / "root", in_classes(around))
    dataset = data.load(as_kind(kind, root))
    assert dataset.class_names == ("a", "b") and dataset.warnings == ()


def test_what_is_like_a_split_and_is_none_is_said(tmp_path):
    cases = {
        "cycle": (
            [f"{split}{c}" for split in ("train", "test") for c in "AB"],
            "taken for classes, not for splits: testA, testB, trainA, ...",
        ),
        "vehicles": (["car", "plane", "train"], "taken for a class, not for a split: train"),
        "both": (["Train", "train", "test"], "left out (first: Train/0.png)"),
        "case": (["Cat", "cat", "dog"], "classes 'Cat', 'cat' differ only in case"),
        "forms": (["caf\u00e9", "cafe\u0301"], "differ only in case, spaces or Unicode form"),
    }
    for name, (folders, message) in cases.items():
        files = {f"{folder}/{i}.png": i for folder in folders for i in range(6)}
        train = data.load(f"folder:{tree(tmp_path / name, files)}")
        assert any(message in w for w in train.warnings), train.warnings


def test_a_third_split_is_left_out_and_said_so(tmp_path):
    files = {f"{s}/a/{i}.png": i for s in ("train", "test", "val") for i in range(6)}
    train, test = both(f"folder:{tree(tmp_path, files)}")
    assert train.length == test.length == 6
    assert any("6 images in neither train/ nor test/" in w for w in train.warnings)


def test_train_alone_is_split(tmp_path):
    files = {f"train/{'ab'[i % 2]}/{i}.png": i for i in range(20)}
    root = tree(tmp_path / "root", files)
    (root / "test").mkdir()
    train, test = both(f"folder:{root}")
    assert train.counts == (9, 9) and test.counts == (1, 1) and train.class_names == ("a", "b")
    assert any("folder test has no images" in w for w in train.warnings)


def test_a_folder_around_a_zip_is_no_class(tmp_path):
    root = tree(tmp_path / "faces", {f"{'ab'[i % 2]}/{i}.png": i for i in range(12)})
    train = data.load(f"zip:{zipped(root, tmp_path / 'a.zip', 'faces/')}")
    assert train.class_names == ("a", "b") and train.warnings == ()
    (root / "dataset.json").write_text(
        json.dumps({"labels": [[f"{'ab'[i % 2]}/{i}.png", i % 3] for i in range(12)]})
    )
    train = data.load(f"zip:{zipped(root, tmp_path / 'b.zip', 'faces/')}")
    assert train.classes == 3 and train.class_names == ()


def test_json_labels(tmp_path):
    root = tree(tmp_path / "root", {f"{i % 2}/{i:02}.png": i for i in range(12)})
    names = [f"{i % 2}/{i:02}.png" for i in range(12)]
    cases = {
        "not json": "must be",
        "[]": "must be",
        '{"labels": [["a"]]}': "must be",
        json.dumps({"labels": [[n, [0, [1]]] for n in names]}): "[0, [1]] is not a class number",
        json.dumps({"labels": [[n, True] for n in names]}): "True is not a class number",
        json.dumps({"labels": [[n, 1.5] for n in names]}): "1.5 is not a class number",
        json.dumps({"labels": [[n, -1] for n in names]}): "labels go from -1",
        json.dumps({"labels": [[n, 12] for n in names]}): "labels go from 12",
        json.dumps(
            {"labels": [[n, 0] for n in names[1:]]}
        ): f"1 image without a label (first: {names[0]})",
        json.dumps({"labels": [[n, i] for i in (0, 1) for n in names]}): "several labels",
        '{"labels": null, "labels": null}': "the key 'labels' occurs twice",
        "[" * 100_000: "nested too deeply",
        '{"labels": ' + '{"a":' * 100_000: "nested too deeply",
        '{"labels": [["a", ' + "9" * 5000 + "]]}": "more than 64 bits",
        json.dumps({"labels": [[n, float("nan")] for n in names]}): "nan is not a class number",
        json.dumps({"labels": [[n, 2**62] for n in names]}): "labels go from 4611686018427387904",
        '{"labels": [[1, 2]]}': "must be",
        '{"labels": {}}': "must be",
        '{"other": null}': "must be",
        "\ufeff{}": "must be",
        "": "must be",
    }
    for text, message in cases.items():
        (root / "dataset.json").write_text(text)
        refused(f"folder:{root}", message)
    more = [[n, i % 3] for i, n in enumerate(names)] + [["gone.png", 0]]
    (root / "dataset.json").write_text(json.dumps({"labels": more}))
    train = data.load(f"folder:{root}")
    assert train.counts == (4, 4, 3)
    assert any("dataset.json labels 1 image that" in w for w in train.warnings)


def test_json_labels_that_are_no_file(tmp_path):
    root = tree(tmp_path, {f"{i}.png": i for i in range(12)})
    (root / "dataset.json").symlink_to("nowhere")
    refused(f"folder:{root}", "dataset.json: must be", "No such file")
    (root / "dataset.json").unlink()
    os.mkfifo(root / "dataset.json")  # never read, like any pipe
    assert data.load(f"folder:{root}").classes == 1
    (root / "dataset.json").unlink()
    (root / "dataset.json").mkdir()
    assert data.load(f"folder:{root}").classes == 1
    (root / "dataset.json").rmdir()
    (root / "dataset.json").write_bytes(b"\xff{")
    refused(f"folder:{root}", "dataset.json: must be")


# tfds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_tfds_without_tensorflow(tmp_path, monkeypatch):
    """A dataset prepared as array_record is read back, both splits; an unprepared or unknown one is named."""
    import tensorflow_datasets as tfds

    x = random_bytes(30, 6, 6, 1)

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8)
            label = tfds.features.ClassLabel(names=["a", "b", "c"])
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 20),
                "test": self._generate_examples(20, 30),
            }

        def _generate_examples(self, start, end):
            for i in range(start, end):
                yield i, {"image": x[i], "label": i % 3}

    Tiny(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for split, start, end in (("train", 0, 20), ("test", 20, 30)):
        read = data.load("tfds:tiny", split)
        expected = {x[i].tobytes(): i % 3 for i in range(start, end)}
        got = {a.tobytes(): int(b) for a, b in zip(*read.arrays(), strict=True)}
        assert got == expected and read.shape == (6, 6, 1) and read.class_names == ("a", "b", "c")
        assert data.load("tfds:tiny,size=3,channels=3", split).shape == (3, 3, 3)
    for name in ("cats_vs_dogs", "nonesuch"):
        refused(f"tfds:{name}")
    with pytest.raises(UserError, match="no option ',sise=3'"):
        data.load("tfds:tiny,sise=3")


class Prepared(NamedTuple):
    directory: pathlib.Path
    splits: dict
    class_names: tuple = ()


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Stands in for what TFDS has prepared: call it with the splits."""
    (tmp_path / "1.0.0").mkdir()
    (tmp_path / "1.0.0" / "records").write_text("")

    def give(splits, names=()):
        records = {
            split: [{"image": a} if b is None else {"image": a, "label": b} for a, b in pairs]
            for split, pairs in splits.items()
        }
        os.utime(tmp_path / "1.0.0" / "records", ns=(1, next(moments)))
        opened = Prepared(tmp_path / "1.0.0", records, names)
        monkeypatch.setattr(tfds, "find", lambda request: opened)

    moments = iter(range(1, 99))
    return give


def test_tfds_splits_labels_and_sizes(prepared):
    x, y = random_bytes(40, 5, 4, 3), np.arange(40) % 3
    prepared({"train": list(zip(x[:30], y[:30], strict=True))}, ("a", "b", "c"))
    check_split("tfds:any", x[:30], y[:30])
    for test in ("test", "validation"):
        pairs = list(zip(x, y, strict=True))
        prepared({"other": pairs[:3], "train": pairs[:30], test: pairs[30:]}, ("a", "b", "c"))
        train, held = both("tfds:any")
        check(train, x[:30], y[:30])
        check(held, x[30:], y[30:])
        assert train.class_names == ("a", "b", "c")
    prepared({"train": [(a, None) for a in x]})
    check_split("tfds:any", x, np.zeros(40, int))
    prepared({"train": [(a[: 3 + i % 2], i % 3) for i, a in enumerate(x)]})
    refused(
        "tfds:any",
        "2 sizes",
        "3x4 (20 images, such as example 0)",
        "4x4 (20 images, such as example 1)",
    )
    assert data.load("tfds:any,size=3").shape == (3, 3, 3)


def test_bad_tfds_datasets_are_named(prepared):
    x = random_bytes(20, 4, 4, 1)
    for pairs, message in {
        "labels": (
            [(a, None if i else 1) for i, a in enumerate(x)],
            "19 images of 20 without a label",
        ),
        "vectors": ([(a, np.ones(3, int)) for a in x], "must be an integer"),
        "negative": ([(a, -1) for a in x], "labels go from -1"),
        "float": ([(a / 255, 0) for a in x], "must be uint8"),
        "few": ([(a, 0) for a in x[:5]], "5 examples, need at least 10"),
    }.values():
        prepared({"train": pairs})
        refused("tfds:any", message)
    prepared({"test": [(a, 0) for a in x]})
    refused("tfds:any", "no split 'train', only test")


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "idx", "folder", "zip"])
def test_options_make_the_images(tmp_path, kind):
    x = random_bytes(12, 8, 6, 3)
    np.savez(tmp_path / "a.npz", x=x)
    write_idx(tmp_path / "images-idx4-ubyte", x)
    for i in range(12):
        png(x[i], tmp_path / "root" / f"{i:02}.png")
    zipped(tmp_path / "root", tmp_path / "a.zip")
    path = {"npz": "a.npz", "idx": "images-idx4-ubyte", "folder": "root", "zip": "a.zip"}[kind]
    for text, form in {
        "": images.Form(),
        ",size=4": images.Form((4, 4)),
        ",size=4x7,fit=pad": images.Form((4, 7), "pad"),
        ",fit=stretch,size=5x3,channels=1": images.Form((5, 3), "stretch", 1),
        ",channels=4": images.Form(channels=4),
    }.items():
        train = data.load(f"{kind}:{tmp_path / path}{text}")
        expected = np.stack([images.shaped(image, form) for image in x])
        test = [i in every_tenth([0] * 12) for i in range(12)]
        check(train, expected[~np.array(test)], np.zeros(11, int))
        assert train.name == f"{kind}:{tmp_path / path}{text}"


def test_paths_may_have_commas_and_equals_signs(tmp_path):
    root = tree(tmp_path / "a,b=c,size=x" / "d,e=1", {f"{i}.png": i for i in range(10)})
    assert data.load(f"folder:{root}").shape == (4, 4, 1)
    assert data.load(f"folder:{root},size=2").shape == (2, 2, 1)


def test_bad_options_are_named(tmp_path):
    root = tree(tmp_path / "a", {f"{i}.png": i for i in range(10)})
    cases = {
        "size=": "size=: must be H or HxW",
        "size=0": "size=0: must be",
        "size=4x0": "size=4x0: must be",
        "size=-4": "size=-4: must be",
        "size=4x4x4": "must be H or HxW",
        "size=99999": "in 1 to 16384",
        "size=big": "size=big: must be",
        "size=4,size=5": "size= is given twice",
        "size=4,fit=fill": "fit=fill: must be crop or pad or stretch",
        "fit=pad": "needs size=",
        "channels=2": "channels=2: must be 1 or 3 or 4",
        "background=": "background=: must be white, black, a gray from 0 to 255 or a color",
        "background=256": "background=256: must be",
        "background=-1": "background=-1: must be",
        "background=12345": "background=12345: must be",
        "background=pink": "background=pink: must be",
        "bits=8": "bits=8: must be in 9 to 16",
        "bits=012": "bits=012: must be in 9 to 16",
        "bits=17": "bits=17: must be",
        "size=100000": "size=100000: must be",
        "size=" + "9" * 3000: "must be H or HxW",
        "skip=all": "skip=all: must be unreadable",
        "sise=4": "no option ',sise=4'; there are size=H",
        "sise=4,fit=pad,size=4": "no option ',sise=4'",
        "size=4,flip=yes": "no option ',flip=yes'",
    }
    for text, message in cases.items():
        refused(f"folder:{root},{text}", message)
    refused("mnist10k,size=32", "mnist10k takes no options")
    np.savez(tmp_path / "a.npz", x=random_bytes(10, 4, 4))
    refused(f"npz:{tmp_path}/a.npz,skip=unreadable", "only for folder and zip")
    refused(f"npz:{tmp_path}/a.npz,bits=12", "only for folder and zip")


def test_images_are_gray_only_if_all_are(tmp_path):
    gray = tree(tmp_path / "gray", {f"{i}.png": i for i in range(10)})
    assert data.load(f"folder:{gray}").shape == (4, 4, 1)
    assert data.load(f"folder:{gray},channels=3").shape == (4, 4, 3)
    png(random_bytes(4, 4, 3), gray / "color.png")
    mixed = data.load(f"folder:{gray}")
    assert mixed.shape == (4, 4, 3) and mixed.length == 10
    gray_again = data.load(f"folder:{gray},channels=1")
    assert gray_again.shape == (4, 4, 1)


def test_alpha_is_composited(tmp_path):
    x = random_bytes(10, 4, 4, 4)
    x[..., 3] //= 2
    for i in range(10):
        png(x[i], tmp_path / f"{i}.png")
    alpha = x[..., 3:].astype(int)
    white = np.round((x[..., :3] * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)
    check_split(f"folder:{tmp_path}", white, np.zeros(10, int))
    check_split(f"folder:{tmp_path},channels=4", x, np.zeros(10, int))


def test_the_background_is_the_users(tmp_path):
    """Of transparent parts and of padding; a colored one makes gray images colored."""
    clear = np.zeros((4, 8, 4), np.uint8)
    for i in range(10):
        png(clear, tmp_path / "clear" / f"{i}.png")
        png(np.full((4, 8), 7 + i % 2, np.uint8), tmp_path / "gray" / f"{i}.png")
    for text, color in {
        "": (255, 255, 255), "white": (255, 255, 255), "black": (0, 0, 0), "0": (0, 0, 0),
        "128": (128, 128, 128), "ff8800": (255, 136, 0), "#FF8800": (255, 136, 0), "000080": (0, 0, 128),
    }.items():  # fmt: skip
        option = f",background={text}" if text else ""
        train = data.load(f"folder:{tmp_path}/clear,size=8,fit=pad{option}")
        np.testing.assert_array_equal(train.arrays()[0], np.broadcast_to(color, (9, 8, 8, 3)))
        said = "10 images with transparent parts, which are made white" in " ".join(train.warnings)
        assert said == (not text)
        gray = data.load(f"folder:{tmp_path}/gray,size=8,fit=pad{option}")
        colored = len(set(color)) > 1
        assert gray.shape == (8, 8, 3 if colored else 1)
        assert tuple(gray.arrays()[0][0, 0, 0]) == (color if colored else color[:1])
    assert data.load(f"folder:{tmp_path}/gray,background=ff8800,channels=1").shape == (4, 8, 1)


def test_twelve_bits_in_sixteen_are_said_and_scaled(tmp_path):
    x = np.random.default_rng(0).integers(0, 4096, (10, 4, 4)).astype(np.uint16)
    x[0, 0, 0] = 4095
    for i in range(10):
        PIL.Image.fromarray(x[i]).save(tmp_path / f"{i}.png")
    dark = data.load(f"folder:{tmp_path}")
    assert dark.high == 16 and dark.warnings == (
        "10 images of 16 bits with values up to 4,095: 65,535 became 255;"
        " if they hold 12 bits, ,bits=12 makes 4,095 white",
    )
    check_split(
        f"folder:{tmp_path},bits=12",
        np.round(x / 4095 * 255).astype(np.uint8)[..., None],
        np.zeros(10, int),
    )
    refused(f"folder:{tmp_path},bits=11", "more than 11 bits")


def test_sizes_that_differ_are_named(tmp_path):
    root = tree(tmp_path, {f"{i}.png": random_bytes(5, 7) for i in range(8)})
    tree(
        root,
        {f"small/../s{i}.png": random_bytes(3, 2) for i in range(4)}
        | {"x.png": random_bytes(9, 9)},
    )
    shutil.rmtree(root / "small")
    text = refused(f"folder:{root}", "3 sizes", "5x7 (8 images, such as 0.png)", ",size=64")
    assert "3x2 (4 images, such as s0.png)" in text and "9x9" not in text
    assert data.load(f"folder:{root},size=4").length == 12


# Errors --------------------------------------------------------------------------------------------------------------


def test_unknown_kinds_list_the_forms():
    for name in ("mnits", "mnist10k:x", "folder", "file:x", "", ":", "npz"):
        refused(name, f"must be {data.forms()}")
    for kind in ("npz", "idx", "folder", "zip", "tfds"):
        assert f"{kind}:" in data.forms()
        if kind != "tfds":
            refused(f"{kind}:/no/such/place", "no such file or directory")
            refused(f"{kind}:", "no such file or directory")
    with pytest.raises(ValueError, match="split='valid'"):
        data.load("mnist10k", "valid")


def test_bad_npz_files_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "float.npz", x=np.zeros((20, 4, 4)))
    np.savez(tmp_path / "object.npz", x=np.array([{}] * 20))
    np.savez(tmp_path / "other.npz", images=np.zeros((20, 4, 4), np.uint8))
    np.savez(tmp_path / "labels.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.zeros(3, int))
    np.savez(tmp_path / "real.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.zeros(20))
    np.savez(tmp_path / "huge.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.full(20, 2**40))
    np.savez(tmp_path / "negative.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.full(20, -1))
    np.savez(tmp_path / "flat.npz", x=np.zeros((20, 0, 4), np.uint8))
    np.savez(tmp_path / "five.npz", x=np.zeros((20, 4, 4, 5), np.uint8))
    np.savez(
        tmp_path / "differ.npz",
        x_train=np.zeros((20, 4, 4), np.uint8),
        x_test=np.zeros((20, 5, 4), np.uint8),
    )
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "small.npz", x=np.zeros((2, 4, 4), np.uint8))
    np.savez(tmp_path / "cut.npz", x=random_bytes(50, 40, 40))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    cases = {
        f"npz:{tmp_path}/none.npz": "no such file",
        f"npz:{tmp_path}": "not a readable",
        f"npz:{tmp_path}/text.npz": "not a readable",
        f"npz:{tmp_path}/float.npz": "must be uint8",
        f"npz:{tmp_path}/object.npz": "must be uint8",
        f"npz:{tmp_path}/other.npz": "no array 'x'",
        f"npz:{tmp_path}/labels.npz": "must be integers",
        f"npz:{tmp_path}/real.npz": "must be integers",
        f"npz:{tmp_path}/huge.npz": "must be class numbers",
        f"npz:{tmp_path}/negative.npz": "must be class numbers",
        f"npz:{tmp_path}/flat.npz": "must be uint8",
        f"npz:{tmp_path}/five.npz": "1, 3 or 4 channels",
        f"npz:{tmp_path}/differ.npz": "differ in shape",
        f"npz:{tmp_path}/empty.npz": "not a readable",
        f"npz:{tmp_path}/array.npz": "not a readable",
        f"npz:{tmp_path}/small.npz": "at least 10",
        f"npz:{tmp_path}/cut.npz": "not a readable",
        f"npz:{tmp_path}/flipped.npz": "not a readable",
    }
    for name, message in cases.items():
        refused(name, message)


def raw_npz(path, **arrays):
    """An .npz of (shape, dtype, bytes), right or not."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, (shape, dtype, body) in arrays.items():
            head = io.BytesIO()
            facts = {"shape": shape, "fortran_order": False, "descr": dtype}
            np.lib.format.write_array_header_1_0(head, facts)
            file.writestr(f"{name}.npy", head.getvalue() + body)
    return f"npz:{path}"


def test_sizes_that_cannot_be_are_refused_before_anything_is_built(tmp_path, monkeypatch):
    """By the sizes of the files, and what they take by the memory that there is."""
    path, good = tmp_path / "a.npz", ((20, 4, 4), "|u1", bytes(320))
    refused(raw_npz(path, x=((10**11, 28, 28), "|u1", bytes(99))), "uint8[100000000000, 28, 28]")
    refused(raw_npz(path, x=((30, 4, 4), "|u1", bytes(320))), "does not take")
    refused(raw_npz(path, x=good, y=((10**11,), "<i8", bytes(99))), "int64[100000000000]")
    refused(raw_npz(path, x=good, y=((-20,), "<i8", bytes(160))), "not a readable .npz")
    for n, head in {1: b"(" * 60_000, 2: b"(" * 60_000, 9: b"{}"}.items():
        with zipfile.ZipFile(path, "w") as file:
            size = struct.pack("<H" if n == 1 else "<I", len(head))
            file.writestr("x.npy", b"\x93NUMPY" + bytes([n, 0]) + size + head)
        refused(f"npz:{path}", "not a readable .npz")
    write_idx(tmp_path / "i-images-idx3-ubyte", random_bytes(20, 4, 4))
    many = b"\0\0\x08\x01" + struct.pack(">I", 2**32 - 1)
    (tmp_path / "i-labels-idx1-ubyte.gz").write_bytes(gzip.compress(many + bytes(5 << 20)))
    refused(f"idx:{tmp_path}/i-images-idx3-ubyte", "i-labels-idx1-ubyte.gz")
    (tmp_path / "d-images").write_bytes(b"\0\0\x08\xff" + b"\xff" * 1020)
    refused(f"idx:{tmp_path}/d-images", "255 dimensions")

    np.savez(path, x=random_bytes(20, 40, 40))
    root = tree(tmp_path / "root", {f"{i}.png": random_bytes(40, 40) for i in range(10)})
    monkeypatch.setattr(memory, "available", lambda: 1000)
    refused(f"npz:{path}", "20 examples: 0.0 GiB are needed, 0.0 GiB are free")
    monkeypatch.setattr(memory, "available", lambda: 10 << 20)
    refused(f"folder:{root},size=9999", "images are too large for the memory: 1.1 GiB are needed")
    monkeypatch.undo()


def test_memory_that_there_is(monkeypatch):
    import resource

    assert 0 < memory.available() < 1 << 62
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert memory.available() == 0  # the interpreter alone takes more
    monkeypatch.undo()
    with pytest.raises(UserError, match="^a: 1,048,576.0 GiB are needed, .* GiB are free$"):
        memory.require(1 << 50, "a")


def test_what_does_not_fit_into_memory_is_not_read_into_it(made, monkeypatch):
    dataset, _, _ = made
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(UserError, match="45 images of 6x5x3 in memory: 0.1 GiB are needed"):
        dataset.arrays()
    with pytest.raises(UserError, match="^feed=memory: .* free for this dataset; stream reads it"):
        data.source(dataset, seed=0, batch_size=4, feed="memory")
    with pytest.raises(UserError, match="^batch_size=4: 0.0 GiB are needed"):
        data.source(dataset, seed=0, batch_size=4, feed="stream")


def test_nothing_is_unpickled(tmp_path):
    bomb = f"cos\nmkdir\n(S'{tmp_path}/made'\ntR.".encode()
    cases = {
        "x": {"x": ((20,), "|O", bomb)},
        "y": {"x": ((20, 4, 4), "|u1", random_bytes(320).tobytes()), "y": ((20,), "|O", bomb)},
    }
    for name, arrays in cases.items():
        refused(raw_npz(tmp_path / "a.npz", **arrays), f"{name!r} is object[20], must be")
    (tmp_path / "p.npz").write_bytes(bomb)
    refused(f"npz:{tmp_path}/p.npz", "not a readable .npz")
    assert not (tmp_path / "made").exists()


def test_bad_idx_files_are_named(tmp_path):
    x = random_bytes(20, 6, 5)
    good = write_idx(tmp_path / "good", x).read_bytes()
    zipped_ = gzip.compress(good)
    flipped = bytearray(zipped_)
    flipped[len(flipped) // 2] ^= 1
    many = b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 28, 28)
    cases = {
        b"": "not an IDX file",
        b"PK\x03\x04" + bytes(99): "not an IDX file",
        b"\0\0\x08\0": "not an IDX file",
        b"\0\0\x0d" + good[3:]: "type 0x0d, must be 0x08",
        good[:9]: "damaged or cut short",
        good[:-1]: "damaged or cut short",
        good + b"\0": "damaged or cut short",
        zipped_[:-20]: "damaged or cut short",
        gzip.compress(good[:-1]): "damaged or cut short",
        gzip.compress(good + b"\0"): "damaged or cut short",
        bytes(flipped): "damaged or cut short",
        many: "damaged or cut short",
        gzip.compress(many): "damaged or cut short",
        b"\0\0\x08\x02" + struct.pack(">2I", 20, 5) + bytes(100): "must be uint8 [n, h, w]",
        b"\0\0\x08\x03" + struct.pack(">3I", 20, 0, 5): "must be uint8 [n, h, w]",
    }
    for i, (content, message) in enumerate(cases.items()):
        (tmp_path / f"{i}-images-idx3-ubyte").write_bytes(content)
        refused(f"idx:{tmp_path}/{i}-images-idx3-ubyte", message, f"{i}-images-idx3-ubyte")
    (tmp_path / "l-images-idx3-ubyte").write_bytes(good)
    write_idx(tmp_path / "l-labels-idx1-ubyte", np.zeros(19, np.uint8))
    refused(f"idx:{tmp_path}/l-images-idx3-ubyte", "uint8[19], must be integers [20]")
    write_idx(tmp_path / "l-labels-idx1-ubyte", np.zeros((20, 1), np.uint8))
    refused(f"idx:{tmp_path}/l-images-idx3-ubyte", "2 dimensions, labels have one")


def test_bad_folders_and_archives_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused(f"folder:{tmp_path}/file", "not a directory")
    refused(f"zip:{tmp_path}/file", "not a readable zip file")
    refused(f"zip:{tmp_path}", "not a readable zip file")
    (tmp_path / "empty").mkdir()
    refused(f"folder:{tmp_path}/empty", "0 examples, need at least 10")
    few = tree(tmp_path / "few", {f"{i}.png": i for i in range(9)})
    refused(f"folder:{few}", "9 examples, need at least 10")
    mixed = tree(
        tmp_path / "mixed", {"a.png": 1, "loose.png": 2} | {f"b/{i}.png": i for i in range(9)}
    )
    refused(f"folder:{mixed}", "2 images beside the class folders (first: a.png; folders: b)")


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    root = tree(tmp_path / "root", {f"{i}.png": i for i in range(10)})
    for place in (tmp_path / "pipe", root / "pipe.png"):
        os.mkfifo(place)
    for kind in ("npz", "idx", "zip", "folder"):
        refused(f"{kind}:{tmp_path}/pipe", "neither a file nor a directory")
    train = data.load(f"folder:{root}")
    assert train.length == 9 and "1 hidden file" in train.warnings[0]


def test_names_that_do_not_print(tmp_path):
    root = tree(tmp_path, {f"{i}\n.png": i for i in range(10)})
    odd = os.fsencode(root) + b"/\xff.png"
    with open(odd, "wb") as file:
        file.write(b"x")
    refused(f"folder:{root}", r"'\udcff.png'")
    train = data.load(f"folder:{root},skip=unreadable")
    assert train.length == 9 and r"'\udcff.png'" in train.warnings[0]


def test_odd_names_in_archives(tmp_path):
    body = io.BytesIO()
    PIL.Image.fromarray(random_bytes(3, 3)).save(body, "PNG")

    def archive(names):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for name in names:
                file.writestr(zipfile.ZipInfo(name), body.getvalue())
        return data.load(f"zip:{tmp_path}/a.zip")

    flat = [f"{i}.png" for i in range(12)]
    assert archive(["", "/", *flat]).length == 11
    assert archive([f"/etc/{n}" for n in flat]).class_names == ("etc",)
    assert archive([f"c\\d\\{n}" for n in flat]).class_names == ("d",)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive([*flat, *flat[:4]])
    assert twice.length == 11
    assert any("0.png, 1.png, 2.png, ... several times in the archive" in w for w in twice.warnings)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.write(tmp_path / "a.zip", "inner.zip")
    refused(f"zip:{tmp_path}/b.zip", "0 examples", "1 file of types that are not read", "1 .zip")


def test_encrypted_and_damaged_archives(tmp_path):
    root = tree(tmp_path / "root", {f"{i}.png": i for i in range(12)})
    whole = zipped(root, tmp_path / "a.zip").read_bytes()
    encrypted = bytearray(whole)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of the first member
        encrypted[encrypted.index(signature) + offset] |= 1
    (tmp_path / "e.zip").write_bytes(encrypted)
    refused(f"zip:{tmp_path}/e.zip", "is encrypted")
    damaged = bytearray(whole)
    damaged[60] ^= 255  # inside the compressed bytes of the first member
    (tmp_path / "d.zip").write_bytes(damaged)
    refused(f"zip:{tmp_path}/d.zip", "1 of 12 images cannot be read: 0.png (")
    (tmp_path / "t.zip").write_bytes(whole[:-40])
    refused(f"zip:{tmp_path}/t.zip", "not a readable zip file")


def test_archives_that_claim_too_much(tmp_path, monkeypatch):
    root = tree(
        tmp_path / "root", {f"{i}.png": i for i in range(12)} | {"99.png": random_bytes(50, 50)}
    )
    path = zipped(root, tmp_path / "a.zip")
    monkeypatch.setattr(images, "_LARGEST", 2000)
    refused(f"zip:{path},size=4", "1 of 13 images cannot be read: 99.png (of 2", "bytes)")


def test_a_rotation_that_the_header_does_not_tell(tmp_path):
    """EXIF may come after the pixels of a PNG; then the size is another than its beginning says."""
    root = tree(tmp_path, {f"{i}.png": random_bytes(4, 6, seed=i) for i in range(11)})
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    chunk = (
        struct.pack(">I", len(exif))
        + b"eXIf"
        + exif
        + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    )
    whole = (root / "3.png").read_bytes()
    (root / "3.png").write_bytes(whole[:-12] + chunk + whole[-12:])
    refused(f"folder:{root}", "1 of 11 images cannot be read: 3.png (it is 6x4, others 4x6)")
    assert data.load(f"folder:{root},size=4").length == 10


def test_an_archive_writes_nowhere(tmp_path, own_cache):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for i in range(12):
            body = io.BytesIO()
            PIL.Image.fromarray(random_bytes(3, 3, seed=i)).save(body, "PNG")
            file.writestr(f"a/{i}.png", body.getvalue())
            file.writestr(f"../../escaped{i}.png", body.getvalue())
    train, test = both(f"zip:{tmp_path}/a.zip")
    assert train.length + test.length == 12
    assert any("12 hidden files or files that are no images" in w for w in train.warnings)
    assert not list(tmp_path.parent.rglob("escaped*")) and len(list(tmp_path.iterdir())) == 1
    made = {p.name for p in own_cache.rglob("*") if p.is_file()}
    assert made == {"train.array_record", "test.array_record", "manifest.json"}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_unreadable_images_are_an_error_or_left_out(tmp_path, kind):
    root = tree(
        tmp_path / "root",
        {f"{'ab'[i % 2]}/{i:02}.png": random_bytes(20, 20, seed=i) for i in range(30)},
    )
    whole = (root / "a" / "04.png").read_bytes()
    (root / "a" / "04.png").write_bytes(whole[:200])  # its header is right
    (root / "b" / "07.png").write_bytes(b"<html>")
    (root / "b" / "09.png").write_bytes(b"")
    dataset = f"folder:{root}" if kind == "folder" else f"zip:{zipped(root, tmp_path / 'a.zip')}"
    refused(dataset, "2 of 30 images cannot be read: b/07.png (", "b/09.png (", ",skip=unreadable")
    refused(f"{dataset},size=8,channels=1", "3 of 30", "a/04.png (")
    for options in ("", ",size=8,channels=1"):
        train, test = both(f"{dataset}{options},skip=unreadable")
        assert train.length + test.length == 27
        assert np.add(train.counts, test.counts).tolist() == [14, 13]
        assert sum("3 of 30 images cannot be read: a/04.png" in w for w in train.warnings) == 1
    os.remove(root / "b" / "09.png")
    if kind == "folder":
        (root / "b" / "09.png").symlink_to(root / "nowhere")
        refused(dataset, "2 of 30", "b/09.png (No such file")


# Warnings ------------------------------------------------------------------------------------------------------------


def warnings_of(tmp_path, x, y=None, split="train", **more):
    path = tmp_path / "a.npz"
    arrays = {"x": x} if y is None else {"x": x, "y": np.asarray(y)}
    np.savez(path, **(more or arrays))
    return data.load(f"npz:{path}", split).warnings


def test_a_sound_dataset_has_no_warnings(tmp_path):
    assert warnings_of(tmp_path, random_bytes(40, 4, 4), np.arange(40) % 4) == ()
    assert warnings_of(tmp_path, random_bytes(40, 4, 4), np.arange(40) % 4, "test") == ()
    assert (
        warnings_of(tmp_path, random_bytes(202, 4, 4), np.minimum(np.arange(202), 199) % 100 // 99)
        == ()
    )


def test_odd_labels_are_warned_of(tmp_path):
    x = random_bytes(220, 4, 4)
    assert warnings_of(tmp_path, x[:20], np.zeros(20, int)) == ("all 18 examples are of class 0",)
    assert warnings_of(tmp_path, x[:20]) == ()
    assert warnings_of(tmp_path, x[:40], np.arange(40) % 4 + np.arange(40) % 4 // 3) == (
        "class 3 has no examples",
    )
    labels = np.arange(40) % 2 * 9
    assert warnings_of(tmp_path, x[:40], labels) == ("classes 1, 2, 3, 4, 5, ... have no examples",)
    unbalanced = np.array([0] * 218 + [1] * 2)
    assert warnings_of(tmp_path, x, unbalanced) == (
        "unbalanced: 197 examples of class 0, 1 of class 1",
    )
    assert warnings_of(tmp_path, x, unbalanced, "test") == ()
    # A class too small for a tenth of it.
    assert warnings_of(tmp_path, x[:20], [0] * 12 + [1] * 3 + [2] * 5, "test") == (
        "classes differ from those of train: class 1 only in train",
    )


def test_splits_that_differ_are_warned_of(tmp_path):
    x = random_bytes(40, 4, 4)
    y = np.concatenate([np.arange(20) % 3, 2 + np.arange(20) % 2])
    parts = {"x_train": x[:20], "y_train": y[:20], "x_test": x[20:], "y_test": y[20:]}
    assert warnings_of(tmp_path, x, **parts) == ("class 3 has no examples",)
    assert warnings_of(tmp_path, x, split="test", **parts) == (
        "classes differ from those of train: class 3 only in test",
        "classes differ from those of train: classes 0, 1 only in train",
    )


def test_odd_pixels_are_warned_of(tmp_path):
    x = random_bytes(20, 4, 4, 3)
    x[:4] = (10, 20, 30)
    assert warnings_of(tmp_path, x) == ("4 of 18 images are of a single color",)
    assert warnings_of(tmp_path, np.repeat(x[9:10], 20, 0)) == ("all images are identical",)
    assert warnings_of(tmp_path, np.zeros((20, 4, 4), np.uint8)) == ("all images are identical",)
    assert warnings_of(tmp_path, x % 2 | np.eye(4, dtype=np.uint8)[..., None]) == (
        "all pixels are 0 or 1; images should use 0 to 255",
    )


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    root = tree(tmp_path, {f"{'ab'[i % 2]}/{i}.png": i for i in range(20)})
    (root / "empty" / "deep").mkdir(parents=True)
    (root / "a" / "old").mkdir()
    (root / "a" / "notes.txt").write_text("")
    (root / ".DS_Store").write_text("")
    train = data.load(f"folder:{root}")
    assert train.warnings == (
        "2 hidden files or files that are no images left out (first: a/notes.txt)",
        "the folder empty has no images in it",
    )
    assert train.class_names == ("a", "b")


def test_files_that_may_be_images_are_counted_by_type(tmp_path):
    root = tree(tmp_path, {f"{'ab'[i % 2]}/{i}.png": i for i in range(20)})
    for i, suffix in enumerate((".heic", ".HEIC", ".cr2", ".dng", ".svg", ".zip")):
        (root / "a" / f"{i}{suffix}").write_bytes(b"x")
    message = "6 files of types that are not read left out: 2 .heic, 1 .cr2, 1 .dng, 1 .svg, 1 .zip"
    train = data.load(f"folder:{root}")
    assert train.warnings == (f"{message} (first: a/0.heic)",)
    for path in root.rglob("*.png"):
        path.unlink()
    refused(f"folder:{root}", "0 examples, need at least 10; " + message)


def test_first_frames_are_said(tmp_path):
    for i in range(10):
        frames = [PIL.Image.fromarray(random_bytes(4, 4, 3, seed=2 * i + k)) for k in (0, 1)]
        frames[0].save(tmp_path / f"{i}.png", save_all=True, append_images=frames[1:])
    assert data.load(f"folder:{tmp_path}").warnings == (
        "10 images with several frames or pages, of which the first is used",
    )


def test_summary(tmp_path):
    root = tree(tmp_path / "pets", {f"{'cat' if i % 3 else 'dog'}/{i}.png": i for i in range(30)})
    name = f"folder:{root}"
    assert data.load(name).summary() == (
        f"{name} train: 27 images 4x4x1 uint8 in [0, 30], 2 classes: cat 18, dog 9"
    )
    np.savez(tmp_path / "a.npz", x=random_bytes(2000, 2, 2), y=np.arange(2000) % 1997 % 25)
    lines = data.load(f"npz:{tmp_path}/a.npz").summary().split("\n")
    assert lines[0].endswith("25 classes of 71 to 73 examples, median 72") and len(lines) == 1
    np.savez(tmp_path / "b.npz", x=np.zeros((20, 4, 4), np.uint8))
    lines = data.load(f"npz:{tmp_path}/b.npz").summary().split("\n")
    assert lines[0].endswith("in [0, 0], 1 class") and lines[1:] == [
        "warning: all images are identical"
    ]


# The cache -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path, own_cache):
    """A dataset, its arrays and the folder of its cache."""
    x, y = random_bytes(50, 6, 5, 3), np.arange(50) % 5
    np.savez(tmp_path / "source.npz", x=x, y=y)
    name = f"npz:{tmp_path}/source.npz"
    dataset = data.load(name)
    (folder,) = own_cache.iterdir()
    return dataset, dataset.arrays(), folder


def test_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "own"))
    assert cache.directory() == tmp_path / "own"
    monkeypatch.delenv("BPGAN_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "bpgan" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.directory() == tmp_path / "home" / ".cache" / "bpgan" / "data"
    monkeypatch.setenv("BPGAN_DATA_DIR", "~nobody-of-that-name/x")
    with pytest.raises(UserError, match="no such home directory; BPGAN_DATA_DIR"):
        cache.directory()


def test_manifest(made):
    dataset, (x, y), folder = made
    assert folder.name.startswith("npz-source-")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == cache.VERSION and manifest["source"] == dataset.name[4:]
    assert manifest["fingerprint"]["bytes"] == os.path.getsize(dataset.name[4:])
    train = manifest["splits"]["train"]
    assert train["count"] == len(x) and train["counts"] == np.bincount(y).tolist()
    assert train["sha256"] == dataset.sha256


def test_the_source_is_converted_once(made, monkeypatch):
    dataset, arrays, folder = made

    def touched(*_):
        raise AssertionError("the source is read again")

    monkeypatch.setattr(convert, "convert", touched)
    monkeypatch.setattr(np, "load", touched)
    os.chmod(dataset.name[4:], 0)  # what is left is stat
    for split in ("train", "test"):
        data.load(dataset.name, split).arrays()
    again = data.load(dataset.name)
    assert again == dataset._replace(read=again.read)
    np.testing.assert_array_equal(again.arrays()[0], arrays[0])


def test_a_changed_source_is_noticed(made, own_cache):
    dataset, (x, _), folder = made
    path = pathlib.Path(dataset.name[4:])
    times = path.stat().st_mtime_ns
    np.savez(path, x=255 - random_bytes(50, 6, 5, 3), y=np.arange(50) % 5)
    os.utime(path, ns=(times + 1, times + 1))  # of the same size, and a nanosecond later
    again = data.load(dataset.name)
    np.testing.assert_array_equal(again.arrays()[0], 255 - x)
    assert again.sha256 != dataset.sha256 and len(list(own_cache.iterdir())) == 2
    np.testing.assert_array_equal(dataset.arrays()[0], x)  # who reads the old one may go on


@pytest.mark.parametrize("kind", ["npz", "idx", "folder", "zip"])
def test_a_source_changed_under_its_old_time_stamp_is_noticed(tmp_path, own_cache, capsys, kind):
    """Another content of the same size; what only has other permissions, or was copied, is not converted again."""
    x = random_bytes(30, 6, 5, 3)

    def write(x):
        for i in range(30):
            (tmp_path / "r").mkdir(exist_ok=True)
            PIL.Image.fromarray(x[i]).save(
                tmp_path / "r" / f"{i:02}.bmp"
            )  # sizes do not depend on it
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:  # stored
            for f in sorted((tmp_path / "r").iterdir()):
                archive.write(f, f.name)
        np.savez(tmp_path / "a.npz", x=x)
        write_idx(tmp_path / "i-images-idx4-ubyte", x)

    write(x)
    source = (
        tmp_path
        / {"npz": "a.npz", "idx": "i-images-idx4-ubyte", "folder": "r", "zip": "a.zip"}[kind]
    )
    files = sorted(source.iterdir()) if kind == "folder" else [source]
    for f in files:
        os.utime(f, ns=(10**18, 10**18))
    name = f"{kind}:{source}"
    first = data.load(name)
    (folder,) = own_cache.iterdir()
    made = (folder / "train.array_record").stat().st_ino
    for change in (lambda f: f.chmod(0o600), lambda f: shutil.copy2(shutil.move(f, f"{f}.old"), f)):
        for f in files:
            change(f)
        for old in (source if kind == "folder" else tmp_path).glob("*.old"):
            old.unlink()
        assert data.load(name).sha256 == first.sha256
        assert (folder / "train.array_record").stat().st_ino == made
    assert not capsys.readouterr().err
    sizes = [f.stat().st_size for f in files]
    write(x[::-1].copy())
    for f in files:
        os.utime(f, ns=(10**18, 10**18))
    assert sizes == [f.stat().st_size for f in files]
    assert data.load(name).sha256 != first.sha256
    assert "its source was changed: making it again" in capsys.readouterr().err


def test_stamps_of_a_verified_source_are_kept(made, monkeypatch):
    """So that it is read once, not by every command; not while another change could have the same time."""
    dataset, _, folder = made
    path = dataset.name[4:]
    read = []
    real = datasets._bytes_of
    monkeypatch.setattr(datasets, "_bytes_of", lambda p: (read.append(p), real(p))[1])
    data.load(dataset.name)
    data.load(dataset.name)
    assert len(read) == 2  # made a moment ago
    monkeypatch.setattr(datasets, "_MOMENT", -(10**18))
    data.load(dataset.name)
    data.load(dataset.name)
    assert len(read) == 3
    os.chmod(path, 0o640)
    data.load(dataset.name)
    data.load(dataset.name)
    assert len(read) == 4 and json.loads((folder / "manifest.json").read_text())["stamps"]


def test_a_cache_made_again_of_another_content_is_not_read_on(made):
    """By a process that opens it late, of a run that began before the change."""
    dataset, (x, y), _ = made
    dataset.read(np.array([0]))
    late = pickle.loads(pickle.dumps(dataset.read))
    path = pathlib.Path(dataset.name[4:])
    stamp = path.stat().st_mtime_ns
    np.savez(path, x=random_bytes(50, 6, 5, 3, seed=1), y=np.arange(50) % 5)
    os.utime(path, ns=(stamp, stamp))
    assert data.load(dataset.name).sha256 != dataset.sha256
    np.testing.assert_array_equal(dataset.read(np.array([3]))[0][0], x[3])  # the file is still open
    with pytest.raises(UserError, match="the cache is damaged and the source changed"):
        late(np.array([3]))


def test_a_source_that_changes_while_it_is_converted(tmp_path, own_cache, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, x=random_bytes(20, 4, 4))
    convert_, changes = convert.convert, iter([True])

    def meanwhile(*arguments):
        made = convert_(*arguments)
        if next(changes, False):
            np.savez(path, x=random_bytes(20, 4, 4, seed=1))
        return made

    monkeypatch.setattr(convert, "convert", meanwhile)
    refused(f"npz:{path}", "its files were changed while they were read; repeat the command")
    assert not list(own_cache.iterdir())
    assert data.load(f"npz:{path}").length == 18


@pytest.mark.parametrize("change", ["add", "remove", "rename", "touch", "empty class"])
def test_a_changed_folder_is_noticed(tmp_path, own_cache, change):
    root = tree(tmp_path / "root", {f"{'ab'[i % 2]}/{i:02}.png": i for i in range(20)})
    data.load(f"folder:{root}")
    first = root / "a" / "00.png"
    if change == "add":
        tree(root, {"a/99.png": 99})
    if change == "remove":
        first.unlink()
    if change == "rename":
        first.rename(root / "b" / "00.png")
    if change == "touch":
        os.utime(first, ns=(1, 1))
    if change == "empty class":
        (root / "c").mkdir()
    data.load(f"folder:{root}")
    assert len(list(own_cache.iterdir())) == 2


def test_options_and_sources_have_caches_of_their_own(tmp_path, own_cache):
    np.savez(tmp_path / "a.npz", x=random_bytes(20, 4, 4))
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    for count, name in enumerate(
        ["a.npz", "b.npz", "a.npz,size=2", "a.npz,size=3", "a.npz,channels=3"]
    ):
        data.load(f"npz:{tmp_path}/{name}")
        assert len(list(own_cache.iterdir())) == count + 1
    data.load(f"npz:{tmp_path}/../{tmp_path.name}/a.npz,size=2x2")
    assert len(list(own_cache.iterdir())) == 5


def instead(path, make):
    """Puts something else where a file or a directory is."""
    cache._remove(path)
    make(path)


def rewritten(folder, change):
    """A manifest of a wrong content, whose checksum is right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(cache._with_seal(manifest)))


DAMAGE = {
    "nested manifest": lambda folder: (folder / "manifest.json").write_text('{"a":' * 100_000),
    "double keys": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace("{", '{"sha256": "", ', 1)
    ),
    "bytes": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\0"),
    "a directory as manifest": lambda folder: instead(folder / "manifest.json", os.mkdir),
    "a pipe as manifest": lambda folder: instead(folder / "manifest.json", os.mkfifo),
    "a directory as records": lambda folder: instead(folder / "train.array_record", os.mkdir),
    "a pipe as records": lambda folder: instead(folder / "test.array_record", os.mkfifo),
    "a link to nowhere": lambda folder: instead(folder, lambda path: path.symlink_to("nowhere")),
    "a file": lambda folder: instead(folder, lambda path: path.write_text("")),
    "NaN": lambda folder: rewritten(
        folder, lambda m: m["splits"]["train"].update(count=float("nan"))
    ),
    "a huge shape": lambda folder: rewritten(
        folder, lambda m: m["splits"]["train"].update(shape=[10**15] * 3)
    ),
    "too few": lambda folder: rewritten(folder, lambda m: m["splits"]["test"].update(count=3)),
    "no split": lambda folder: rewritten(folder, lambda m: m["splits"].pop("test")),
    "names": lambda folder: rewritten(folder, lambda m: m.update(class_names="abc")),
    "of another source": lambda folder: rewritten(folder, lambda m: m.update(source="/else")),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "other manifest": lambda folder: (folder / "manifest.json").write_text('{"splits": 3}'),
    "edited manifest": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"high": 255', '"high": 254')
    ),
    "no records": lambda folder: (folder / "train.array_record").unlink(),
    "short records": lambda folder: (folder / "train.array_record").write_bytes(
        (folder / "train.array_record").read_bytes()[:-9]
    ),
    "long records": lambda folder: (folder / "train.array_record").write_bytes(
        (folder / "train.array_record").read_bytes() + b"9"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(made, damage, capsys):
    dataset, (x, y), folder = made
    DAMAGE[damage](folder)
    again = data.load(dataset.name)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(folder) in said and "making it again" in said
    check(again, x, y)
    assert again == dataset._replace(read=again.read)
    data.load(dataset.name, "test")
    assert not capsys.readouterr().err


def corrupt(folder):
    """Changes a byte of some record's pixels in a way that array_record notices."""
    path = folder / "train.array_record"
    content = bytearray(path.read_bytes())
    content[200] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("by", ["arrays", "read", "a part", "a copy", "threads"])
def test_damaged_records_are_made_again(made, capsys, by):
    """Whoever finds the damage, in whatever process, reads on from a new cache and says so once."""
    import concurrent.futures

    dataset, (x, y), folder = made
    corrupt(folder)
    again = data.load(dataset.name)
    if by == "arrays":
        found = again.arrays()[0]
    elif by == "threads":
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            *_, (found, _) = pool.map(again.read, [np.arange(again.length)] * 4)
    else:
        moved = pickle.loads(pickle.dumps(again.read))
        held = data.hold_out(again)[0] if by == "a part" else again
        read = {"read": again.read, "a part": held.read, "a copy": moved}[by]
        found = read(np.arange(held.length))[0]
    if by != "a part":
        np.testing.assert_array_equal(found, x)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "damaged" in said and "making it again" in said
    check(again, x, y)
    check(data.load(dataset.name), x, y)
    assert not capsys.readouterr().err


def test_records_that_were_exchanged_are_noticed(made):
    """Files that array_record finds sound, but with other content."""
    dataset, (x, y), folder = made
    other = cache.Writer(folder / "train.array_record", dataset.shape, 5)
    other.add(x[::-1], y[::-1])
    other.close()
    again = data.load(dataset.name)
    np.testing.assert_array_equal(again.read(np.array([0]))[0][0], x[-1])
    np.testing.assert_array_equal(again.arrays()[0], x)
    np.testing.assert_array_equal(again.arrays()[1], y)


def test_a_cache_that_goes_away_while_it_is_used(made):
    dataset, (x, _), folder = made
    moved = pickle.loads(pickle.dumps(dataset.read))
    dataset.read(np.array([0]))
    shutil.rmtree(folder)
    np.testing.assert_array_equal(dataset.read(np.array([3]))[0][0], x[3])  # the file is still open
    np.testing.assert_array_equal(moved(np.array([0]))[0][0], x[0])
    assert folder.is_dir()
    fresh = dataset._replace(read=pickle.loads(pickle.dumps(moved)))
    shutil.rmtree(folder)
    np.testing.assert_array_equal(fresh.arrays()[0], x)
    shutil.rmtree(folder)
    os.remove(dataset.name[4:])
    with pytest.raises(UserError, match="no such file"):
        dataset._replace(read=pickle.loads(pickle.dumps(moved))).arrays()


@pytest.mark.parametrize("place", range(0, 131072, 4001))
def test_one_flipped_bit_is_mended_or_changes_nothing(made, place):
    dataset, (x, y), folder = made
    content = bytearray((folder / "train.array_record").read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    (folder / "train.array_record").write_bytes(content)
    again = data.load(dataset.name)
    found = again.read(np.arange(again.length))
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(found[1], y)


def test_what_stands_where_a_conversion_works(made):
    """A file, a link, a directory or a pipe in the place of the temporary directory or of its lock."""
    dataset, (x, _), folder = made
    temporary = folder.with_name(folder.name + ".tmp")
    for make in (
        lambda: temporary.write_text(""),
        lambda: temporary.symlink_to("nowhere"),
        lambda: (temporary / "lock").mkdir(parents=True),
        lambda: (temporary.mkdir(), os.mkfifo(temporary / "lock")),
    ):
        shutil.rmtree(folder)
        make()
        np.testing.assert_array_equal(data.load(dataset.name).arrays()[0], x)
        assert list(folder.parent.iterdir()) == [folder]


def test_a_disk_without_locks(made, monkeypatch, capsys):
    """Conversions go on without, also where another process is faster, and damage is mended."""
    import fcntl

    dataset, (x, _), folder = made

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    corrupt(folder)
    np.testing.assert_array_equal(data.load(dataset.name).arrays()[0], x)
    shutil.move(folder, folder.parent / "elsewhere")
    convert_ = convert.convert

    def faster(*arguments):
        made = convert_(*arguments)
        shutil.copytree(folder.parent / "elsewhere", folder)
        return made

    monkeypatch.setattr(convert, "convert", faster)
    np.testing.assert_array_equal(data.load(dataset.name).arrays()[0], x)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["elsewhere", folder.name]


def test_a_cache_that_cannot_be_written_is_read(made, monkeypatch):
    """All that writes fails, as on a read-only disk; also where the source has other stamps than it had."""

    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    dataset, (x, y), folder = made
    for name in ("mkdir", "rename", "unlink", "write_text"):
        monkeypatch.setattr(pathlib.Path, name, read_only)
    monkeypatch.setattr(cache, "_write", read_only)
    monkeypatch.setattr(datasets, "_MOMENT", -(10**18))
    os.chmod(dataset.name[4:], 0o640)
    check(data.load(dataset.name), x, y)
    corrupt(folder)
    with pytest.raises(UserError, match="cannot write converted data there .read-only file system"):
        data.load(dataset.name).arrays()


def test_a_cache_that_cannot_be_read_is_not_taken_for_damaged(made, monkeypatch):
    dataset, (x, y), folder = made
    read_bytes = pathlib.Path.read_bytes

    def failing(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(pathlib.Path, "read_bytes", failing)
    refused(dataset.name, "manifest.json: cannot be read (Input/output error)")
    monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)
    check(data.load(dataset.name), x, y)


def test_a_damaged_cache_stays_until_there_is_another(made, monkeypatch):
    dataset, (x, _), folder = made
    corrupt(folder)

    def failing(*_):
        raise UserError("no luck")

    monkeypatch.setattr(convert, "convert", failing)
    again = data.load(dataset.name)
    with pytest.raises(UserError, match="no luck"):
        again.arrays()
    test = data.load(dataset.name, "test")  # is sound
    assert test.read(np.arange(test.length))[0].shape == (5, 6, 5, 3)


def test_threads_share_a_reader(made):
    import concurrent.futures

    dataset, (x, y), _ = made
    read = pickle.loads(pickle.dumps(dataset.read))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = [np.random.default_rng(i).integers(0, len(x), 20) for i in range(64)]
        for row, (a, b) in zip(rows, pool.map(read, rows), strict=True):
            np.testing.assert_array_equal(a, x[row])
            np.testing.assert_array_equal(b, y[row])


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=random_bytes(20, 4, 4))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "file" / "cache"))
    refused(
        f"npz:{tmp_path}/a.npz", "cannot write converted data", "not a directory", "BPGAN_DATA_DIR"
    )
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "closed" / "cache"))
        refused(f"npz:{tmp_path}/a.npz", "permission denied")


def test_a_full_disk(tmp_path, own_cache, monkeypatch):
    import resource

    np.savez(tmp_path / "a.npz", x=random_bytes(20, 400, 400))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(f"npz:{tmp_path}/a.npz", "cannot write converted data", "0.0 gib are free")
    monkeypatch.undo()
    monkeypatch.setenv("BPGAN_DATA_DIR", str(own_cache))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # Python ignores the signal
    try:
        refused(f"npz:{tmp_path}/a.npz", "cannot write converted data", "file too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(own_cache.iterdir())
    assert data.load(f"npz:{tmp_path}/a.npz").length == 18


def test_an_error_leaves_nothing(tmp_path, own_cache):
    root = tree(tmp_path / "a", {f"{i}.png": i for i in range(10)})
    (root / "5.png").write_bytes(b"")
    refused(f"folder:{root}", "1 of 10")
    assert not list(own_cache.iterdir())


SLOWLY = """
    import sys, time
    import bpgan.data, bpgan.data.images as images
    decode = images.shaped
    def slow(array, form):
        print("converting", flush=True)
        time.sleep(float(sys.argv[2]))
        return decode(array, form)
    images.shaped = slow
    dataset = bpgan.data.load(sys.argv[1])
    print("sha", dataset.sha256, dataset.length)
"""


def slowly(name, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOWLY), name, str(seconds)],
        cwd=pathlib.Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.medium
def test_two_processes_convert_once(tmp_path, own_cache):
    np.savez(tmp_path / "a.npz", x=random_bytes(20, 4, 4))
    processes = [slowly(f"npz:{tmp_path}/a.npz", 0.15) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(output.count("converting") for output in outputs) == 20
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    (folder,) = own_cache.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "test.array_record",
        "train.array_record",
    ]


@pytest.mark.medium
def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path, own_cache):
    np.savez(tmp_path / "a.npz", x=random_bytes(20, 4, 4))
    np.savez(tmp_path / "b.npz", x=random_bytes(20, 4, 4))
    for name in ("a", "b"):
        process = slowly(f"npz:{tmp_path}/{name}.npz", 60)
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        process.kill()
        process.communicate()
        (left,) = own_cache.iterdir()  # b has removed what a left
        assert left.name.startswith(f"npz-{name}-") and left.suffix == ".tmp"
    assert data.load(f"npz:{tmp_path}/a.npz").length == 18
    (folder,) = own_cache.iterdir()  # of a; what b left is gone too
    assert folder.name.startswith("npz-a-") and not folder.name.endswith(".tmp")
    assert data.load(f"npz:{tmp_path}/b.npz").length == 18


def test_what_dead_processes_left_on_a_disk_without_locks_is_swept_away(made):
    dataset, _, folder = made
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = os.uname().nodename
    names = [f"{host}-{dead.pid}-abc.tmp", f"{host}-{dead.pid}-abc.old", f"{host}-{os.getpid()}-abc.tmp",
             f"else-{dead.pid}-abc.tmp"]  # fmt: skip
    for name in names:
        (folder.parent / f"{folder.name}.{name}").mkdir()
    (folder.parent / "mine.old").mkdir()
    shutil.rmtree(folder)
    data.load(dataset.name)
    left = {p.name for p in folder.parent.iterdir()}
    assert left == {folder.name, "mine.old", *(f"{folder.name}.{name}" for name in names[2:])}


@pytest.mark.medium
def test_a_live_conversion_is_not_swept_away(tmp_path, own_cache):
    np.savez(tmp_path / "a.npz", x=random_bytes(20, 4, 4))
    np.savez(tmp_path / "b.npz", x=random_bytes(20, 4, 4))
    process = slowly(f"npz:{tmp_path}/a.npz", 0.1)
    assert process.stdout is not None
    process.stdout.readline()
    data.load(f"npz:{tmp_path}/b.npz")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "sha" in output, errors


def test_conversions_stream(tmp_path, monkeypatch):
    """Examples arrive in small pieces, whatever the size of the file."""
    x = random_bytes(600, 64, 64, 3)
    np.savez(tmp_path / "a.npz", x=x)
    blocks = []
    add = cache.Writer.add
    monkeypatch.setattr(
        cache.Writer, "add", lambda self, x, y: (blocks.append(len(x)), add(self, x, y))[1]
    )
    monkeypatch.setattr(convert, "_BLOCK", 64 * 64 * 3 * 10)
    train = data.load(f"npz:{tmp_path}/a.npz")
    assert max(blocks) <= 10 and sum(blocks) == 600
    check(
        train,
        *(
            a[[i not in every_tenth([0] * 600) for i in range(600)]]
            for a in (x, np.zeros(600, int))
        ),
    )


def test_order_is_kept_when_threads_finish_out_of_order():
    def late_first(i):
        time.sleep(0.02 if i % 5 == 0 else 0)
        return i

    assert list(convert.ordered(late_first, range(40), 8)) == list(range(40))
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield i

    results = convert.ordered(lambda i: i, items(), 8)
    next(results)
    results.close()
    assert len(taken) <= 16 + 2


def test_progress_speaks_after_two_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(convert.time, "monotonic", lambda: now[0])

    def blocks(seconds):
        for _ in range(4):
            now[0] += seconds
            yield [0] * 5

    assert len(list(convert.progress(blocks(0.4), 20, "a: converting"))) == 4
    assert capsys.readouterr().err == ""
    assert len(list(convert.progress(blocks(5), 1234, "a: converting"))) == 4
    assert capsys.readouterr().err == "a: converting 1,234 images\na: converting took 20 s\n"


def test_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(convert, "_SOON", 0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(convert.progress([[0] * 5] * 4, 20, "a: converting"))
    assert "a: converting: 100%" in sys.stderr.getvalue() and "20/20" in sys.stderr.getvalue()


def test_a_tenth_is_held_out_and_nothing_is_lost():
    whole = data.load("mnist10k")
    rest, held = data.hold_out(whole)
    assert (rest.length, held.length) == (8100, 900) and rest.classes == held.classes == 10
    (x, y), (x_rest, y_rest), (x_held, y_held) = (d.arrays() for d in (whole, rest, held))
    assert tuple(np.bincount(y_rest)) == rest.counts and tuple(np.bincount(y_held)) == held.counts
    together = sorted(image.tobytes() for image in np.concatenate([x_rest, x_held]))
    assert together == sorted(image.tobytes() for image in x)
    assert len({whole.sha256, rest.sha256, held.sha256}) == 3
    again = data.hold_out(whole)[1]
    assert again.sha256 == held.sha256
    np.testing.assert_array_equal(again.read(np.array([3, 3, 0]))[0], x_held[[3, 3, 0]])
    # Sources read it in other processes.
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(held)).read(np.array([5]))[1], y_held[5:6]
    )


def test_too_few_examples_to_hold_some_out():
    x = np.zeros((19, 4, 4, 1), np.uint8)
    few = data.of_arrays("few", "train", x, np.zeros(19, np.int32), 1)
    with pytest.raises(UserError, match="19 examples are too few"):
        data.hold_out(few)
