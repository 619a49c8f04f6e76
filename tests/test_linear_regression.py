"""Linear regression against the closed form of descent on a quadratic, and bad CSV files."""

import csv

import numpy as np
import pytest

from bpgan.runtime import parallel
from bpgan.types import UserError
from experiments import _cli as cli
from experiments import linear_regression


def build(*flags):
    return linear_regression.build(
        cli.resolve(linear_regression.Config, linear_regression.PRESETS, flags)
    )


def train(experiment, steps):
    program = parallel.compile(experiment.algorithm, experiment.source, seed=0, devices=1)
    carry, finite = program.run(program.init(), steps)
    assert finite
    return carry, experiment.evaluate(carry.state)


@pytest.mark.parametrize("gradients", ["manual", "autodiff"])
def test_the_article_ends_where_the_contraction_says(gradients, x64):
    """After t steps ``(w, b) - (1, 0) = -(I - lr H)^t (1, 0)`` with ``H = [[22, 6], [6, 2]]``."""
    experiment = build(f"--gradients={gradients}", "--precision=float64")
    assert experiment.source.steps_per_epoch == 1
    hessian = np.array([[22.0, 6.0], [6.0, 2.0]])
    error = np.linalg.matrix_power(np.eye(2) - 0.01 * hessian, 1000) @ [-1.0, 0.0]
    _, report = train(experiment, 1000)
    np.testing.assert_allclose([report["w[x]"] - 1, report["b"]], error, rtol=1e-9)
    np.testing.assert_allclose(report["distance"], np.linalg.norm(error), rtol=1e-9)
    np.testing.assert_allclose(report["distance/predicted"], np.linalg.norm(error), rtol=1e-9)
    assert 0.0090 < report["distance"] < 0.0091
    np.testing.assert_allclose([report["w[x]/lstsq"], report["b/lstsq"]], [1, 0], atol=1e-12)
    np.testing.assert_allclose(report["train_mse"], error @ hessian @ error / 2, rtol=1e-9)


def test_long_enough_it_reaches_least_squares(x64):
    """``0.99662^9000 < 1e-13``: nothing but rounding is left."""
    _, report = train(build("--precision=float64"), 9000)
    np.testing.assert_allclose([report["w[x]"], report["b"]], [1, 0], atol=1e-12)


def test_the_first_loss_is_that_of_zero_parameters():
    carry, _ = train(build(), 1)
    np.testing.assert_allclose(carry.window.means()["loss"], 11.0, rtol=1e-6)


@pytest.fixture
def houses(tmp_path):
    """A file of two features of very different units and a constant one, with its arrays."""
    random = np.random.default_rng(0)
    rooms, year = random.normal(4, 1, 40), random.normal(1960, 25, 40)
    price = 3e4 * rooms - 400 * (year - 1900) + random.normal(0, 5e3, 40)
    with open(tmp_path / "houses.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["rooms", " price", "doors", "built, year"])
        writer.writerows(zip(rooms, price, np.ones(40), year, strict=True))
        file.write("\n")
    return tmp_path / "houses.csv", np.stack([rooms, year, np.ones(40)], axis=1), price


def test_user_data_ends_at_least_squares_in_its_own_units(houses, x64):
    path, design, price = houses
    experiment = build(f"--csv={path}", "--target=price", "--precision=float64")
    _, report = train(experiment, 2000)
    w = np.linalg.lstsq(design, price, rcond=None)[0]
    for suffix in ("", "/lstsq"):
        found = [report[f"{name}{suffix}"] for name in ("w[rooms]", "w[built, year]", "b")]
        np.testing.assert_allclose(found, w, rtol=1e-8)
        assert abs(report[f"w[doors]{suffix}"]) < 1e-9
        np.testing.assert_allclose(
            report[f"train_mse{suffix}"], np.mean((design @ w - price) ** 2), rtol=1e-8
        )


def test_stochastic_gradient_descent_comes_near(houses):
    path, _, _ = houses
    experiment = build(f"--csv={path}", "--target=price", "--batch_size=8")
    assert experiment.source.steps_per_epoch == 5
    _, report = train(experiment, 5000)
    assert "distance/predicted" not in report
    assert 1 < report["train_mse"] / report["train_mse/lstsq"] < 1.1


@pytest.mark.parametrize(
    "text, target, message",
    [
        (None, "y", "data.csv: cannot be read .No such file"),
        ("x,y\n1,2\n", "y", "at least two lines"),
        ("x,y\n1,2\n3,4\n", "", "target=: must be a column of .*data.csv: x, y"),
        ("x,y\n1,2\n3,4\n", "z", "target=z: must be a column of .*data.csv: x, y"),
        ("y\n1\n2\n", "y", "no column but the target 'y'"),
        ("x,x,y\n1,2,3\n4,5,6\n", "y", "line 1: columns need names that differ"),
        ("x,y\n1,2\n\n3\n", "y", "line 4: 1 cells, the header has 2"),
        ("x,y\n1,2\n3,four\n", "y", "line 3, column 'y': 'four' is no number"),
        ("x,y\n1,2\nnan,4\n", "y", "line 3, column 'x': 'nan' is no number"),
        (b"x,y\n\xff,2\n3,4\n", "y", "data.csv: cannot be read .*utf-8"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, text, target, message):
    path = tmp_path / "data.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        build(f"--csv={path}", f"--target={target}")
    assert "\n" not in str(error.value) and "data.csv" in str(error.value)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--target=y", "target=y: names a column of --csv, which is not given"),
        ("--lr=0.1", "lr=0.1: diverges on this data; must be < 0.0845"),
        ("--batch_size=6", "batch_size=6: there are only 5 examples"),
    ],
)
def test_bad_flags(flag, message):
    with pytest.raises(UserError, match=message):
        build(flag)


def test_the_largest_allowed_step_size_is_sharp(x64):
    """Just below 2 / L descent still contracts."""
    flags = ["--precision=float64", "--lr=0.0845"]
    (_, early), (_, late) = (train(build(*flags), steps) for steps in (100, 2000))
    assert late["distance"] < early["distance"]
