"""experiments/data.py: its statistics, duplicates and grid, held against plain Python."""

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from bpgan import cli, data
from bpgan.data import duplicates
from experiments import data as experiment


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Where datasets are converted to and runs are written."""
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags) -> int:
    return cli.run(experiment.Config, experiment.run, experiment.PRESETS, flags)


def made(
    folders,
    name="made",
    *,
    labeled=True,
    seed=0,
    kinds=30,
    train=70,
    test=40,
    shape=(5, 4, 3),
    classes=3,
):
    """An npz file in which images and their labels come up again and again; its arrays."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (kinds, *shape), dtype=np.uint8)
    arrays = {}
    for split, n in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = palette[rng.integers(0, kinds, n)]
        if labeled:
            arrays[f"y_{split}"] = rng.permutation(np.arange(n) % classes)
    np.savez(folders / f"{name}.npz", **arrays)
    return f"npz:{folders / name}.npz", arrays


def counted(arrays) -> dict:
    """The duplicates, counted one image at a time."""
    seen, result = {}, {}
    for split in ("train", "test"):
        x = arrays[f"x_{split}"]
        y = arrays.get(f"y_{split}", np.zeros(len(x), int))
        labels = defaultdict(list)
        for image, label in zip(x, y, strict=True):
            labels[image.tobytes()].append(int(label))
        result[split] = {
            "copies": sum(len(found) - 1 for found in labels.values()),
            "other_label": sum(len(set(found)) - 1 for found in labels.values()),
        }
        seen[split] = labels
    known = [(k, y) for k, found in seen["test"].items() for y in found if k in seen["train"]]
    result["test_in_train"] = {
        "images": len(known),
        "other_label": sum(y not in seen["train"][k] for k, y in known),
    }
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labeled", [True, False])
def test_duplicates_and_their_labels(folders, capsys, labeled, seed):
    name, arrays = made(folders, labeled=labeled, seed=seed)
    assert run(f"--dataset={name}", "--workdir=out") == 0
    facts = json.loads((folders / "out" / "dataset.json").read_text())
    expected = counted(arrays)
    sets = facts["duplicates"].pop("sets")
    assert facts["duplicates"] == expected
    assert (expected["test_in_train"]["other_label"] > 0) == labeled and expected["train"]["copies"]

    groups = defaultdict(lambda: {"train": [], "test": [], "labels": set()})
    for split in ("train", "test"):
        for i, image in enumerate(arrays[f"x_{split}"]):
            group = groups[image.tobytes()]
            group[split].append(i)
            group["labels"].add(int(arrays[f"y_{split}"][i]) if labeled else 0)
    repeated = [g for g in groups.values() if len(g["train"]) + len(g["test"]) > 1]
    as_text = [json.dumps({**g, "labels": sorted(g["labels"])}) for g in repeated]
    assert sorted(map(json.dumps, sets)) == sorted(as_text)
    several = [len(g["labels"]) > 1 for g in sets]
    assert several == sorted(several, reverse=True)  # conflicts come first

    output = capsys.readouterr().out
    for title, part, key in (
        ("copies within train", "train", "copies"),
        ("copies within test", "test", "copies"),
        ("test images that are in train", "test_in_train", "images"),
    ):
        number, other = expected[part][key], expected[part]["other_label"]
        assert f"\n{title}: {number} ({other} with another label)\n" in output


def test_nothing_is_a_duplicate_of_what_differs_in_one_pixel(folders, capsys):
    x = np.zeros((40, 6, 6), np.uint8)
    x.reshape(40, 36)[np.arange(36), np.arange(36)] = 1
    x[36:, 0, 0] = np.arange(2, 6)
    np.savez(folders / "one.npz", x_train=x[:30], x_test=x[30:])
    assert run(f"--dataset=npz:{folders / 'one.npz'}") == 0
    output = capsys.readouterr().out
    assert output.count(": 0\n") == 3


def test_the_facts_are_those_of_the_arrays(folders, capsys):
    name, arrays = made(folders, classes=4)
    assert run(f"--dataset={name}", "--workdir=out") == 0
    facts = json.loads((folders / "out" / "dataset.json").read_text())
    output = capsys.readouterr().out
    assert facts["dataset"] == name
    for split in ("train", "test"):
        x, y, found = arrays[f"x_{split}"], arrays[f"y_{split}"], facts["splits"][split]
        assert found["shape"] == [5, 4, 3] and found["length"] == len(x)
        assert found["counts"] == [Counter(y.tolist())[c] for c in range(4)]
        assert (found["low"], found["high"]) == (x.min(), x.max())
        pixels = x.reshape(-1, 3) / 255
        np.testing.assert_allclose(found["mean"], pixels.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found["std"], pixels.std(axis=0), rtol=1e-9)
        assert data.load(name, split).summary() in output and found["sha256"] in output
        mean = ", ".join(f"{v:.4f}" for v in pixels.mean(axis=0))
        assert f"  mean {mean}, std " in output


def cells(path, h, w) -> np.ndarray:
    """The images of a grid ``[rows, columns, h, w, c]``; the gaps must be black."""
    with Image.open(path) as image:
        pixels = np.asarray(image).reshape(image.size[1], image.size[0], -1)
    padded = np.pad(pixels, ((0, 2), (0, 2), (0, 0)))
    rows, columns = padded.shape[0] // (h + 2), padded.shape[1] // (w + 2)
    boxes = padded.reshape(rows, h + 2, columns, w + 2, -1).swapaxes(1, 2)
    assert not boxes[:, :, h:].any() and not boxes[:, :, :, w:].any()
    return boxes[:, :, :h, :w]


def test_the_grid_has_a_row_for_each_class(folders, capsys):
    rng = np.random.default_rng(1)
    counts = [30, 4, 0, 12]  # in training: too few of one class, none of another
    y = np.repeat(np.arange(4), counts)
    x = rng.integers(1, 256, (len(y), 4, 3, 1), dtype=np.uint8)
    test = {"x_test": x[:4], "y_test": np.arange(4)}
    np.savez(folders / "some.npz", x_train=x, y_train=y, **test)
    name = f"npz:{folders / 'some.npz'}"
    assert run(f"--dataset={name}", "--workdir=a") == 0
    assert capsys.readouterr().out.endswith("wrote a/dataset.json and a/grid.png, rows: 0, 1, 3\n")
    grid = cells(folders / "a" / "grid.png", 4, 3)
    assert grid.shape[:2] == (3, 10)
    for row, c in zip(grid, (0, 1, 3), strict=True):
        n = min(10, counts[c])
        members = [image.tobytes() for image in x[y == c]]
        shown = [image.tobytes() for image in row[:n]]
        assert len(set(shown)) == n and set(shown) <= set(members) and not row[n:].any()
    assert (
        run(f"--dataset={name}", "--workdir=b") == 0
        and run(f"--dataset={name}", "--workdir=c", "--seed=1") == 0
    )
    first, same, other = ((folders / d / "grid.png").read_bytes() for d in "abc")
    assert first == same != other


def test_the_grid_of_many_classes_and_of_none(folders):
    name, arrays = made(folders, "many", classes=25, train=500, kinds=400)
    assert run(f"--dataset={name}", "--workdir=many") == 0
    grid = cells(folders / "many" / "grid.png", 5, 4)
    assert grid.shape[:2] == (20, 10)
    for c in (0, 19):
        members = {image.tobytes() for image in arrays["x_train"][arrays["y_train"] == c]}
        assert {image.tobytes() for image in grid[c]} <= members
    for n, rows in ((130, 10), (37, 4)):
        name, arrays = made(folders, "none", labeled=False, train=n, kinds=3000)
        assert run(f"--dataset={name}", "--workdir=none") == 0
        grid = cells(folders / "none" / "grid.png", 5, 4)
        assert grid.shape[:2] == (rows, 10)
        shown = [image.tobytes() for image in grid.reshape(-1, 5, 4, 3)[: min(n, 100)]]
        assert Counter(shown) <= Counter(image.tobytes() for image in arrays["x_train"])


def test_images_are_read_in_blocks(folders, monkeypatch):
    """Never more at once than a block, each once, whatever the size of the dataset."""
    name, arrays = made(folders, kinds=400, train=300)
    monkeypatch.setattr(duplicates, "BLOCK", 7 * 60 + 59)
    dataset, asked = data.load(name), []

    def read(indices):
        asked.append(np.asarray(indices))
        return dataset.read(indices)

    found = duplicates.prints(dataset._replace(read=read))
    assert {len(block) for block in asked[:-1]} == {7} and len(asked[-1]) <= 7
    np.testing.assert_array_equal(np.concatenate(asked), np.arange(300))
    np.testing.assert_array_equal(found.labels, arrays["y_train"])
    distinct = {image.tobytes() for image in arrays["x_train"]}
    assert len({tuple(row) for row in found.pixels.tolist()}) == len(distinct) < 300


def test_the_preset_and_the_default_directory(folders, capsys):
    assert run("--preset=smoke") == 0
    output = capsys.readouterr().out
    assert "9,000 images 28x28x1" in output and "1,000 images 28x28x1" in output
    assert "mean 0.1312, std 0.3088 of x / 255" in output
    runs = folders / "runs" / "data"
    assert (runs / "smoke" / "dataset.json").exists()
    name, _ = made(folders, "a b")
    assert run(f"--dataset={name}") == 0
    (folder,) = (p for p in runs.iterdir() if p.name != "smoke")
    assert re.fullmatch(r"default_dataset=npz:[\w.,:=+-]+", folder.name)
    assert {p.name for p in folder.iterdir()} == {"grid.png", "dataset.json"}


def test_mistakes_are_one_line(folders, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folders / "tfds"))
    (folders / "file").write_text("")
    cases = {
        ("--dataset=npz:none.npz",): "--dataset=npz:none.npz: no such file",
        ("--dataset=mnits",): "--dataset=mnits: must be mnist10k",
        (
            "--dataset=tfds:mnist",
            "--mirror=ftp://host",
        ): "--mirror=ftp://host: must be an http or https URL",
        ("--workdir=file/x",): "--workdir=file/x: cannot be written",
        ("--seed=-1",): "--seed=-1",
    }
    for flags, message in cases.items():
        assert run(*flags) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
