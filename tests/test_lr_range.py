"""The range test: on quadratics, whose best step size is known, and on a classifier that then learns."""

import importlib
import json
import shlex

import jax
import numpy as np
import optax
import pytest

from bpgan import cli, data, optim
from bpgan.launcher import main as launch
from bpgan.launcher import search
from bpgan.runtime import program
from bpgan.types import stream
from experiments import lr_range, mnist_gan

LRS = np.geomspace(1e-6, 1e2, 300)


def descent(curvatures, lrs, start=1.0):
    """Losses ``sum L x^2 / 2`` of gradient descent, each before its step."""
    x, losses = np.full(len(curvatures), start), []
    with np.errstate(over="ignore", invalid="ignore"):
        for lr in lrs:
            losses.append(float(np.sum(curvatures * x**2) / 2))
            x = x - lr * curvatures * x
    return np.array(losses)


@pytest.mark.parametrize("largest", [0.3, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("condition", [1.0, 10.0])
def test_on_a_quadratic_it_finds_the_curvature(largest, condition):
    """Stable below 2 / L, fastest at 1 / L."""
    curvatures = largest * np.array([1.0, 1 / condition])
    found = optim.range_test(LRS, descent(curvatures, LRS), decay=0.9)
    assert 0.05 / largest <= found.tenth <= 2 / largest
    assert 0.02 / largest <= found.steepest <= 2 / largest and found.stopped < 300
    assert LRS[found.stopped] > 2 / largest


def test_smoothing_and_stopping_by_the_definition():
    losses = np.concatenate([np.linspace(4, 1, 60), np.linspace(1, 30, 40)])
    lrs = np.geomspace(1e-4, 1, 100)
    found = optim.range_test(lrs, losses, decay=0.98)
    mean, expected = 0.0, []
    for i, loss in enumerate(losses):
        mean = 0.98 * mean + 0.02 * loss
        expected.append(mean / (1 - 0.98 ** (i + 1)))
    stop = next(i for i in range(10, 100) if expected[i] > 4 * min(expected[:i]))
    assert found.stopped == stop and np.isnan(found.smooth[stop:]).all()
    np.testing.assert_allclose(found.smooth[:stop], expected[:stop], rtol=1e-12)
    assert found.tenth == lrs[int(np.argmin(expected[:stop]))] / 10


def test_units_of_the_loss_do_not_matter():
    losses = descent(np.array([1.0, 0.1]), LRS)
    a, b = (optim.range_test(LRS, scale * losses, decay=0.9) for scale in (1.0, 1e-3))
    assert (a.steepest, a.tenth, a.stopped) == (b.steepest, b.tenth, b.stopped)


def test_negative_losses_and_infinite_ones():
    losses = np.concatenate([np.linspace(0, -500, 80), np.linspace(-500, 3000, 40)])
    found = optim.range_test(np.geomspace(1e-4, 1, 120), losses, decay=0.0)
    assert 80 < found.stopped < 120
    losses = np.concatenate([np.linspace(4, 1, 60), [np.nan], np.ones(40)])
    assert optim.range_test(np.geomspace(1e-4, 1, 101), losses).stopped == 60
    with pytest.raises(ValueError, match="stopped at step 3: the range begins too high"):
        optim.range_test(LRS, np.array([1.0, 2.0, 3.0, np.inf, 1.0]))


def test_the_ramp_is_geometric():
    ramp = optim.geometric(1e-5, 1e-1, 5)
    assert [float(ramp(i)) for i in range(5)] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


@pytest.mark.medium
@pytest.mark.parametrize("system", lr_range.SYSTEMS)
def test_the_rate_is_that_of_the_ramp(x64, monkeypatch, system):
    """With gradient descent in Adam's place: what the parameters move by, over the gradient."""
    for module in (optax, optim):
        monkeypatch.setattr(module, "adam", lambda lr, *_, **__: optax.sgd(lr))
    flags = {
        "classifier": "optimizer=sgd net=mlp",
        "vae": "preset=smoke",
        "d": "net=mlp batch_size=8",
    }
    cfg = lr_range.Config(system=system, flags=f"{flags[system]} precision=float64")
    module, chosen = lr_range.chosen(cfg)
    ramp = optim.geometric(1e-5, 1e-2, 30)
    algorithm = lr_range.ramped(module, chosen, lr_range.SYSTEMS[system].flag, ramp)
    source = module.build(chosen).source
    key = stream(jax.random.key(0), "train")
    step = jax.jit(
        lambda state: algorithm.step(state, source.batch_at(source.data, state.step), key)
    )
    state, rates = jax.jit(algorithm.init)(jax.random.key(0)), []
    for _ in range(30):
        before, (state, metrics) = state, step(state)
        name = "d" if system == "d" else next(iter(state.players))
        old, new = (s.players[name].params for s in (before, state))
        moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, new, old))
        rates.append(float(moved / metrics["d/grad_norm" if system == "d" else "grad_norm"]))
    np.testing.assert_allclose(rates, [ramp(i) for i in range(30)], rtol=1e-5)


def documented():
    """The command for a GAN's pair in the docstring."""
    text = lr_range.__doc__.replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "python launch.py" in line]
    return shlex.split(line)[2:]


def test_the_documented_search_is_one(capsys):
    """Every flag is there, all of its runs are one group, and the step sizes of both players move together."""
    argv = documented()
    assert launch.run([*argv, "--dry_run", "--jobs=1"]) == 0
    (command,) = capsys.readouterr().out.splitlines()
    assert command.count("--member=") == 27
    assert "--pause_at=0.037037" in command  # the first of four rungs
    specs = cli.flags_of(mnist_gan.Config)
    axes = [search.parse_axis(a[8:], specs) for a in argv if a.startswith("--sweep=")]
    assert [axis.name for axis in axes] == ["lr_scale", "b1", "gamma"]
    assert all(specs[axis.name].sweepable for axis in axes)
    rest = [a for a in argv if a.startswith(("--experiment", "--eval_every"))]
    assert len(argv) == len(axes) + len(rest) + 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documented_search_runs(tmp_path, capsys):
    """On few digits, so that the net whose features the metric is of is soon trained."""
    x, y = data.load("mnist10k").read(np.arange(0, 9000, 30))
    np.savez(tmp_path / "few.npz", x=x, y=y)
    short = ["--preset=smoke", "--net=mlp", "--steps=9", "--notensorboard", "--samples=3",
             f"--dataset=npz:{tmp_path / 'few.npz'}", f"--root={tmp_path / 'runs'}"]  # fmt: skip
    assert launch.run([*documented(), *short]) == 0
    said = capsys.readouterr().out
    assert "rung 2 of 2: 1 setting at 1 of a run; best: lr_scale=" in said and "eval/FD" in said


def go(tmp_path, *argv):
    argv = [f"--workdir={tmp_path}", *argv]
    return cli.run(lr_range.Config, lr_range.run, lr_range.PRESETS, argv)


@pytest.mark.slow
@pytest.mark.parametrize("system", lr_range.SYSTEMS)
def test_every_system_has_a_range(tmp_path, copies, system):
    flags = {"classifier": "", "vae": "preset=smoke", "d": "preset=smoke"}[system]
    alive = copies(importlib.import_module(f"experiments.{lr_range.SYSTEMS[system].experiment}"))
    argv = [f"--system={system}", "--preset=smoke", "--high=1e-3", f"--flags={flags}", "--seeds=3"]
    assert go(tmp_path, *argv) == 0
    assert max(alive) <= 2  # one that is trained on, one that is built while that is compiled
    record = json.loads((tmp_path / "lr_range.json").read_text())
    assert len(record["lr"]) == 20 and np.shape(record["loss"]) == (3, 20)
    assert np.isfinite(record["loss"]).all() and (tmp_path / "lr_range.svg").exists()


def test_a_loss_that_is_lost_is_null(tmp_path, monkeypatch):
    """JSON has no NaN, and strict readers refuse it."""
    losses = np.float32([[*np.linspace(2, 1, 15), np.nan, *[np.inf] * 4]])
    monkeypatch.setattr(program, "record_metrics", lambda *_, **__: {"loss": losses})
    assert go(tmp_path, "--preset=smoke") == 0
    text = (tmp_path / "lr_range.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["stopped"] == [15] and record["loss"] == [losses[0, :15].tolist() + [None] * 5]
    assert [value is None for value in record["smooth"][0]] == [False] * 15 + [True] * 5


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "record_metrics", lambda *_, **__: pytest.fail("was computed"))
    for argv, said in (
        (["--low=1", "--high=0.1"], "--low=1.0: must be < --high=0.1"),
        (["--system=gan"], "--system=gan: must be one of classifier, vae, d"),
        (["--flags=nett=cnn"], "--nett: unknown flag; did you mean --net?"),
        (["--flags=net='mlp"], "--flags=net='mlp: must be NAME=VALUE"),
        (["--flags=--net=mlp"], "--flags=--net=mlp: must be NAME=VALUE, several separated by"),
        (["--workdir=/proc/x"], "--workdir=/proc/x: cannot be written"),
        (["--flags=net"], "--flags=net: must be NAME=VALUE"),
        (["--flags=net=mlp lr=1"], "--flags=lr=1: the range test sets it; use --low and --high"),
        (["--system=d", "--flags=d_lr=1"], "--flags=d_lr=1: the range test sets it; use --low and"),
        (["--flags=seed=3"], "--flags=seed=3: the range test sets it; use --seeds"),
        (["--flags=steps=9"], "--flags=steps=9: the range test sets it; use --steps"),
        (["--flags=epochs=9"], "--flags=epochs=9: the range test sets it; use --steps"),
        (["--flags=dataset=x"], "--flags=dataset=x: the range test sets it; use --dataset"),
        (["--flags=flagfile=x"], "--flags=flagfile=x: the range test sets it; name the flags"),
        (["--flags=lr_half_life=1"], "--flags=lr_half_life=1: the range test sets it"),
        (["--system=d", "--flags=g_lr=1"], "--flags=g_lr=1: the range test sets it"),
    ):
        assert go(tmp_path, *argv) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {said}") and err.count("\n") == 1


@pytest.mark.slow
def test_a_classifier_learns_faster_with_what_is_recommended(tmp_path):
    from experiments import classifier

    assert go(tmp_path, "--seeds=1") == 0
    tenth = json.loads((tmp_path / "lr_range.json").read_text())["tenth"][0]
    accuracy = {}
    for lr in (tenth / 100, tenth):
        cfg = cli.resolve(classifier.Config, classifier.PRESETS, [f"--lr={lr}"])
        built = classifier.build(cfg)
        state = cli.train(built, seed=0, steps=150)
        assert built.evaluate is not None
        accuracy[lr] = built.evaluate(state)["test_accuracy"]
    assert accuracy[tenth] > accuracy[tenth / 100] + 0.05
