"""GANs whose trajectories are known exactly, and small ones of perceptrons; checks that mutants must fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpgan.algorithms import game, gan
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES, weighted
from bpgan.types import Net

# The Dirac-GAN (Mescheder et al. 2018, arXiv:1801.04406): real mass at 0, G emits theta, D(x) = psi x.
DIRAC_G = Net(
    init=lambda key, z: {"params": jnp.ones(())},
    apply=lambda v, z, train: (jnp.broadcast_to(v["params"], (z.shape[0], 1)), {}),
)
DIRAC_D = Net(
    init=lambda key, x: {"params": -jnp.ones(())},
    apply=lambda v, x, train: (v["params"] * x[:, 0], {}),
)

# |(theta, psi)| after 500 steps of size 0.1 from (1, -1) for gamma = 0, 0.3, 1, 2, simultaneous or not; SCIENCE T2.1.
DIRAC_NORMS = {
    ("minimax", True): (2.25358, 9.1957e-4, 2.283e-10, 1.22470e-3),
    ("nonsaturating", True): (0.521108, 8.6412e-4, 8.300e-12, 8.9782e-4),
    ("minimax", False): (1.41427, 5.0234e-4, 4.1223e-9, 1.38170e-3),
    ("nonsaturating", False): (0.381375, 4.3757e-4, 1.13851e-9, 1.08016e-3),
}


def dirac(module, loss, tx, *, gamma=0.0, penalty=PENALTIES["r1"], **options):
    """The Dirac-GAN in float64; ``module`` is ``gan`` or a mutant of it."""
    latents = module.uniform_latents(1, jnp.float64)
    networks = module.Networks(DIRAC_G, DIRAC_D, latents, (1,), jnp.float64)
    penalties = [weighted(gamma, penalty)]
    return module.make(networks, loss, module.Optimizers(tx, tx), penalties=penalties, **options)


def params_of(state):
    """``(theta, psi)``: of G, then of D."""
    return tuple(state.players[name].params for name in game.PLAYERS)


def at(state, **params):
    """The state with other parameters of some players."""
    moved = {name: state.players[name]._replace(params=p) for name, p in params.items()}
    return state._replace(players={**state.players, **moved})


def trajectory(algorithm, steps: int, rows: int = 4) -> np.ndarray:
    """(theta, psi) after each step, float64 [steps + 1, 2]."""
    batch = {"x": jnp.zeros((rows, 1))}

    def body(state, _):
        state, _ = algorithm.step(state, batch, jax.random.key(0))
        return state, jnp.stack(params_of(state))

    state = algorithm.init(jax.random.key(1))
    start = np.array([params_of(state)])
    _, points = jax.jit(lambda s: jax.lax.scan(body, s, None, length=steps))(state)
    return np.concatenate([start, np.asarray(points)])


def check_dirac(
    module, loss_name: str, loss, penalty, simultaneous: bool, gamma_index: int
) -> None:
    """T2.1: update order, signs, step size, the half in R1 and absence of momentum, in one number."""
    gamma = (0.0, 0.3, 1.0, 2.0)[gamma_index]
    expected = DIRAC_NORMS[loss_name, simultaneous][gamma_index]
    rule = game.RULES["simultaneous"] if simultaneous else None
    with jax.enable_x64(True):
        algorithm = dirac(module, loss, optax.sgd(0.1), gamma=gamma, penalty=penalty, rule=rule)
        norm = np.hypot(*trajectory(algorithm, 500)[-1])
    np.testing.assert_allclose(norm, expected, rtol=1e-2 if expected < 1e-8 else 1e-4)


def recorder() -> optax.GradientTransformation:
    """An optimizer that sums the gradients it is given and never moves."""

    def update(grads, total, params=None):
        del params
        return jax.tree.map(jnp.zeros_like, grads), jax.tree.map(jnp.add, total, grads)

    return optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)


def mlp_gan(module=gan, loss="nonsaturating", tx=None, *, shape=(2,), sampling=(), **options):
    """Perceptrons of 8 units; ``sampling`` are the last two fields of ``gan.Networks``."""
    tx = tx or optax.sgd(0.1)
    nets = (mlp.Generator(shape=shape, widths=(8,)), mlp.Discriminator(widths=(8,)))
    networks = module.Networks(*map(linen_net, nets), module.normal_latents(3), shape)
    networks = networks._replace(**dict(sampling))
    return module.make(networks, LOSSES[loss], module.Optimizers(tx, tx), **options)


def run(algorithm, steps, batch, state=None):
    """State and metrics after so many steps."""
    state = algorithm.init(jax.random.key(0)) if state is None else state
    step = jax.jit(algorithm.step)
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(1))
    return state, metrics


def check_lazy_penalty(module) -> None:
    """T1.4: with frozen players, six D updates with the penalty every third sum to the same gradient."""
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)}
    totals = []
    for every in (1, 3):
        penalties = [weighted(5.0, PENALTIES["r1"], every)]
        algorithm = mlp_gan(module, tx=recorder(), penalties=penalties)
        totals.append(run(algorithm, 6, batch)[0].players["d"].opt)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *totals)
