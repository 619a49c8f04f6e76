"""Linear regression against the closed form of descent on a quadratic, and bad CSV files."""

import csv
import json
import re

import numpy as np
import pytest

from bpgan import cli
from bpgan.runtime.program import compile_program
from bpgan.types import UserError
from experiments import linear_regression


def build(*flags):
    return linear_regression.build(
        cli.resolve(linear_regression.Config, linear_regression.PRESETS, flags)
    )


def train(experiment, steps):
    program = compile_program(experiment.algorithm, experiment.source, seed=0, devices=1)
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


@pytest.mark.medium
@pytest.mark.parametrize(
    "x, y, w, b",
    [
        ([0.1] * 10, range(10), 0.0, 4.5),  # the mean of ten 0.1 is another number
        ([0.3, 0.1 + 0.2] * 5, range(10), 0.0, 4.5),  # nor is this more than rounding
        ([1e12 + i for i in range(10)], range(10), 1.0, -1e12),
        ([1e308, -1e308], [3, 5], -1e-308, 4.0),
        ([1e-200, -1e-200, 0], [2, 0, 1], 1e200, 1.0),
        ([1e-5, 2e-5], [1e-5, 1e-5], 0.0, 1e-5),
        ([0.0, 0.0], [1, 2], 0.0, 1.5),
    ],
)
def test_columns_of_any_size_and_constant_ones(tmp_path, x, y, w, b):
    path = tmp_path / "data.csv"
    rows = [f"{p!r},1e150,{q!r}" for p, q in zip(x, y, strict=True)]
    path.write_text("\n".join(["x,c,y", *rows]))
    _, report = train(build(f"--csv={path}", "--target=y"), 3000)
    for suffix, rtol in (("", 1e-5), ("/lstsq", 1e-9)):
        assert report[f"w[c]{suffix}"] == 0
        np.testing.assert_allclose(report[f"w[x]{suffix}"], w, rtol=rtol, atol=1e-12 * (w == 0))
        np.testing.assert_allclose(report[f"b{suffix}"], b, rtol=rtol)


@pytest.mark.parametrize("top, bounds", [(1e300, "1.1e-16 and 1.8e+16"), (1e-30, "1.1e-16 and")])
def test_targets_whose_squares_are_no_floats_are_refused(tmp_path, top, bounds):
    """They were trained to weights of 0, or diverged."""
    path = tmp_path / "data.csv"
    path.write_text(f"x,y\n1,{top}\n2,0\n")
    with pytest.raises(UserError) as error:
        build(f"--csv={path}", "--target=y")
    said = cli.message_of(error.value)
    assert said.startswith(f"--target=y: its largest number is {top:g} in size") and bounds in said
    if top < 1:
        assert build(f"--csv={path}", "--target=y", "--precision=float64")


@pytest.mark.medium
def test_changed_numbers_are_refused_and_moved_ones_are_not(tmp_path, capsys, no_curves):
    path, moved = tmp_path / "data.csv", tmp_path / "moved.csv"

    def run(*flags):
        argv = ["--target=y", f"--workdir={tmp_path / 'run'}", "--notensorboard", *flags]
        return cli.run(linear_regression.Config, linear_regression.build, {}, argv)

    path.write_text("x,y\n1,2\n2,3\n3,5\n")
    assert run(f"--csv={path}", "--epochs=10") == 0
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", record["data"])
    path.write_text("x,y\n1,20\n2,3\n3,6\n")
    assert run(f"--csv={path}", "--epochs=11") == 2
    assert "the data have changed since this run began" in capsys.readouterr().err
    moved.write_text("x , y\r\n1.0,2.0\r\n2.0,3.0\r\n3.0,5.0\r\n")
    assert run(f"--csv={moved}", "--epochs=11") == 0
    moved.write_text("x,y\n10,2\n20,3\n30,5\n")  # equal when standardized, with other weights
    assert run(f"--csv={moved}", "--epochs=12") == 2
    with pytest.raises(UserError, match="flags=csv=.*: other data than those of the run"):
        cli.restore(tmp_path / "run", changes=[f"csv={moved}"])
    moved.unlink()
    with pytest.raises(UserError, match="--csv=.*moved, `flags=csv=...` says where to"):
        cli.restore(tmp_path / "run", changes=[])
    path.write_text("x,y\n1,2\n2,3\n3,5\n")
    assert cli.restore(tmp_path / "run", changes=[f"csv={path}"]).step == 11


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
    with pytest.raises(UserError) as error:
        build(f"--csv={path}", f"--target={target}")
    said = cli.message_of(error.value)
    assert re.search(message, said) and "\n" not in said and "data.csv" in said


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--target=y", "--target=y: names a column of --csv, which is not given"),
        ("--lr=0.1", "--lr=0.1: diverges on this data; must be < 0.0845"),
        ("--batch_size=6", "--batch_size=6: there are only 5 examples"),
    ],
)
def test_bad_flags(flag, message):
    with pytest.raises(UserError) as error:
        build(flag)
    assert cli.message_of(error.value).startswith(message)


def test_the_largest_allowed_step_size_is_sharp(x64):
    """Just below 2 / L descent still contracts."""
    flags = ["--precision=float64", "--lr=0.0845"]
    (_, early), (_, late) = (train(build(*flags), steps) for steps in (100, 2000))
    assert late["distance"] < early["distance"]
