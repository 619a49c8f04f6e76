"""What a penalty of D costs: time and memory of an update's gradient with exact R1 and R2, and by finite differences.

The discriminator is any that ``experiments.image_gan`` takes, with seeds, real and fake images of noise. A gradient is
that of the relativistic loss and the penalties in D's parameters; the programs take turns, medians over the rounds.
Memory is what XLA sets aside for a program's intermediate values.

    python -m benchmarks.penalties [--net=lite:24] [--shape=28,28,1] [--batch=64] [--precision=float32] [--rounds=N]
                                   [--json=PATH]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bpgan import penalties
from bpgan.losses import relativistic_d
from bpgan.nets import architecture
from bpgan.types import Net

CASES = ("none", "r1=0.3+r2=0.3", "r1_fd=0.3+r2_fd=0.3", "r1_fd=0.3,share=4+r2_fd=0.3,share=4")


def program(net: Net, penalty: str, variables: Any, batch: tuple[Any, ...], key: Any) -> Any:
    """The compiled gradient of D's objective, ``(params, batch, key) -> gradient``."""
    terms = penalties.parse(penalty).over(1)

    def objective(params: Any, batch: tuple[Any, ...], key: Any) -> jax.Array:
        critic = lambda x: net.apply({**variables, "params": params}, x, train=True)[0]  # noqa: E731
        real, fake = batch
        logits = critic(real), critic(fake)
        scene = penalties.Scene(params, critic, lambda z: z, real, fake, real, logits, key)
        named = {str(i): term for i, term in enumerate(terms)}
        keys = dict(zip(named, jax.random.split(key, max(len(named), 1)), strict=False))
        penalty, _ = penalties.weighted_sum(named, scene, 0, {}, keys.__getitem__)
        return jnp.mean(relativistic_d(*logits)) + penalty

    lowered = jax.jit(jax.grad(objective)).lower(variables["params"], batch, key)
    return lowered.compile()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a penalty of D costs.")
    parser.add_argument("--net", default="lite:24", help="of D, as in --net=G/D of image_gan")
    parser.add_argument("--shape", default="28,28,1", help="of an image")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    h, w, c = map(int, args.shape.split(","))
    net = architecture.parse(args.net).d.make((h, w, c), dtype=jnp.dtype(args.precision))
    keys = jax.random.split(jax.random.key(0), 4)
    batch = tuple(jax.random.normal(key, (args.batch, h, w, c)) for key in keys[:2])
    variables = net.init(keys[2], batch[0])
    programs = {case: program(net, case, variables, batch, keys[3]) for case in CASES}
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for turn in range(args.rounds + 1):
        for case, gradient in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(gradient(variables["params"], batch, keys[3]))
            if turn:  # the first is a rehearsal
                seconds[case].append(time.perf_counter() - start)
    device = f"{jax.devices()[0].device_kind}, {platform.processor() or platform.machine()}"
    print(f"D of {args.net}, {args.batch} images of {h}x{w}x{c}, {args.precision}; {device}")
    print(f"{'penalty':38s} {'ms':>8s} {'times none':>11s} {'MiB':>8s}")
    answers, base = [], statistics.median(seconds["none"])
    for case, gradient in programs.items():
        median = statistics.median(seconds[case])
        memory = gradient.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{case:38s} {1e3 * median:8.1f} {median / base:11.2f} {memory:8.1f}", flush=True)
        answers.append({"penalty": case, "seconds": seconds[case], "mebibytes": memory})
    if args.json:
        args.json.write_text(json.dumps({**vars(args), "json": "", "found": answers}, indent=1))


if __name__ == "__main__":
    main()
