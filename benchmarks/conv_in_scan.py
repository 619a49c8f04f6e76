"""Gradients of convolutions: how much of their top-level speed do they keep inside a scan?

XLA:CPU compiles the gradient convolutions that JAX's transpose rules emit to fast code at the top
level of a program only, and grouped convolutions nowhere. bpgan's ``conv``, ``conv_transpose`` and
``grouped_conv`` must not lose more than a fifth in a loop.
A program computes the value and both gradients of one operation, in four ways:

- ours, scan: bpgan's operation, repeated in one ``lax.scan``;
- ours, top: the same at the top level of a compiled program that is called as many times;
- naive, scan and top: ``lax.conv_general_dilated`` or ``lax.conv_transpose`` and autodiff.

Process CPU time on one pinned core with one thread. The programs take turns; ratios are taken
within a round, and medians over the rounds.

    python benchmarks/conv_in_scan.py [--rounds=N] [--json=PATH]

Exits with 1 where a ratio "ours, scan / ours, top" is below 0.8.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
if hasattr(os, "sched_setaffinity"):  # Linux; before jax counts the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bpgan.nets import conv as convolutions

TARGET = 0.8
NHWC = ("NHWC", "HWIO", "NHWC")

# name: (operation, image side, kernel, stride, padding, channels in, channels out)
CASES = {
    "conv 3x3 128->128 @16": ("conv", 16, 3, 1, 1, 128, 128),
    "conv 4x4 s2 64->128 @16": ("conv", 16, 4, 2, 1, 64, 128),
    "convT 4x4 s2 128->128 @8": ("conv_transpose", 8, 4, 2, 1, 128, 128),
    "convT 4x4 s2 64->1 @14": ("conv_transpose", 14, 4, 2, 1, 64, 1),
    "conv 4x4 s2 1->64 @28": ("conv", 28, 4, 2, 1, 1, 64),
    "conv 1x1 128->128 @16": ("conv", 16, 1, 1, 0, 128, 128),
    "conv 3x3 1->16 @28": ("conv", 28, 3, 1, 1, 1, 16),
    "conv 3x3 32->1 @28": ("conv", 28, 3, 1, 1, 32, 1),
    "conv 3x3 64->32 @14": ("conv", 14, 3, 1, 1, 64, 32),
    "conv 4x4 s2 24->48 @28": ("conv", 28, 4, 2, 1, 24, 48),
    "grouped 3x3 384->384 @16": ("grouped_conv", 16, 3, 1, 1, 384, 384),
}
BATCH = 16
GROUP = 16  # channels of a group


def naive(operation, x, kernel, stride, padding):
    """The same function as a user of lax would write it."""
    if operation == "conv":
        sides = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, sides, dimension_numbers=NHWC)
    if operation == "grouped_conv":
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=NHWC,
            feature_group_count=x.shape[3] // GROUP,
        )
    sides = [(kernel.shape[0] - 1 - padding,) * 2] * 2
    return lax.conv_transpose(x, kernel[::-1, ::-1], (stride,) * 2, sides, dimension_numbers=NHWC)


def seconds(program, *arguments):
    start = time.process_time()
    jax.block_until_ready(program(*arguments))
    return time.process_time() - start


def measure(operation, side, k, stride, padding, c, o, rounds):
    """GFLOP per CPU second of each program, by round."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (BATCH, side, side, c))
    inputs = GROUP if operation == "grouped_conv" else c
    kernel = jax.random.normal(keys[1], (k, k, inputs, o)) / k
    own = getattr(convolutions, operation)
    options = {"stride": stride, "padding": padding}
    if operation == "grouped_conv":
        options = {"groups": c // GROUP}
    forms = {
        "ours": lambda x, w: own(x, w, **options),
        "naive": lambda x, w: naive(operation, x, w, stride, padding),
    }
    shape = jax.eval_shape(forms["ours"], x, kernel).shape
    g = jax.random.normal(keys[2], shape)
    pixels = side**2 if operation == "conv_transpose" else shape[1] * shape[2]
    flops = 3 * 2 * BATCH * pixels * k * k * inputs * o  # the value and its two gradients

    def update(form, x, w):
        """Both gradients enter the carry, so that no repetition can be left out or shared."""
        y, pullback = jax.vjp(form, x, w)
        dx, dw = pullback(g + 1e-6 * y)
        return x + 1e-6 * dx, w + 1e-6 * dw

    programs, outputs = {}, {}
    for name, form in forms.items():
        step = jax.jit(lambda x, w, form=form: update(form, x, w))
        outputs[name] = step(x, kernel)
        # At least two, because XLA unrolls a loop of one; not more where one may take a second.
        repeats = max(2, round(1e10 / flops)) if name == "ours" else 2

        def scan(x, w, form=form, repeats=repeats):
            return lax.scan(lambda c, _: (update(form, *c), None), (x, w), None, length=repeats)[0]

        def top(x, w, step=step, repeats=repeats):
            for _ in range(repeats):
                x, w = step(x, w)
            return x, w

        programs[f"{name} top"] = (top, repeats)
        programs[f"{name} scan"] = (jax.jit(scan), repeats)
    error = max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(outputs["ours"], outputs["naive"], strict=True)
    )
    if error > 1e-5:
        raise AssertionError(f"the two forms differ by {error:.1e} of the largest element")
    for program, _ in programs.values():
        jax.block_until_ready(program(x, kernel))
    rates = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (program, repeats) in programs.items():
            rates[name].append(flops * repeats / seconds(program, x, kernel) / 1e9)
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians over")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: must be at least 1")

    heads = ("scan", "top", "ratio", "naive scan", "x", "naive top", "x")
    print(
        "value and both gradients, GFLOP per CPU second; x: how many times faster ours is, in scan"
    )
    print(f"{'':26}" + "".join(f"{head:>11}" for head in heads))
    results = {}
    for name, case in CASES.items():
        rates = measure(*case, options.rounds)

        def ratio(a, b, rates=rates):
            return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))

        median = {program: statistics.median(values) for program, values in rates.items()}
        results[name] = {
            "gflop_per_cpu_s": median,
            "scan_over_top": ratio("ours scan", "ours top"),
            "over_naive_scan": ratio("ours scan", "naive scan"),
            "over_naive_top": ratio("ours scan", "naive top"),
            "rounds": rates,
        }
        result = results[name]
        print(
            f"{name:26}{median['ours scan']:11.1f}{median['ours top']:11.1f}"
            f"{result['scan_over_top']:11.2f}{median['naive scan']:11.1f}"
            f"{result['over_naive_scan']:11.1f}{median['naive top']:11.1f}"
            f"{result['over_naive_top']:11.1f}",
            flush=True,
        )
    worst = min(result["scan_over_top"] for result in results.values())
    print(f"worst ratio scan / top level: {worst:.2f} (target: at least {TARGET})")
    if options.json:
        record = {
            "benchmark": "conv_in_scan",
            "metric": "process CPU time, one pinned core, one thread; medians of ratios by round",
            "target": TARGET,
            "worst_scan_over_top": worst,
            "batch": BATCH,
            "rounds": options.rounds,
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "platform": jax.default_backend(),
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if worst >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
