"""Datasets that TFDS prepared, read without TensorFlow: what is found, and what is refused."""

import ast
import contextlib
import io
import json
import os
import pathlib
import pickle
import shlex
from collections import Counter

import numpy as np
import PIL.Image
import pytest

from bpgan import data
from bpgan.data import known, tfds
from bpgan.types import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of prepared datasets, and one for caches."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))
    return tmp_path / "tfds"


def opened(name: str) -> tfds.Prepared:
    found = tfds.find(tfds.parse(name))
    assert found is not None
    return found


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def png(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


def refused(name: str) -> str:
    """The message with which a dataset is refused: one line that names it."""
    with pytest.raises(UserError) as caught:
        data.load(f"tfds:{name}")
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"dataset=tfds:{name}: ")
    return message


# What cannot be opened ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,near",
    [
        ("fashionmnist", "fashion_mnist"),
        ("CIFAR10", "cifar10"),
        ("minst", "mnist"),
        ("mytiny", "my_tiny"),
    ],
)
def test_an_unknown_name_brings_the_nearest(root, name, near):
    (root / "my_tiny").mkdir(parents=True)
    message = refused(name)
    assert "TFDS knows no dataset of that name" in message
    assert near in message.partition("did you mean ")[2].rstrip("?").split(" or ")
    assert "did you mean" not in refused("xqzxqzxqzxqz")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../up",
        "a b",
        "mnist/",
        "mnist/..",
        "mnist:",
        "huggingface:mnist",
        "/etc",
        "a/b/c",
        "mnist\n",
        "é",
    ],
)
def test_malformed_names(root, name):
    with pytest.raises(ValueError, match="must be NAME, NAME/CONFIG, NAME:VERSION or NAME/CONF"):
        tfds.parse(name)


@pytest.mark.parametrize(
    "name", ["celeb_a", "emnist/letters", "emnist/letters:3.1.0", "coco", "cifar10_1"]
)
def test_what_needs_tensorflow_comes_with_the_command(tmp_path, monkeypatch, name):
    """The command is one that a shell and Python understand, whatever the folder is called."""
    import tensorflow_datasets as tfds

    root = tmp_path / 'a "b" $HOME it\'s'
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    message = refused(name)
    assert "which needs TensorFlow; in an environment with tensorflow run once: " in message
    python, flag, code = shlex.split(message.partition("run once: ")[2])
    assert (python, flag) == ("python", "-c")
    call = (
        ast.parse(code).body[1].value.func.value
    )  # the builder in builder(...).download_and_prepare()
    assert ast.unparse(call.func) == "tfds.builder"
    arguments = [ast.literal_eval(a) for a in call.args]
    options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert arguments == [name] and options == {"data_dir": str(root), "file_format": "array_record"}
    assert hasattr(tfds, "builder")


def test_versions_and_configurations_there_are_not(root):
    assert "is not prepared, and can be downloaded in version 3.0.1 only" in refused("mnist:2.0.0")
    assert "mnist has no configurations" in refused("mnist/big")


def prepare(
    root,
    name: str,
    features: dict,
    examples: list,
    *,
    version="1.0.0",
    config=None,
    splits=("train", "test"),
):
    """A dataset as any user of TFDS may have prepared it."""
    import tensorflow_datasets as tfds

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    namespace = {
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": _info,
        "_split_generators": lambda self, _: {split: enumerate(examples) for split in splits},
        "_generate_examples": lambda self: None,
    }
    if config:
        namespace["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config, version=version)]
    bases = (tfds.core.GeneratorBasedBuilder,)
    cls = type(bases[0])("Made", bases, namespace, skip_registration=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder = cls(data_dir=root, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return pathlib.Path(builder.data_dir)


def a_tensor(*shape, dtype=np.uint8):
    import tensorflow_datasets as tfds

    return tfds.features.Tensor(shape=shape, dtype=dtype)


def test_what_others_prepared(root):
    """Other features are left alone, a label that is no class number is none, sizes may differ."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.Text(),
        "boxes": {"box": tfds.features.BBoxFeature()},
    }
    sizes = [(5, 3), (4, 9), (4, 9), (1, 1)]
    made = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        for i, size in enumerate(sizes)
    ]
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    examples = [{"image": png(x), "label": "a", "boxes": {"box": box}} for x in made]
    prepare(root, "odd", features, examples)
    prepared = opened("odd")
    assert prepared.class_names == ()
    found = list(prepared.splits["train"])
    assert [e.keys() for e in found] == [{"image"}] * 4
    assert Counter((e["image"].shape, e["image"].tobytes()) for e in found) == Counter(
        (x.shape, x.tobytes()) for x in made
    )


def test_videos(root, capfd):
    """TFDS needs TensorFlow to look at the mere description of a video."""
    directory = prepare(
        root, "film", {"image": a_tensor(2, 2, 1)}, [{"image": np.zeros((2, 2, 1), np.uint8)}]
    )
    path = directory / "features.json"
    described = json.loads(path.read_text())
    described["featuresDict"]["features"]["clip"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "4", "4", "3"]}, "dtype": "uint8"},
    }
    path.write_text(json.dumps(described))
    assert f"{directory} has features that need TensorFlow" in refused("film")
    assert capfd.readouterr() == ("", "")


def test_versions_configurations_and_labels_of_others(root):
    import tensorflow_datasets as tfds

    for version, value in (("1.0.0", 1), ("1.10.0", 10), ("1.9.0", 9)):
        features = {
            "image": a_tensor(2, 2, 1),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
        }
        examples = [{"image": np.full((2, 2, 1), value, np.uint8), "label": 1}]
        prepare(root, "mine", features, examples, version=version)
    for name, value in (("mine", 10), ("mine:1.9.0", 9), ("mine:1.0.*", 1)):
        prepared = opened(name)
        assert prepared.splits["train"][0]["image"].max() == value and prepared.class_names == (
            "no",
            "yes",
        )
        assert prepared.splits["train"][0]["label"] == 1
    assert "no dataset of that name" in refused("mine:2.0.0")

    features = {"image": a_tensor(2, 2, 3), "label": a_tensor(dtype=np.int64)}
    example = {"image": np.zeros((2, 2, 3), np.uint8), "label": -1}
    prepare(root, "many", features, [example], config="one")
    assert opened("many").splits["test"][0]["label"] == -1
    prepare(root, "many", features, [example, example], config="two")
    assert "must name one of its configurations: many/one, many/two" in refused("many")
    prepared = opened("many/two:1.0.0")
    assert len(prepared.splits["train"]) == 2 and prepared.class_names == ()


def test_what_has_no_images(root):
    image = np.zeros((2, 2, 1), np.uint8)
    cases = {
        "nothing": ({"picture": a_tensor(2, 2, 1)}, {"picture": image}, "has no feature 'image', only picture"),
        "deep": ({"image": a_tensor(2, 2, 1, dtype=np.uint16)}, {"image": image.astype(np.uint16)},
                 "'image' is uint16 (2, 2, 1), must be uint8"),
        "real": ({"image": a_tensor(2, 2, 1, dtype=np.float32)}, {"image": image.astype(np.float32)},
                 "'image' is float32"),
        "film": ({"image": a_tensor(5, 2, 2, 1)}, {"image": np.zeros((5, 2, 2, 1), np.uint8)},
                 "'image' is uint8 (5, 2, 2, 1), must be uint8 (h, w, c)"),
        "parts": ({"image": {"left": a_tensor(2, 2, 1)}}, {"image": {"left": image}}, "must be uint8 (h, w, c)"),
    }  # fmt: skip
    for name, (features, example, message) in cases.items():
        prepare(root, name, features, [example])
        assert message in refused(name).replace("<class 'numpy.", "").replace("'>", "")


def test_empty_splits_are_left_out(root):
    directory = prepare(
        root, "few", {"image": a_tensor(2, 2, 1)}, [{"image": np.zeros((2, 2, 1), np.uint8)}]
    )
    info = json.loads((directory / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "test":
            split["shardLengths"], split["numBytes"] = [], "0"
    (directory / "dataset_info.json").write_text(json.dumps(info))
    assert opened("few").splits.keys() == {"train"}
    info["splits"] = []
    (directory / "dataset_info.json").write_text(json.dumps(info))
    assert "has no examples" in refused("few")


def digits(root, n=40):
    """MNIST, made small and prepared."""
    import tensorflow_datasets as tfds_

    label = tfds_.features.ClassLabel(num_classes=10)
    x = np.random.default_rng(0).integers(0, 256, (n, 28, 28, 1), dtype=np.uint8)
    examples = [{"image": a, "label": i % 10} for i, a in enumerate(x)]
    features = {"image": a_tensor(28, 28, 1), "label": label}
    return prepare(root, "mnist", features, examples, version="3.0.1")


def test_prepared_splits_are_sequences(root):
    digits(root)
    found = opened("mnist:3.0.1")
    assert found.directory == root / "mnist" / "3.0.1"
    assert found.class_names == tuple("0123456789") and found.splits.keys() == {"train", "test"}
    train = pickle.loads(pickle.dumps(found.splits["train"]))
    assert len(train) == 40
    for one, i in zip(train.__getitems__([3, 0, 3]), (3, 0, 3), strict=True):
        assert one.keys() == {"image", "label"} and type(one["label"]) is int
        assert one["image"].shape == (28, 28, 1) and one["image"].dtype == np.uint8
        np.testing.assert_array_equal(one["image"], found.splits["train"][i]["image"])
    np.testing.assert_array_equal(train[-1]["image"], train[39]["image"])
    with pytest.raises(IndexError):
        train[40]


def test_what_is_prepared_is_not_downloaded(root, capfd):
    """Nor is a mirror asked, or a version that is not bpgan's refused."""
    digits(root)
    dataset = data.load("tfds:mnist", mirror="http://127.0.0.1:1")
    assert dataset.length == 40 and "downloading" not in capfd.readouterr().out


def test_other_formats(root, monkeypatch):
    """What TFDS prepared for TensorFlow: how to get the other form; of what bpgan can download, that is used."""
    ours = digits(root)
    other = prepare(
        root, "mine", {"image": a_tensor(2, 2, 1)}, [{"image": np.zeros((2, 2, 1), np.uint8)}]
    )
    for directory in (ours, other):
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(tfds.OtherFormat):
        opened("mnist")
    raw = known.of_tfds(tfds.parse("mnist"))
    assert raw.digest == known.DATASETS["mnist"].digest
    message = refused("mine")
    prefix = f"{other} is prepared as tfrecord, which cannot be read without TensorFlow; "
    assert prefix in message
    code = shlex.split(message.partition("run once: ")[2])[2]
    assert f'"mine:1.0.0", data_dir="{root}_array_record", file_format="array_record"' in code
    assert message.endswith("and set TFDS_DATA_DIR to that folder")


def test_damage(root):
    directory = digits(root)
    (records,) = directory.glob("*train.array_record*")
    whole = records.read_bytes()
    records.write_bytes(flipped(whole))
    train = opened("mnist").splits["train"]
    with pytest.raises(
        UserError, match=r"3\.0\.1 is damaged .*; delete it and have it prepared again"
    ):
        list(train)
    records.unlink()
    assert f"{records} is missing; delete {directory}" in refused("mnist")
    (directory / "dataset_info.json").write_text("{")
    assert f"{directory} is damaged" in refused("mnist")
    (directory / "dataset_info.json").unlink()
    assert tfds.find(tfds.parse("mnist")) is None


def test_prepared_files_that_contradict_each_other(root):
    """TFDS checks none of what it reads; whatever it makes of it is one line that names the folder."""
    image = np.zeros((2, 2, 1), np.uint8)
    directory = prepare(root, "mine", {"image": a_tensor(2, 2, 1)}, [{"image": image}])
    info, features = directory / "dataset_info.json", directory / "features.json"
    for path, change in {
        info: [('"shardLengths": [', '"shardLengths": ["-7",'), ("{DATASET}", "{DATASED}"),
               ("{DATASET}", "{"), (info.read_text(), "[]"), (info.read_text(), '{"a":' * 100_000)],
        features: [('"2"', '"3"'), ('"2"', '"x"'), (features.read_text(), "3")],
    }.items():  # fmt: skip
        whole = path.read_text()
        for old, new in change:
            assert old in whole
            path.write_text(whole.replace(old, new, 1))
            with pytest.raises(UserError, match=f"{directory}.* is (damaged|missing)") as caught:
                list(opened("mine").splits["train"])
            assert "\n" not in str(caught.value)
        path.write_text(whole)
    assert len(opened("mine").splits["train"]) == 1
    os.mkfifo(directory / "label.labels.txt")  # would be waited for
    assert f"{directory}/label.labels.txt is no regular file" in refused("mine")


def test_folders_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-that-name/data")
    assert "there is no home directory for ~nobody" in refused("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    assert "TFDS_DATA_DIR=gs://bucket/data: must be a folder" in refused("mnist")


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f'data_dir="{tmp_path}/tensorflow_datasets"' in refused("celeb_a")
