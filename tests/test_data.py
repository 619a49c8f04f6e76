"""The order of the data and the datasets themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bpgan import data
from bpgan.types import UserError


def rows_of(source, steps):
    """The examples (by their value) that each batch shows."""
    batch_at = jax.jit(source.batch_at)
    return np.stack([np.asarray(batch_at(source.data, jnp.int32(t))["x"]) for t in steps])


def counting_source(length, batch_size, seed=0):
    values = np.arange(length, dtype=np.float32)
    labels = np.arange(length, dtype=np.int32)
    return data.in_memory(values, labels, seed=seed, batch_size=batch_size)


@pytest.mark.parametrize(
    "length,batch_size", [(1, 3), (2, 5), (10, 3), (97, 32), (1000, 128), (64, 64)]
)
def test_each_epoch_shows_every_example_once(length, batch_size):
    epochs = 3
    steps = -(-epochs * length // batch_size)
    rows = rows_of(counting_source(length, batch_size), range(steps)).ravel()
    for e in range(epochs):
        assert sorted(rows[e * length : (e + 1) * length]) == list(range(length))


def test_epochs_and_seeds_differ():
    first = rows_of(counting_source(1000, 1000), [0, 1])
    other = rows_of(counting_source(1000, 1000, seed=1), [0, 1])
    orders = [*first, *other]
    for i in range(4):
        for j in range(i):
            assert np.mean(orders[i] == orders[j]) < 0.02
            assert abs(np.corrcoef(orders[i], orders[j])[0, 1]) < 0.12


def test_order_is_uniform():
    """Where an example lands is uniform over places, and neighbours are independent (chi-squared, 400 epochs)."""
    length = 20
    rows = rows_of(counting_source(length, length), range(400)).astype(int)
    places = np.zeros((length, length))
    pairs = np.zeros((length, length))
    for epoch in rows:
        places[np.arange(length), epoch] += 1
        pairs[epoch[:-1], epoch[1:]] += 1
    assert scipy.stats.chisquare(places.ravel(), ddof=2 * length - 2).pvalue > 1e-4
    off_diagonal = pairs[~np.eye(length, dtype=bool)]
    assert scipy.stats.chisquare(off_diagonal).pvalue > 1e-4


def test_far_steps_do_not_overflow():
    source = counting_source(9000, 128)
    step = 2**31 - 1
    rows = rows_of(source, [step])[0].astype(int)
    positions = [(step * 128 + j) for j in range(128)]  # exact, in Python integers
    near = data.epoch_order(
        source.data["order"],
        jnp.asarray([(p // 9000) % 2**32 for p in positions], jnp.uint32),
        jnp.asarray([p % 9000 for p in positions], jnp.uint32),
        9000,
    )
    np.testing.assert_array_equal(rows, near)


def test_images_are_stored_as_bytes_and_scaled_in_the_batch():
    x = np.array([[0], [127], [255]], np.uint8)
    source = data.in_memory(x, np.arange(3), seed=0, batch_size=3)
    assert source.data["x"].dtype == np.uint8
    batch = jax.jit(source.batch_at)(source.data, jnp.int32(0))
    expected = x[np.asarray(batch["y"])].astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(batch["x"], expected, atol=1e-7)
    assert source.steps_per_epoch == 1


def test_mnist10k():
    train, test = data.load("mnist10k"), data.load("mnist10k", "test")
    assert train.x.shape == (9000, 28, 28, 1) and test.x.shape == (1000, 28, 28, 1)
    assert train.x.dtype == np.uint8 and train.classes == 10
    total = np.bincount(train.y) + np.bincount(test.y)
    np.testing.assert_array_equal(total, [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978])
    assert np.abs(np.bincount(test.y) - total / 10).max() < 1
    seen = {image.tobytes() for image in train.x}
    assert not any(image.tobytes() in seen for image in test.x)
    # MNIST's own statistics (mean 0.1307, std 0.3081 of the 60,000) hold for this part to sampling error.
    assert abs(train.x.mean() / 255 - 0.1307) < 0.003 and abs(train.x.std() / 255 - 0.3081) < 0.003


def test_npz(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    y = np.arange(40) % 4
    np.savez(tmp_path / "a.npz", x=x, y=y)
    train, test = (data.load(f"npz:{tmp_path / 'a.npz'}", s) for s in ("train", "test"))
    assert train.x.shape == (36, 8, 8, 3) and test.x.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(np.bincount(test.y), [1, 1, 1, 1])
    together = {
        image.tobytes(): label for d in (train, test) for image, label in zip(d.x, d.y, strict=True)
    }
    assert together == {image.tobytes(): label for image, label in zip(x, y, strict=True)}


def test_bad_datasets_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "float.npz", x=np.zeros((20, 4, 4)))
    np.savez(tmp_path / "other.npz", images=np.zeros((20, 4, 4), np.uint8))
    np.savez(tmp_path / "labels.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.zeros(3, int))
    np.savez(tmp_path / "huge.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.full(20, 2**40))
    np.savez(tmp_path / "flat.npz", x=np.zeros((20, 0, 4), np.uint8))
    np.savez(tmp_path / "five.npz", x=np.zeros((20, 4, 4, 5), np.uint8))
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "small.npz", x=np.zeros((2, 4, 4), np.uint8))
    cases = {
        "mnist": "must be mnist10k",
        "mnist10k:x": "must be mnist10k",
        f"npz:{tmp_path}/none.npz": "no such file",
        f"npz:{tmp_path}": "not a readable",
        f"npz:{tmp_path}/text.npz": "not a readable",
        f"npz:{tmp_path}/float.npz": "must be uint8",
        f"npz:{tmp_path}/other.npz": "no array 'x'",
        f"npz:{tmp_path}/labels.npz": "must be integers",
        f"npz:{tmp_path}/huge.npz": "must be class numbers",
        f"npz:{tmp_path}/flat.npz": "must be uint8",
        f"npz:{tmp_path}/five.npz": "1, 3 or 4 channels",
        f"npz:{tmp_path}/empty.npz": "not a readable",
        f"npz:{tmp_path}/array.npz": "not a readable",
        f"npz:{tmp_path}/small.npz": "at least 10",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            data.load(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_tfds_without_tensorflow(tmp_path, monkeypatch):
    """A dataset prepared as array_record is read back, both splits; an unprepared or unknown one is named."""
    import tensorflow_datasets as tfds

    images = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 1), dtype=np.uint8)

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8)
            label = tfds.features.ClassLabel(num_classes=3)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 20),
                "test": self._generate_examples(20, 30),
            }

        def _generate_examples(self, start, end):
            for i in range(start, end):
                yield i, {"image": images[i], "label": i % 3}

    Tiny(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for split, start, end in (("train", 0, 20), ("test", 20, 30)):
        read = data.load("tfds:tiny", split)
        expected = {images[i].tobytes(): i % 3 for i in range(start, end)}
        got = {x.tobytes(): int(y) for x, y in zip(read.x, read.y, strict=True)}
        assert got == expected and read.x.shape[1:] == (6, 6, 1)
    with pytest.raises(UserError, match="tfds:mnist: not prepared under"):
        data.load("tfds:mnist")
    with pytest.raises(UserError, match="tfds:nonesuch"):
        data.load("tfds:nonesuch")
