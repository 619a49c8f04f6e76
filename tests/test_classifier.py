"""The classifier: gradients by hand and by JAX train the same network; its report is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpgan import cli, data
from bpgan.runtime.program import compile_program
from bpgan.types import UserError
from experiments import classifier


def build(*flags):
    cfg = cli.resolve(classifier.Config, classifier.PRESETS, flags)
    return classifier.build(cfg)


def train(experiment, steps):
    program = compile_program(experiment.algorithm, experiment.source, seed=0, devices=1)
    start = program.init()
    before = jax.device_get(start.state.players["net"].params)
    carry, finite = program.run(start, steps)
    assert finite
    return before, jax.device_get(carry.state.players["net"].params), carry


@pytest.mark.medium
@pytest.mark.parametrize(
    "net, precision, tolerance",
    [("mlp", "float64", 1e-10), ("cnn", "float32", 1e-5),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (("mlp", "float32", 1e-5), ("cnn", "float64", 1e-10)))],
)  # fmt: skip
def test_manual_gradients_follow_autodiff(net, precision, tolerance):
    """The same parameters after 100 steps of Adam, from the same start."""
    with jax.enable_x64(precision == "float64"):
        flags = [f"--net={net}", f"--precision={precision}", "--batch_size=16", "--lr=1e-3"]
        before, by_hand, _ = train(build(*flags, "--gradients=manual"), 100)
        same, by_jax, _ = train(build(*flags, "--gradients=autodiff"), 100)
    assert optax.tree.norm(jax.tree.map(np.subtract, before, same)) == 0
    size, difference = (
        optax.tree.norm(jax.tree.map(np.asarray, tree))
        for tree in (by_jax, jax.tree.map(np.subtract, by_hand, by_jax))
    )
    assert difference < tolerance * size
    moved = optax.tree.norm(jax.tree.map(np.subtract, by_jax, before))
    assert moved > 0.05 * size
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(by_jax)} == {precision}


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", classifier.OPTIMIZERS)
def test_every_optimizer_learns(optimizer):
    lr = {"sgd": 0.1, "momentum": 0.01, "adam": 0.001}[optimizer]
    experiment = build("--net=mlp", f"--optimizer={optimizer}", f"--lr={lr}", "--gradients=manual")
    _, _, carry = train(experiment, 140)
    report = experiment.evaluate(carry.state)
    assert 0.8 < report["test_accuracy"] < 0.97
    assert report["test_images"] == 1000


@pytest.mark.medium
def test_accuracy_is_that_of_the_test_split():
    """Zero parameters give equal logits, of which the first is chosen: right for every zero."""
    experiment = build("--net=cnn")
    state = jax.eval_shape(experiment.algorithm.init, jax.random.key(0))
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state)
    zeros = np.mean(data.load("mnist10k", "test").arrays()[1] == 0)
    assert 0.08 < zeros < 0.12
    np.testing.assert_allclose(experiment.evaluate(state)["test_accuracy"], zeros, rtol=1e-12)


def test_refuses_data_it_cannot_classify(tmp_path):
    path, tiny = tmp_path / "one.npz", tmp_path / "tiny.npz"
    np.savez(path, x=np.zeros((20, 8, 8), np.uint8))
    np.savez(tiny, x=np.zeros((20, 3, 8), np.uint8), y=np.arange(20) % 2)
    with pytest.raises(UserError, match=r"dataset=npz:.*one\.npz: has no labels"):
        build(f"--dataset=npz:{path}")
    with pytest.raises(UserError, match="net=cnn: needs images of at least 4x4.* 3x8"):
        build(f"--dataset=npz:{tiny}")
