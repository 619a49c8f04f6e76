"""Compiles bpgan's own programs for accelerators that are not here, and reads what they launch, move and keep.

    python -m benchmarks.aot                                      the standing programs, for every target
    python -m benchmarks.aot article sngan-32 --target=h100,v5e
    python -m benchmarks.aot image_gan:r3-32 --augment=none --target=h100x8
    python -m benchmarks.aot --record [PROGRAM...]                writes benchmarks/aot.json, program by program

XLA compiles for an H100 and for a TPU v5e on any machine that has its wheels (``requirements-aot.txt``, in an
environment of its own). Nothing is executed: kernels, memory, traffic and communication are those of the real program,
speed is not shown. A program is one of ``PROGRAMS``, or ``EXPERIMENT:PRESET``, to which flags of the experiment may be
added. A target is ``h100`` or ``v5e``, followed by ``x8`` for eight devices that share a batch; more than eight H100s
are in nodes of eight.

The figures are compared with the recorded ones, see ``failures``. The exit code is 1 if one is worse, and 2 if the
wheels are missing.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what runs here; the targets are only compiled for
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # none of them opens a device
os.environ.setdefault(
    "TPU_ACCELERATOR_TYPE", "v5litepod-1"
)  # else libtpu asks a server that is not there
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
from jax.sharding import SingleDeviceSharding

from benchmarks import hlo

HERE = pathlib.Path(__file__).parent
RECORD = HERE / "aot.json"
H100 = HERE / "h100.txtpb"
GATHERED = 64 << 10
"""Greatest number of bytes that several devices may gather at once: enough for logits and labels, not for a batch."""
MEMORY = 1.1
"""What temporary memory may grow to, as a multiple of what is recorded."""
RESULTS, TITLE = HERE / "RESULTS.md", "## Compiled, not run: `python -m benchmarks.aot`\n"


# What is compiled.


def color(size: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise in the form of ``n`` color images and ten classes: what a program does not depend on is their content."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size, size, 3), np.uint8), np.arange(n, dtype=np.int32) % 10


def color32(split: str) -> Any:
    """Datasets for ``--dataset=benchmarks.aot:color32``, as many images as CIFAR-10 has."""
    return color(32, 50_000 if split == "train" else 100)


def color64(split: str) -> Any:
    return color(64, 2_000 if split == "train" else 100)


def color128(split: str) -> Any:
    return color(128, 1_000 if split == "train" else 100)


def color256(split: str) -> Any:
    return color(256, 500 if split == "train" else 100)


def build(experiment: str, *flags: str) -> Any:
    """What the experiment trains, from a command line as users write it."""
    from bpgan import cli

    module = importlib.import_module(f"experiments.{experiment}")
    return module.build(cli.resolve(module.Config, module.PRESETS, list(flags)))


class Case(NamedTuple):
    """A program to compile.

    Attributes:
      trace: ``trace(devices)`` gives it as JAX has traced it.
      several: whether it is compiled for several devices, too.
      tpu: whether it is compiled for TPUs, too; XLA takes minutes for some that say nothing new.
      precise: whether all its products must have the full precision.
      flops: by what share the operations may differ from those of its products.
    """

    trace: Callable[[Sequence[Any]], Any]
    several: bool = False
    tpu: bool = True
    precise: bool = False
    flops: float = 0.1

    def suits(self, target: "Target") -> bool:
        return (self.several or target.devices == 1) and (self.tpu or target.is_gpu)


def run(experiment: str, *flags: str, several: bool = True, tpu: bool = True) -> Case:
    """The k-step loop of a run."""
    from bpgan.runtime import program

    def traced(devices: Sequence[Any]) -> Any:
        built = build(experiment, *flags)
        return program.trace(built.algorithm, built.source, devices).run

    return Case(traced, several, tpu)


def sample(n: int, experiment: str, *flags: str) -> Case:
    """The drawing of ``n`` samples."""
    from bpgan.runtime import program

    def traced(devices: Sequence[Any]) -> Any:
        built = build(experiment, *flags)
        draw = program.trace(built.algorithm, built.source, devices).sample
        assert draw is not None
        return draw(n)

    return Case(traced)


def sweep(size: int, experiment: str, *flags: str) -> Case:
    """A group of ``size`` runs that differ in their seeds, by ``vmap``."""
    from bpgan import cli
    from bpgan.runtime import group

    module = importlib.import_module(f"experiments.{experiment}")

    def make(seed: Any) -> tuple[Any, Any]:
        cfg = cli.resolve(module.Config, module.PRESETS, list(flags))
        built = module.build(dataclasses.replace(cfg, seed=seed))
        return built.algorithm, built.source

    members = [{"seed": seed} for seed in range(size)]
    return Case(lambda devices: group.trace(make, members, "vmap", devices))


def inception() -> Case:
    """The feature net of the Fréchet distance, on 64 images of 32 pixels."""
    from bpgan.metrics.features import inception as net

    def traced(devices: Sequence[Any]) -> Any:
        at = SingleDeviceSharding(devices[0])
        image = jax.ShapeDtypeStruct((1, net.SIZE, net.SIZE, 3), jnp.float32)
        params = jax.eval_shape(net.InceptionV3().init, jax.random.key(0), image)["params"]
        images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.uint8, sharding=at)
        return jax.jit(net.taps).trace(_placed(params, at), images)

    return Case(traced, tpu=False, precise=True)


def inversion(targets: int = 8, starts: int = 4) -> Case:
    """The search for latents of images by the default generator of ``mnist_gan``, which stands for what explains it."""
    from jax.tree_util import Partial

    from bpgan.insight import inversion as module

    def traced(devices: Sequence[Any]) -> Any:
        at = SingleDeviceSharding(devices[0])
        algorithm = build("mnist_gan").algorithm
        assert algorithm.latents is not None
        latents, network = algorithm.latents, algorithm.networks["generator"]
        key = jax.random.key(0)
        variables = jax.eval_shape(lambda: network.variables(algorithm.init(key)))
        z = jax.eval_shape(lambda: latents(key, targets))
        images = jax.eval_shape(network.apply, variables, z)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        many = jax.ShapeDtypeStruct((starts, *z.shape), z.dtype)
        center = jax.ShapeDtypeStruct(z.shape[1:], z.dtype)
        problem = module._Problem(
            Partial(network.apply, _placed(variables, at)), None, *_placed(
                (images, None, number, number, number, center, center, center), at
            )
        )  # fmt: skip
        return module._descend.trace(problem, _placed(many, at), 300, "cosine:0.1:0")

    return Case(traced)


def neighbors(n: int = 10_000, width: int = 2048) -> Case:
    """The search of nearest neighbors: one block of queries against ``n`` points."""
    from bpgan.metrics import neighbors as module

    def traced(devices: Sequence[Any]) -> Any:
        at = SingleDeviceSharding(devices[0])
        count = 4 + module._SPARE
        group = math.isqrt(n // count)
        limit = max(1, module._TILE // n)
        queries = jax.ShapeDtypeStruct(
            (math.ceil(n / math.ceil(n / limit)), width + 1), jnp.float32
        )
        points = jax.ShapeDtypeStruct((n + -n % group, width + 1), jnp.float32)
        return module._candidates.trace(*_placed((queries, points), at), count, group)

    return Case(traced, precise=True)


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def programs() -> dict[str, Case]:
    """The standing programs: each stands for others that are built in the same way."""
    c32, c128, c256 = (f"--dataset=benchmarks.aot:color{size}" for size in (32, 128, 256))
    return {
        "article": run("mnist_gan", "--preset=article"),
        "default": run("mnist_gan"),
        "default-every-step": run("mnist_gan", "--penalty_every=1"),
        "sngan-32": run("image_gan", "--preset=sngan-32", c32),
        "r3-32": run("image_gan", "--preset=r3-32", c32),
        "biggan-32": run("image_gan", "--preset=biggan-32", c32),
        "sngan-128": run(
            "image_gan", "--preset=sngan-32", "--batch_size=32", c128, several=False, tpu=False
        ),
        "stylegan2-256": run(
            "image_gan", "--preset=stylegan2-32", "--batch_size=8", c256, several=False, tpu=False
        ),
        "vit28": run("image_gan", "--preset=vit28"),
        "sweep-32": sweep(32, "mnist_gan", "--preset=article"),
        "pix2pix": run("translate", "--measure=nothing", several=False, tpu=False),
        "cyclegan": run(
            "translate", "--preset=cyclegan28", "--measure=nothing", several=False, tpu=False
        ),
        "text": run("text_gan", "--preset=digits", several=False, tpu=False),
        "vae": run("vae"),
        "classifier": run("classifier")._replace(flops=0.25),  # pooling is not a product
        "private": run("private_gan", "--net=dcgan:32,plain"),
        "private-mlp": run("private_gan", "--net=mlp"),
        "sample": sample(100, "mnist_gan"),
        "inversion": inversion(),
        "inception": inception(),
        "neighbors": neighbors(),
    }


def case_of(text: str, flags: Sequence[str]) -> Case:
    """A standing program by name, or ``EXPERIMENT:PRESET`` with flags. Raises ValueError."""
    experiment, colon, preset = text.partition(":")
    if not colon:
        known = programs()
        if text not in known:
            raise ValueError(f"{text}: must be EXPERIMENT:PRESET or one of {', '.join(known)}")
        return known[text]
    size = preset.rpartition("-")[2]
    data = [f"--dataset=benchmarks.aot:color{size}"] if f"color{size}" in globals() else []
    if any(flag.startswith("--dataset=") for flag in flags):
        data = []
    return run(experiment, *[f"--preset={preset}"] * bool(preset), *data, *flags)


# Targets.


class Target(NamedTuple):
    """A kind of device and how many of them share a batch."""

    kind: str
    devices: int

    @property
    def is_gpu(self) -> bool:
        return self.kind == "h100"


def target_of(text: str) -> Target:
    """Reads ``h100``, ``v5e``, ``h100x8``. Raises ValueError."""
    kind, _, count = text.partition("x")
    if kind not in ("h100", "v5e") or not (count or "1").isdecimal():
        raise ValueError(f"{text}: must be h100 or v5e, or one of them with xDEVICES")
    return Target(kind, int(count or 1))


def devices_of(target: Target) -> list[Any]:
    """The devices of a target, which exist as a description only."""
    from jax.experimental import topologies

    n = target.devices
    if target.is_gpu:
        topology = f"1x1x{n}" if n <= 8 else f"1x{n // 8}x8"
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", topology=topology, target_config=H100.read_text()
        )
    else:
        rows = 2 ** (int(math.log2(n)) // 2)
        one = {"chips_per_host_bounds": [1, 1, 1]} if n == 1 else {}
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"v5e:{rows}x{n // rows}", **one
        )
    return list(found.devices)


def missing(target: Target) -> str:
    """The package that a target needs and that is not installed; empty if it is."""
    module, package = (
        ("jax_plugins.xla_cuda13", "jax-cuda13-plugin") if target.is_gpu else ("libtpu", "libtpu")
    )
    try:
        return "" if importlib.util.find_spec(module) else package
    except ModuleNotFoundError:
        return package


# Reading a compiled program.


class Figures(NamedTuple):
    """What a program costs on each device; of a run, in one step.

    Attributes:
      kernels: launches: if each conditional takes its longest branch, and loops of unknown length run once.
      structure: the same in parts, see ``hlo.Kernels``.
      command_buffers: CUDA graphs that the host launches.
      loops, conditionals: of a GPU, those that the host decides, waiting for the device; of a TPU, all.
      temp_mib: temporary memory.
      gflop: floating point operations, as the TPU compiler counts them, each loop's body once; 0 where it does not.
      once_gflop: those of the products and convolutions, as counted from the shapes in the traced program in that way.
      counted_gflop: the same with loops of known length counted as often as they run.
      mb: bytes that kernels read and write.
      collectives: of each kind, how many there are and the bytes of their results.
      gathered: bytes of the largest result of a gather among devices.
      convolutions: cuDNN's, and ``nhwc``, how many of them have the channels side by side.
      f64, scatters, host: arrays of float64, scatters, transfers from and to the host.
      imprecise: products below the full precision of float32.
      cpu_s: processor time of tracing and compiling.
    """

    kernels: int
    structure: str
    command_buffers: int
    loops: int
    conditionals: int
    temp_mib: float
    gflop: float
    once_gflop: float
    counted_gflop: float
    mb: float
    collectives: dict[str, list[int]]
    gathered: int
    convolutions: int
    nhwc: int
    f64: int
    scatters: int
    host: int
    imprecise: int
    cpu_s: float


def compile_case(case: Case, target: Target, options: Mapping[str, Any], keep: str = "") -> Figures:
    """Compiles a program for a target and reads the result; ``keep`` is a folder that is to have XLA's texts."""
    start = time.process_time()
    traced = case.trace(devices_of(target))
    with tempfile.TemporaryDirectory() as folder:
        folder = keep or folder
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if target.is_gpu else {}
        compiled = traced.lower().compile(compiler_options={**dump, **options})
        seconds = time.process_time() - start
        thunks = _thunks(pathlib.Path(folder)) if target.is_gpu else None
        text = compiled.as_text()
        if keep:
            pathlib.Path(keep, "optimized.txt").write_text(text)
    module = hlo.Module(text)
    kernels, codes = module.kernels(module.step), module.opcodes()
    cost = {} if target.is_gpu else compiled.cost_analysis()
    collectives = module.collectives()
    convolutions = module.convolutions()
    used = alive(traced.jaxpr.jaxpr)
    counted, imprecise = products(used)
    return Figures(
        kernels=kernels.total,
        structure=str(kernels),
        command_buffers=thunks.command_buffers if thunks else 0,
        loops=thunks.loops if thunks else codes["while"],
        conditionals=thunks.conditionals if thunks else codes["conditional"],
        temp_mib=round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 2),
        gflop=_digits(cost.get("flops", 0) / 1e9),
        once_gflop=_digits(products(used, once=True)[0] / 1e9 / target.devices),
        counted_gflop=_digits(counted / 1e9 / target.devices),
        mb=_digits(cost.get("bytes accessed", module.bytes(module.step)) / 1e6),
        collectives={kind: [len(sizes), sum(sizes)] for kind, sizes in sorted(collectives.items())},
        gathered=max(
            collectives.get("all-gather", []) + collectives.get("all-to-all", []), default=0
        ),
        convolutions=len(convolutions),
        nhwc=sum(nhwc for _, nhwc in convolutions),
        f64=module.types()["f64"],
        scatters=codes["scatter"],
        host=module.host_transfers(),
        imprecise=imprecise,
        cpu_s=round(seconds, 1),
    )


def _digits(x: float) -> float:
    return float(f"{x:.4g}")


def _thunks(folder: pathlib.Path) -> hlo.Thunks:
    """Of the program's dump; XLA writes the second list only if there are command buffers."""
    for name in ("*thunk_sequence_after_thunk_passes.txt", "*thunk_sequence.txt"):
        if found := sorted(folder.glob(name)):
            return hlo.thunks_of(max(found, key=lambda path: path.stat().st_size).read_text())
    raise FileNotFoundError(f"XLA wrote no list of thunks into {folder}")


def alive(jaxpr: Any) -> Any:
    """Without what no result depends on, as gradients of inputs that nobody asked for."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def products(jaxpr: Any, once: bool = False) -> tuple[int, int]:
    """Counted from the shapes in a traced program, no compiler being asked.

    A loop of unknown length counts once, and ``once`` all loops do; a conditional counts as its dearest branch.

    Returns:
      Floating point operations of all products and convolutions, taps on padding and holes not being counted; and how
      many products there are that do not ask for the highest precision.
    """
    flops, imprecise = 0, 0
    for eqn in jaxpr.eqns:
        inner = [products(sub, once) for sub in jaxprs_in_params(eqn.params)]
        if eqn.primitive.name == "cond":
            flops += max(f for f, _ in inner)
        else:
            times = 1 if once else eqn.params.get("length", 1)
            if eqn.primitive.name == "shard_map":  # what one device does
                times *= eqn.params["mesh"].size
            flops += sum(f for f, _ in inner) * times
        imprecise += sum(low for _, low in inner)
        if own := _flops(eqn):
            flops += own
            precision = eqn.params.get("precision")
            imprecise += precision not in (
                jax.lax.Precision.HIGHEST,
                (jax.lax.Precision.HIGHEST,) * 2,
            )
    return flops, imprecise


def _flops(eqn: Any) -> int:
    """Two for each multiplication of a product or convolution; 0 for anything else."""
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "shape")]
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        specs = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        x, w, y = (
            [shape[axis] for axis in spec] for shape, spec in zip(shapes, specs, strict=True)
        )
        taps = [
            _taps(
                x[2 + i],
                w[2 + i],
                y[2 + i],
                params["window_strides"][i],
                params["padding"][i][0],
                params["lhs_dilation"][i],
                params["rhs_dilation"][i],
            )
            for i in range(2)
        ]
        return 2 * y[0] * y[1] * w[1] * math.prod(taps) // params["batch_group_count"]
    if not name.startswith("bpgan_"):
        return 0
    a, b, c = shapes  # of bpgan.nets.conv: one form in images x, kernels w and responses g
    if name in ("bpgan_conv", "bpgan_grouped_conv"):
        x, w, g = a, b, c
    elif name.endswith("weight_grad"):
        x, g, w = a, b, c
    else:
        g, w, x = a, b, c
    strides = params.get("strides", (1, 1))
    padding = params.get("padding", [((k - 1) // 2, 0) for k in w[:2]])
    taps = [_taps(x[1 + i], w[i], g[1 + i], strides[i], padding[i][0], 1, 1) for i in range(2)]
    return 2 * x[0] * w[2] * w[3] * math.prod(taps)


def _taps(x: int, w: int, y: int, stride: int, low: int, x_dilation: int, w_dilation: int) -> int:
    """Pairs of a response and a tap that meet an element, along one axis."""
    at = np.arange(y)[:, None] * stride + np.arange(w) * w_dilation - low
    return int(np.sum((at >= 0) & (at % x_dilation == 0) & (at // x_dilation < x)))


# What must hold.


def failures(
    case: Case, target: Target, found: Figures, recorded: Mapping[str, Any] | None
) -> list[str]:
    """What a program must not do, and what it does more than recorded. Each line names figure, value and bound."""
    wrong = []
    for name, what in [
        ("f64", "arrays of float64"),
        ("scatters", "scatters"),
        ("host", "transfers with the host"),
    ]:
        if count := getattr(found, name):
            wrong.append(f"{count} {what}; must be none")
    if target.devices > 1 and found.gathered > GATHERED:
        wrong.append(f"{found.gathered} bytes gathered at once; must be at most {GATHERED}")
    if found.nhwc < found.convolutions:
        wrong.append(f"{found.nhwc} of {found.convolutions} convolutions are NHWC; all must be")
    if case.precise and found.imprecise:
        wrong.append(f"{found.imprecise} products below the highest precision; must be none")
    if found.gflop and abs(found.gflop / found.once_gflop - 1) > case.flops:
        bound = f"within {case.flops:.0%} of the counted {found.once_gflop}"
        wrong.append(f"{found.gflop} GFLOP; must be {bound}")
    if recorded is None:
        return [*wrong, "no recorded figures; --record writes them"]
    for name in ("kernels", "command_buffers", "loops", "conditionals"):
        if getattr(found, name) > recorded[name]:
            wrong.append(f"{name} {getattr(found, name)}; recorded {recorded[name]}")
    if found.temp_mib > MEMORY * recorded["temp_mib"]:
        wrong.append(
            f"temp_mib {found.temp_mib}; recorded {recorded['temp_mib']}, allowed {MEMORY} times it"
        )
    return wrong


# The table.

COLUMNS = (
    "program", "target", "kernels in a step", "graphs", "loops", "ifs", "temp MiB", "GFLOP", "MB a step",
    "collectives", "gathered", "convs (NHWC)", "f64/scatter/host", "CPU s",
)  # fmt: skip


def row(program: str, target: str, f: Figures) -> list[str]:
    """A line of the table."""
    structure = "" if f.structure == str(f.kernels) else f" = {f.structure.replace('|', 'or')}"
    convolutions = f"{f.convolutions} ({f.nhwc})" if f.convolutions else "–"
    collectives = ", ".join(
        f"{count} {kind} {size / 1e6:.3g} MB" for kind, (count, size) in f.collectives.items()
    )
    return [
        program, target, f"{f.kernels}{structure}", f"{f.command_buffers or '–'}", str(f.loops),
        str(f.conditionals), f"{f.temp_mib:.4g}", f"{f.counted_gflop:.4g}", f"{f.mb:.4g}",
        collectives or "–", f"{f.gathered or '–'}", convolutions,
        f"{f.f64}/{f.scatters}/{f.host}", f"{f.cpu_s:.1f}",
    ]  # fmt: skip


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def versions() -> dict[str, str]:
    """Of what decides the figures."""
    from importlib import metadata

    names = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "libtpu")
    found = {name: [d.version for d in metadata.distributions(name=name)][:1] for name in names}
    return {name: version[0] for name, version in found.items() if version}


def read_record() -> dict[str, Any]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"versions": {}, "targets": {}}


def write_record(record: Mapping[str, Any]) -> None:
    """One line for each program, so that a change shows as one."""
    lines = ["{", f' "versions": {json.dumps(record["versions"])},', ' "targets": {']
    targets = []
    for target, found in record["targets"].items():
        rows = [f"   {json.dumps(name)}: {json.dumps(figures)}" for name, figures in found.items()]
        targets.append(f"  {json.dumps(target)}: {{\n" + ",\n".join(rows) + "\n  }")
    text = "\n".join([*lines, ",\n".join(targets), " }", "}"])
    assert json.loads(text) == record
    RECORD.write_text(text + "\n")


def add_to_record(target: str, program: str, found: Figures) -> None:
    """Writes the figures of a program into ``aot.json`` and the table of ``RESULTS.md``, others' being kept."""
    record = read_record()
    record["versions"] = versions()
    record["targets"].setdefault(target, {})[program] = found._asdict()
    write_record(record)
    RESULTS.write_text(with_table(RESULTS.read_text(), record))


def with_table(results: str, record: Mapping[str, Any]) -> str:
    """The text of ``RESULTS.md`` with the recorded figures as a table at the end of their section."""
    before, title, rest = results.partition(TITLE)
    section, next_title, after = rest.partition("\n## ")
    rows = [
        row(program, target, Figures(**figures))
        for target, found in record["targets"].items()
        for program, figures in found.items()
    ]
    prose = section.partition("\n| ")[0].rstrip("\n")
    table = "\n".join(map(line, [COLUMNS, ["---"] * len(COLUMNS), *rows]))
    return f"{before}{title}{prose}\n\n{table}\n{next_title}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM")
    parser.add_argument("--target", default="h100,h100x8,v5e,v5ex4")
    parser.add_argument(
        "--record", action="store_true", help="write benchmarks/aot.json and RESULTS.md"
    )
    parser.add_argument("--options", default="", help="options of XLA: NAME=VALUE,...")
    parser.add_argument("--keep", default="", metavar="DIR", help="keep XLA's texts there")
    given, flags = parser.parse_known_args()
    try:
        targets = {text: target_of(text) for text in given.target.split(",")}
        cases = {name: case_of(name, flags) for name in given.programs or programs()}
    except ValueError as error:
        parser.error(str(error))
    if flags and not any(":" in name for name in cases):
        parser.error(f"{flags[0]}: only EXPERIMENT:PRESET takes flags of the experiment")
    for text, target in targets.items():
        if package := missing(target):
            print(f"{text}: {package} is not installed; pip install -r requirements-aot.txt")
            return 2
    options = dict(pair.split("=", 1) for pair in given.options.split(",") if pair)
    record = read_record()
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n")
    wrong = []
    for text, target in targets.items():
        for name, case in cases.items():
            if not case.suits(target):
                continue
            keep = given.keep and str(pathlib.Path(given.keep, f"{name.replace(':', '-')}-{text}"))
            if keep:
                os.makedirs(keep, exist_ok=True)
            found = compile_case(case, target, options, keep)
            print(line(row(name, text, found)), flush=True)
            if ":" in name:
                continue  # on demand: nothing is recorded of it
            recorded = record["targets"].get(text, {}).get(name)
            if given.record:
                add_to_record(text, name, found)
                recorded = found._asdict()
            wrong += [f"{name}, {text}: {why}" for why in failures(case, target, found, recorded)]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
