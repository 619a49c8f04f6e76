"""Attributes of images: read, standardized, carried beside the right images, and refused where they do not fit."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpgan
from bpgan import cli, data
from bpgan.data import attributes, datasets
from bpgan.nets import layers, wrappers
from bpgan.types import Net, UserError
from experiments import audit, export, image_gan

N = 40


def arrays(n=N):
    """Images whose first pixel is their number, labels and attributes that can be told from it."""
    x = np.zeros((n, 8, 8, 1), np.uint8)
    x[:, 0, 0, 0] = np.arange(n)
    x[:, 4] = 255
    y = np.arange(n) % 3
    return x, y, np.stack([np.arange(n) * 2.0 + 5, np.arange(n) % 2], axis=1)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))

    def write(**changes):
        x, y, a = arrays()
        found = {"x": x, "y": y, "attributes": a, "attribute_names": np.array(["size", "odd"])}
        path = tmp_path / "data.npz"
        np.savez(path, **{k: v for k, v in (found | changes).items() if v is not None})
        return f"npz:{path}"

    return write


def expected(x, train):
    """The vectors of images by hand: indicators of ``i % 3``, then ``(value - mean) / std`` over training images."""
    values = arrays()[2]
    rows, seen = x[:, 0, 0, 0].astype(int), train[:, 0, 0, 0].astype(int)
    scaled = (values[rows] - values[seen].mean(0)) / values[seen].std(0)
    return np.concatenate([np.eye(3)[rows % 3], scaled], axis=1)


@pytest.mark.medium
@pytest.mark.parametrize("feed", ["memory", "stream"])
@pytest.mark.parametrize("held_out", [False, True])
def test_batches_have_the_vectors_of_their_own_images(archive, feed, held_out):
    whole = data.load(archive())
    images, _ = data.load_for_training(whole.name, held_out)
    source = data.source(
        data.for_conditions(images), seed=3, batch_size=7, feed=feed, flip=True, window=2
    )
    for step in (0, 5):
        array = source.data
        if feed == "stream":
            array = next(source.windows(step // source.window, slice(None)))
        batch = source.batch_at(jax.tree.map(jnp.asarray, array), jnp.int32(step))
        x = np.rint((np.asarray(batch["x"]) + 1) * 127.5)
        x = np.where(x[:, :1, -1:] > x[:, :1, :1], x[:, :, ::-1], x)  # mirrored ones as they were
        wanted = expected(x, whole.arrays()[0])
        np.testing.assert_allclose(batch["y"], wanted, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_not_conditioned_on_them_keeps_labels_and_tells_nothing(archive):
    images = data.load(archive())
    source = data.source(images, seed=0, batch_size=4)
    assert source.data["y"].dtype == np.int32 and "attributes" not in source.facts


def test_other_attributes_are_other_data(archive):
    one = data.load(archive()).sha256
    other = arrays()[2]
    other[3, 0] += 1
    assert data.load(archive(attributes=other)).sha256 != one


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attributes": arrays()[2][:-1]}, "must be numbers [40, a]"),
        ({"attributes": np.full((N, 2), np.nan)}, "'size' of image 0 is nan, must be finite"),
        ({"attribute_names": np.array(["a", "a"])}, "'a' occurs twice"),
        ({"attribute_names": np.array(["a"])}, "1 attribute name for 2 numbers"),
        ({"attribute_names": np.array(["a=b", "c"])}, "must be letters without"),
        ({"attributes": np.ones((N, 2))}, "'size' is 1 in all training images"),
    ],
)
def test_bad_arrays_are_refused_in_a_line(archive, changes, reason):
    with pytest.raises(UserError) as error:
        data.load(archive(**changes))
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(20):
        Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(root / f"{i:02d}.png")

    def write(**said):
        (root / "dataset.json").write_text(json.dumps(said))
        return f"folder:{root}"

    return write


def pairs(value):
    return [[f"{i:02d}.png", value(i)] for i in reversed(range(20))]


@pytest.mark.parametrize("beside", [False, True])
def test_a_dataset_json_gives_each_file_its_own_numbers(folder, beside):
    vectors = pairs(lambda i: [i / 10, i % 2 == 0])
    said = (
        {"labels": pairs(lambda i: i % 2), "attributes": vectors} if beside else {"labels": vectors}
    )
    images = data.load(folder(**said, attribute_names=["light", "even"]))
    x, y = images.arrays()
    assert images.attributes is not None and images.attributes.names == ("light", "even")
    i = x[:, 0, 0, 0] / 10
    np.testing.assert_allclose(images.attributes.values, np.stack([i / 10, i % 2 == 0], 1))
    np.testing.assert_array_equal(y, i % 2 if beside else 0 * y)
    assert images.classes == (2 if beside else 1)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"labels": pairs(lambda i: [1.0 * i])[1:]}, "1 image without attributes (first: 19.png)"),
        (
            {"labels": pairs(lambda i: [1.0] * (1 + (i == 7)))},
            "07.png has 2 attributes, must have 1",
        ),
        ({"labels": pairs(int), "attribute_names": ["a"]}, "has 'attribute_names', but no"),
        (
            {"labels": pairs(lambda i: [1.0 * i]), "attributes": pairs(lambda i: [1.0])},
            "must have one",
        ),
        (
            {"attributes": pairs(lambda i: [1.0 * i, 1e300])},
            "'attribute1' of 00.png is 1e+300, must be finite",
        ),
        ({"attributes": 3}, '{"attributes": [[path, [number, ...]], ...]}'),
    ],
)
def test_a_bad_dataset_json_is_refused_in_a_line(folder, said, reason):
    with pytest.raises(UserError, match="dataset.json") as error:
        data.load(folder(**said))
    assert reason in str(error.value)


def test_attributes_of_what_is_not_there_are_told(folder):
    images = data.load(folder(attributes=[*pairs(lambda i: [1.0 * i]), ["gone.png", [1.0]]]))
    assert "has attributes of 1 image that are not there" in images.summary()


@pytest.mark.parametrize("names", [["attributes"], ["attribute_names"], ["attributes_train"]])
def test_attributes_that_are_not_those_of_the_splits_are_refused(tmp_path, names):
    x, path = np.zeros((8, 4, 4, 1), np.uint8), tmp_path / "two.npz"
    every = {"attribute_names": np.array(["a"])}
    given = {name: every.get(name, np.arange(8.0)[:, None]) for name in names}
    np.savez(path, x_train=x, x_test=x, **given)
    with pytest.raises(
        UserError, match="must have 'attributes_train' and 'attributes_test' for 2 splits"
    ):
        data.load(f"npz:{path}")


def test_a_vector_with_a_one_is_the_label_of_that_place():
    labels, key = jnp.array([2, 0, 1]), jax.random.key(0)
    one_hot = jnp.eye(4)[labels]
    module = layers.Embed(4, 5)
    variables = module.init(key, labels)
    rows = variables["params"]["embedding"][labels]
    np.testing.assert_allclose(module.apply(variables, labels), rows, rtol=1e-6)
    np.testing.assert_allclose(module.apply(variables, one_hot), rows, rtol=1e-6)
    seen = []
    probe = Net(lambda *_: {}, lambda variables, x, train: (seen.append(x), {}))
    concat = wrappers.labeled(probe, 4)
    for y in (labels, one_hot):
        concat.apply({}, jnp.zeros((3, 2, 2, 1)), y, train=False)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_vectors_of_another_size_are_no_labels():
    with pytest.raises(ValueError, match=r"needs integer labels \[b\] or floats \[b, 3\]"):
        layers.check_labels(jnp.zeros((2, 4)), 3)


def test_conditional_batch_norm_of_the_zero_vector_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    plain, by_vectors = layers.BatchNorm(), layers.BatchNorm(classes=2)
    y = jax.random.normal(jax.random.key(1), (6, 2))
    variables = by_vectors.init(jax.random.key(0), x, y, train=False)
    wanted = plain.apply(plain.init(jax.random.key(0), x, train=False), x, train=False)
    np.testing.assert_allclose(by_vectors.apply(variables, x, y, train=False), wanted)


def test_what_is_asked_of_attributes_is_checked():
    train = np.array([[0, 20.123456], [1, 60.7654321]], np.float32)
    has = attributes.described(("smile", "age"), np.zeros((2, 2)), train)
    assert attributes.parse("smile=1, age=30", has) == {"smile": 1.0, "age": 30.0}
    for text in ("smile=", "grin=1", "smile", "smile=1,smile=0"):
        with pytest.raises(ValueError, match=r"must be .*0 to 1|twice"):
            attributes.parse(text, has)
    for name, number in (
        ("smile", 2),
        ("smile", [0, 1, 2]),
        ("age", math.nan),
        ("grin", 1),
        ("age", [30, 30]),
    ):
        with pytest.raises(UserError, match=name):
            has.column(name, number, 3)
    ends = [
        float(each) for each in has.range_of("age").split(" to ")
    ]  # what a message says is allowed
    np.testing.assert_array_equal(has.column("age", [*ends, 30], 3), [*train[:, 1], 30])
    np.testing.assert_array_equal(has.column("age", 30, 3), [30, 30, 30])


def test_facts_keep_what_samples_are_drawn_for(archive):
    images = data.for_conditions(data.load(archive()))
    facts = json.loads(json.dumps(images.facts))
    with data.without_images(facts):
        absent = datasets.load("anything")
    assert absent.facts == facts
    labels, values = attributes.in_turn(absent.attributes, 50)
    number = (values[:, 0] - 5) / 2
    np.testing.assert_array_equal(labels, number % 3)  # a label beside its own attributes
    np.testing.assert_array_equal(values[:, 1], number % 2)
    assert len(set(number)) == images.length  # then again from the first


@pytest.mark.parametrize(
    ("flags", "argument"),
    [
        ({"condition": "acgan=1"}, "condition"),
        ({"condition": "d2d=1"}, "condition"),
        ({"condition": "projection", "canaries": "4"}, "canaries"),
    ],
)
def test_what_does_not_go_with_attributes_is_refused(archive, flags, argument):
    from bpgan import cli

    given = {"dataset": archive(), "net": "mlp", **flags}
    cfg = cli.resolve(image_gan.Config, image_gan.PRESETS, [f"--{k}={v}" for k, v in given.items()])
    with pytest.raises(UserError) as error:
        image_gan.build(cfg)
    assert error.value.argument == argument


@pytest.mark.medium
def test_a_run_is_resumed_to_the_bit_and_draws_what_is_asked_for(archive, tmp_path, trees_equal):
    flags = [
        "--preset=smoke",
        "--net=mlp",
        "--condition=concat",
        "--ema=0",
        "--lr=1e-3",
        "--notensorboard",
    ]
    flags.append(f"--dataset={archive()}")

    def train(name, steps):
        given = [*flags, f"--steps={steps}", f"--workdir={tmp_path / name}"]
        return cli.run(image_gan.Config, image_gan.build, image_gan.PRESETS, given)

    assert train("straight", 8) == 0 and train("resumed", 4) == 0 and train("resumed", 8) == 0
    run = bpgan.load(tmp_path / "straight")
    trees_equal(run.state, bpgan.load(tmp_path / "resumed").state)
    large = run.conditions(4, {"size": 70})
    seen = data.load(archive()).attributes.values[:, 0]
    np.testing.assert_allclose(large[:, 3], (70 - seen.mean()) / seen.std(), rtol=1e-5)
    drawn = run.sample(4, seed=1, attributes={"size": 70}, floats=True)
    np.testing.assert_allclose(drawn, run.generator(run.latents(4, seed=1), large), atol=1e-6)
    for given, said in (({"age": 1}, "age"), ({"size": 700}, "700")):
        with pytest.raises(UserError, match=said):
            run.sample(4, attributes=given)
    out = tmp_path / "exported"
    kinds = [
        "--to=safetensors,stablehlo",
        f"--run={tmp_path / 'straight'}",
        f"--workdir={out}",
    ]
    export.run(cli.resolve(export.Config, {}, kinds))
    assert "size" in (out / "README.md").read_text()
    audited = [
        "--preset=smoke",
        f"--run={tmp_path / 'straight'}",
        f"--workdir={tmp_path / 'audited'}",
    ]
    with pytest.raises(UserError, match="attributes"):
        audit.run(cli.resolve(audit.Config, audit.PRESETS, audited))


@pytest.mark.slow
def test_eight_devices_train_as_one(archive, one_device_is_eight):
    """With several averages, of which G is reloaded from the first: in one program and in one for each device."""
    flags = [
        "--preset=smoke",
        "--net=mlp",
        "--condition=projection",
        "--precision=float64",
        "--lr=1e-3",
    ]
    flags += [f"--dataset={archive()}", "--ema=power:0.1+100,reload=2"]
    cfg = cli.resolve(image_gan.Config, image_gan.PRESETS, flags)
    state = one_device_is_eight(functools.partial(image_gan.build, cfg), 5)
    assert set(state.ema) == {"g", "g_2"}
