"""The game of G and D at the checkpoints of a run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpgan import cli
from bpgan.explain.subject import Absent, Found, Subject
from bpgan.insight import dynamics
from bpgan.report import explore, plot
from bpgan.report.tables import Table
from bpgan.runtime import remote
from bpgan.trained.run import load
from bpgan.types import UserError, counted, stream


def analyzed(subject: Subject) -> Found:
    """The part ``spectrum``."""
    opened, wanted = subject.run, subject.wanted
    players = getattr(opened.state, "players", {})
    if set(players) != {"g", "d"} or opened.algorithm.objectives is None:
        raise Absent(f"a run of {opened.experiment} is no game of two players")
    trained = subject.need_data().trained
    size = sum(x.size for p in players.values() for x in jax.tree.leaves(p.params))
    iterations = min(30, (1 << 28) // size, size)
    if iterations < 5:
        raise Absent(f"the {size:,} parameters are too many for Arnoldi's iterations in memory")
    config = vars(opened.config)
    rows_of = min(config["batch_size"], 64)
    rng = np.random.default_rng(wanted.seed)
    x, y = trained.read(
        np.sort(rng.choice(trained.length, min(rows_of, trained.length), replace=False))
    )
    dtype = jnp.float64 if config["precision"] == "float64" else jnp.float32
    batch = {"x": jnp.asarray(x, dtype) / 127.5 - 1, "y": jnp.asarray(y)}
    key = stream(jax.random.key(wanted.seed), "spectrum")
    play = dynamics.of_run(opened.algorithm, batch, key, intervals(config))
    found = dynamics.trajectory(
        play, _states(subject), jax.random.fold_in(key, 1), iterations=iterations
    )
    if not found:
        raise Absent("the Jacobian of the game is not finite at any checkpoint")
    rows = [
        [
            f"{step:,}",
            f"{s.max_real:.3g}",
            f"{s.min_real:.3g}",
            f"{s.rotation:.3g}",
            f"{s.step:.3g}",
            "yes" if s.stable else "no",
        ]
        for step, s in found
    ]
    head = ["step", "max Re", "min Re", "max |Im| / |Re|", "step size", "all Re > 0"]
    kind = (
        "all eigenvalues"
        if found[-1][1].exact
        else f"the {len(found[-1][1].eigenvalues)} outermost eigenvalues"
    )
    notes = [
        f"Of {kind} of the game's Jacobian on {counted(len(x), 'training image')} and as many latents. The step size is"
        " min 2 |Re| / |λ|², the largest stable one of simultaneous gradient descent if all Re > 0. Adam takes other"
        " steps."
    ]
    table = Table("The game at its checkpoints", head, rows, notes=notes)
    numbers = {
        "checkpoints": [
            {
                "step": step, "max_real": s.max_real, "min_real": s.min_real, "rotation": s.rotation,
                "largest_stable_step": s.step, "stable": s.stable, "exact": s.exact,
                "eigenvalues": [[float(v.real), float(v.imag)] for v in s.eigenvalues],
            }
            for step, s in found
        ],
        "batch": len(x),
        "iterations": iterations,
    }  # fmt: skip
    svg = plot.svg([_plane(found)], width=700, height=300)
    pictures = [explore.Picture("Eigenvalues of the game", svg=svg, says=notes[0])]
    return Found(numbers, {"tables": [table], "pictures": pictures})


def intervals(config: Mapping[str, Any]) -> list[int]:
    """Of the lazy penalties of a run."""
    penalty = config.get("penalty")
    if not isinstance(penalty, cli.Parsed):
        return []
    terms = getattr(penalty.value, "terms", ())
    return [term.every or config.get("penalty_every", 1) for term in terms]


def _states(subject: Subject) -> list[tuple[int, Any]]:
    """The states of up to eight checkpoints, the newest among them, in order."""
    wanted, opened = subject.wanted, subject.run
    here = [(opened.step, opened.state)]
    folder = pathlib.Path(wanted.run).expanduser() / "checkpoints"
    if remote.is_url(wanted.run) or not folder.is_dir():
        return here
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    steps = [step for step in steps if step != opened.step]
    if len(steps) > 7:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, 7).astype(int)]
    for step in steps:
        try:
            here.append((step, load(wanted.run, step, trust=wanted.trust).state))
        except UserError as error:
            subject.left_out.append(f"spectrum at step {step}: {cli.message_of(error)}")
    return sorted(here, key=lambda each: each[0])


def _plane(found: Sequence[tuple[int, dynamics.Spectrum]]) -> plot.Plot:
    """The eigenvalues of the checkpoints in the complex plane."""
    values = np.concatenate([s.eigenvalues for _, s in found])
    x, y = (
        plot.Axis.of([0.0, *values.real], log=False),
        plot.Axis.of([0.0, *values.imag], log=False),
    )
    zero = plot.Shape(x.at([0.0, 0.0]), [0.0, 1.0], 8, "dashed")
    shapes = [zero] + [
        plot.Shape(x.at(s.eigenvalues.real), y.at(s.eigenvalues.imag), i, "dots", 0.75)
        for i, (_, s) in enumerate(found)
    ]
    legend = [(i, f"step {step:,}", "") for i, (step, _) in enumerate(found)]
    return plot.Plot(
        "Im", shapes, x.ticks(), y.ticks(), legend, "imaginary parts", x_name="real parts"
    )
