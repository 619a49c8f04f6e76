"""What is marked sweepable is a number of the program: ``build`` takes tracers for it.

And what groups ask of the machine before they train: how much memory is left.
"""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import optax
import pytest

from bpgan import cli, memory, optim
from bpgan.cli import experiments
from bpgan.launcher import group as grouping
from bpgan.runtime.group import compile_group, free_memory
from bpgan.types import stream
from experiments import infogan, mnist_gan, toy_gan


def module_of(name):
    return experiments.find(name).module


TRAINING = [n for n in experiments.names() if issubclass(module_of(n).Config, cli.RunConfig)]
PRIVATE = [n for n in TRAINING if "secret_seed" in cli.flags_of(module_of(n).Config)]
"""Each of their runs has a key of its own, so they are never one program."""
EXPERIMENTS = [n for n in TRAINING if n not in PRIVATE]
CASES = [[name, "--preset=smoke"] for name in EXPERIMENTS] + [
    # Where a choice decides what a number is used for: every choice.
    *(["infogan", "--preset=smoke", f"--model={model}"] for model in infogan.MODELS),
    *(["toy_gan", f"--preset={name}"] for name in toy_gan.PRESETS if name != "smoke"),
]


def sweepable(module):
    return [spec.name for spec in cli.flags_of(module.Config).values() if spec.sweepable]


def test_every_experiment_that_trains_can_be_swept():
    assert len(EXPERIMENTS) >= 7
    assert all("seed" in sweepable(module_of(name)) for name in EXPERIMENTS)
    assert PRIVATE and not any(sweepable(module_of(name)) for name in PRIVATE)


def test_every_flag_that_names_data_may_follow_them():
    """Other data are refused by their fingerprint, the same data in another place are not."""
    named = {name: cli.locates_data(module_of(name).Config) for name in EXPERIMENTS}
    assert named.pop("toy_gan") == set() and named.pop("linear_regression") == {"csv"}
    assert named.pop("text_gan") == {"dataset", "captions"}
    assert named.pop("translate") == {"dataset", "dataset_a", "dataset_b"}
    assert all(fields == {"dataset"} for fields in named.values())


def test_the_readme_says_which_flags_group():
    text = (pathlib.Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()
    rows = text.split("| experiment | flags |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    told = {}
    for row in rows:
        names, flags = (re.findall(r"`(\w+)`", cell) for cell in row.split("|")[1:3])
        told |= {name: {flag for flag in flags if flag not in EXPERIMENTS} for name in names}
    assert told == {name: set(sweepable(module_of(name))) for name in EXPERIMENTS}


@pytest.mark.medium
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_build_takes_tracers(case):
    """It never branches on what is sweepable; and its data have a fingerprint, whatever the problem."""
    name, *flags = case
    module = module_of(name)
    cfg = cli.resolve(module.Config, module.PRESETS, flags)

    def one_step(values):
        built = module.build(dataclasses.replace(cfg, **values))
        assert re.fullmatch("[0-9a-f]{64}", built.source.fingerprint)
        root = jax.random.key(values["seed"])
        state = built.algorithm.init(stream(root, "init"))
        batch = built.source.batch_at(built.source.data, state.step)
        return state, built.algorithm.step(state, batch, stream(root, "train"))

    values = {name: getattr(cfg, name) for name in sweepable(module)}
    values["seed"] = np.uint32(values["seed"])
    before, (after, metrics) = jax.eval_shape(one_step, values)
    assert jax.tree.structure(before) == jax.tree.structure(after) and metrics


@pytest.mark.medium
def test_groups_of_problems_with_known_answers(tmp_path, capsys):
    members = [
        f"--gamma={g} --seed={i} --workdir={tmp_path / str(i)}" for i, g in enumerate((0.1, 1))
    ]
    flags = ["--preset=dirac", "--steps=4", "--sample_every=0", "--notensorboard"]
    assert grouping.run(["toy_gan", *flags, *(f"--member={each}" for each in members)]) == 0
    assert "2 of 2 runs without an anomaly" in capsys.readouterr().out


def digits(**values):
    cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, ["--preset=smoke", "--net=mlp"])
    built = mnist_gan.build(dataclasses.replace(cfg, **values))
    return built.algorithm, built.source


@pytest.mark.medium
def test_an_average_that_decays_at_once_is_the_present_generator(trees_equal):
    """So runs with and without an average are one group, and each of them goes on alone."""
    group = compile_group(digits, [dict(seed=0, ema=0.0), dict(seed=0, ema=0.9)])
    carry, finite = group.run(group.init(), 3, np.ones(2, bool))
    assert finite.all()
    without, averaged = (jax.device_get(group.member(carry, i).state) for i in range(2))
    trees_equal(without.ema["g"], without.players["g"].variables)
    trees_equal(without.players["g"], averaged.players["g"])
    difference = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), averaged.ema, without.ema)
    assert max(jax.tree.leaves(difference)) > 1e-5
    alone, _ = digits(ema=0.0)
    assert jax.tree.structure(jax.eval_shape(alone.init, jax.random.key(0))) == jax.tree.structure(
        without
    )


def test_one_factor_moves_both_step_sizes(monkeypatch):
    seen = []
    monkeypatch.setattr(optim, "adam", lambda lr, *_: seen.append(lr) or optax.sgd(lr))
    digits(g_lr=1e-3, d_lr=4e-3, lr_scale=0.5)
    assert seen == [5e-4, 2e-3]


def machine(root, groups, *, available=8000, free=100, own="/job/step"):
    """A file system with /proc/meminfo and control groups ``{path: (max, current, cached files)}``."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: 9000 kB\nMemFree: {free} kB\nMemAvailable: {available} kB\nHugePages_Total: 0\n"
    )
    (proc / "cgroup").write_text(f"4:memory:/elsewhere\n0::{own}\n")
    for path, (limit, current, cached) in groups.items():
        folder = root / f"sys/fs/cgroup{path}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current}\n")
        (folder / "memory.stat").write_text(
            f"anon 7\nfile {cached}\nactive_file {cached // 4}\ninactive_file {cached - cached // 4}\n"
        )
    return root


MB = 1 << 20


@pytest.mark.parametrize(
    "groups,expected",
    [
        ({}, 8000 * 1024),  # and not MemFree, which a warm cache of files empties
        ({"/job/step": ("max", MB, 0)}, 8000 * 1024),
        ({"/job/step": (4 * MB, MB, 0)}, 3 * MB),
        ({"/job/step": (4 * MB, 3 * MB, 2 * MB)}, 3 * MB),  # files in its cache are given up
        ({"/job": (2 * MB, MB, 0), "/job/step": ("max", MB, 0)}, MB),  # a parent's limit holds
        ({"/job": (9 * MB, MB, 0), "/job/step": (2 * MB, MB, 0)}, MB),
        ({"": (2 * MB, MB, 0)}, MB),
        ({"/job/step": (MB, 2 * MB, 0)}, 0),
        ({"/other": (MB, MB, 0)}, 8000 * 1024),
    ],
)
def test_available_memory(tmp_path, groups, expected):
    assert memory.available(machine(tmp_path, groups)) == expected


def test_available_memory_of_a_container_and_without_proc(tmp_path):
    found = memory.available(machine(tmp_path / "a", {"": (2 * MB, MB, 0)}, own="/"))
    assert found == MB
    assert memory.available(tmp_path / "b") > MB
    assert MB < memory.available() and free_memory() > MB
