"""Pairs of images: from two folders, from images side by side, from arrays, and made by tasks."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from checks.rows import random_bytes

from bpgan import data, files
from bpgan.data import datasets, pairs
from bpgan.runtime import records
from bpgan.types import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


A, B = random_bytes(20, 4, 6, 1, seed=1), random_bytes(20, 5, 3, 3, seed=2)
NAMES = [f"{i:02}" for i in range(20)]


def write(root, x, names, suffix=".png"):
    for image, name in zip(x, names, strict=True):
        path = root / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


@pytest.fixture
def folders(tmp_path):
    """Inputs and targets by name; of other suffixes, sizes and channels."""
    write(tmp_path / "a", A, NAMES)
    write(tmp_path / "b", B, NAMES, ".tiff")
    return tmp_path


def is_test(n=20):
    """Without splits and classes every tenth is a test example."""
    return np.arange(n) % 10 == 9


def check(name, a, b, y, test, **options):
    """Both splits against the arrays that they should hold, in order."""
    for split, part in (("train", ~test), ("test", test)):
        found = data.load_pairs(name, split, **options)
        got_a, got_b, got_y = found.arrays()
        np.testing.assert_array_equal(got_a, a[part])
        np.testing.assert_array_equal(got_b, b[part])
        np.testing.assert_array_equal(got_y, y[part])
        assert (found.a, found.b) == (a.shape[1:], b.shape[1:])
        assert found.length == part.sum() and got_y.dtype == np.int32
        size = int(np.prod(found.a) + np.prod(found.b))
        assert found.rows.shape == (1, 1, size)
        rows = np.random.default_rng(1).integers(0, found.length, 5)
        for read in (found.rows.read, pickle.loads(pickle.dumps(found.rows.read))):
            x, labels = read(rows)
            joined = np.concatenate(
                [a[part].reshape(part.sum(), -1), b[part].reshape(part.sum(), -1)], 1
            )
            np.testing.assert_array_equal(x[:, 0, 0], joined[rows])
            np.testing.assert_array_equal(labels, y[part][rows])
            assert x.dtype == np.uint8 and read(rows[:0])[0].shape == (0, 1, 1, size)


def refused(name, *messages, argument="dataset", value=None, **options):
    with pytest.raises(UserError) as caught:
        data.load_pairs(name, **options)
    error = caught.value
    assert (error.argument, error.value) == (argument, name if value is None else value), error
    assert "\n" not in str(error)
    for message in messages:
        assert message in error.reason, error.reason


# Folders -------------------------------------------------------------------------------------------------------------


def test_two_folders_by_name(folders):
    name = f"pairs:{folders}/a,{folders}/b"
    check(name, A, B, np.zeros(20, int), is_test())
    check(f"{name},direction=a_to_b", A, B, np.zeros(20, int), is_test())
    check(f"{name},direction=b_to_a", B, A, np.zeros(20, int), is_test())


def test_the_order_is_that_of_the_first_folder_whatever_the_suffixes(tmp_path):
    """``x`` stands behind ``x-1`` or before it, as its suffix or the end of its name is compared with the hyphen."""
    names = ["x", "x-1", "x.1", "X", *NAMES[4:]]
    write(tmp_path / "a", A, names)
    write(tmp_path / "b", B, names, ".PNG")
    for i, name in enumerate(names):
        if i % 2:
            (tmp_path / f"b/{name}.PNG").rename(tmp_path / f"b/{name}.bmp")
    order = np.array(sorted(range(20), key=lambda i: f"{names[i]}.png"))
    check(f"pairs:{tmp_path}/a,{tmp_path}/b", A[order], B[order], np.zeros(20, int), is_test())


def test_classes_and_splits_are_those_of_the_folders(tmp_path):
    split = ["train"] * 14 + ["test"] * 6
    classes = np.arange(20) % 2
    names = [f"{s}/{'uv'[c]}/{n}" for s, c, n in zip(split, classes, NAMES, strict=True)]
    write(tmp_path / "a", A, names)
    write(tmp_path / "b", B, names)
    order = np.array(sorted(range(20), key=lambda i: names[i]))
    test = np.array([names[i].startswith("test") for i in order])
    check(f"pairs:{tmp_path}/a,{tmp_path}/b", A[order], B[order], classes[order], test)
    assert data.load_pairs(f"pairs:{tmp_path}/a,{tmp_path}/b").rows.class_names == ("u", "v")


def test_labels_of_the_first_folder_decide_the_split_of_both(tmp_path):
    """Its ``dataset.json`` stratifies every tenth; another one there makes both sides anew."""
    write(tmp_path / "a", A, NAMES)
    write(tmp_path / "b", B, NAMES)
    name = f"pairs:{tmp_path}/a,{tmp_path}/b"
    for y in (np.repeat([0, 1], [11, 9]), np.repeat([1, 0], [12, 8])):
        rows = ",".join(f'["{n}.png", {c}]' for n, c in zip(NAMES, y, strict=True))
        (tmp_path / "a/dataset.json").write_text(f'{{"labels": [{rows}]}}')
        test = np.zeros(20, bool)
        test[np.argsort(y, kind="stable")[9::10]] = True
        check(name, A, B, y, test)


def test_options_hold_for_both_sides(folders):
    write(folders / "c", random_bytes(20, 9, 4, 3, seed=4), NAMES)
    found = data.load_pairs(f"pairs:{folders}/a,{folders}/c,size=8x6,direction=b_to_a,channels=1")
    plain = [data.load(f"folder:{folders}/{side},size=8x6,channels=1") for side in "ca"]
    for got, expected in zip(found.arrays(), plain, strict=False):
        np.testing.assert_array_equal(got, expected.arrays()[0])


def test_paths_with_commas(tmp_path):
    write(tmp_path / "a,1", A, NAMES)
    write(tmp_path / "b,2", B, NAMES)
    check(f"pairs:{tmp_path}/a,1,{tmp_path}/b,2", A, B, np.zeros(20, int), is_test())


def test_missing_partners_are_named(folders):
    for i in (3, 4, 5, 6):
        (folders / f"b/{i:02}.tiff").unlink()
    name = f"pairs:{folders}/a,{folders}/b"
    refused(name, f"4 images have no partner in {folders}/b: 03.png, 04.png, 05.png, ...")
    for i in (3, 4, 5, 6):
        (folders / f"a/{i:02}.png").unlink()
    (folders / "a/07.png").unlink()
    refused(name, f"1 image has no partner in {folders}/a: 07.tiff")
    assert "..." not in str(pytest.raises(UserError, data.load_pairs, name).value)


def test_what_is_no_side_is_refused(folders):
    (folders / "empty").mkdir()
    (folders / "file").write_text("x")
    a = f"{folders}/a"
    refused(f"pairs:{a},{folders}/empty", f"{folders}/empty: no images in it")
    refused(f"pairs:{folders}/empty,{a}", f"{folders}/empty: no images in it")
    refused(f"pairs:{a},{folders}/gone", f"{folders}/gone: no such file or directory")
    refused(f"pairs:{folders}/gone,{a}", f"{folders}/gone: no such file or directory")
    refused(f"pairs:{folders}/gone", f"{folders}/gone: no such file or directory")
    refused(f"pairs:{a},{folders}/file", f"{folders}/file: not a directory")
    refused("pairs:", "the name of a directory is empty")
    refused(f"pairs:{folders}/empty", f"{folders}/empty: no images in it")


def test_two_images_of_one_name_are_refused(folders):
    write(folders / "b", B[:1], ["07"], ".png")
    refused(f"pairs:{folders}/a,{folders}/b", "07.png, 07.tiff differ only in their suffix")


def test_sizes_must_not_differ_within_a_side(folders):
    write(folders / "b", random_bytes(1, 9, 9, 3), ["04"], ".tiff")
    name = f"pairs:{folders}/a,{folders}/b"
    refused(name, "images of 2 sizes", "5x3 (19 images", "9x9 (1 image")
    assert data.load_pairs(f"{name},size=4").b == (4, 4, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pairs:a,b,direction=left", "direction=left: must be a_to_b or b_to_a"),
        ("pairs:a,b,direction=a_to_b,direction=b_to_a", "direction= is given twice"),
        ("pairs:a,b,skip=unreadable", "skip=unreadable: not for pairs"),
        ("pairs:a,b,size=0", "size=0"),
        ("nonsense", "must be mnist10k"),
    ],
)
def test_wrong_names_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        pairs.parse(text)
    refused(text, message)


def test_a_side_that_changes_is_another_dataset(folders):
    """Also if it is only the targets; and it is converted again."""
    name = f"pairs:{folders}/a,{folders}/b"
    seen = {data.load_pairs(name).rows.sha256}
    seen.add(data.load_pairs(f"{name},direction=b_to_a").rows.sha256)
    for side, x in (("b", B), ("a", A)):
        other = x[:1].copy()
        other[0, 0, 0, 0] ^= 1
        write(folders / side, other, NAMES[:1], ".tiff" if side == "b" else ".png")
        seen.add(data.load_pairs(name).rows.sha256)
    assert len(seen) == 4


def test_of_unchanged_files_nothing_is_converted_again(folders, monkeypatch):
    name = f"pairs:{folders}/a,{folders}/b"
    first = data.load_pairs(name)
    monkeypatch.setattr(datasets.convert, "convert", None)
    again = data.load_pairs(name)
    assert again.rows.sha256 == first.rows.sha256
    with pytest.raises(TypeError):  # of other options there is no cache
        data.load_pairs(f"{name},size=2")


# Side by side --------------------------------------------------------------------------------------------------------


def test_images_side_by_side(tmp_path):
    left, right = random_bytes(20, 4, 6, 3, seed=5), random_bytes(20, 4, 6, 3, seed=6)
    write(tmp_path / "x", np.concatenate([left, right], axis=2), NAMES)
    check(f"pairs:{tmp_path}/x", left, right, np.zeros(20, int), is_test())
    check(f"pairs:{tmp_path}/x,direction=b_to_a", right, left, np.zeros(20, int), is_test())
    small = data.load_pairs(f"pairs:{tmp_path}/x,size=2x3").arrays()
    for got, side in zip(small, (left, right), strict=False):  # each half is resized by itself
        first = PIL.Image.fromarray(side[0]).resize((3, 2), PIL.Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(got[0], np.asarray(first))


def test_an_odd_width_has_no_halves(tmp_path):
    write(tmp_path / "x", random_bytes(20, 4, 6, 1), NAMES)
    write(tmp_path / "x", random_bytes(1, 4, 7, 1), ["04"])
    message = "04.png is 7 pixels wide; two images side by side have an even width"
    refused(f"pairs:{tmp_path}/x", message)
    refused(f"pairs:{tmp_path}/x,size=4,channels=1", message)  # no header is looked at


# Arrays --------------------------------------------------------------------------------------------------------------


def test_arrays_of_both(tmp_path):
    y = np.arange(20) % 3
    np.savez(tmp_path / "one.npz", x=A[..., 0], y=B, labels=y)
    test = np.zeros(20, bool)
    test[np.argsort(y, kind="stable")[9::10]] = True
    check(f"npz:{tmp_path}/one.npz", A, B, y, test)
    check(f"npz:{tmp_path}/one.npz,direction=b_to_a", B, A, y, test)


def test_arrays_with_splits(tmp_path):
    np.savez(tmp_path / "two.npz", x_train=A[:15], y_train=B[:15], x_test=A[15:], y_test=B[15:])
    check(f"npz:{tmp_path}/two.npz", A, B, np.zeros(20, int), np.arange(20) >= 15)


def test_arrays_that_are_no_pairs_are_refused(tmp_path):
    def saved(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return f"npz:{tmp_path}/{name}"

    labels = np.zeros(20, int)
    refused(saved("a.npz", x=A, y=B[:19]), "20 images in its x, 19 in its y")
    refused(saved("b.npz", x=A, y=labels), "'y' is int64[20]", "a `task` makes pairs of images")
    refused(saved("c.npz", x=A), "no array 'y' or 'y_train'", "a `task` makes pairs")
    refused(saved("d.npz", y=A), "no array 'x' or 'x_train'")
    refused(saved("e.npz", x=A, y=B, labels=labels[:3]), "'labels' is int64[3]")
    splits = dict(x_train=A[:15], x_test=A[15:], y_train=B[:14], y_test=B[14:])
    refused(saved("f.npz", **splits), "15 and 5 images in its x, 14 and 6 in its y")


# Tasks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    """Square images with classes."""
    x, y = random_bytes(20, 4, 4, 1, seed=7), np.arange(20) % 2
    x[:, :2] //= 4
    np.savez(tmp_path / "x.npz", x=x, y=y)
    test = np.zeros(20, bool)
    test[np.argsort(y, kind="stable")[9::10]] = True
    return f"npz:{tmp_path}/x.npz", x, y, test


@pytest.mark.parametrize("task", ["half", "gray", "downscale:2", "rotate"])
def test_a_task_makes_pairs_of_any_dataset(images, task):
    name, x, y, test = images
    a, b = data.tasks.parse(task).pair(x, y.astype(np.int32))
    check(name, a, b, y, test, task=task)
    check(f"{name},direction=b_to_a", b, a, y, test, task=data.tasks.parse(task))


def test_the_fingerprint_is_of_the_images_the_task_and_the_direction(images):
    name, x, y, _ = images
    ways = [
        dict(task="half"),
        dict(task="edges"),
        dict(task="edges:40"),
        dict(task="edges:41"),
        dict(task="half", split="test"),
    ]
    seen = [data.load_pairs(name, **way).rows.sha256 for way in ways]
    seen.append(data.load_pairs(f"{name},direction=b_to_a", task="half").rows.sha256)
    x[5, 0, 0] ^= 1
    np.savez(name.removeprefix("npz:"), x=x, y=y)
    seen.append(data.load_pairs(name, task="half").rows.sha256)
    assert len(set(seen)) == len(seen) and all(len(bytes.fromhex(each)) == 32 for each in seen)


def test_the_fingerprint_is_of_every_image_and_of_what_is_made(images):
    """Of many images only some are read for it; the rest is the fingerprint of the dataset."""
    x, y = random_bytes(1500, 2, 2, 1), np.zeros(1500, np.int32)
    other = x.copy()
    other[1] ^= 1  # of 1,000 that are spread over 1,500, the second is none
    seen = [
        pairs.made(data.of_arrays("x", "train", each, y, 1), "half").rows for each in (x, other)
    ]
    np.testing.assert_array_equal(*(rows.read(np.array([0, 2]))[0] for rows in seen))
    assert seen[0].sha256 != seen[1].sha256 and seen[0].mean == seen[1].mean

    def task(brightness):  # a function that was changed and is called as before
        return data.tasks.Named("mine:TASK", data.Task(lambda x, y: (x | np.uint8(brightness), x)))

    dataset = data.load(images[0])
    assert len({pairs.made(dataset, task(n)).rows.sha256 for n in (1, 2)}) == 2


def test_what_a_task_cannot_take_is_refused(folders, images):
    name = images[0]
    refused(name, "3 does not divide", argument="task", value="downscale:3", task="downscale:3")
    refused(
        f"folder:{folders}/a", "4x6 are not square", argument="task", value="rotate", task="rotate"
    )
    refused(name, "must be one of edges", argument="task", value="edge", task="edge")
    both = f"pairs:{folders}/a,{folders}/b"
    refused(both, "has no effect on pairs", argument="task", value="half", task="half")
    refused("mnist10k", "has no pairs; with a `task` they are made of it: edges, gray")
    refused(f"folder:{folders}/a", "has no pairs", task="")


# Rows ----------------------------------------------------------------------------------------------------------------


def test_what_is_held_out_is_a_part(folders):
    found = data.load_pairs(f"pairs:{folders}/a,{folders}/b")._replace()
    x = np.concatenate([A, A]), np.concatenate([B, B])
    made = data.of_arrays("both", "train", *_rows(*x), 1)
    whole = found._replace(rows=made)
    rest, held = (whole._replace(rows=rows) for rows in data.hold_out(whole.rows))
    assert (rest.length, held.length) == (36, 4) and rest.rows.sha256 != held.rows.sha256
    a, b, _ = held.arrays()
    for image, target in zip(a, b, strict=True):
        (i, _) = np.flatnonzero((x[0] == image).all((1, 2, 3)))
        np.testing.assert_array_equal(target, B[i])


def _rows(a, b):
    n = len(a)
    x = np.concatenate([a.reshape(n, -1), b.reshape(n, -1)], axis=1)
    return x[:, None, None], np.zeros(n, np.int32)


def test_rows_are_split_whatever_their_type(folders):
    found = data.load_pairs(f"pairs:{folders}/a,{folders}/b")
    x, _ = _rows(A, B)
    assert [len(side) for side in found.split(x[:0])] == [0, 0]
    for rows in (x, x[:, 0, 0], x.astype(np.float32) / 2, jnp.asarray(x)):
        a, b = found.split(rows)
        scale = 1 if rows.dtype == np.uint8 else 2
        assert isinstance(a, type(rows)) and a.dtype == b.dtype == rows.dtype
        np.testing.assert_array_equal(a * scale, A)
        np.testing.assert_array_equal(b * scale, B)


def test_numbers_of_a_split_that_is_small_are_those_of_all_pairs(folders):
    rows = data.load_pairs(f"pairs:{folders}/a,{folders}/b").rows
    x, _ = rows.arrays()
    assert (rows.low, rows.high) == (x.min(), x.max())
    np.testing.assert_allclose([rows.mean[0], rows.std[0]], [(x / 255).mean(), (x / 255).std()])
    assert rows.counts == (18,) and rows.class_names == ()


def test_the_summary_says_what_is_paired(folders):
    name = f"pairs:{folders}/a,{folders}/b"
    first = data.load_pairs(name).summary().splitlines()[0]
    assert first == f"{name} train: 18 pairs 4x6x1 -> 5x3x3, 1 class"


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


def test_memory_and_stream_give_the_same_pairs(folders):
    found = data.load_pairs(f"pairs:{folders}/a,{folders}/b")
    options = dict(seed=3, batch_size=8)
    memory, stream = (
        data.pair_source(found, feed=feed, **options) for feed in ("memory", "stream")
    )
    assert (memory.window, stream.window) == (0, 256) and memory.length == stream.length == 18
    assert memory.fingerprint == stream.fingerprint == found.rows.sha256
    keys, steps = np.asarray(data.order.round_keys(3)), (0, 1, 255, 256, 600, 2)
    a, b, _ = found.arrays()
    for step, one, other in zip(steps, batches(memory, steps), batches(stream, steps), strict=True):
        rows = data.order.rows_on_host(keys, np.arange(8) + 8 * step, 18)
        assert one.keys() == other.keys() == {"a", "b", "y"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_allclose(one["a"], a[rows] / 127.5 - 1, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one["b"], b[rows] / 127.5 - 1, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(memory.examples, b)
    np.testing.assert_array_equal(stream.examples, b)
    assert (
        next(batches(data.pair_source(found, dtype=jnp.bfloat16, **options), [0]))["b"].dtype
        == jnp.bfloat16
    )


def test_both_images_of_a_pair_are_mirrored_together(images):
    """And every image in about half of the steps."""
    found = data.load_pairs(images[0], task="half")
    plain, flipped = (
        data.pair_source(found, seed=0, batch_size=18, flip=flip) for flip in (False, True)
    )
    seen = []
    for one, other in zip(batches(plain, range(4)), batches(flipped, range(4)), strict=True):
        for i in range(18):
            turned = not (one["b"][i] == other["b"][i]).all()
            for name in ("a", "b"):
                expected = one[name][i][:, ::-1] if turned else one[name][i]
                np.testing.assert_array_equal(other[name][i], expected)
            seen.append(turned)
        np.testing.assert_array_equal(one["y"], other["y"])
    assert 20 < sum(seen) < 52


def test_without_images_the_shapes_are_those_of_the_run(folders):
    found = data.load_pairs(f"pairs:{folders}/a,{folders}/b")
    facts = data.pair_source(found, seed=0, batch_size=4).facts
    assert facts["shape"] == [5, 3, 3] and facts["sha256"] == found.rows.sha256
    facts = records.fields(files.convert(facts, records.DatasetRecord))  # as a run keeps them
    with data.without_images(facts):
        absent = data.load_pairs("pairs:/gone/a,/gone/b")
        source = data.pair_source(absent, seed=0, batch_size=4)
    assert absent.rows.is_absent and (absent.a, absent.b) == (found.a, found.b)
    assert (absent.length, source.fingerprint) == (18, found.rows.sha256)
    shapes = jax.eval_shape(source.batch_at, source.data, jax.ShapeDtypeStruct((), jnp.int32))
    assert (shapes["a"].shape, shapes["b"].shape) == ((4, 4, 6, 1), (4, 5, 3, 3))
    with (
        data.without_images(found.rows.facts),
        pytest.raises(UserError, match="not trained on pairs"),
    ):
        data.load_pairs("pairs:/gone/a,/gone/b")
