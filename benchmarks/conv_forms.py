"""The forms of convolutions on a CPU, layer by layer: by what grid ``bpgan/nets/conv_cpu.py`` chooses.

For each layer of the recipes, the convolution, its input gradient and its kernel gradient: the plain convolution that
XLA:CPU is given without a form, and what bpgan gives it, inside a loop. With ``--grid``, kernel gradients in blocks of
several sizes and Winograd's form with several numbers of tiles beside them.

Process CPU time on one pinned core with one thread; the forms take turns, and medians are over the rounds.

    python -m benchmarks.conv_forms [--only=TEXT] [--grid] [--rounds=N] [--json=PATH]
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
if hasattr(os, "sched_setaffinity"):  # Linux; before jax counts the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers import machine
from bpgan.nets import conv_cpu, winograd

LAYERS = {  # batch, side, kernel, stride, channels in and out; padded to keep or to halve the size
    "default D 1->16": (64, 28, 3, 1, 1, 16),
    "default D 16->32 s2": (64, 28, 4, 2, 16, 32),
    "default D 32->64 s2": (64, 14, 4, 2, 32, 64),
    "default G 128->64": (64, 7, 3, 1, 128, 64),
    "default G 64->32": (64, 14, 3, 1, 64, 32),
    "default G 32->1": (64, 28, 3, 1, 32, 1),
    "lite28 D 1->24": (64, 28, 3, 1, 1, 24),
    "lite28 D 24->48 s2": (64, 28, 4, 2, 24, 48),
    "lite28 D 48->96 s2": (64, 14, 4, 2, 48, 96),
    "lite28 G 96->48": (64, 7, 3, 1, 96, 48),
    "lite28 G 48->24": (64, 14, 3, 1, 48, 24),
    "lite28 G 24->1": (64, 28, 3, 1, 24, 1),
    "DCGAN-28 1->64 s2": (128, 28, 4, 2, 1, 64),
    "DCGAN-28 64->128 s2": (128, 14, 4, 2, 64, 128),
    "DCGAN-28 128->128 s2": (128, 14, 4, 2, 128, 128),
    "SNGAN-32 3->128 @32": (16, 32, 3, 1, 3, 128),
    "SNGAN-32 128->128 @32": (16, 32, 3, 1, 128, 128),
    "SNGAN-32 128->128 @16": (16, 16, 3, 1, 128, 128),
    "SNGAN-32 128->128 @8": (16, 8, 3, 1, 128, 128),
    "SNGAN-32 128->128 1x1 @16": (16, 16, 1, 1, 128, 128),
    "SNGAN-32 256->256 @8": (16, 8, 3, 1, 256, 256),
    "SNGAN-32 256->256 @16": (16, 16, 3, 1, 256, 256),
    "SNGAN-32 256->256 @32": (16, 32, 3, 1, 256, 256),
    "SNGAN-32 256->256 1x1 @16": (16, 16, 1, 1, 256, 256),
    "SNGAN-32 256->3 @32": (16, 32, 3, 1, 256, 3),
}
BLOCKS = (400, 800, 1600, 3200)
TILES = (128, 256, 512, 1024)

Form = Callable[..., Any]


def plain_conv(x: Any, w: Any, **params: Any) -> Any:
    return conv_cpu._plain(x, w, params["strides"], params["padding"], None)


def plain_input_grad(g: Any, w: Any, **params: Any) -> Any:
    """The convolution by the turned kernel, or by phases where it is strided and has the channels."""
    if params["strides"] != (1, 1) and w.shape[2] >= 8:
        return conv_cpu._by_phases(g, w, **params)
    pads = [
        (k - 1 - lo, n + lo - s * (p - 1) - 1)
        for k, s, (lo, _), n, p in zip(
            w.shape[:2], params["strides"], params["padding"], params["size"], g.shape[1:3],
            strict=True,
        )
    ]  # fmt: skip
    turned = conv_cpu._turn(w)
    return conv_cpu._plain(g, turned, (1, 1), pads, None, lhs_dilation=params["strides"])


def plain_weight_grad(x: Any, g: Any, **params: Any) -> Any:
    return conv_cpu._traded(x, g, **params)


def in_blocks(responses: int, x: Any, g: Any, **params: Any) -> Any:
    most = conv_cpu._fit(responses, g.shape[1:3])
    return conv_cpu._sum_of_blocks(partial(conv_cpu._traded, **params), x, g, most)


def by_winograd(tiles: int, x: Any, w: Any, **params: Any) -> Any:
    form = partial(winograd.conv, u=winograd.kernel_tiles(w), padding=params["padding"],
                   size=params["size"], precision=None)  # fmt: skip
    return conv_cpu._of_blocks(form, x, conv_cpu._fit(tiles, params["size"], 4))


def winograd_weight_grad(tiles: int, x: Any, g: Any, **params: Any) -> Any:
    form = partial(winograd.weight_grad, padding=params["padding"], precision=None)
    most = conv_cpu._fit(tiles, g.shape[1:3], 4)
    return winograd.of_kernel_tiles(conv_cpu._sum_of_blocks(form, x, g, most))


def forms_of(operation: str, kernel: int, stride: int, grid: bool) -> dict[str, Form]:
    """What is compared, by name; "plain" first, of which the others' errors are."""
    plain = {"conv": plain_conv, "input grad": plain_input_grad, "kernel grad": plain_weight_grad}
    ours = {
        "conv": conv_cpu.conv,
        "input grad": conv_cpu.input_grad,
        "kernel grad": conv_cpu.weight_grad,
    }
    found: dict[str, Form] = {"plain": plain[operation], "bpgan": ours[operation]}
    if grid and operation == "kernel grad":
        found |= {f"blocks of {n}": partial(in_blocks, n) for n in BLOCKS}
    if grid and (kernel, stride) == (3, 1) and operation != "input grad":
        form = by_winograd if operation == "conv" else winograd_weight_grad
        found |= {f"winograd, {n} tiles": partial(form, n) for n in TILES}
    return found


def timed(forms: dict[str, Form], operands: Any, flops: float, rounds: int) -> dict[str, Any]:
    """GFLOP per CPU second of each form, in a loop whose every turn depends on the one before, and its error."""
    programs, outputs = {}, {}
    repeats = max(3, round(1e10 / flops))
    for name, form in forms.items():
        outputs[name] = jax.jit(form)(*operands)

        def loop(a: Any, b: Any, form: Form = form) -> Any:
            def body(_: Any, carry: Any) -> Any:
                a, y = carry
                return a.at[0, 0, 0, 0].add(1e-20 * y[0, 0, 0, 0]), form(a, b)

            y = jax.eval_shape(form, a, b)
            return lax.fori_loop(0, repeats, body, (a, jnp.zeros(y.shape, y.dtype)))[1]

        programs[name] = jax.jit(loop)
        jax.block_until_ready(programs[name](*operands))
    rates: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.process_time()
            jax.block_until_ready(program(*operands))
            rates[name].append(flops * repeats / (time.process_time() - start) / 1e9)
    largest = jnp.max(jnp.abs(outputs["plain"]))
    return {
        name: {
            "gflop_per_cpu_s": statistics.median(rates[name]),
            "over_plain": statistics.median(
                a / b for a, b in zip(rates[name], rates["plain"], strict=True)
            ),
            "difference": float(jnp.max(jnp.abs(outputs[name] - outputs["plain"])) / largest),
        }
        for name in forms
    }


def layer(
    b: int, side: int, k: int, s: int, c: int, o: int, grid: bool, rounds: int
) -> dict[str, dict[str, Any]]:
    """All three operations of a layer."""
    pad = (k - s + 1) // 2
    p = (side + 2 * pad - k) // s + 1
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (b, side, side, c))
    w = jax.random.normal(keys[1], (k, k, c, o)) / k
    g = jax.random.normal(keys[2], (b, p, p, o))
    common = dict(strides=(s, s), padding=((pad, pad), (pad, pad)), precision=None)
    found = {}
    for operation, operands, size in (
        ("conv", (x, w), (p, p)), ("input grad", (g, w), (side, side)), ("kernel grad", (x, g), (k, k))
    ):  # fmt: skip
        forms = {
            name: partial(form, **common, size=size)
            for name, form in forms_of(operation, k, s, grid).items()
        }
        found[operation] = timed(forms, operands, 2 * b * p * p * k * k * c * o, rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--grid", action="store_true", help="blocks and tiles of several sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    about, results = machine(), {}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        "GFLOP per CPU second; of the plain form; largest difference from it, of the largest output"
    )
    for name, shape in LAYERS.items():
        if args.only not in name:
            continue
        results[name] = layer(*shape, args.grid, args.rounds)
        for operation, rows in results[name].items():
            for form, row in rows.items():
                print(
                    f"{name:28}{operation:12}{form:20}{row['gflop_per_cpu_s']:8.1f}"
                    f"{row['over_plain']:7.2f}x{row['difference']:10.1e}",
                    flush=True,
                )
    if args.json:
        record = {"benchmark": "conv_forms", "machine": about, "results": results}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
