"""Programs of matrix products on a CPU: which they are, and that they compute what they did."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpgan.runtime import compiler, products, program
from bpgan.types import Algorithm, Source

ROWS = 128  # a multiple of the length of rows that are transposed


def _arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _turned(x, w):
    return x @ w.T


def _gradient(x, w):
    return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ w)))(x)


def _in_a_loop(x, w):
    return lax.scan(lambda total, row: (total + (x * row) @ w.T, None), x @ w.T, x[0, :3])[0]


def _in_a_branch(x, w):
    return lax.cond(x[0, 0] > 5, lambda: x @ w.T, lambda: 2 * x @ w.T)


def _both(x, w):
    return {"all": (x @ w.T, w @ x.T)}, w


def _of_rows(x, w):
    """As the gradients of single records are: each row a matrix of one, and a norm of each."""
    y = jax.vmap(lambda row: row[None] @ w.T)(x)
    return y, jax.vmap(lambda row: jnp.vdot(row, row))(x)


OF_MATRICES = {  # function, shapes, how many matrices are transposed
    "a product": (_turned, ((5, ROWS), (7, ROWS)), 1),
    "what einsum makes": (lambda x, w: jnp.einsum("ik,jk->ij", x, w), ((5, ROWS), (7, ROWS)), 1),
    "a gradient": (_gradient, ((5, 7), (7, ROWS)), 1),
    "a loop": (_in_a_loop, ((5, ROWS), (7, ROWS)), 2),
    "a branch": (_in_a_branch, ((5, ROWS), (7, ROWS)), 2),
    "row by row": (_of_rows, ((5, ROWS), (7, ROWS)), 1),
    "a tree": (_both, ((5, ROWS), (5, ROWS)), 2),
    "short rows": (_turned, ((5, 30), (7, 30)), 0),
}
each = pytest.mark.parametrize("function, shapes, times", OF_MATRICES.values(), ids=OF_MATRICES)


def _compiled(function, *arrays):
    found = products.arranged(jax.jit(function).trace(*arrays))
    assert found is not None
    return jax.jit(found, compiler_options=compiler.options("cpu", matrices=True, flags=""))


@each
def test_the_numbers_are_those_of_float64(function, shapes, times):
    del times
    arrays = _arrays(*shapes)
    found = _compiled(function, *arrays)(*arrays)
    with jax.enable_x64(True):
        expected = jax.jit(function)(*(x.astype(float) for x in arrays))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@each
def test_matrices_with_long_rows_are_transposed_before_a_product(function, shapes, times):
    lowered = _compiled(function, *_arrays(*shapes)).lower(*_arrays(*shapes))
    assert lowered.as_text().count("optimization_barrier") == times
    assert "ynn" not in lowered.compile().as_text()


def test_a_product_in_float64_stays_as_it_is():
    with jax.enable_x64(True):
        x = np.ones((3, ROWS))
        assert "optimization_barrier" not in _compiled(_turned, x, x).lower(x, x).as_text()


OTHERS = {
    "no product": (lambda x: x + 1, (4, 4)),
    "a stack of matrices": (lambda x: x @ x, (2, 4, 4)),
    "a stack in a loop": (lambda x: lax.fori_loop(0, 3, lambda i, y: y @ x, x), (2, 4, 4)),
    "a convolution beside a product": (
        lambda x: (x[0, 0] @ x[0, 0], lax.conv(x, x, (1, 1), "SAME")),
        (4, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("function, shape", OTHERS.values(), ids=OTHERS)
def test_other_programs_stay_as_they_are(function, shape):
    assert products.arranged(jax.jit(function).trace(*_arrays(shape))) is None


def test_so_do_all_with_another_version_of_xla(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    assert products.arranged(jax.jit(_turned).trace(*_arrays((5, ROWS), (7, ROWS)))) is None


class Point(NamedTuple):
    step: Any
    w: Any


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_program_of_a_run_on_one_device_is_arranged(mode, monkeypatch):
    (x,) = _arrays((16, ROWS))
    source = Source({"x": x}, lambda data, step: data, 16, 16, fingerprint="x", examples=x)

    def step(state, batch, key):
        def loss(w):
            return jnp.mean(jnp.square(jnp.tanh(batch["x"] @ w) @ w.T - batch["x"]))

        value, gradient = jax.value_and_grad(loss)(state.w)
        return Point(state.step + 1, state.w - 0.1 * gradient), {"loss": value}

    def start(key):
        return Point(jnp.zeros((), jnp.int32), jax.random.normal(key, (ROWS, 8)))

    def trained():
        one = program.compile_program(Algorithm(start, step), source, seed=0, mode=mode, devices=1)
        return np.asarray(one.run(one.init(), 3)[0].state.w)

    asked, arranged = [], products.arranged

    def options(platform, **given):
        asked.append(given)
        return {}

    found = trained()
    monkeypatch.setattr(compiler, "options", options)
    monkeypatch.setattr(products, "arranged", lambda *given: None)
    np.testing.assert_allclose(found, trained(), rtol=1e-5, atol=1e-6)
    assert {} in asked
    monkeypatch.setattr(products, "arranged", arranged)
    trained()
    assert ({"matrices": True} in asked) == (mode == "jit")
