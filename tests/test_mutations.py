"""The mutation gate (SCIENCE T1.8): deliberate bugs, each of which a named check must catch.

A mutant is a module whose source differs in one place. If a check accepts it, the check is too weak and this fails.
"""

import pathlib
import types
from typing import Any

import pytest
from checks import averages as check_averages
from checks import flows, gans
from checks import losses as check_losses
from checks import networks as check_networks
from checks import penalties as check_penalties
from checks import transport as check_transport

import bpgan.algorithms.flow
import bpgan.algorithms.gan
import bpgan.algorithms.turns
import bpgan.losses
import bpgan.nets.spectral
import bpgan.optim
import bpgan.penalties

FLOW = bpgan.algorithms.flow
SOFTPLUS_G = "return jax.nn.softplus(-fake)"
MUTANTS = {
    "R1 without its half": (bpgan.penalties, "return 0.5 * _squared_gradient_norm(critic, real)",
                            "return _squared_gradient_norm(critic, real)", "r1"),
    "R2 at the real samples": (bpgan.penalties, "del real, key\n    return 0.5 * _squared_gradient_norm(critic, fake)",
                               "return 0.5 * _squared_gradient_norm(critic, real)", "r2"),
    "mean over pixels in place of the sum": (bpgan.penalties, "return jnp.sum(jnp.square(gradient)",
                                             "return jnp.mean(jnp.square(gradient)", "r1"),
    "detached penalty": (bpgan.penalties, "jnp.sum(jnp.square(gradient)",
                         "jnp.sum(jnp.square(jax.lax.stop_gradient(gradient))", "r1"),
    "one interpolation weight per pixel": (bpgan.penalties, "(x.shape[0],) + (1,) * (x.ndim - 1)",
                                           "x.shape", "gp"),
    "one interpolation weight per batch": (bpgan.penalties, "(x.shape[0],) + (1,) * (x.ndim - 1)",
                                           "(1,) * x.ndim", "gp"),
    "gradient penalty at the fakes": (bpgan.penalties, "return t * real + (1 - t) * fake", "return fake", "gp"),
    "one-sided gradient penalty": (bpgan.penalties,
                                   "_norm(_squared_gradient_norm(critic, _between(real, fake, key))) - 1.0)",
                                   "jax.nn.relu(_norm(_squared_gradient_norm(critic, _between(real, fake, key))) - 1))",
                                   "gp"),
    "least squares without its half": (bpgan.losses, "0.5 * (jnp.square(real - 1.0) + jnp.square(fake))",
                                       "jnp.square(real - 1.0) + jnp.square(fake)", "least_squares"),
    "least squares real and fake exchanged": (bpgan.losses, "0.5 * (jnp.square(real - 1.0) + jnp.square(fake))",
                                              "0.5 * (jnp.square(fake - 1.0) + jnp.square(real))",
                                              "least_squares"),
    "critic's sign flipped": (bpgan.losses, "return fake - real", "return real - fake", "wasserstein"),
    "G's sign flipped": (bpgan.losses, SOFTPLUS_G, "return jax.nn.softplus(fake)", "nonsaturating"),
    "clipped logarithm": (bpgan.losses, SOFTPLUS_G, "return -jnp.log(jax.nn.sigmoid(fake) + 1e-8)",
                          "nonsaturating"),
    "hinge without margin": (bpgan.losses, "jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)",
                             "jax.nn.relu(-real) + jax.nn.relu(fake)", "hinge"),
    "relativistic G with exchanged arguments": (bpgan.losses, "return jax.nn.softplus(real - fake)",
                                                "return jax.nn.softplus(fake - real)", "relativistic"),
    "lazy penalty without its factor": (bpgan.algorithms.turns, "return term.every * value, Aux(",
                                        "return value, Aux(", "lazy"),
    "lazy penalty twice as often": (bpgan.algorithms.turns, "index % term.every == 0",
                                    "index % max(term.every - 1, 1) == 0", "lazy"),
    "real and fake exchanged in D's step": (bpgan.algorithms.gan, "loss.d(*seen.logits))",
                                            "loss.d(*seen.logits[::-1]))", "dirac"),
    "G follows the old D": (bpgan.algorithms.turns, "now = Now(players, batch", "now = Now(state.players, batch",
                            "dirac"),
    "penalty left out of the gradient": (bpgan.algorithms.gan, "jnp.mean(value)\n",
                                         "jax.lax.stop_gradient(jnp.mean(value))\n", "dirac"),
    "summed loss": (bpgan.algorithms.gan, "value = jnp.mean(setting.loss.d(", "value = jnp.sum(setting.loss.d(",
                    "dirac"),
    "spectral norm without state": (bpgan.nets.spectral, "        kept.value = kept_now", "        pass", "spectral"),
    "spectral norm of the kernel's first axis": (bpgan.nets.spectral, "return kernel.reshape(-1, kernel.shape[-1])",
                                                 "return kernel.reshape(kernel.shape[0], -1)", "spectral"),
    "spectral norm one iteration late": (bpgan.nets.spectral, "return _product(v, _product(matrix, u))",
                                         "return _product(v, _product(matrix, unit(jnp.ones_like(u))))", "spectral"),
    "finite differences not divided by their step": (bpgan.penalties, "(2 * sigma if central else sigma)", "1.0",
                                                     "r1_fd"),
    "half of a finite difference twice": (bpgan.penalties, "return 0.5 * sum(squares", "return 0.25 * sum(squares",
                                          "r1_fd"),
    "finite differences at the reals alone": (bpgan.penalties, "del real\n    return _differences(critic, fake, key",
                                              "return _differences(critic, real, key", "r2_fd"),
    "logits compared and not centered": (bpgan.penalties, "jnp.square(real + fake), memory",
                                         "jnp.square(real - fake), memory", "centering"),
    "logits centered on average alone": (bpgan.penalties, "jnp.square(real + fake), memory",
                                         "jnp.square(real + fake).mean() + 0 * real, memory", "centering"),
    "transport to the mean latent": (bpgan.penalties, "moved = fake - z.reshape(fake.shape).astype(fake.dtype)",
                                     "moved = fake - z.reshape(fake.shape).mean(0, keepdims=True)", "transport"),
    "transport summed over the numbers of a sample": (bpgan.penalties, "return jnp.mean(jnp.square(moved)",
                                                      "return jnp.sum(jnp.square(moved)", "transport"),
    "transport normalized as well": (bpgan.algorithms.gan,
                                     'return _penalized(setting, "g", now, seen, value, metrics, memory)',
                                     "root = metrics.get('gradient', 1.0); out, aux = _penalized(setting, 'g', now,"
                                     " seen, value, metrics, memory); return value + (out - value) / root, aux",
                                     "normalized"),
    "average of squares not saved": (bpgan.algorithms.gan, "value, memory[NORMALIZATION], metrics[\"gradient\"] =",
                                     "value, _, metrics[\"gradient\"] =", "normalized"),
    "average of squares without their number": (bpgan.algorithms.gan, "slope.size * jnp.sum(", "jnp.sum(",
                                                "normalized"),
    "gradient divided by the average before it": (bpgan.algorithms.gan, "else kept)\n    slope =",
                                                  "else now.memory[NORMALIZATION])\n    slope =", "normalized"),
    "power average a step late": (bpgan.optim, "jnp.log1p(-1 / (step + 1))", "jnp.log1p(-1 / (step + 2))", "power"),
    "power average without the 1 of its order": (bpgan.optim, "order = exponent_of(sigma) + 1",
                                                 "order = exponent_of(sigma)", "power"),
    "coefficients that do not sum to 1": (bpgan.optim, "coefficients = coefficients / total",
                                          "coefficients = coefficients * 1.0", "combine"),
    "inner product by the exponent of the shorter": (bpgan.optim, "** long.exponent / long.steps",
                                                     "** short.exponent / long.steps", "combine"),
    "the other player goes on from the average": (
        bpgan.algorithms.turns, "players[name] = _reloaded(players[name],",
        "players['d'] = _reloaded(players['d'],", "reload",
    ),
    "reload one step late": (bpgan.algorithms.turns, "done = state.step + 1", "done = state.step", "reload"),
    "G does not move": (bpgan.algorithms.turns, "players[turn.player], kept, metrics[turn.player] = moved",
                        "players, kept, metrics[turn.player] = {**players, 'd': moved[0]}, *moved[1:]", "dirac"),
    "noise at t = 0": (FLOW, "return (1 - t) * x + t * z", "return t * x + (1 - t) * z", "flow: steps"),
    "velocity from noise to data": (FLOW, "return point, z - x, u.astype", "return point, x - z, u.astype",
                                    "flow: objectives"),
    "derivative at a fixed time": (FLOW, "push(u, jnp.ones_like(t))", "push(u, jnp.zeros_like(t))",
                                   "flow: fitted potential"),
    "targets of D exchanged": (FLOW, "jnp.square(real - 1) + jnp.square(fake + 1)",
                               "jnp.square(real + 1) + jnp.square(fake - 1)", "flow: objectives"),
    "G's target is D's": (FLOW, "jnp.square(j(u) - 1)", "jnp.square(j(u) + 1)", "flow: objectives"),
    "D centered by its mean": (FLOW, "jnp.mean(jnp.square(level))", "jnp.square(jnp.mean(level))",
                               "flow: objectives"),
    "Euler in the place of Heun": (FLOW, "(u + velocity(ahead, earlier))", "(u + u)", "flow: sampling"),
    "Heun at one time": (FLOW, "velocity(ahead, earlier)", "velocity(ahead, t)", "flow: sampling"),
    "a flow followed backwards": (FLOW, "ahead = x - u / n", "ahead = x + u / n", "flow: sampling"),
    "penalties of D divided by the step": (FLOW, '"d": length, "g": 1 / length',
                                           '"d": 1 / length, "g": 1 / length', "flow: weights"),
    "transport times the step": (FLOW, '"d": length, "g": 1 / length', '"d": length, "g": length',
                                 "flow: weights"),
    "steps of any shortness": (FLOW, "jnp.maximum(s - t, SHORTEST)", "(s - t)", "flow: weights"),
    "D at the time of the start": (FLOW, "times = (_strided(t, len(x)),)", "times = (_strided(s, len(x)),)",
                                   "flow: weights"),
    "noise shared where it is not paired": (FLOW, 'rows("z_of_real", flow.latents)',
                                            'rows("z", flow.latents)', "flow: steps"),
    "examples shared where they are not paired": (FLOW, "jnp.roll(every, 1, axis=0)", "every",
                                                  "flow: steps"),
    "a step in the other direction": (FLOW, "return x - _broad(s - t, x)", "return x + _broad(s - t, x)",
                                      "flow: steps"),
    "t does not depend on s": (FLOW, "s * jax.random.uniform(key_t, (n,))",
                               "jax.random.uniform(key_t, (n,))", "flow: steps"),
}  # fmt: skip


def mutate(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """The module with ``old``, which must stand there once, replaced by ``new``."""
    assert module.__file__ and module.__spec__
    source = pathlib.Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    mutant = types.ModuleType(module.__name__)
    mutant.__spec__, mutant.__package__ = module.__spec__, module.__package__
    exec(compile(source.replace(old, new), module.__file__, "exec"), mutant.__dict__)
    return mutant


def trained_by(module: types.ModuleType) -> Any:
    """``algorithms.gan`` as it is, or on this module in the place of ``algorithms.turns``."""
    if module.__name__ == bpgan.algorithms.gan.__name__:
        return module
    copy = mutate(bpgan.algorithms.gan, "algorithm = turns.play(", "algorithm = turns.play(")
    vars(copy)["turns"] = module
    return copy


def check(module: types.ModuleType, target: str) -> None:
    """The check that guards ``target``, run on a module (mutated or not)."""
    if target in ("r1", "r2"):
        check_penalties.check_on_quadratic_critic(target, module.PENALTIES[target])
    elif target == "gp":
        check_penalties.check_gradient_penalty(module.PENALTIES["wgan_gp"])
    elif target in ("r1_fd", "r2_fd"):
        check_transport.check_differences(target, module.PENALTIES[target])
    elif target == "centering":
        check_transport.check_centering(module.PENALTIES[target])
    elif target == "transport":
        check_transport.check_transport(module.G_PENALTIES[target])
    elif target == "normalized":
        check_transport.check_normalized(module)
    elif target.startswith("flow: "):
        flows.CHECKS[target.removeprefix("flow: ")](module)
    elif target == "lazy":
        gans.check_lazy_penalty(trained_by(module))
    elif target == "spectral":
        check_networks.check_spectral_norm(module.spectral_norm)
    elif target == "power":
        check_averages.check_power(module.power)
    elif target == "combine":
        check_averages.check_combine(module)
    elif target == "reload":
        check_averages.check_reload(module)
    elif target == "dirac":
        loss, r1 = bpgan.losses.LOSSES["nonsaturating"], bpgan.penalties.PENALTIES["r1"]
        gans.check_dirac(trained_by(module), "nonsaturating", loss, r1, False, 1)
    else:
        check_losses.check_values_and_gradients(target, module.LOSSES[target])
        check_losses.check_anchor(target, module.LOSSES[target])


@pytest.mark.medium
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    module, old, new, target = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(mutate(module, old, new), target)


@pytest.mark.medium
@pytest.mark.parametrize("target", sorted({mutant[3] for mutant in MUTANTS.values()}))
def test_original_passes(target):
    module = next(mutant[0] for mutant in MUTANTS.values() if mutant[3] == target)
    check(module, target)
