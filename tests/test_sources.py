"""Batches from memory and from disk: one order, one arithmetic, one training run."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks.training import SHAPE, logged, small_gan

from bpgan import data
from bpgan.data import order
from bpgan.runtime import images, train
from bpgan.runtime.checkpoint import Checkpoints, Keep
from bpgan.runtime.program import compile_program
from bpgan.types import UserError

pytestmark = pytest.mark.usefixtures("no_curves")

LENGTH = 50
IMAGES = np.random.default_rng(0).integers(0, 256, (LENGTH, *SHAPE), dtype=np.uint8)
LABELS = np.arange(LENGTH, dtype=np.int32)


def read(indices):
    """Stands for a disk: any indices, in any order."""
    return IMAGES[indices], LABELS[indices]


def feeds(batch_size=16, seed=0, dtype=jnp.float32, **options):
    """The same data from memory and from a stream."""
    memory = data.in_memory(IMAGES, LABELS, seed=seed, batch_size=batch_size, dtype=dtype)
    stream = data.streamed(
        read,
        length=LENGTH,
        shape=SHAPE,
        seed=seed,
        batch_size=batch_size,
        fingerprint=memory.fingerprint,
        dtype=dtype,
        **options,
    )
    return memory, stream


@pytest.fixture
def short_windows(monkeypatch):
    """Windows of three batches of 16, so that runs of a few steps cross several."""
    monkeypatch.setattr(data.sources, "_WINDOW", 3 * 16 * int(np.prod(SHAPE)))


@pytest.mark.medium
@pytest.mark.parametrize("length", [1, 2, 3, 10, 97, 9000, 60000, 2**20 + 1])
def test_host_and_device_compute_the_same_order(length):
    """Also far along: epochs beyond 2^32 / length, and the last int32 step."""
    keys = order.round_keys(7)
    batch_size = min(128, (2**32 - 1) // length)
    for step in (0, 1, 12345, 2**31 - 1):
        on_device = order.rows_at(keys, jnp.int32(step), length, batch_size)
        places = step * batch_size + np.arange(batch_size, dtype=np.int64)
        on_host = order.rows_on_host(np.asarray(keys), places, length)
        assert on_host.dtype == np.uint32 and on_host.max() < length
        np.testing.assert_array_equal(on_device, on_host)


@pytest.mark.parametrize("batch_size", [1, 16, 50, 64])
def test_batches_are_the_same_bits(batch_size, short_windows):
    """Also batches larger than the data, and windows that are not the first."""
    memory, stream = feeds(batch_size)
    assert stream.window >= 1 and stream.data["x"].shape[:2] == (stream.window, batch_size)
    start = 2
    windows = stream.windows(start, slice(None))
    for i in range(start, start + 3):
        window = next(windows)
        for step in range(i * stream.window, (i + 1) * stream.window):
            expected = jax.jit(memory.batch_at)(memory.data, jnp.int32(step))
            got = jax.jit(stream.batch_at)(window, jnp.int32(step))
            assert sorted(got) == ["x", "y"] and got["x"].dtype == jnp.float32
            for name in got:
                assert np.asarray(got[name]).tobytes() == np.asarray(expected[name]).tobytes()


def test_shards_of_a_window_are_its_rows(short_windows):
    _, stream = feeds(16)
    whole = next(stream.windows(1, slice(None)))
    parts = [next(stream.windows(1, slice(a, a + 4))) for a in (0, 4, 8, 12)]
    for name in whole:
        joined = np.concatenate([part[name] for part in parts], axis=1)
        np.testing.assert_array_equal(whole[name], joined)


@pytest.mark.medium
def test_worker_processes_read_the_same(short_windows):
    _, threads = feeds(16)
    _, workers = feeds(16, workers=2)
    a, b = threads.windows(3, slice(None)), workers.windows(3, slice(None))
    for _ in range(3):
        x, y = next(a), next(b)
        assert all(np.array_equal(x[name], y[name]) for name in x)


def fit(workdir, source, steps, **options):
    mode = options.pop("mode", "jit")
    spec = train.RunSpec(config={}, workdir=workdir, seed=3)
    plan = train.Plan(
        name="test", restart_safe=frozenset(), steps=steps, log_every=4, checkpoint_every=3,
        keep=Keep(100), tensorboard=False, **options,
    )  # fmt: skip
    return train.fit(small_gan(mode), source, spec, plan, mode=mode)


def final_state(workdir):
    memory, _ = feeds()
    program = compile_program(small_gan(), memory, seed=3)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=Keep(100))
    _, carry = checkpoints.restore(program.abstract)
    checkpoints.close()
    return jax.device_get(carry)


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_streamed_run_is_the_run_from_memory(
    optimized, tmp_path, trees_close, trees_equal, short_windows, mode
):
    """To float tolerance (the programs differ), on 8 devices; and resumed in mid-window it is the same bits."""
    memory, stream = feeds()
    fit(tmp_path / "memory", memory, 11, mode=mode)
    fit(tmp_path / "stream", stream, 11, mode=mode)
    trees_close(
        final_state(tmp_path / "memory"), final_state(tmp_path / "stream"), rtol=1e-3, atol=1e-4
    )
    for stop in (6, 11):
        fit(tmp_path / "resumed", stream, stop, mode=mode)
    trees_equal(final_state(tmp_path / "stream").state, final_state(tmp_path / "resumed").state)


@pytest.mark.medium
def test_a_changed_feed_resumes(tmp_path, short_windows):
    memory, stream = feeds()
    for source, stop in ((memory, 4), (stream, 8), (memory, 12)):
        assert fit(tmp_path / "run", source, stop).step == stop
    assert [line["step"] for line in logged(tmp_path / "run")] == [4, 8, 12]


@pytest.mark.medium
def test_changed_data_are_refused(tmp_path):
    memory, _ = feeds()
    fit(tmp_path / "run", memory._replace(fingerprint="a" * 64), 2)
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(
        UserError, match="data have changed since this run began .*aaaaaaaaaaaa, now bbb"
    ):
        fit(tmp_path / "run", memory._replace(fingerprint="b" * 64), 3)
    assert (tmp_path / "run/config.json").read_bytes() == before
    assert fit(tmp_path / "run", memory._replace(fingerprint="a" * 64), 3).step == 3


def test_an_error_of_the_reader_reaches_the_user(tmp_path):
    def broken(indices):
        if len(indices) > 1000:  # a window, not the examples to compare samples with
            raise UserError("images.array_record: record 7 is damaged")
        return read(indices)

    stream = data.streamed(
        broken, length=LENGTH, shape=SHAPE, seed=0, batch_size=16, fingerprint="broken"
    )
    with pytest.raises(UserError, match="record 7 is damaged"):
        fit(tmp_path / "run", stream, 2)


def test_windows_can_be_sent_to_processes():
    windows = data.sources._Windows(
        read, np.asarray(order.round_keys(0)), LENGTH, 16, 2, slice(4, 8)
    )
    copy = pickle.loads(pickle.dumps(windows))
    assert np.array_equal(copy[5]["x"], windows[5]["x"]) and copy[5]["x"].shape == (
        2,
        4,
        int(np.prod(SHAPE)),
    )
    assert len(windows) * 2 > 2**31 - 1


@pytest.mark.parametrize(
    "text,parsed",
    [
        ("auto", ("auto", 0)),
        ("memory", ("memory", 0)),
        ("stream", ("stream", 0)),
        ("stream:4", ("stream", 4)),
    ],
)
def test_feed_flag(text, parsed):
    assert data.parse_feed(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "disk", "memory:2", "stream:", "stream:x", "stream:-1", "stream:99"]
)
def test_bad_feed_flag(text):
    with pytest.raises(ValueError, match="must be auto, memory, stream or stream:WORKERS"):
        data.parse_feed(text)


def test_examples_are_spread_over_the_data():
    memory, stream = feeds()
    np.testing.assert_array_equal(memory.examples, IMAGES)  # there are fewer than 100
    np.testing.assert_array_equal(stream.examples, memory.examples)
    sorted_by_class = data.in_memory(np.arange(5000.0), np.arange(5000), seed=0, batch_size=8)
    gaps = np.diff(sorted_by_class.examples)
    assert len(gaps) == 99 and gaps.min() >= 50 and gaps.max() <= 51
    assert images.to_bytes(memory.examples) is memory.examples


@pytest.mark.medium
def test_mirrored_images(short_windows):
    """About half of them, each whole, by seed, step and row: the same from memory and from a stream."""
    memory, streamed = (data.mirrored(source, seed=3) for source in feeds())
    plain, _ = feeds()
    flips = []
    for step in range(7):
        x, y = (
            np.asarray(source.batch_at(plain.data, jnp.int32(step))["x"])
            for source in (plain, memory)
        )
        flipped = (y == x[:, :, ::-1]).all((1, 2, 3))
        assert (flipped | (y == x).all((1, 2, 3))).all()
        flips.append(flipped)
    share = np.mean(flips)
    assert 0.35 < share < 0.65 and len({f.tobytes() for f in flips}) == 7
    again = data.mirrored(plain, seed=3).batch_at(plain.data, jnp.int32(2))["x"]
    np.testing.assert_array_equal(again, memory.batch_at(memory.data, jnp.int32(2))["x"])
    other = data.mirrored(plain, seed=4).batch_at(plain.data, jnp.int32(2))["x"]
    assert not np.array_equal(again, other)
    assert streamed.windows is not None
    window = next(iter(streamed.windows(0, slice(None))))
    np.testing.assert_array_equal(again, streamed.batch_at(window, jnp.int32(2))["x"])
