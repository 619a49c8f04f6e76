"""Where three recipes stop scaling, from their programs as compiled for up to 256 accelerators that are not here.

    python -m benchmarks.scaling [WORD...]   compiles what benchmarks/scaling.json does not have yet, point by point
    python -m benchmarks.scaling --show      writes the tables of docs/scaling.md, and docs/scaling.svg

A point is compiled if its name, such as ``r3-32 h100x64 batch 512``, has all the words. It needs the environment of
``benchmarks/aot.py``. Nothing is executed: memory and communication are read off the programs, and the time of a step
is an estimate from them, see ``estimate``.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import aot, hlo
from bpgan.report import plot

HERE = pathlib.Path(__file__).parent
RECORD = HERE / "scaling.json"
PAGE = HERE.parent / "docs" / "scaling.md"
PICTURE = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- tables: python -m benchmarks.scaling --show -->", "<!-- end of tables -->"
DEVICES = (8, 64, 256)
HOST = 8
"""Devices of a host: of a node of H100s, and of a host of TPUs v5e."""


# What is compiled.


class Recipe(NamedTuple):
    """A preset of ``image_gan``.

    Attributes:
      preset: its name.
      size: of the images, in pixels.
      batch: rows that 8 devices share, and that any number does where the batch is fixed.
      images: of the dataset that it is meant for.
    """

    preset: str
    size: int
    batch: int
    images: int


RECIPES = (
    Recipe("r3-32", 32, 512, 50_000),  # CIFAR-10
    Recipe("r3-64", 64, 256, 70_000),  # FFHQ
    Recipe("biggan-32", 32, 256, 50_000),
)


class Point(NamedTuple):
    """A program: a recipe on so many devices, which share ``batch`` rows."""

    recipe: Recipe
    kind: str
    devices: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.recipe.preset} {self.kind}x{self.devices} batch {self.batch}"

    @property
    def hosts(self) -> int:
        return self.devices // HOST

    @property
    def data(self) -> int:
        """Bytes of the dataset, its labels included."""
        return self.recipe.images * (3 * self.recipe.size**2 + 4)


def curve(recipe: Recipe, kind: str, grows: bool) -> list[Point]:
    """The points at a fixed batch per device (the global one grows), or at a fixed global batch."""
    return [
        Point(recipe, kind, n, recipe.batch * n // DEVICES[0] if grows else recipe.batch)
        for n in DEVICES
    ]


def points() -> list[Point]:
    """All of them, each once: with 8 devices both curves begin at the same one."""
    found = {
        point.name: point
        for kind in CHIPS
        for recipe in RECIPES
        for grows in (False, True)
        for point in curve(recipe, kind, grows)
    }
    return list(found.values())


class Figures(NamedTuple):
    """What a program costs on each device, in one step; loops of known length count as often as they run.

    Attributes:
      precision: of the preset.
      kernels: launches; of a TPU, without what its scalar unit does and copies that run beside others.
      temp_mib, arguments_mib: temporary memory, and that of state and data.
      gflop: operations of products and convolutions, counted from the shapes in the traced program.
      mb: bytes that kernels read and write.
      collectives: of each kind, how many there are and the bytes of their results.
      gathered: bytes of the largest result of a gather among devices.
      state, data: bytes of the run's state and of the dataset that it was compiled with.
      checkpoint: bytes of the state that the first host writes, and each of the others.
      cpu_s: processor time of tracing and compiling.
    """

    precision: str
    kernels: int
    temp_mib: float
    arguments_mib: float
    gflop: float
    mb: float
    collectives: dict[str, list[int]]
    gathered: int
    state: int
    data: int
    checkpoint: list[int]
    cpu_s: float


def build(point: Point) -> Any:
    """What is trained, on noise in the form of the dataset."""
    return aot.build(
        "image_gan",
        f"--preset={point.recipe.preset}",
        f"--batch_size={point.batch}",
        f"--dataset=benchmarks.aot:color{point.recipe.size}",
    )


def compile_point(point: Point) -> Figures:
    """Compiles a point and reads the result."""
    from bpgan.runtime import program

    start = time.process_time()
    built = build(point)
    devices = aot.devices_of(aot.Target(point.kind, point.devices))
    traced = program.trace(built.algorithm, built.source, devices).run
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    figures = figures_of(point, built, hlo.Module(compiled.as_text()))
    return figures._replace(
        temp_mib=round(memory.temp_size_in_bytes / 2**20, 2),
        arguments_mib=round(memory.argument_size_in_bytes / 2**20, 2),
        gflop=_digits(aot.products(aot.alive(traced.jaxpr.jaxpr))[0] / 1e9 / point.devices),
        cpu_s=round(time.process_time() - start, 1),
    )


def figures_of(point: Point, built: Any, module: hlo.Module) -> Figures:
    """What the text of a program says, and its state; the rest is 0."""
    import jax

    state = jax.eval_shape(built.algorithm.init, jax.random.key(0))
    shapes = [
        (x.shape, x.dtype.itemsize)
        for x in jax.tree.leaves(state)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]
    gathers = [module.collectives().get(kind, []) for kind in ("all-gather", "all-to-all")]
    return Figures(
        precision=_preset(point.recipe).get("precision", "float32"),
        kernels=module.operations(module.step),
        temp_mib=0,
        arguments_mib=0,
        gflop=0,
        mb=_digits(module.bytes(module.step) / 1e6),
        collectives=module.communication(module.step),
        gathered=max(sum(gathers, []), default=0),
        state=sum(math.prod(shape) * width for shape, width in shapes),
        data=sum(x.nbytes for x in jax.tree.leaves(built.source.data)),
        checkpoint=list(written(shapes, point.devices)),
        cpu_s=0,
    )


def _digits(x: float) -> float:
    return float(f"{x:.4g}")


def _preset(recipe: Recipe) -> Mapping[str, Any]:
    from experiments import image_gan

    return image_gan.PRESETS[recipe.preset]


def written(shapes: list[tuple[tuple[int, ...], int]], devices: int) -> tuple[int, int]:
    """Bytes of a checkpoint that the first host writes, and each other one.

    An array of which some axis is a multiple of the number of devices is written in as many parts, each by the host of
    its device; any other is written by the first host. That is orbax's rule for arrays that every device has.

    Args:
      shapes: of all arrays, each with the bytes of an element.
      devices: that have them, ``HOST`` to a host.
    """
    shared = whole = 0
    for shape, width in shapes:
        size = math.prod(shape) * width
        if any(axis % devices == 0 for axis in shape):
            shared += size
        else:
            whole += size
    each = shared * HOST // devices
    return whole + each, each


# The estimate.


class Nodes(NamedTuple):
    """Devices in nodes of ``HOST``.

    Attributes:
      near, far: bytes per second that one device sends within its node, and to other nodes.
      start, near_hop, far_hop: seconds of a collective however small: to begin, and of each hop.
    """

    near: float
    far: float
    start: float
    near_hop: float
    far_hop: float

    def wire(self, devices: int) -> float:
        """Seconds to pass one byte once round all devices: first within the nodes, then each share between them."""
        nodes = devices // HOST
        return (HOST - 1) / HOST / self.near + (nodes - 1) / nodes / HOST / self.far

    def wait(self, devices: int) -> float:
        """Seconds of a collective of no bytes: up a tree and down again, a chain in each node."""
        hops = (HOST - 1) * self.near_hop + math.log2(devices // HOST) * self.far_hop
        return self.start + 2 * hops


class Torus(NamedTuple):
    """Devices in a grid, each linked with its neighbors; only a side of 16 is closed to a ring.

    Attributes:
      link: bytes per second, one way.
      hop: seconds.
    """

    link: float
    hop: float

    def wire(self, devices: int) -> float:
        """Seconds to pass one byte once round all devices; one in a corner of an open grid has two links, else four."""
        links = sum(2 if side == 16 else 1 for side in _sides(devices))
        return (devices - 1) / devices / (links * self.link)

    def wait(self, devices: int) -> float:
        """Seconds of a collective of no bytes: along each side there and back, of a ring half as far."""
        return 2 * self.hop * sum(side // 2 if side == 16 else side - 1 for side in _sides(devices))


def _sides(devices: int) -> tuple[int, int]:
    """Of the slice that ``aot.devices_of`` takes."""
    rows = 2 ** (int(math.log2(devices)) // 2)
    return rows, devices // rows


class Chip(NamedTuple):
    """What an accelerator can do. docs/scaling.md says where each number is from.

    Attributes:
      name: of the product.
      peak: operations per second by the precision of a recipe.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      launch: seconds from one kernel to the next, if they do nothing.
      network: among devices.
    """

    name: str
    peak: Mapping[str, float]
    memory: float
    bandwidth: float
    launch: float
    network: Nodes | Torus


CHIPS = {
    "h100": Chip(
        "H100",
        {"bfloat16": 989e12, "float32": 494e12},  # TF32
        80e9,
        3.35e12,
        2.2e-6,
        Nodes(near=450e9, far=50e9, start=6.8e-6, near_hop=0.6e-6, far_hop=5e-6),
    ),
    "v5e": Chip(
        "TPU v5e",
        {"bfloat16": 197e12, "float32": 197e12},  # one pass in bfloat16
        16e9,
        819e9,
        0.5e-6,
        Torus(link=45e9, hop=1e-6),
    ),
}


class Estimate(NamedTuple):
    """Seconds of a step, by what takes them.

    Attributes:
      arithmetic, memory: of products, and of reading and writing the device's memory.
      launches: of starting kernels.
      wire, waits: of bytes between devices, and of collectives that begin.
    """

    arithmetic: float
    memory: float
    launches: float
    wire: float
    waits: float

    @property
    def longest(self) -> str:
        """Of arithmetic, memory and launches, which go on at the same time."""
        return max(("arithmetic", "memory", "launches"), key=lambda name: getattr(self, name))

    @property
    def computing(self) -> float:
        """The time of the longest."""
        return getattr(self, self.longest)

    @property
    def step(self) -> float:
        """Devices do not compute while they communicate."""
        return self.computing + self.wire + self.waits

    @property
    def bound(self) -> str:
        """The name of the largest part."""
        return max(self._fields, key=lambda name: getattr(self, name))


def estimate(figures: Figures, chip: Chip, devices: int) -> Estimate:
    """What the data sheets allow at best, of a program's figures.

    An all-reduce passes each byte of its result round twice, any other collective once.
    """
    sizes = {kind: size for kind, (_, size) in figures.collectives.items()}
    passed = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in sizes.items())
    count = sum(n for n, _ in figures.collectives.values())
    return Estimate(
        arithmetic=figures.gflop * 1e9 / chip.peak[figures.precision],
        memory=figures.mb * 1e6 / chip.bandwidth,
        launches=figures.kernels * chip.launch,
        wire=passed * chip.network.wire(devices),
        waits=count * chip.network.wait(devices),
    )


# The record.


def read() -> dict[str, Figures]:
    """The figures of all points that were compiled, by name."""
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return {name: Figures(**figures) for name, figures in known.items()}


def write(known: Mapping[str, Figures]) -> None:
    """One line for each point, so that a change shows as one."""
    order = [point.name for point in points() if point.name in known]
    lines = (f"  {json.dumps(name)}: {json.dumps(known[name]._asdict())}" for name in order)
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record(words: list[str]) -> None:
    """Compiles the points that have all words in their names and are not in the record."""
    for point in points():
        if point.name not in read() and all(word in point.name for word in words):
            found = compile_point(point)
            write(read() | {point.name: found})
            print(point.name, found.cpu_s, "CPU seconds", flush=True)


# The page.


def speed(known: Mapping[str, Figures], point: Point) -> float:
    """Images per second and device."""
    step = estimate(known[point.name], CHIPS[point.kind], point.devices).step
    return point.batch / step / point.devices


def memory(known: Mapping[str, Figures], point: Point) -> float:
    """Bytes that a device needs, with the dataset that the recipe is meant for."""
    figures = known[point.name]
    return (figures.temp_mib + figures.arguments_mib) * 2**20 + point.data - figures.data


WORDS = {
    "arithmetic": "arithmetic",
    "memory": "memory traffic",
    "launches": "launches of kernels",
    "wire": "bytes between devices",
    "waits": "collectives that begin",
}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def curves(known: Mapping[str, Figures]) -> list[tuple[bool, list[Point]]]:
    """The compiled points of each curve, from 8 devices on; true where the batch grows with the devices."""
    found = []
    for recipe in RECIPES:
        for kind in CHIPS:
            for grows in (True, False):
                first, *rest = curve(recipe, kind, grows)
                rest = [point for point in rest if point.name in known]
                if first.name in known and rest:
                    found.append((grows, [first, *rest]))
    return found


def kept(known: Mapping[str, Figures], each: Sequence[Point]) -> list[float]:
    """The speed per device of the points of a curve, as a share of that of 8 devices."""
    speeds = [speed(known, point) for point in each]
    return [value / speeds[0] for value in speeds]


def cause(known: Mapping[str, Figures], each: Sequence[Point]) -> str:
    """The part of a step that takes most of the time that a curve loses to its last point.

    Without loss each part would shrink as the rows of a device do. Of arithmetic, memory and launches only the longest
    takes time.
    """
    times = []
    for point in (each[0], each[-1]):
        found = estimate(known[point.name], CHIPS[point.kind], point.devices)
        times.append((found, point.batch / point.devices))
    (first, rows), (last, left) = times
    lost = {
        name: getattr(last, name) - left / rows * getattr(first, name)
        for name in ("computing", "wire", "waits")
    }
    name = max(lost, key=lambda name: lost[name])
    return WORDS[last.longest if name == "computing" else name]


def verdicts(known: Mapping[str, Figures]) -> str:
    """What each curve keeps of the speed per device, to where that is at least a half, and what the rest goes to."""
    head = ["recipe", "on", "batch", "images/s of 8", *(f"kept by {n}" for n in DEVICES[1:])]
    head += ["half is kept up to", "lost in the end mostly to"]
    rows = []
    for grows, each in curves(known):
        first = each[0]
        shares = {p.devices: share for p, share in zip(each, kept(known, each), strict=True)}
        chip, rows_each = CHIPS[first.kind], first.batch // first.devices
        rows.append(
            [
                first.recipe.preset,
                chip.name,
                f"{rows_each} each" if grows else f"{first.batch} in all",
                f"{speed(known, first) * first.devices:,.0f}",
                *(f"{shares[n]:.0%}" if n in shares else "–" for n in DEVICES[1:]),
                max(n for n, share in shares.items() if share >= 0.5),
                cause(known, each),
            ]
        )
    return _table(head, rows)


def steps(known: Mapping[str, Figures]) -> str:
    """Memory, communication and time of a step of every point."""
    head = [
        "recipe",
        "devices",
        "batch",
        "memory, GB",
        "read and written, GB",
        "kernels",
        "collectives",
        "their MB",
    ]
    head += ["largest gather, KB", "step, ms", "largest part", "communication", "images/s each"]
    rows = []
    for point in points():
        if point.name not in known:
            continue
        figures, chip = known[point.name], CHIPS[point.kind]
        found = estimate(figures, chip, point.devices)
        counts, sizes = zip(*figures.collectives.values(), strict=True)
        rows.append(
            [
                point.recipe.preset,
                f"{point.devices} {chip.name}",
                f"{point.batch:,}",
                f"{memory(known, point) / 1e9:.2f}",
                f"{figures.mb / 1e3:.1f}",
                f"{figures.kernels:,}",
                sum(counts),
                f"{sum(sizes) / 1e6:.1f}",
                f"{figures.gathered / 1e3:.3g}",
                f"{1e3 * found.step:.1f}",
                WORDS[found.bound],
                f"{(found.wire + found.waits) / found.step:.0%}",
                f"{speed(known, point):,.0f}",
            ]
        )
    return _table(head, rows)


def hosts(known: Mapping[str, Figures]) -> str:
    """What each host writes into a checkpoint, and reads; it is the same for all kinds of devices."""
    head = ["recipe", "hosts", "checkpoint, MB", "the first host writes", "each other writes"]
    head += ["dataset, MB, read by each", "streamed by each per step, MB"]
    rows = []
    for recipe in RECIPES:
        for point in curve(recipe, next(iter(CHIPS)), grows=False):
            if point.name not in known:
                continue
            figures = known[point.name]
            first, other = (f"{size / 1e6:.1f}" for size in figures.checkpoint)
            rows.append(
                [
                    recipe.preset,
                    point.hosts,
                    f"{figures.state / 1e6:.1f}",
                    first,
                    other if point.hosts > 1 else "–",
                    f"{point.data / 1e6:.0f}",
                    f"{point.batch / point.hosts * 3 * recipe.size**2 / 1e6:.3f}",
                ]
            )
    return _table(head, rows)


def page(text: str, known: Mapping[str, Figures]) -> str:
    """The text of docs/scaling.md with the tables of the record."""
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    picture = "![Speed per device against the number of devices](scaling.svg)"
    parts = [picture, verdicts(known), "### Every point", steps(known), "### Hosts", hosts(known)]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def draw(known: Mapping[str, Figures], path: pathlib.Path) -> None:
    """The share of the speed per device that each curve keeps; it is dashed if the batch is the same for all."""
    quarters = math.ceil(4 * max(max(kept(known, each)) for _, each in curves(known)))
    x, y = plot.Axis.of(DEVICES, log=True), plot.Axis.of([0.0, quarters / 4], log=False)
    ticks = [(float(x.at(n)), f"{n} devices") for n in DEVICES]
    shares = [(float(y.at(n / 4)), f"{n / 4:.0%}") for n in range(quarters + 1)]
    legend = [(color, recipe.preset, "") for color, recipe in enumerate(RECIPES)]
    plots = []
    for kind, chip in CHIPS.items():
        shapes = [
            plot.Shape(
                x.at([point.devices for point in each]),
                y.at(kept(known, each)),
                RECIPES.index(each[0].recipe),
                "line" if grows else "dashed",
            )
            for grows, each in curves(known)
            if each[0].kind == kind
        ]
        if not shapes:
            continue
        small = "share of its speed with 8 devices that each device keeps; dashed: the same batch for all"
        plots.append(plot.Plot(chip.name, shapes, ticks, shares, legend, small))
    plot.write_svg(path, plots, width=880, height=240)


def show() -> None:
    """Writes the tables into docs/scaling.md, and the picture beside it."""
    known = read()
    PAGE.write_text(page(PAGE.read_text(), known))
    draw(known, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("words", nargs="*", metavar="WORD", help="of the names of points")
    parser.add_argument("--show", action="store_true", help="only write the tables and the picture")
    given = parser.parse_args()
    if not given.show:
        record(given.words)
    show()


if __name__ == "__main__":
    main()
