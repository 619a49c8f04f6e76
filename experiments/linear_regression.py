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

FILE has a header line and numeric columns. Its features are standardized while training, so that
descent converges whatever their units; coefficients are reported in the units of the file.
"""

import csv
import dataclasses
import functools
import math
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan import backprop, cli, data, losses
from bpgan.algorithms import supervised, turns
from bpgan.report import plot
from bpgan.types import Net, UserError, counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    csv: str = cli.field("", "data file with a header line; empty: x = y = 1..5", locates_data=True)
    target: str = cli.field("", "the column of --csv to predict from all others")
    lr: float = cli.field(0.01, "step size of gradient descent", low=0, exclusive_low=True)
    gradients: str = cli.field(
        "manual",
        "autodiff, or hand-written backpropagation (manual)",
        choices=("manual", "autodiff"),
    )
    matmul_precision: str = cli.field("highest")
    epochs: float = cli.field(1000.0)
    batch_size: int = cli.field(0, "examples per step; 0: all of them", low=0)
    log_every: str = cli.field("100ep")
    sample_every: str = cli.field("0")
    checkpoint_every: str = cli.field("500ep")


_SHOWN = 500  # residuals in the picture

PRESETS = {"smoke": dict(epochs=20.0, log_every="10ep", checkpoint_every="10ep")}


class Table(NamedTuple):
    """Targets ``y[n, 1]`` and features ``x[n, f] = (raw[n, f] / 2^exponent[f] - mean[f]) / scale[f]``.

    ``names[f]`` are those of the features; the fingerprint is that of all that was read.
    """

    names: list[str]
    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    fingerprint: str


def standardize(
    raw: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``x, mean, scale, exponent`` of ``Table`` for columns ``raw[n, f]``.

    Each column is first divided by the power of two that brings its greatest number to between 1/2 and 1: squares of
    large and of small numbers would leave the range of floats. A column that is constant to rounding becomes zero,
    with scale 1.
    """
    _, exponent = np.frexp(np.abs(raw).max(axis=0))
    x = np.ldexp(raw, -exponent)
    # From the first row on, what is constant is exactly 0; the mean of equal numbers may be another number.
    x, first = x - x[0], x[0]
    mean = x.mean(axis=0)
    x = x - mean
    scale = np.sqrt(np.mean(np.square(x), axis=0))
    constant = scale <= 8 * np.finfo(x.dtype).eps
    scale = np.where(constant, 1, scale)
    return np.where(constant, 0, x / scale), first + mean, scale, exponent


def read_csv(path: str, target: str) -> Table:
    """Reads a table of numbers and standardizes its features.

    Raises:
      UserError: naming file, line and column of what is wrong.
    """

    def refuse(reason: str) -> NoReturn:
        raise UserError(reason, argument="csv", value=path) from None

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        refuse(f"cannot be read ({reason})")
    if len(rows) < 3:
        refuse("needs a header line and at least two lines of numbers")
    names = [name.strip() for name in rows[0][1]]
    if len(set(names)) < len(names) or "" in names:
        refuse(f"line 1: columns need names that differ, found {names}")
    if target not in names:
        reason = f"must be a column of {path}: {', '.join(names)}"
        raise UserError(reason, argument="target", value=target)
    if len(names) < 2:
        refuse(f"has no column but the target {target!r}")

    def number(line: int, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            refuse(f"line {line}, column {name!r}: {text!r} is no number")
        return value

    for line, row in rows:
        if len(row) != len(names):
            refuse(f"line {line}: {len(row)} cells, the header has {len(names)}")
    table = np.array(
        [
            [number(line, name, cell) for name, cell in zip(names, row, strict=True)]
            for line, row in rows[1:]
        ]
    )
    column = names.index(target)
    x, y = np.delete(table, column, axis=1), table[:, column, None]
    features, mean, scale, exponent = standardize(x)
    fingerprint = data.fingerprint_of(*names, table)
    return Table(
        names[:column] + names[column + 1 :], features, y, mean, scale, exponent, fingerprint
    )


def read(cfg: Config) -> Table:
    if cfg.csv:
        return read_csv(cfg.csv, cfg.target)
    if cfg.target:
        raise UserError(
            "names a column of `csv`, which is not given",
            argument="target",
            value=cfg.target,
            beside=["csv"],
        )
    x = np.arange(1.0, 6.0)[:, None]
    plain = np.zeros(1), np.ones(1), np.zeros(1, int)
    return Table(["x"], x, x, *plain, data.fingerprint_of("x", x))


def _check_range(y: np.ndarray, cfg: Config) -> None:
    """Raises UserError if squares of targets leave the range of the floats that train."""
    numbers, top = np.finfo(cfg.precision), np.abs(y).max()
    low, high = np.sqrt(numbers.tiny) * 1024, np.sqrt(numbers.max) / 1024
    if top and not low < top < high:
        raise UserError(
            f"its largest number is {top:.4g} in size; with `precision={cfg.precision}` that must be"
            f" between {low:.2g} and {high:.2g}, or 0",
            argument="target",
            value=cfg.target,
        )


def _check_step(lr: float, curvature: float) -> None:
    """Refuses a step size with which gradient descent diverges, by the largest curvature of the loss."""
    if lr >= 2 / curvature:
        raise UserError(
            f"diverges on this data; must be < {2 / curvature:.4g}, which is"
            " 2 / the largest curvature of the loss",
            argument="lr",
            value=lr,
        )


def _zeros(key, x):
    """Initial parameters of a dense layer with one output."""
    del key
    zeros = {"kernel": jnp.zeros((x.shape[1], 1), x.dtype), "bias": jnp.zeros(1, x.dtype)}
    return {"params": {"dense0": zeros}}


def _affine(variables, x, *, train):
    """``w x + b`` for JAX to differentiate."""
    layer = variables["params"]["dense0"]
    return x @ layer["kernel"] + layer["bias"][None, :], {}


def picture(table: Table, fitted: np.ndarray, target: str = "y") -> str:
    """The data and what is fitted to them, with residuals, as the text of an SVG file.

    Of one feature, the target against it, in the units of the file; of several, the target against what is predicted.

    Args:
      table: of n examples.
      fitted: predictions ``[n]``.
      target: what they are of.
    """
    y = table.y[:, 0]
    if table.x.shape[1] == 1:
        scaled = table.x[:, 0] * table.scale[0] + table.mean[0]
        across, name = np.ldexp(scaled, table.exponent[0]), table.names[0]
    else:
        across, name = fitted, "predicted"
    x_axis, y_axis = plot.Axis.of(across, log=False), plot.Axis.of(np.append(y, fitted), log=False)
    x, order = x_axis.at(across), np.argsort(across)
    shapes = [
        plot.Shape((at, at), y_axis.at([low, high]), 1, opacity=0.6)
        for at, low, high in zip(x[:_SHOWN], y, fitted, strict=False)
    ]
    shapes.append(plot.Shape(x[order], y_axis.at(fitted[order]), 2))
    shapes.append(plot.Shape(x, y_axis.at(y), 0, "dots"))
    legend = [(0, "data", ""), (2, "fit", ""), (1, "residuals", "")]
    found = plot.Plot(target, shapes, x_axis.ticks(), y_axis.ticks(), legend, x_name=name)
    return plot.svg([found], width=500, height=260)


def _pictures(table: Table, target: str, state: turns.State) -> dict[str, str]:
    layer = jax.tree.map(np.asarray, state.players[supervised.NET].params["dense0"])
    fitted = table.x @ layer["kernel"][:, 0] + layer["bias"]
    return {"data, fit and residuals": picture(table, fitted, target)}


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The regression that ``cfg`` describes."""
    dtype = jnp.dtype(cfg.precision)
    table = read(cfg)
    n, features = table.x.shape
    if cfg.batch_size > n:
        reason = f"there {'is' if n == 1 else 'are'} only {counted(n, 'example')}"
        raise UserError(reason, argument="batch_size", value=cfg.batch_size)
    _check_range(table.y, cfg)
    batch_size = cfg.batch_size or n
    design = np.concatenate([table.x, np.ones((n, 1))], axis=1)
    curvature, axes = np.linalg.eigh(2 / n * design.T @ design)
    if batch_size == n:
        _check_step(cfg.lr, curvature[-1])
    if cfg.gradients == "manual":
        layers = backprop.sequential(("dense0", backprop.dense()))
        gradient = backprop.value_and_grad(layers, backprop.squared_error)
    else:
        gradient = backprop.autodiff(Net(_zeros, _affine), losses.mean_squared_error)
    algorithm = supervised.make(
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
        fingerprint=table.fingerprint,
    )

    def evaluate(state: turns.State) -> dict[str, float]:
        """Parameters beside those of least squares, in the units of the data, and their distance.

        Distances are Euclidean norms of the error of ``(w, b)``, as trained. Gradient descent from
        zero goes to the least-squares solution of smallest norm, the one that ``lstsq`` gives. The
        prediction knows no rounding: in float32 the distance stops falling sooner.
        """
        params = state.players[supervised.NET].params["dense0"]
        layer = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
        found = np.concatenate([layer["kernel"][:, 0], layer["bias"]])
        optimum = np.linalg.lstsq(design, table.y[:, 0], rcond=None)[0]
        report = {}
        for suffix, fit in (("", found), ("/lstsq", optimum)):
            scaled = fit[:-1] / table.scale
            w = np.ldexp(scaled, -table.exponent)
            report |= {f"w[{name}]{suffix}": v for name, v in zip(table.names, w, strict=True)}
            report[f"b{suffix}"] = fit[-1] - scaled @ table.mean
            report[f"train_mse{suffix}"] = np.mean((design @ fit - table.y[:, 0]) ** 2)
        report["distance"] = np.linalg.norm(found - optimum)
        if batch_size == n:
            decay = (1 - cfg.lr * curvature) ** int(state.step)
            report["distance/predicted"] = np.linalg.norm(decay * (axes.T @ optimum))
        return {name: float(value) for name, value in report.items()}

    title = f"{counted(n, 'example')}, {counted(features, 'feature')}"
    return cli.Experiment(
        algorithm,
        source,
        evaluate,
        title,
        pictures=functools.partial(_pictures, table, cfg.target or "y"),
    )


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
