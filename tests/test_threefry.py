"""Random numbers computed in one pass are those of ``jax.random``, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpgan import threefry

KEYS = [0, 7, 2**31 - 5]
DRAWS = {
    "bits": lambda key: jax.random.bits(key, (3, 5, 7)),
    "a scalar": lambda key: jax.random.uniform(key),
    "none": lambda key: jax.random.uniform(key, (0, 3)),
    "uniform": lambda key: jax.random.uniform(key, (128, 100), minval=-1.0, maxval=1.0),
    "normal": lambda key: jax.random.normal(key, (33, 17)),
    "truncated": lambda key: jax.random.truncated_normal(key, -1.0, 1.0, (64,)),
    "integers": lambda key: jax.random.randint(key, (50,), 0, 9000),
    "permutation": lambda key: jax.random.permutation(key, 100),
    "bernoulli": lambda key: jax.random.bernoulli(key, 0.3, (200,)),
    "bytes": lambda key: jax.random.bits(key, (31,), jnp.uint8),
    "bfloat16": lambda key: jax.random.normal(key, (31,), jnp.bfloat16),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**32 - 1)),
    "a fold of a split": lambda key: jax.random.normal(
        jax.random.fold_in(jax.random.split(key)[1], 3), (9,)
    ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_numbers_are_those_of_jax(draw):
    ours = jax.jit(lambda seed: draw(threefry.unroll(jax.random.key(seed))))
    theirs = jax.jit(lambda seed: draw(jax.random.key(seed)))
    for seed in KEYS:
        found, expected = ours(seed), theirs(seed)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_numbers_are_those_of_jax_in_float64():
    with jax.enable_x64(True):
        for draw in (jax.random.normal, jax.random.uniform):
            found = draw(threefry.unroll(jax.random.key(3)), (40,), jnp.float64)
            np.testing.assert_array_equal(found, draw(jax.random.key(3), (40,), jnp.float64))


def test_numbers_of_many_keys_are_those_of_each():
    seeds = jnp.arange(4)
    found = jax.vmap(lambda seed: jax.random.bits(threefry.unroll(jax.random.key(seed)), (6,)))(
        seeds
    )
    np.testing.assert_array_equal(found, [jax.random.bits(jax.random.key(i), (6,)) for i in seeds])


def test_block_is_the_published_one():
    """Salmon et al. 2011: the known answers of Random123 for Threefry-2x32-20."""
    answers = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in answers:
        found = threefry.encrypt(jnp.array(key, jnp.uint32), *jnp.array(counter, jnp.uint32))
        assert tuple(map(int, found)) == expected


def test_other_keys_stay_as_they_are():
    other = jax.random.key(0, impl="rbg")
    assert threefry.unroll(other) is other
    key = jax.random.key(0)
    assert jax.random.key_impl(threefry.unroll(key)) != jax.random.key_impl(key)
    with jax.threefry_partitionable(False):
        assert threefry.unroll(key) is key
