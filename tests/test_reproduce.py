"""The commands of docs/reproduce.md are those of presets that fit CIFAR-10, and its table says what the presets say."""

import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from bpgan import cli, data
from experiments import evaluate, image_gan

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "reproduce.md").read_text()
COMMANDS = re.findall(r"`python -m experiments\.image_gan ([^`]+)`", PAGE)


def test_there_is_a_command_for_each_recipe():
    presets = {command.rpartition("=")[2] for command in COMMANDS}
    assert presets == {"sngan-32", "biggan-32", "dcgan-32", "r3-32"}


@pytest.mark.medium
@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.slow if "biggan" in c else ()) for c in COMMANDS]
)
def test_a_command_is_one_of_a_program_for_such_images(command, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    images = data.of_arrays("cifar10", "train", x, np.arange(64) % 10, 10)
    monkeypatch.setattr(data, "load_for_training", lambda *_: (images, None))
    cfg = cli.resolve(image_gan.Config, image_gan.PRESETS, shlex.split(command))
    assert str(cfg.dataset) == "cifar10"
    built = image_gan.build(cfg)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(built.algorithm.init, key)
    batch = jax.eval_shape(built.source.batch_at, built.source.data, jax.numpy.int32(0))
    after, _ = jax.eval_shape(built.algorithm.step, state, batch, key)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_the_steps_of_the_page_are_those_of_the_presets():
    for preset, steps in re.findall(r"\| `([\w-]+)` \| ([\d,]+) \|", PAGE):
        of = image_gan.PRESETS[preset]
        expected = of.get("steps") or round(of["epochs"] * 50_000 / of["batch_size"])
        assert int(steps.replace(",", "")) == expected


def test_the_evaluation_of_the_page_is_one():
    (line,) = re.findall(r"^python -m experiments\.evaluate (.+)$", PAGE, re.M)
    cfg = cli.resolve(evaluate.Config, evaluate.PRESETS, shlex.split(line))
    assert cfg.n == 50_000
