"""Linear regression by gradient descent on hand-written gradients, compared with least squares.

The introductory article's problem: fit ``w x + b`` to ``x = y = 1, ..., 5`` from ``w = b = 0``. Its
code lost the sign of the update; here ``w <- w - lr dL/dw`` with ``L = mean (w x + b - y)^2``.
The error of the parameters shrinks as ``e_t = (I - lr H)^t e_0``, ``H = 2/n [x 1]^T [x 1]``; the
report at the end holds that prediction against the distance measured.

Run:     python -m experiments.linear_regression
         python -m experiments.linear_regression --epochs=5000                 to w = 1, b = 0
         python -m experiments.linear_regression --csv=FILE --target=COLUMN    your own data
Expect:  w = 0.9976, b = 0.0087 after the article's 1000 epochs, at distance 0.00903 from the
         least-squares solution w = 1, b = 0, as predicted; 2.3e-06 (float32's limit) after 5000.

FILE has a header line and numeric columns. Its features are standardised while training, so that
descent converges whatever their units; coefficients are reported in the units of the file.
"""

import csv
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan import data, losses
from bpgan.algorithms import backprop
from bpgan.types import Net, UserError
from experiments import _cli as cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    csv: str = cli.field("", "data file with a header line; empty: x = y = 1..5")
    target: str = cli.field("", "the column of --csv to predict from all others")
    lr: float = cli.field(0.01, "step size of gradient descent", low=0, exclusive_low=True)
    gradients: str = cli.field(
        "manual", "who computes the gradients", choices=("manual", "autodiff")
    )
    epochs: float = cli.field(1000.0)
    batch_size: int = cli.field(0, "examples per step; 0: all of them", low=0)
    log_every: str = cli.field("100ep")
    sample_every: str = cli.field("0")
    checkpoint_every: str = cli.field("500ep")


PRESETS = {"smoke": dict(epochs=20.0, log_every="10ep", checkpoint_every="10ep")}


class Table(NamedTuple):
    """Features ``(x[n, f] - mean[f]) / scale[f]`` with their names, and targets ``y[n, 1]``."""

    names: list[str]
    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


def read_csv(path: str, target: str) -> Table:
    """Reads a table of numbers and standardises its features (a constant one becomes zero).

    Raises:
      UserError: naming file, line and column of what is wrong.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read ({reason})", argument="csv", value=path) from None
    if len(rows) < 3:
        raise UserError(
            "needs a header line and at least two lines of numbers", argument="csv", value=path
        )
    names = [name.strip() for name in rows[0][1]]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(
            f"line 1: columns need names that differ, found {names}", argument="csv", value=path
        )
    if target not in names:
        raise UserError(
            f"must be a column of {path}: {', '.join(names)}", argument="target", value=target
        )
    if len(names) < 2:
        raise UserError(f"has no column but the target {target!r}", argument="csv", value=path)

    def number(line: int, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"line {line}, column {name!r}: {text!r} is no number", argument="csv", value=path
            )
        return value

    for line, row in rows:
        if len(row) != len(names):
            raise UserError(
                f"line {line}: {len(row)} cells, the header has {len(names)}",
                argument="csv",
                value=path,
            )
    table = np.array(
        [
            [number(line, name, cell) for name, cell in zip(names, row, strict=True)]
            for line, row in rows[1:]
        ]
    )
    column = names.index(target)
    x, y = np.delete(table, column, axis=1), table[:, column, None]
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1
    return Table(names[:column] + names[column + 1 :], (x - mean) / scale, y, mean, scale)


def read(cfg: Config) -> Table:
    if cfg.csv:
        return read_csv(cfg.csv, cfg.target)
    if cfg.target:
        raise UserError(
            "names a column of --csv, which is not given",
            argument="target",
            value=cfg.target,
            beside=["csv"],
        )
    x = np.arange(1.0, 6.0)[:, None]
    return Table(["x"], x, x, np.zeros(1), np.ones(1))


def _zeros(key, x):
    """Initial parameters of a dense layer with one output."""
    del key
    zeros = {"kernel": jnp.zeros((x.shape[1], 1), x.dtype), "bias": jnp.zeros(1, x.dtype)}
    return {"params": {"dense0": zeros}}


def _affine(variables, x, *, train):
    """``w x + b`` for JAX to differentiate."""
    layer = variables["params"]["dense0"]
    return x @ layer["kernel"] + layer["bias"][None, :], {}


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The regression that ``cfg`` describes."""
    dtype = jnp.dtype(cfg.precision)
    table = read(cfg)
    n, features = table.x.shape
    if cfg.batch_size > n:
        raise UserError(f"there are only {n} examples", argument="batch_size", value=cfg.batch_size)
    batch_size = cfg.batch_size or n
    design = np.concatenate([table.x, np.ones((n, 1))], axis=1)
    curvature, axes = np.linalg.eigh(2 / n * design.T @ design)
    if batch_size == n and cfg.lr >= 2 / curvature[-1]:
        raise UserError(
            f"diverges on this data; must be < {2 / curvature[-1]:.4g}, which is"
            " 2 / the largest curvature of the loss",
            argument="lr",
            value=cfg.lr,
        )

    if cfg.gradients == "manual":
        layers = backprop.sequential(("dense0", backprop.dense()))
        gradient = backprop.value_and_grad(layers, backprop.squared_error)
    else:
        gradient = backprop.autodiff(Net(_zeros, _affine), losses.mean_squared_error)
    algorithm = backprop.make(
        _zeros,
        gradient,
        optax.sgd(cfg.lr),
        data_shape=(features,),
        dtype=dtype,
        axis_name=axis_name,
    )
    source = data.in_memory(
        *(table.x.astype(dtype), table.y.astype(dtype)),
        seed=cfg.seed,
        batch_size=batch_size,
        dtype=dtype,
    )

    def evaluate(state: backprop.State) -> dict[str, float]:
        """Parameters beside those of least squares, in the units of the data, and their distance.

        Distances are Euclidean norms of the error of ``(w, b)``, as trained. Gradient descent from
        zero goes to the least-squares solution of smallest norm, the one that ``lstsq`` gives. The
        prediction knows no rounding: in float32 the distance stops falling sooner.
        """
        layer = jax.tree.map(lambda a: np.asarray(a, np.float64), state.params["dense0"])
        found = np.concatenate([layer["kernel"][:, 0], layer["bias"]])
        optimum = np.linalg.lstsq(design, table.y[:, 0], rcond=None)[0]
        report = {}
        for suffix, fit in (("", found), ("/lstsq", optimum)):
            w = fit[:-1] / table.scale
            report |= {f"w[{name}]{suffix}": v for name, v in zip(table.names, w, strict=True)}
            report[f"b{suffix}"] = fit[-1] - w @ table.mean
            report[f"train_mse{suffix}"] = np.mean((design @ fit - table.y[:, 0]) ** 2)
        report["distance"] = np.linalg.norm(found - optimum)
        if batch_size == n:
            decay = (1 - cfg.lr * curvature) ** int(state.step)
            report["distance/predicted"] = np.linalg.norm(decay * (axes.T @ optimum))
        return {name: float(value) for name, value in report.items()}

    return cli.Experiment(algorithm, source, evaluate, f"{n} examples, {features} features")


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
