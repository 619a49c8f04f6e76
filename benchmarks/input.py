"""How fast each path delivers batches, and what feeding from disk costs a training loop.

    python -m benchmarks.input [--dataset=idx:FOLDER] [--rounds=7] [--check]

Examples a second in batches of 128, by one process on all cores, as ready arrays (uint8 on the host for the readers
that stop there): bpgan's two feeds; PyTorch's DataLoader over the array in memory and over PNG files; TFDS'
random-access source of the same images. Then the same training loop fed from memory and from disk, alternating:
the ratio is taken within a round, its median is reported. Peers that are not installed are left out.
"""

import argparse
import importlib.util
import io
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

BATCH = 128
SECONDS = 2.0


def rate(batches: Iterator) -> float:
    """Examples a second after a warm-up of one batch, for about two seconds."""
    next(batches)
    start, count = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < SECONDS:
        next(batches)
        count += BATCH
    return count / took


def from_memory(dataset) -> Iterator:
    """The batches of ``--feed=memory``, each made by a call of its own (in training they are made inside the loop)."""
    import jax
    import jax.numpy as jnp

    from bpgan import data

    source = data.source(dataset, seed=0, batch_size=BATCH, feed="memory")
    batch_at, arrays = jax.jit(source.batch_at), jax.device_put(source.data)
    step = 0
    while True:
        yield jax.block_until_ready(batch_at(arrays, jnp.int32(step)))
        step += 1


def from_disk(dataset, feed: str) -> Iterator:
    """The batches of ``--feed=stream``, on the host."""
    from bpgan import data

    source = data.source(dataset, seed=0, batch_size=BATCH, feed=feed)
    assert source.windows is not None
    for window in source.windows(0, slice(None)):
        yield from window["x"]


def torch_batches(examples, workers: int) -> Iterator:
    """PyTorch's DataLoader, shuffled, as its tutorials use it."""
    import torch

    loader = torch.utils.data.DataLoader(
        examples, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from loader


class Pngs:
    """A folder of PNG files as a map-style dataset: open, decode, convert."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(self.paths[index]))


def tfds_batches(x: np.ndarray, folder: str) -> Iterator:
    """TFDS' data source of the same images as PNG in array_record, in random order."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=x.shape[1:])})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(x):
                file = io.BytesIO()
                Image.fromarray(image.squeeze()).save(file, format="png")
                file.seek(0)
                yield i, {"image": file}

    builder = Images(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")  # pyright: ignore[reportCallIssue]
    rng = np.random.default_rng(0)
    while True:
        indices = rng.integers(0, len(x), BATCH)
        yield np.stack([record["image"] for record in source.__getitems__(indices.tolist())])


def paths(dataset, folder: str) -> Iterator[tuple[str, Callable[[], Iterator]]]:
    """What is compared: a name, and what makes the batches."""
    yield "bpgan --feed=memory", lambda: from_memory(dataset)
    yield "bpgan --feed=stream", lambda: from_disk(dataset, "stream")
    yield "bpgan --feed=stream:2", lambda: from_disk(dataset, "stream:2")
    x, _ = dataset.arrays()
    if importlib.util.find_spec("torch"):
        for workers in (0, 2):
            yield f"DataLoader, array, {workers} workers", lambda w=workers: torch_batches(x, w)
        from PIL import Image

        files = [f"{folder}/{i}.png" for i in range(min(len(x), 5000))]
        for image, file in zip(x, files, strict=False):
            Image.fromarray(image.squeeze()).save(file)
        for workers in (0, 2):
            yield (
                f"DataLoader, PNG files, {workers} workers",
                lambda w=workers: torch_batches(Pngs(files), w),
            )
    yield "tfds data source (PNG)", lambda: tfds_batches(x[:5000], folder)


def loop_cost(name: str, rounds: int) -> tuple[float, float]:
    """Milliseconds of a step fed from memory, and median time of a step from disk over that from memory."""
    from bpgan.runtime.program import compile_program
    from experiments import mnist_gan

    programs, window = {}, 0
    for feed in ("memory", "stream"):
        cfg = mnist_gan.Config(dataset=name, net="dcgan:8", batch_size=BATCH, feed=feed)
        built = mnist_gan.build(cfg)
        program = compile_program(built.algorithm, built.source, seed=0)
        programs[feed] = program, program.init()
        window = program.window or window
    call = max(k for k in range(4, 41, 4) if window % k == 0)  # as many penalized steps in each
    times: dict[str, list[float]] = {"memory": [], "stream": []}
    for i in range(rounds + 1):  # the first compiles
        for feed in ("memory", "stream") if i % 2 else ("stream", "memory"):
            program, carry = programs[feed]
            start = time.perf_counter()
            for _ in range(window // call):
                carry, finite = program.run(carry, call)
                assert bool(finite)
            if i:
                times[feed].append((time.perf_counter() - start) / window)
            programs[feed] = program, carry
    ratios = [b / a for a, b in zip(times["memory"], times["stream"], strict=True)]
    return 1000 * statistics.median(times["memory"]), statistics.median(ratios)


def main() -> None:
    """Measures, prints a table, and with ``--check`` fails where feeding from disk costs 5 % or more."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dataset", default="mnist10k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    from bpgan import data

    dataset = data.load(arguments.dataset)
    print(dataset.summary())
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in paths(dataset, folder):
            found[name] = statistics.median(rate(make()) for _ in range(3))
            print(f"{name:36s} {found[name]:12,.0f} examples/s", flush=True)
    step, ratio = loop_cost(arguments.dataset, arguments.rounds)
    print(f"training step of {step:.1f} ms: fed from disk {ratio:.3f} x the time from memory")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rates": found, "step_ms": step, "ratio": ratio}) + "\n"
        )
    if arguments.check and ratio >= 1.05:
        sys.exit(f"feeding from disk costs {100 * (ratio - 1):.1f} %, must be below 5 %")


if __name__ == "__main__":
    main()
