"""What training computes, to the bit: a fingerprint of the whole state after some steps of many configurations.

    python -m benchmarks.fingerprints [--only=TEXT] [--record=FILE] [--compare=FILE]
    python -m benchmarks.fingerprints --against=CHECKOUT     CPU time of a step, in turn with another checkout

A change that should not change any number leaves every fingerprint as it is. They hold for one machine and one version
of JAX: record them before the change, and compare on the same machine after it. Everything is built from the public
experiments, so the script runs on both sides of a refactoring.

The fingerprint is the SHA-256 of the sorted SHA-256 values of all arrays of the state (step, parameters, statistics,
states of the optimizers, averages, memories), each with its type and shape. Sorted, so that the names and the nesting
of the state do not enter. That of the metrics of the last step is recorded beside it.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

STEPS = 40
RULES = (
    "simultaneous",
    "alternating",
    "extragradient",
    "optimistic",
    "consensus",
    "symplectic",
    "unrolled",
)
DEVICES = 8


class Case(NamedTuple):
    """An experiment, one of its presets, the flags on top of it, and how it runs.

    Attributes:
      mode: ``jit`` on one device, or on eight: ``pmap``, or ``sharded``, one program whose batch the devices share out.
      steps: of the state that is fingerprinted.
    """

    experiment: str
    preset: str = ""
    flags: dict[str, Any] = {}
    mode: str = "jit"
    steps: int = STEPS


_EVERYTIME = "r1=0.3+r2=0.3"
"""Penalties that are not lazy, whose gradients are one sum with those of the loss."""


def _lite(**flags: Any) -> Case:
    """Small convolutions."""
    common = dict(net="lite:4", latents="normal:8", batch_size=16, penalty=_EVERYTIME)
    return Case("image_gan", "", common | flags)


def _mlp(mode: str = "jit", **flags: Any) -> Case:
    """Perceptrons, which compile fast."""
    common = dict(net="mlp", latents="normal:8", batch_size=16, penalty=_EVERYTIME)
    return Case("image_gan", "", common | flags, mode)


def _preset(name: str, **flags: Any) -> Case:
    steps = flags.pop("run", 6)
    return Case("image_gan", name, dict(dataset="COLOR", batch_size=4) | flags, steps=steps)


CASES = {
    # Every preset of image_gan, in small.
    "lite28": Case("image_gan", "lite28", dict(net="lite:4", latents="normal:8", batch_size=16)),
    "plain28": Case("image_gan", "plain28", dict(net="lite:4", latents="normal:8", batch_size=16)),
    "cgan28": Case("image_gan", "cgan28", dict(net="lite:4", latents="normal:8", batch_size=16)),
    "r3-28": _preset("r3-28", dataset="mnist10k", net="r3gan:1"),
    "r3-32": _preset("r3-32", net="r3gan:1", run=3),
    "r3-64": _preset("r3-64", net="r3gan:1", run=3),
    "sngan-32": _preset("sngan-32", d_steps=2, run=4),
    "dcgan-32": _preset("dcgan-32"),
    "biggan-32": _preset("biggan-32", net="biggan:8,attention=16/biggan:8,attention=16", d_steps=2),
    "stylegan2-32": _preset("stylegan2-32", run=5),
    # Every rule, on perceptrons, with and without penalties that remember.
    **{
        f"rule-{name}": _mlp(rule=name, penalty="r1=0.3+lecam=0.3")
        for name in RULES
    },
    "rule-with-augment": _mlp(rule="simultaneous", loss="hinge", augment="color@ada", penalty="r1=0.3+g.zcr=0.5"),
    # What a step is made of.
    "lite": _lite(),
    "d-steps": _mlp(d_steps=3),
    "accumulate": _mlp(accumulate=2, penalty="r1=0.3+lecam=0.1", loss="hinge"),
    "accumulate-d-steps": _mlp(accumulate=2, d_steps=2),
    "every-penalty": _mlp(
        loss="hinge",
        penalty="r1=0.1+r2=0.1+wgan_gp=1+wgan_lp=1+zero_gp=1+dragan=1+cr=1+bcr=1+zcr=1+lecam=0.1+orthogonal=1e-4"
        "+g.zcr=0.5+g.path_length=2+g.orthogonal=1e-4",
    ),
    "ada-lecam-path": _mlp(
        loss="hinge", augment="color@ada:0.1", penalty="lecam=0.3+g.path_length=2", d_steps=2
    ),
    # Lazy penalties, whose gradients are taken by themselves.
    "lazy": _mlp(penalty="r1=0.3/4+r2=0.3/3+lecam=0.3+bcr=1/2", d_steps=2, loss="hinge"),
    "lazy-accumulate": _mlp(accumulate=2, penalty="r1=0.3/4+lecam=0.1", loss="hinge"),
    "lazy-path": _mlp(loss="hinge", penalty="lecam=0.3/2+g.path_length=2/4"),
    "augment": _lite(augment="color,translation,cutout@0.5"),
    "projection": _mlp(condition="projection"),
    "acgan": _mlp(condition="acgan=0.5", loss="hinge"),
    "d2d": _mlp(condition="d2d=0.5", loss="hinge"),
    "concat": _mlp(condition="concat"),
    "began": Case("image_gan", "", dict(net="lite:4/autoencoder:4", loss="began", penalty="none", batch_size=16)),
    "clip": _mlp(loss="wasserstein", penalty="clip=0.01", d_steps=3),
    "no-average": _mlp(ema="0"),
    "float64": _mlp(precision="float64", penalty="r1=0.3+lecam=0.1", loss="hinge"),
    "float64-lazy": _mlp(
        precision="float64", loss="hinge", d_steps=2, accumulate=2,
        penalty="r1=0.3/4+lecam=0.3/2+g.path_length=2/4+g.zcr=0.5/3",
    ),
    "float64-lite": _lite(precision="float64", penalty="r1=0.3/4+r2=0.3/4", loss="hinge"),
    "bfloat16": _lite(precision="bfloat16"),
    # The other experiments.
    "mnist_gan": Case("mnist_gan", "", dict(net="dcgan:4", latents="normal:8", batch_size=16)),
    "mnist_gan-manual": Case(
        "mnist_gan", "article", dict(gradients="manual", penalty="r1", penalty_every=1, batch_size=16)
    ),
    "article": Case("mnist_gan", "article", dict(batch_size=16)),
    "vae": Case("vae", "", dict(hidden=16, latents=4, batch_size=16)),
    "vae-burda": Case("vae", "burda", dict(hidden=16, latents=4, batch_size=16)),
    "classifier": Case("classifier", "", dict(batch_size=16)),
    "classifier-manual": Case("classifier", "", dict(net="mlp", gradients="manual", batch_size=16)),
    "linear_regression": Case("linear_regression", "", {}),
    "ring8": Case("toy_gan", "ring8", dict(width=16, batch_size=16)),
    "dirac": Case("toy_gan", "dirac", {}),
    "lqg": Case("toy_gan", "lqg", {}),
    "gaussian1d-rule": Case("toy_gan", "gaussian1d", dict(rule="extragradient", penalty="r1+lecam")),
    **{
        f"infogan-{model}": Case("infogan", "", dict(model=model, hidden=8, channels=4, latents=4, batch_size=8))
        for model in ("ns", "wgan_gp", "began", "vae")
    },
    # Several devices.
    "pmap": _mlp("pmap", penalty="r1=0.3+lecam=0.3", loss="hinge"),
    "pmap-lazy": _mlp("pmap", penalty="r1=0.3/4+lecam=0.3", loss="hinge"),
    "pmap-conditions": _mlp("pmap", condition="acgan=0.5", loss="hinge", d_steps=2, augment="color@ada"),
    "pmap-accumulate": _mlp("pmap", accumulate=2),
    "pmap-vae": Case("vae", "", dict(hidden=16, latents=4, batch_size=16, likelihood="bernoulli"), "pmap"),
    "pmap-classifier": Case("classifier", "", dict(batch_size=16), "pmap"),
    "sharded": _mlp("sharded"),
    "sharded-hinge": _mlp("sharded", loss="hinge", d_steps=2),
}  # fmt: skip

TIMED = {
    "lite28": (Case("image_gan", "lite28", {}), 4),
    "mnist_gan": (Case("mnist_gan", "", {}), 3),
    "vae": (Case("vae", "", {}), 20),
    "article": (Case("mnist_gan", "article", {}), 40),
    "accumulate": (Case("image_gan", "lite28", dict(accumulate=2)), 4),
    "d-steps": (Case("image_gan", "lite28", dict(d_steps=3)), 2),
}
"""What is timed, at full size, and the steps of a round."""


@functools.cache
def color() -> str:
    """Random images of 32 pixels and three channels, as a dataset of ten classes."""
    import numpy as np

    rng, folder = np.random.default_rng(0), tempfile.mkdtemp()
    arrays = dict(x_train=rng.integers(0, 256, (256, 32, 32, 3), np.uint8), y_train=np.arange(256) % 10,
                  x_test=rng.integers(0, 256, (32, 32, 32, 3), np.uint8), y_test=np.arange(32) % 10)  # fmt: skip
    np.savez(pathlib.Path(folder, "color.npz"), **arrays)
    return f"npz:{folder}/color.npz"


def built(case: Case) -> Any:
    """The experiment of a case."""
    module = importlib.import_module(f"experiments.{case.experiment}")
    fields = {**(module.PRESETS[case.preset] if case.preset else {}), **case.flags}
    if fields.get("dataset") == "COLOR":
        fields["dataset"] = color()
    if "dataset" in {field for field in module.Config.__dataclass_fields__}:
        fields.setdefault("dataset", "mnist10k")
    axis = ("batch",) if case.mode == "pmap" else ()
    return module.build(module.Config(**fields), *axis)


def trained(case: Case, steps: int) -> tuple[Any, Any]:
    """State and metrics after so many steps, on the host."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    experiment, key = built(case), jax.random.key(1)
    algorithm, source = experiment.algorithm, experiment.source
    data = jax.tree.map(jnp.asarray, source.data)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    metrics = None
    batch_at = jax.jit(source.batch_at)
    if case.mode == "jit":
        step = jax.jit(
            lambda state, data: algorithm.step(state, source.batch_at(data, state.step), key)
        )
        for _ in range(steps):
            state, metrics = step(state, data)
    elif case.mode == "sharded":
        mesh = Mesh(np.array(jax.devices()), ("batch",))
        everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
        step = jax.jit(algorithm.step, out_shardings=everywhere)
        state, key = jax.device_put((state, key), everywhere)
        for t in range(steps):
            state, metrics = step(state, jax.device_put(batch_at(data, t), split), key)
    else:
        n = jax.device_count()
        step = jax.pmap(algorithm.step, "batch", in_axes=(0, 0, None))
        state = jax.tree.map(lambda x: jnp.stack([x] * n), state)
        for t in range(steps):
            batch = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch_at(data, t))
            state, metrics = step(state, batch, key)
        state, metrics = jax.tree.map(lambda x: x[0], (state, metrics))
    return jax.device_get((state, metrics))


def digest(tree: Any) -> str:
    """SHA-256 of the sorted SHA-256 values of the arrays of a tree."""
    import jax
    import numpy as np

    def one(x: Any) -> str:
        x = np.asarray(x)
        return hashlib.sha256(f"{x.dtype} {x.shape}".encode() + x.tobytes()).hexdigest()

    return hashlib.sha256("".join(sorted(map(one, jax.tree.leaves(tree)))).encode()).hexdigest()


def fingerprint(name: str, dump: str = "") -> dict[str, str]:
    """Of one case, in this process."""
    import jax

    case = CASES[name]
    double = (
        jax.enable_x64(True)
        if case.flags.get("precision") == "float64"
        else contextlib.nullcontext()
    )
    with double:
        state, metrics = trained(case, case.steps)
        if dump:
            save(pathlib.Path(dump, f"{name}.npz"), state)
        return {"state": digest(state), "metrics": digest(sorted(metrics.items()))}


def save(path: pathlib.Path, state: Any) -> None:
    """The arrays of a state by their paths, to look at what differs."""
    import jax
    import numpy as np

    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    np.savez(path, **{jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves})


def machine() -> dict[str, str]:
    """What the fingerprints depend on, besides the code."""
    import jax
    import jaxlib
    import numpy as np
    import optax

    cpu = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    return dict(cpu=cpu, python=platform.python_version(), jax=jax.__version__, jaxlib=jaxlib.__version__,
                optax=optax.__version__, numpy=np.__version__)  # fmt: skip


def fingerprints(only: str, dump: str) -> dict[str, dict[str, str]]:
    """Of all cases whose name contains ``only``; those of several devices in a process that has them."""
    wanted = [name for name in CASES if any(part in name for part in only.split(","))]
    here = os.environ.get("XLA_FLAGS", "").find("device_count") >= 0
    found = {}
    for name in wanted:
        if (CASES[name].mode != "jit") == here:
            start = time.perf_counter()
            found[name] = fingerprint(name, dump)
            print(
                f"{name:22} {found[name]['state'][:16]} {time.perf_counter() - start:6.1f} s",
                file=sys.stderr,
            )
    if not here and any(CASES[name].mode != "jit" for name in wanted):
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        }
        argv = [
            sys.executable,
            "-m",
            "benchmarks.fingerprints",
            f"--only={only}",
            f"--dump={dump}",
            "--json",
        ]
        output = subprocess.run(argv, env=environment, check=True, stdout=subprocess.PIPE).stdout
        found |= json.loads(output)
    return {name: found[name] for name in wanted if name in found}


def serve() -> None:
    """Answers each line ``NAME`` of standard input with the CPU seconds of a round of steps."""
    import jax

    programs = {}
    for line in sys.stdin:
        name = line.strip()
        case, steps = TIMED[name]
        if name not in programs:
            experiment, key = built(case), jax.random.key(1)
            algorithm, source = experiment.algorithm, experiment.source

            def run(
                carry: Any, data: Any, steps: Any, algorithm=algorithm, source=source, key=key
            ) -> Any:
                def body(_: Any, state: Any) -> Any:
                    return algorithm.step(state, source.batch_at(data, state.step), key)[0]

                return jax.lax.fori_loop(0, steps, body, carry)

            data = jax.tree.map(jax.numpy.asarray, source.data)
            compiled = jax.jit(run, donate_argnums=0)
            programs[name] = [
                compiled,
                compiled(jax.jit(algorithm.init)(jax.random.key(0)), data, 1),
                data,
            ]
            jax.block_until_ready(programs[name][1])
        compiled, carry, data = programs[name]
        start = time.process_time()
        programs[name][1] = jax.block_until_ready(compiled(carry, data, steps))
        print(time.process_time() - start, flush=True)


def compare_times(other: str, rounds: int, only: str) -> None:
    """Both checkouts in turn; the medians, the minima and the median of the ratios within a round."""
    argv = [sys.executable, str(pathlib.Path(__file__).resolve()), "--serve"]
    trees = {"before": other, "after": str(pathlib.Path(__file__).resolve().parents[1])}
    servers = {name: subprocess.Popen(argv, cwd=tree, env={**os.environ, "PYTHONPATH": tree}, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
               for name, tree in trees.items()}  # fmt: skip

    def ask(side: str, name: str) -> float:
        server = servers[side]
        assert server.stdin and server.stdout
        print(name, file=server.stdin, flush=True)
        return float(server.stdout.readline())

    for name in TIMED:
        if not any(part in name for part in only.split(",")):
            continue
        times: dict[str, list[float]] = {"before": [], "after": []}
        for i in range(rounds + 1):
            for side in ("before", "after") if i % 2 else ("after", "before"):
                times[side].append(ask(side, name))
        a, b = (times[side][1:] for side in ("before", "after"))
        ratio = statistics.median(y / x for x, y in zip(a, b, strict=True))
        middle = statistics.median(a), statistics.median(b)
        print(f"{name:12} medians {middle[0]:.4f} {middle[1]:.4f}, minima {min(a):.4f} {min(b):.4f}:"
              f" {min(b) / min(a) - 1:+.2%}; median of ratios {ratio - 1:+.2%}", flush=True)  # fmt: skip
    for server in servers.values():
        assert server.stdin
        server.stdin.close()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument(
        "--only", default="", help="cases whose name contains one of these, separated by commas"
    )
    parser.add_argument("--record", default="", help="file to write")
    parser.add_argument("--compare", default="", help="file of a recording to compare with")
    parser.add_argument("--dump", default="", help="folder for the states")
    parser.add_argument("--json", action="store_true", help="print the fingerprints as JSON")
    parser.add_argument("--against", default="", help="another checkout, to compare CPU times with")
    parser.add_argument("--rounds", type=int, default=15, help="of --against")
    parser.add_argument("--serve", action="store_true", help="used by --against")
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.against:
        return compare_times(args.against, args.rounds, args.only)
    found = fingerprints(args.only, args.dump)
    if args.json:
        print(json.dumps(found))
    if args.record:
        record = {"machine": machine(), "fingerprints": found}
        pathlib.Path(args.record).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.compare:
        before = json.loads(pathlib.Path(args.compare).read_text(encoding="utf-8"))
        if before["machine"] != machine():
            print(f"the recording is of another machine: {before['machine']}")
        known = before["fingerprints"]
        for name, each in found.items():
            recorded = known.get(name, {})
            if not recorded:
                print(f"{name:22} not recorded")
                continue
            same = {part: value == recorded.get(part, value) for part, value in each.items()}
            changed = ", ".join(part for part in same if not same[part])
            print(f"{name:22} {f'{changed} CHANGED' if changed else 'same'}")


if __name__ == "__main__":
    main()
