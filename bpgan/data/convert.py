"""From a reader's examples to record files: decoding in threads, statistics, and what is odd about the data."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bpgan import memory
from bpgan.data import attributes, cache, images, readers
from bpgan.types import UserError, counted

_BLOCK = 4 << 20  # bytes of pixels that a thread makes at once
_SOON = 2.0  # seconds after which a conversion is worth a word
_FEW = 3  # names that a message lists


def every_tenth(y: np.ndarray) -> np.ndarray:
    """The fixed split of datasets that have none: of the examples sorted by class, every tenth is a test example.

    Stable and stratified: each class gives a tenth of its members, to within one.

    Args:
      y: labels ``[n]``.

    Returns:
      bool ``[n]``, true for test examples.
    """
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[9::10]] = True
    return test


def convert(
    examples: readers.Examples, form: images.Form, skip: bool, directory: pathlib.Path, name: str
) -> dict[str, Any]:
    """Writes the record files of both splits, in bounded memory and in the order of the examples.

    Args:
      examples: of a reader.
      form: that the user asked for.
      skip: leave out images that cannot be read.
      directory: where the files go.
      name: of the dataset, for the progress bar.

    Returns:
      The part of the manifest about them: ``class_names`` and ``splits``.

    Raises:
      UserError: if there are fewer than 10 examples, labels are no class numbers, images cannot be read, differ in
        size or are too large for the memory.
      OSError: if the files cannot be written.
    """
    labels = examples.labels
    _check_labels(examples)
    test = every_tenth(labels) if examples.test is None else examples.test
    classes = max(len(examples.class_names), int(labels.max()) + 1)
    bad: dict[int, str] = {}
    remarks: dict[str, tuple[int, int]] = {}
    with images.strict():
        shape, form = _scan(examples, form, skip, bad, name)
        size = int(np.prod(shape))
        need, free = len(labels) * (size + 100), shutil.disk_usage(directory).free
        if need > free:
            raise OSError(f"needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
        writers = [
            cache.Writer(directory / f"{s}.array_record", shape, classes) for s in cache.SPLITS
        ]
        batches = _batched(
            (p for p in enumerate(examples.items()) if p[0] not in bad), _BLOCK // size
        )
        decode = functools.partial(_decode, examples, form, shape)
        blocks = ordered(decode, batches, _threads_for(max(size, _BLOCK)))
        kept: list[list[int]] = [[] for _ in cache.SPLITS]
        for done in progress(blocks, len(labels), f"{name}: converting"):
            good = {i: x for i, x in done if isinstance(x, images.Decoded)}
            for part, writer in enumerate(writers):
                rows = [i for i in good if test[i] == part]
                kept[part] += rows
                if rows:
                    writer.add(np.stack([good[i].pixels for i in rows]), labels[rows])
            for x in good.values():
                for kind, number in x.remarks.items():
                    count, greatest = remarks.get(kind, (0, 0))
                    remarks[kind] = count + 1, max(greatest, number)
            bad.update((i, x) for i, x in done if isinstance(x, str))
    if bad and not skip:
        raise _unreadable(bad, len(labels))
    found = {split: writer.close() for split, writer in zip(cache.SPLITS, writers, strict=True)}
    total = sum(f["count"] for f in found.values())
    if total < 10:
        raise UserError(f"{counted(total, 'readable example')}, need at least 10")
    general = list(examples.warnings)
    general += [images.describe_remark(kind, *numbers) for kind, numbers in sorted(remarks.items())]
    if bad:
        general.append(str(_unreadable(bad, len(labels))).partition(";")[0] + "; left out")
    for split in cache.SPLITS:
        found[split]["warnings"] = [*general, *_warnings(split, found, examples)]
    made = {"class_names": list(examples.class_names), "splits": found}
    return made | _write_attributes(examples, kept, directory)


def _write_attributes(
    examples: readers.Examples, kept: list[list[int]], directory: pathlib.Path
) -> dict[str, Any]:
    """Writes the attributes of the images of each split that are kept; returns what the manifest says of them."""
    if examples.attributes is None:
        return {}
    names, values = examples.attributes
    train = values[kept[0]]
    attributes.described(names, train, train)  # tells here what nobody can learn from
    digests = {}
    for split, rows in zip(cache.SPLITS, kept, strict=True):
        data = attributes.encoded(values[rows])
        (directory / f"{split}.attributes.npy").write_bytes(data)
        digests[split] = hashlib.sha256(data).hexdigest()
    return {"attributes": {"names": list(names), "sha256": digests}}


def _check_labels(examples: readers.Examples) -> None:
    labels = examples.labels
    if len(labels) < 10:
        raise UserError(
            "; ".join([f"{counted(len(labels), 'example')}, need at least 10", *examples.warnings])
        )
    if labels.min() < 0 or labels.max() >= max(len(labels), len(examples.class_names)):
        raise UserError(
            f"labels go from {labels.min()} to {labels.max()}, must be class numbers from 0"
        )


def _decode(
    examples: readers.Examples,
    form: images.Form,
    shape: tuple[int, int, int],
    batch: tuple[tuple[int, Any], ...],
) -> list[tuple[int, images.Decoded | str]]:
    """The images of a batch by their numbers, or what is wrong with them."""
    done: list[tuple[int, images.Decoded | str]] = []
    for i, item in batch:
        try:
            x = examples.decode(item, form)
            if x.pixels.shape == shape:
                done.append((i, x))
                continue
            h, w = x.pixels.shape[:2]  # the header did not tell
            reason = f"it is {h}x{w}, others {shape[0]}x{shape[1]}"
        except images.Unreadable as error:
            reason = str(error)
        done.append((i, f"{examples.describe(item)} ({reason})"))
    return done


def threads() -> int:
    """How many read and decode."""
    return min(16, os.cpu_count() or 1)


def _threads_for(size: int) -> int:
    """How many threads may make ``size`` bytes of pixels at once: what they have made waits, and is copied."""
    free = memory.available()
    fit = (free // (4 * size) - 1) // 2  # two batches for each thread and one that is written
    if fit < 1:
        raise UserError(f"images are too large for the memory: {memory.shortfall(12 * size, free)}")
    return min(threads(), fit)


def _unreadable(bad: dict[int, str], count: int) -> UserError:
    first = ", ".join(bad[i] for i in sorted(bad)[:_FEW])
    return UserError(
        f"{len(bad):,} of {count:,} images cannot be read: {first}{', ...' * (len(bad) > _FEW)};"
        " the option ,skip=unreadable leaves them out"
    )


def _scan(
    examples: readers.Examples, form: images.Form, skip: bool, bad: dict[int, str], name: str
) -> tuple[tuple[int, int, int], images.Form]:
    """The shape that all images will have, and the form that makes it. Adds to ``bad`` what cannot be read.

    Raises:
      UserError: if the sizes differ, or an image cannot be read and that is not allowed.
    """
    probe, count = examples.probe, len(examples.labels)
    size, channels = form.size or examples.size, form.channels or examples.channels
    if size is None or channels is None:
        assert probe is not None
        sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        like: dict[tuple[int, int], str] = {}
        most = 1

        def look(batch: tuple[tuple[int, Any], ...]) -> list[tuple[int, str, Any]]:
            seen = []
            for i, item in batch:
                try:
                    seen.append((i, examples.describe(item), probe(item)))
                except images.Unreadable as error:
                    seen.append((i, examples.describe(item), str(error)))
            return seen

        batches = _batched(enumerate(examples.items()), 64)
        for seen in progress(ordered(look, batches, threads()), count, f"{name}: looking"):
            for i, what, found in seen:
                if isinstance(found, str):
                    bad[i] = f"{what} ({found})"
                    continue
                sizes[found[:2]] += 1
                like.setdefault(found[:2], what)
                most = max(most, found[2])
        if bad and not skip:
            raise _unreadable(bad, count)
        if size is None and len(sizes) > 1:
            common = " and ".join(
                f"{s[0]}x{s[1]} ({counted(n, 'image')}, such as {like[s]})"
                for s, n in sizes.most_common(2)
            )
            raise UserError(
                f"images of {len(sizes)} sizes, mostly {common}; ,size=64 or ,size=HxW at the end"
                " of the name makes them one"
            )
        size, channels = size or next(iter(sizes), (1, 1)), channels or most
    if form.channels is None and form.background and len(set(form.background)) > 1:
        channels = max(3, channels)
    return (size[0], size[1], channels), form._replace(channels=channels)


def _warnings(split: str, found: dict[str, Any], examples: readers.Examples) -> Iterator[str]:
    """What is odd about the content of a split."""
    here = found[split]
    counts = np.array(here["counts"])
    others = np.array(found["train"]["counts"]) > 0

    def named(where: np.ndarray) -> str:
        which = np.flatnonzero(where)
        names = [examples.class_names[i] if examples.class_names else str(i) for i in which[:5]]
        return f"class{'es' * (len(which) > 1)} {', '.join(names)}{', ...' * (len(which) > 5)}"

    missing = (counts == 0) & ~others if split == "test" else counts == 0
    if examples.labeled and here["count"]:
        if (counts > 0).sum() == 1:
            count = counted(here["count"], "example is", "examples are")
            yield f"{'all ' * (here['count'] > 1)}{count} of {named(counts > 0)}"
        elif counts[counts > 0].min() * 100 < counts.max():
            least = np.where(counts > 0, counts, counts.max()).argmin()
            most = counts.argmax()
            yield (
                f"unbalanced: {counted(counts[most], 'example')} of {named(np.arange(len(counts)) == most)},"
                f" {counts[least]:,} of {named(np.arange(len(counts)) == least)}"
            )
        if missing.any():
            yield f"{named(missing)} {'has' if missing.sum() == 1 else 'have'} no examples"
        if split == "test" and ((counts > 0) & ~others).any():
            yield f"classes differ from those of train: {named((counts > 0) & ~others)} only in test"
        if split == "test" and ((counts == 0) & others).any():
            yield f"classes differ from those of train: {named((counts == 0) & others)} only in train"
    if here["identical"] and here["count"] > 1:
        yield "all images are identical"
    elif here["constant"]:
        verb = "is" if here["constant"] == 1 else "are"
        yield f"{here['constant']:,} of {here['count']:,} images {verb} of a single color"
    if here["high"] == 1:
        yield "all pixels are 0 or 1; images should use 0 to 255"


def _batched(items: Iterable[Any], count: int) -> Iterator[tuple[Any, ...]]:
    iterator = iter(items)
    return iter(lambda: tuple(itertools.islice(iterator, max(1, min(count, 256)))), ())


def ordered(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """``map`` in threads, a bounded number of items ahead."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > threads + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def progress(
    blocks: Iterable[list[Any]], total: int, what: str, unit: str = "images"
) -> Iterator[list[Any]]:
    """The blocks, with a bar on a terminal or else two lines, on stderr, if it takes more than two seconds."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=f" {unit}", delay=_SOON, file=sys.stderr) as bar:
            for block in blocks:
                yield block
                bar.update(len(block))
        return
    start, said = time.monotonic(), False
    for block in blocks:
        yield block
        if not said and time.monotonic() - start > _SOON:
            said = True
            print(f"{what} {total:,} {unit}", file=sys.stderr, flush=True)
    if said:
        print(f"{what} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
