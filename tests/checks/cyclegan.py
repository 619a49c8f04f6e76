"""A system of three players on ``algorithms.turns``, which knows nothing of it: translation without pairs.

    min_{F, B} max_{D_a, D_b}  adversarial + weight (E |B(F(a)) - a| + E |F(B(b)) - b|)

Zhu et al. 2017, arXiv:1703.10593, with least squares. Both generators are one player, for one optimizer moves them.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from bpgan.algorithms.turns import Aux, Now, Term, Turn, play
from bpgan.types import PRNG, Algorithm, Net, stream


def translate(forth: Net, back: Net, now: Now, a: Any, b: Any) -> tuple[Any, Any]:
    """``F(a), B(b)``."""
    params = now.players["g"].params
    to_b, _ = forth.apply({"params": params["forth"]}, a, train=True)
    to_a, _ = back.apply({"params": params["back"]}, b, train=True)
    return to_b, to_a


def score(net: Net, now: Now, name: str, x: Any) -> Any:
    """The logits of one of the critics."""
    return net.apply(now.players[name].variables, x, train=True)[0]


def make(
    generators: tuple[Net, Net],
    critics: tuple[Net, Net],
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    *,
    data_shape: Sequence[int],
    weight: float = 10.0,
) -> Algorithm:
    """Batches are ``{"a": [b, ...], "b": [b, ...]}``; optimizers those of the generators and of each critic."""
    forth, back = generators
    names = {"d_a": ("a", critics[0]), "d_b": ("b", critics[1])}

    def fakes(now: Now) -> dict[str, Any]:
        to_b, to_a = translate(forth, back, now, now.batch["a"], now.batch["b"])
        return {"fake_a": to_a, "fake_b": to_b}

    def g_objective(now: Now) -> tuple[Any, Aux]:
        a, b = now.batch["a"], now.batch["b"]
        to_b, to_a = translate(forth, back, now, a, b)
        again_b, again_a = translate(forth, back, now, to_a, to_b)
        cycle = jnp.mean(jnp.abs(again_a - a)) + jnp.mean(jnp.abs(again_b - b))
        fooled = [score(critics[0], now, "d_a", to_a), score(critics[1], now, "d_b", to_b)]
        loss = sum(jnp.mean(jnp.square(logits - 1)) for logits in fooled)
        return loss + weight * cycle, Aux(metrics={"loss": loss, "cycle": cycle})

    def d_turn(name: str) -> Turn:
        side, net = names[name]

        def objective(now: Now) -> tuple[Any, Aux]:
            real, fake = (score(net, now, name, now.batch[key]) for key in (side, f"fake_{side}"))
            loss = jnp.mean(jnp.square(real - 1)) + jnp.mean(jnp.square(fake))
            return loss, Aux(metrics={"loss": loss})

        return Turn(name, [Term(objective)], optimizers[1], prepare=fakes)

    def init(key: PRNG) -> dict[str, Any]:
        x = jnp.zeros((2, *data_shape))
        nets = {"forth": forth, "back": back, "d_a": critics[0], "d_b": critics[1]}
        found = {name: net.init(stream(key, name), x) for name, net in nets.items()}
        pair = {name: found.pop(name)["params"] for name in ("forth", "back")}
        return {"g": {"params": pair}, **found}

    players = [Turn("g", [Term(g_objective)], optimizers[0]), d_turn("d_a"), d_turn("d_b")]
    return play(init, players)
