"""Prepares a dataset and shows it: facts, statistics, exact duplicates, a grid of examples.

Run:     python -m experiments.data --dataset=tfds:fashion_mnist
         python -m experiments.data --dataset=tfds:fashion_mnist --mirror=http://HOST/FOLDER
         python -m experiments.data --dataset=folder:PATH,size=64
Expect:  of the first, after the download: 60,000 and 10,000 images in 10 classes of 6,000 and 1,000, mean 0.2860 and
         standard deviation 0.3530 in training, and no image twice.

Writes ``grid.png`` (training images: a row for each class, 20 at most) and ``dataset.json`` (all that is printed, and
where the duplicates are) into ``--workdir``. Images are read in blocks, so the dataset may be larger than memory; what
is kept of an image is 20 bytes.

Images are duplicates if all their pixels are equal; ``bpgan/data/duplicates.py`` says how they are counted.
"""

import dataclasses
from typing import Any

import numpy as np

from bpgan import cli, data
from bpgan.data import duplicates
from bpgan.files import write_json
from bpgan.types import UserError

ROWS, COLUMNS = 20, 10
"""The grid: this many classes at most, and examples of each."""

SIDE = 512
"""Pixels of an image in the grid, at most; of larger ones every second, third, ... row and column is shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    dataset: str = cli.field("mnist10k", data.FORMS)
    mirror: str = cli.field(
        "", "URL of a folder to download the dataset's files from", restart_safe=True
    )
    seed: int = cli.field(0, "of the choice of the examples in the grid", low=0, high=2**32 - 1)


PRESETS = {"smoke": dict(dataset="mnist10k")}


def grid(dataset: data.Dataset, labels: np.ndarray, seed: int) -> tuple[np.ndarray, list[int]]:
    """Images of a split to show ``[n, h, w, c]``, ``COLUMNS`` a row, and the classes of the rows.

    A class with fewer images has black ones at the end; without labels it is a square of images of any kind.
    """
    rng = np.random.default_rng(seed)
    if dataset.classes == 1:
        chosen = rng.choice(dataset.length, min(COLUMNS**2, dataset.length), replace=False)
        return _thumbnails(dataset, chosen), []
    classes = [c for c, count in enumerate(dataset.counts) if count][:ROWS]
    rows = []
    for c in classes:
        members = np.flatnonzero(labels == c)
        chosen = rng.choice(members, min(COLUMNS, len(members)), replace=False)
        images = _thumbnails(dataset, chosen)
        missing = np.zeros((COLUMNS - len(images), *images.shape[1:]), np.uint8)
        rows += [images, missing]
    return np.concatenate(rows), classes


def _thumbnails(dataset: data.Dataset, rows: np.ndarray) -> np.ndarray:
    """Images of a split, with every s-th row and column of pixels so that no side is longer than ``SIDE``."""
    s = -(-max(dataset.shape[:2]) // SIDE)
    return np.stack([dataset.read(rows[i : i + 1])[0][0, ::s, ::s] for i in range(len(rows))])


def manifest(dataset: data.Dataset) -> dict[str, Any]:
    """What is known of a split, for dataset.json."""
    facts = dataset._asdict() | {"length": dataset.length}
    return {key: value for key, value in facts.items() if key not in ("name", "split", "read")}


def run(cfg: Config) -> None:
    """Prints the facts and writes the files.

    Raises:
      UserError: if the dataset cannot be loaded or the files cannot be written.
    """
    from bpgan.runtime.images import image_grid, save_png

    out = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    train, test = (data.load(cfg.dataset, split, mirror=cfg.mirror) for split in ("train", "test"))
    for split in (train, test):
        mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (split.mean, split.std))
        print(split.summary())
        print(f"  mean {mean}, std {std} of x / 255 by channel; SHA-256 {split.sha256}", flush=True)
    train_prints, test_prints = duplicates.prints(train), duplicates.prints(test)
    found = duplicates.find(train_prints, test_prints)
    for title, key, of in (
        ("copies within train", "train", "copies"),
        ("copies within test", "test", "copies"),
        ("test images that are in train", "test_in_train", "images"),
    ):
        number, other = found[key][of], found[key]["other_label"]
        print(f"{title}: {number:,}" + f" ({other:,} with another label)" * bool(number))
    images, classes = grid(train, train_prints.labels, cfg.seed)
    facts = {
        "dataset": cfg.dataset,
        "splits": {"train": manifest(train), "test": manifest(test)},
        "duplicates": found,
        "grid": {"classes": classes, "seed": cfg.seed},
    }
    try:
        save_png(out / "grid.png", image_grid(images, columns=COLUMNS))
        write_json(out / "dataset.json", facts)
    except OSError as error:
        reason = f"cannot write {error.filename}: {error.strerror}"
        raise UserError(reason, argument="workdir", value=out) from None
    names = [train.class_names[c] if train.class_names else str(c) for c in classes]
    print(
        f"wrote {out / 'dataset.json'} and {out / 'grid.png'}"
        + f", rows: {', '.join(names)}" * bool(names)
    )


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
