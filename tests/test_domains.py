"""Two domains without pairs, and the digits that come with scikit-learn."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from checks.rows import random_bytes
from checks.training import SHAPE, small_gan

from bpgan import data, files
from bpgan.runtime import records, train
from bpgan.runtime.checkpoint import Checkpoints, Keep
from bpgan.runtime.program import compile_program
from bpgan.trained.dataset import data_of
from bpgan.types import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def saved(path, n, *shape, seed=0):
    """A dataset of n different images in three classes."""
    x, y = random_bytes(n, *shape, seed=seed), np.arange(n) % 3
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


@pytest.fixture
def names(tmp_path):
    """Domains of other sizes, channels and lengths."""
    return saved(tmp_path / "a.npz", 30, 4, 4), saved(tmp_path / "b.npz", 50, 3, 5, 3, seed=1)


def test_domains_are_datasets(names):
    for split in ("train", "test"):
        found = data.load_domains(*names, split)
        assert found.answer is None
        for side, name in ((found.a, names[0]), (found.b, names[1])):
            assert side.sha256 == data.load(name, split).sha256 and side.name == name
    assert found.summary().count("\n") == 1


def test_the_fingerprint_is_of_both_in_their_order(names):
    a, b = names
    found = {data.load_domains(*pair).sha256 for pair in ((a, b), (b, a), (a, a), (b, b))}
    found.add(data.load_domains(a, b, "test").sha256)
    assert len(found) == 5


@pytest.mark.parametrize("side", [0, 1])
def test_errors_name_the_domain(names, side):
    wrong = list(names)
    wrong[side] = "nonsense"
    with pytest.raises(UserError) as caught:
        data.load_domains(*wrong)
    assert (caught.value.argument, caught.value.value) == (f"dataset_{'ab'[side]}", "nonsense")
    assert caught.value.reason.startswith("must be mnist10k")


def test_a_folder_has_the_domains_of_cyclegan(tmp_path):
    """``trainA``, ``trainB``, ``testA``, ``testB``: each domain has its own splits, and nothing of the other."""
    numbers = {"trainA": 12, "testA": 3, "trainB": 11, "testB": 4}
    x = {folder: random_bytes(n, 4, 4, seed=i) for i, (folder, n) in enumerate(numbers.items())}
    for folder, images in x.items():
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            PIL.Image.fromarray(image).save(tmp_path / folder / f"{i:02}.png")
    for split in ("train", "test"):
        found = data.load_domains(f"folder:{tmp_path}/A", f"folder:{tmp_path}/B", split)
        for side, domain in ((found.a, "A"), (found.b, "B")):
            np.testing.assert_array_equal(side.arrays()[0][..., 0], x[f"{split}{domain}"])
            assert side.classes == 1 and not side.warnings
    with pytest.raises(UserError, match="no such file"):
        data.load(f"folder:{tmp_path}/C")
    (tmp_path / "A").mkdir()  # a folder of that name is the dataset
    with pytest.raises(UserError, match="0 examples"):
        data.load(f"folder:{tmp_path}/A")


# Domains of a task ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["invert", "rotate", "dilate", "downscale:2", "gray"])
def test_no_image_has_its_partner_in_training(names, task):
    """Each image of the split is in one domain: as it is, or as the task makes it."""
    x, y = data.load(names[0]).arrays()
    inputs, targets = data.tasks.parse(task).pair(x, y)
    found = data.domains_of_task(names[0], task)
    rows = []
    for side, whole in ((found.a, inputs), (found.b, targets)):
        images, labels = side.arrays()
        assert side.shape == whole.shape[1:] and side.length == len(images)
        where = [np.flatnonzero((whole == image).all((1, 2, 3))) for image in images]
        assert all(len(each) == 1 for each in where)
        rows.append(np.concatenate(where))
        np.testing.assert_array_equal(labels, y[rows[-1]])
        np.testing.assert_array_equal(side.counts, np.bincount(labels, minlength=3))
    assert sorted(np.concatenate(rows)) == list(range(27))
    assert len(rows[0]) == 13 and (rows[0] != np.arange(13)).any()
    assert found.a.sha256 != found.b.sha256
    assert data.domains_of_task(names[0], task).sha256 == found.sha256


@pytest.mark.parametrize("task", ["invert", "rotate", "dilate"])
def test_the_test_split_is_whole_and_the_answer_is_exact(names, task):
    found = data.domains_of_task(names[0], task, "test")
    (a, y_a), (b, y_b) = found.a.arrays(), found.b.arrays()
    np.testing.assert_array_equal(a, data.load(names[0], "test").arrays()[0])
    assert found.answer is not None
    np.testing.assert_array_equal(found.answer(a), b)
    np.testing.assert_array_equal(y_a, y_b)
    assert (a != b).any()


def test_an_answer_that_is_not_known_is_none(names):
    assert data.domains_of_task(names[0], "half").answer is None


def test_the_fingerprint_of_domains_is_of_the_task(names):
    found = [data.domains_of_task(names[0], t).sha256 for t in ("edges", "edges:9", "invert")]
    found.append(data.domains_of_task(names[0], "invert", "test").sha256)
    assert len(set(found)) == 4


def test_what_a_task_cannot_take_is_refused(names):
    with pytest.raises(UserError, match="not square") as caught:
        data.domains_of_task(names[1], "rotate")
    assert caught.value.argument == "task"
    with pytest.raises(UserError, match="must be one of") as caught:
        data.domains_of_task(names[1], "nothing")
    assert (caught.value.argument, caught.value.value) == ("task", "nothing")


# Batches -------------------------------------------------------------------------------------------------------------


def batches(source, steps):
    """The batches of some steps, of a source in memory or read from disk."""
    batch_at, windows = jax.jit(source.batch_at), {}
    for step in steps:
        held, index = source.data, source.windows and step // source.window
        if source.windows:
            windows[index] = windows.get(index) or next(source.windows(index, slice(None)))
            held = windows[index]
        yield jax.device_get(batch_at(held, jnp.int32(step)))


@pytest.mark.medium
def test_memory_and_stream_give_the_same_batches(tmp_path):
    """Also where the windows that suit one domain do not suit the other."""
    names = saved(tmp_path / "a.npz", 30, 64, 64), saved(tmp_path / "b.npz", 100, 3, 5, 3, seed=1)
    found = data.load_domains(*names)
    memory, stream, large = (
        data.domain_source(found, seed=3, batch_size=size, feed=feed)
        for size, feed in ((8, "memory"), (8, "stream"), (96, "stream"))
    )
    assert memory.window == 0 and 80 < large.window < 90 < stream.window == 256
    window = next(large.windows(1, slice(8, 12)))
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(window)}
    assert shapes == {(large.window, 4)} and jax.tree.structure(window) == jax.tree.structure(
        large.data
    )
    assert memory.length == stream.length == 90 and memory.batch_size == 8
    assert memory.fingerprint == stream.fingerprint == found.sha256
    a = data.source(found.a, seed=3, batch_size=8)
    x_b, y_b = found.b.arrays()
    shown, steps = [], (0, 1, 2, 256)
    for one, other, alone in zip(*(batches(s, steps) for s in (memory, stream, a)), strict=True):
        assert one.keys() == other.keys() == {"a", "b", "y_a", "y_b"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["a"], alone["x"])
        np.testing.assert_array_equal(one["y_a"], alone["y"])
        pixels = np.rint((one["b"] + 1) * 127.5)
        rows = [int(np.flatnonzero((x_b == image).all((1, 2, 3)))[0]) for image in pixels]
        np.testing.assert_array_equal(one["y_b"], y_b[rows])
        shown += rows
    assert len(set(shown[:24])) == 24  # of the 90 of an epoch none comes twice
    np.testing.assert_array_equal(memory.examples, stream.examples)
    assert memory.examples.shape[1:] == found.b.shape


def test_the_two_orders_are_independent(names):
    """Of one dataset on both sides, the rows are as often the same as chance has it; another seed changes both."""
    both = data.load_domains(names[1], names[1])
    first, again, other = (
        next(batches(data.domain_source(both, seed=s, batch_size=45), [0])) for s in (0, 0, 1)
    )
    for name in ("a", "b"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any((1, 2, 3)).sum() > 35
    assert (first["a"] != first["b"]).any((1, 2, 3)).sum() > 35


def test_images_are_mirrored_each_by_itself(names):
    found = data.load_domains(*names)
    plain, flipped = (
        next(batches(data.domain_source(found, seed=0, batch_size=44, flip=flip), [1]))
        for flip in (False, True)
    )
    turned = {}
    for name in ("a", "b"):
        same = (plain[name] == flipped[name]).all((1, 2, 3))
        mirror = (plain[name][:, :, ::-1] == flipped[name]).all((1, 2, 3))
        assert (same ^ mirror).all() and 10 < mirror.sum() < 34
        turned[name] = mirror
    assert (turned["a"] != turned["b"]).any()


def test_if_one_domain_is_too_large_both_are_streams(names):
    found = data.load_domains(*names)

    def read(indices):
        return found.b.read(indices % found.b.length)

    large = found.b._replace(counts=(50_000_000,), read=read)  # 2.1 GiB
    assert data.domain_source(found, seed=0, batch_size=4).window == 0
    for both in (found._replace(b=large), data.Domains(large, found.a)):
        source = data.domain_source(both, seed=0, batch_size=4)
        assert source.window > 0 and source.length == 50_000_000


@pytest.mark.slow
def test_a_streamed_run_is_the_run_from_memory(optimized, tmp_path, trees_close, trees_equal):
    """To float tolerance (the programs differ), on 8 devices; and resumed in mid-window it is the same bits."""
    names = (
        saved(tmp_path / "a.npz", 30, *SHAPE[:2]),
        saved(tmp_path / "b.npz", 50, *SHAPE[:2], seed=1),
    )
    found = data.load_domains(*names)

    def fit(place, feed, steps):
        both = data.domain_source(found, seed=0, batch_size=16, feed=feed)

        def batch_at(held, step):
            batch = both.batch_at(held, step)
            return {"x": (batch["a"] + batch["b"]) / 2, "y": batch["y_b"]}

        plan = train.Plan(
            name="test", steps=steps, log_every=4, checkpoint_every=3, restart_safe=frozenset({"steps"}),
            keep=Keep(100), tensorboard=False,
        )  # fmt: skip
        spec = train.RunSpec(workdir=tmp_path / place, config={"steps": steps}, seed=3)
        made = both._replace(batch_at=batch_at)
        train.fit(small_gan(), made, spec, plan)
        checkpoints = Checkpoints(tmp_path / place / "checkpoints", keep=Keep(100))
        _, carry = checkpoints.restore(compile_program(small_gan(), made, seed=3).abstract)
        checkpoints.close()
        return jax.device_get(carry.state)

    in_memory = fit("memory", "memory", 8)
    trees_close(in_memory, fit("stream", "stream", 8), rtol=1e-3, atol=1e-4)
    fit("resumed", "stream", 5)
    trees_equal(fit("stream", "stream", 8), fit("resumed", "stream", 8))


def test_without_images_the_shapes_are_those_of_the_run(names):
    found = data.load_domains(*names)
    facts = data.domain_source(found, seed=0, batch_size=4).facts
    assert facts["sha256"] == found.sha256 and facts["shape"] == [3, 5, 3]
    facts = records.fields(files.convert(facts, records.DatasetRecord))  # as a run keeps them
    with data.without_images(facts):
        absent = data.load_domains("npz:/gone/a", "npz:/gone/b")
        of_task = data.domains_of_task("npz:/gone/a", "invert")
        source = data.domain_source(absent, seed=0, batch_size=4, feed="stream")
    assert absent.a.is_absent and absent.b.is_absent and of_task.answer is not None
    assert (absent.a.shape, absent.b.shape) == (found.a.shape, found.b.shape)
    assert (source.length, source.fingerprint, source.window) == (45, found.sha256, 0)
    shapes = jax.eval_shape(source.batch_at, source.data, jax.ShapeDtypeStruct((), jnp.int32))
    assert (shapes["a"].shape, shapes["b"].shape) == ((4, 4, 4, 1), (4, 3, 5, 3))
    with data.without_images(found.a.facts), pytest.raises(UserError, match="two domains"):
        data.load_domains(*names)


def test_a_run_of_two_domains_is_no_run_of_one_dataset(names):
    facts = data.load_domains(*names).facts
    record = types.SimpleNamespace(dataset=files.convert(facts, records.DatasetRecord))
    config = types.SimpleNamespace(dataset=names[0])
    run = types.SimpleNamespace(config=config, record=record, experiment="translate", path="runs/0")
    with pytest.raises(UserError, match="a run of translate has no dataset of images"):
        data_of(run)


# Digits --------------------------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[9::10]] = True
    for split, part in (("train", ~test), ("test", test)):
        images, labels = data.load("digits", split).arrays()
        np.testing.assert_array_equal(labels, y[part])
        exact = x[part].reshape(-1, 8, 8, 1) / 16 * 255
        assert images.dtype == np.uint8 and np.abs(images - exact).max() <= 0.5
        assert (images.min(), images.max()) == (0, 255)
    large = data.load("digits,size=28")
    assert large.shape == (28, 28, 1) and large.length == (~test).sum() and large.classes == 10


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError) as caught:
        data.load("digits")
    expected = "dataset=digits: comes with scikit-learn: pip install scikit-learn"
    assert str(caught.value) == expected
