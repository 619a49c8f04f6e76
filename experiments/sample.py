"""Draws images from a trained run: files and grids by seeds and classes, animations between seeds.

Run:     python -m experiments.sample --run=runs/mnist_gan/default
             36 images by their seeds, and a grid of them
         python -m experiments.sample --run=runs/mnist_gan/default --seeds=3,7,100:104 --truncation=0.7
             other seeds; less variety for more typical images
         python -m experiments.sample --run=runs/image_gan/cgan28 --labels=all --seeds=0:8
             a grid with a column for each class, its name below; --labels=3,cat chooses some
         python -m experiments.sample --run=runs/text_gan/digits --prompt="a small red seven, top left"
             images of what the caption says
         python -m experiments.sample --run=runs/flow_gan/match28 --flags=sampler=heun:8
             flags that are other than the run's: here, eight evaluations of the network for an image; of a run of
             flow_gan --preset=match28 --name=match28
         python -m experiments.sample --run=runs/image_gan/altered --trust --labels=3 --attributes="rotation=30,bold=1"
             images of a class that have these attributes; of a run of
             image_gan --preset=cgan28 --dataset=bpgan.data.altered:load --name=altered
         python -m experiments.sample --run=runs/mnist_gan/default --interpolate=1,2,3,1 --frames=30
             frames, a GIF and, if ffmpeg is there, an MP4 of the way from seed to seed

Neither the data nor the flags of the run are needed. A file is named by all that decides its content but the run: the
step of the checkpoint, seed, class, caption, truncation, length of the average and other flags, so that the same
command writes the same files. Those that are there are replaced. ``samples.json`` says of which run they are.
"""

import dataclasses
import functools
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import bpgan
from bpgan import cli
from bpgan.data import attributes, captions
from bpgan.files import write_json
from bpgan.runtime import images
from bpgan.runtime.records import warn
from bpgan.trained.paths import path
from bpgan.trained.run import Run, parse_truncation
from bpgan.types import UserError

_MOST = 10_000  # images of one command


def _numbers(text: str) -> list[int]:
    """``0:4,7``: ranges without their ends, and single seeds. Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,10})(?::(\d{1,10}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or int(match[1]) + 1)) if match else (0, 0)
        if first >= last or last > 1 << 32:
            raise ValueError("must be seeds such as 3,7,100:104 (100 to 103), from 0 to 2^32 - 1")
        if last - first + len(found) > _MOST:
            raise ValueError(f"must be at most {_MOST:,} seeds")
        found += range(first, last)
    return found


def _stops(text: str) -> list[int]:
    """Seeds on the way; none of an empty text."""
    found = _numbers(text) if text else []
    if len(found) == 1:
        raise ValueError("must be two seeds or more")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.RUN
    checkpoint: str = cli.CHECKPOINT
    seeds: cli.Parsed[list[int]] = cli.field(
        "0:36", "one image each: 3,7,100:104, where 104 is left out", parse=_numbers
    )
    labels: str = cli.field(
        "",
        "classes, each of every seed: all, or numbers and names separated by commas; empty: in turn",
    )
    attributes: str = cli.field(
        "",
        "NAME=NUMBER,...: for a run that has learned from attributes; the others are those of training images in turn",
    )
    prompt: str = cli.field("", "a caption to draw, for a run that has learned from captions")
    truncation: cli.Parsed[float | None] = cli.field(
        "", "of the samples, in the place of the run's own; empty: that", parse=parse_truncation
    )
    ema: cli.Parsed[float | None] = cli.AVERAGE
    flags: cli.Parsed[list[str]] = cli.field(
        "", "flags that are to be other than the run's: sampler=euler:4", parse=cli.assignments
    )
    columns: int = cli.field(0, "of the grid; 0: a square, or a column for each of --labels", low=0)
    files: bool = cli.field(True, "write each image as a file of its own, too")
    interpolate: cli.Parsed[list[int]] = cli.field(
        "",
        "SEED,SEED,...: an animation from one to the next, in the place of --seeds",
        parse=_stops,
    )
    frames: int = cli.field(30, "of an animation, from seed to seed", low=1, high=1000)
    rate: int = cli.field(20, "frames a second", low=1, high=50)
    trust: bool = cli.TRUST


PRESETS = {"smoke": dict(seeds="0:4", frames=2)}


def run(cfg: Config) -> None:
    """Draws what ``cfg`` asks for."""
    if not cfg.run:
        raise UserError("must name a run directory", argument="run")
    out = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    opened = bpgan.load(
        cfg.run, cfg.checkpoint, flags=cfg.flags.value, trust=cfg.trust, ema=cfg.ema.value
    )
    if opened.average:
        print(opened.average)
    labels = _labels(opened, cfg.labels)
    _check(cfg, opened, labels)
    draw = _drawing(cfg, opened)
    stem = f"step{opened.step:08d}"
    written = (_animate if cfg.interpolate.value else _draw)(cfg, opened, draw, labels, out, stem)
    facts = {
        "run": cfg.run,
        "run_id": opened.record.run,
        "experiment": opened.experiment,
        "step": opened.step,
        "labels": [opened.names_of_data[y] if opened.names_of_data else y for y in labels],
        "prompt": cfg.prompt,
        "attributes": cfg.attributes,
        "truncation": cfg.truncation.value,
        "ema": cfg.ema.value,
        "flags": cfg.flags.value,
    }
    write_json(out / "samples.json", facts | {"files": sorted(written)})
    print("\n".join(str(out / name) for name in sorted(written) if "/" not in name))


def _labels(opened: Run, text: str) -> list[int]:
    """The classes that are asked for; none for those of a run without labels, or in turn."""
    if not text:
        return []
    if not opened.classes and not opened.attributes:
        reason = f"{opened.experiment} was trained without labels; must be empty"
        raise UserError(reason, argument="labels", value=text)
    return opened.labels_of_data(text)


Draw = Callable[[np.ndarray, Any], np.ndarray]


def _drawing(cfg: Config, opened: Run) -> Draw:
    """``(z, labels) -> images`` of the run, for the caption if one is given.

    Raises:
      UserError: for a caption of a run without captions, or one that the run cannot read, and for none of a run with
        captions.
    """
    asked = read_attributes(opened, cfg.attributes)
    if opened.attributes:
        if cfg.prompt:
            read_prompt(opened, cfg.prompt)
        return lambda z, labels: opened.sample(
            z=z, labels=labels, truncation=cfg.truncation.value, attributes=asked
        )
    if not cfg.prompt:
        if (facts := opened.record.dataset) and facts.words:
            such = f"must be a caption such as {facts.prompts[0]!r}"
            reason = f"a run of {opened.experiment} draws what a caption says; {such}"
            raise UserError(reason, argument="prompt")
        return lambda z, labels: opened.sample(z=z, labels=labels, truncation=cfg.truncation.value)
    row, unknown = read_prompt(opened, cfg.prompt)
    if unknown:
        warn(f"no caption that {cfg.run} was trained on has {', '.join(unknown)}")
    drawn = functools.partial(cli.draw, opened.algorithm, opened.state, seed=0)

    def draw(z: np.ndarray, labels: Any) -> np.ndarray:
        del labels  # a run with captions has none
        with opened.settings():
            return drawn(n=len(z), z=z, labels=np.repeat(row, len(z), axis=0))

    return draw


def read_attributes(opened: Run, text: str) -> dict[str, float]:
    """The attributes that are asked for.

    Raises:
      UserError: if the run has not learned from attributes, or not from these.
    """
    if text and not opened.attributes:
        reason = f"{opened.experiment} was trained without attributes; must be empty"
        raise UserError(reason, argument="attributes", value=text)
    try:
        return attributes.parse(text, opened.attributes) if opened.attributes else {}
    except ValueError as error:
        raise UserError(str(error), argument="attributes", value=text) from None


def read_prompt(opened: Run, prompt: str) -> tuple[np.ndarray, list[str]]:
    """A caption as the run reads it, int32 ``[1, t]``, and its words that the run does not know.

    Raises:
      UserError: if the run has not learned from captions, or knows no word of this one, or it has too many words.
    """
    if not opened.words:
        reason = f"{opened.experiment} was trained without captions; must be empty"
        raise UserError(reason, argument="prompt", value=prompt)
    try:
        row = captions.tokenize([prompt], opened.words, vars(opened.config)["caption_length"])
    except UserError as error:
        raise UserError(error.reason, argument="prompt", value=prompt) from None
    unknown = captions.unknown_words(prompt, opened.words)
    if len(unknown) == len(set(captions.split_words(prompt))):
        known = ", ".join(opened.words[2:22]) + ", ..." * (len(opened.words) > 22)
        raise UserError(
            f"the run knows none of these words; it knows {known}", argument="prompt", value=prompt
        )
    return row, unknown


def _check(cfg: Config, opened: Run, labels: Sequence[int]) -> None:
    """Raises a UserError, before anything is drawn, if the run draws no images, or too many are asked for."""
    shape = opened.sample(1, truncation=cfg.truncation.value).shape[1:]
    if len(shape) != 3 or shape[-1] not in (1, 3, 4):
        reason = f"a run of {opened.experiment} draws arrays {list(shape)}, which are not images;"
        reason += " run.sample of bpgan.load has them in Python"
        raise UserError(reason, argument="run", value=cfg.run)
    stops = cfg.interpolate.value
    count = (len(stops) - 1) * cfg.frames + 1 if stops else len(cfg.seeds.value)
    if count * max(len(labels), 1) > _MOST:
        asked = f"asks for {count:,} images of {len(labels)} classes"
        reason = f"{asked}; must be at most {_MOST:,} in all"
        raise UserError(reason, argument="frames" if stops else "seeds")


def _name(stem: str, what: str, label: int | None, cfg: Config) -> str:
    """Without suffix."""
    truncation = cfg.truncation.value
    parts = [stem, what, "" if label is None else f"class{label:03d}"]
    if cfg.prompt:
        said = cli.shorten("-".join(captions.split_words(cfg.prompt)), 80)
        parts.append(f"prompt-{said}")
    parts += [_for_a_file(cfg.attributes)]
    parts += [] if truncation is None else [f"truncation{truncation:g}"]
    parts += [] if cfg.ema.value is None else [f"ema{cfg.ema.value:g}"]
    parts += [_for_a_file(cfg.flags)]
    return "_".join(filter(None, parts))


def _latents(opened: Run, seeds: Sequence[int], truncation: float | None) -> np.ndarray:
    """The first of each seed."""
    found = [opened.latents(1, seed=seed, truncation=truncation) for seed in seeds]
    return np.concatenate(found)


def _for_a_file(text: str) -> str:
    """What is asked for as a part of a file's name."""
    return cli.shorten(re.sub(r"[^\w.,=+-]", "-", text, flags=re.ASCII), 80)


def _draw(
    cfg: Config, opened: Run, draw: Draw, labels: Sequence[int], out: pathlib.Path, stem: str
) -> list[str]:
    """Every seed, of every class; returns the names of the files."""
    seeds, truncation = cfg.seeds.value, cfg.truncation.value
    z = _latents(opened, seeds, truncation)
    turn = [i % opened.classes for i in range(len(seeds))] if opened.classes else None
    columns = [draw(z, y) for y in (labels or [turn])]
    written = []
    if cfg.files:
        for column, label in zip(columns, labels or [None], strict=True):
            for i, (seed, image) in enumerate(zip(seeds, column, strict=True)):
                own = turn[i] if turn and label is None else label
                written.append(_name(stem, f"seed{seed:04d}", own, cfg) + ".png")
                _save(out / written[-1], image)
    x = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    count = cfg.columns or (len(labels) if labels else int(np.ceil(np.sqrt(len(seeds)))))
    grid = images.image_grid(x, columns=count)
    if labels and count == len(labels):
        names = [_called(opened, y) for y in labels]
        grid = images.caption(grid, names, width=x.shape[2])
    elif turn and count == opened.classes:
        names = opened.class_names or [str(y) for y in range(opened.classes)]
        grid = images.caption(grid, names[: len(seeds)], width=x.shape[2])
    which = re.sub("[^0-9,-]", "-", str(cfg.seeds))
    of = f"_classes{re.sub('[^0-9A-Za-z,-]', '-', cfg.labels)}" if labels else ""
    written.append(_name(stem, cli.shorten(f"grid{which}{of}", 120), None, cfg) + ".png")
    _save(out / written[-1], grid)
    return written


def _called(opened: Run, label: int) -> str:
    return opened.names_of_data[label] if opened.names_of_data else str(label)


def _animate(
    cfg: Config, opened: Run, draw: Draw, labels: Sequence[int], out: pathlib.Path, stem: str
) -> list[str]:
    """Of every class, from seed to seed; returns the names of the files."""
    stops, truncation = cfg.interpolate.value, cfg.truncation.value
    z = path(list(_latents(opened, stops, truncation)), cfg.frames)
    chosen: Sequence[Any] = labels or ([0] if opened.classes else [None])
    written = []
    for label in chosen:
        # z is what it is: of latents that are given only a mapping is truncated.
        frames = draw(z, label)
        which = cli.shorten("-".join(map(str, stops)), 100)
        name = _name(stem, f"from{which}_frames{cfg.frames}", label, cfg)
        for i, frame in enumerate(frames):
            written.append(f"{name}/frame_{i:05d}.png")
            _save(out / written[-1], frame)
        written.append(f"{name}.gif")
        _save(out / written[-1], frames, cfg.rate)
        if _write_mp4(out / f"{name}.mp4", out / name, cfg.rate):
            written.append(f"{name}.mp4")
    return written


def _save(file: pathlib.Path, image: np.ndarray, rate: int = 0) -> None:
    """A PNG, or at a rate a GIF of all frames. Raises a UserError if something is in the way."""
    try:
        if rate:
            images.save_gif(file, list(image), rate=rate)
        else:
            images.save_png(file, image)
    except OSError as error:
        if error.strerror is None:
            raise
        reason = f"{file} cannot be written ({error.strerror})"
        raise UserError(reason, argument="workdir", value=file.parent) from None


def _write_mp4(file: pathlib.Path, frames: pathlib.Path, rate: int) -> bool:
    """Whether ffmpeg is there and has written it. Small images are enlarged: players blur what is tiny."""
    program = shutil.which("ffmpeg")
    if program is None:
        print("no MP4: ffmpeg is not installed", flush=True)
        return False
    # H.264 has sides that are even.
    scale = "scale='max(iw,256)':-2:flags=neighbor,pad='ceil(iw/2)*2':'ceil(ih/2)*2'"
    made = file.with_suffix(".tmp.mp4")
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact"]  # no dates in the file
    command = [program, "-v", "error", "-y", "-framerate", str(rate)]
    command += ["-i", str(frames / "frame_%05d.png"), "-vf", scale, "-pix_fmt", "yuv420p"]
    command += [*exact, str(made)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode or not made.exists():
        reason = (done.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        print(f"warning: no MP4: ffmpeg failed ({reason[:200]})", flush=True)
        made.unlink(missing_ok=True)
        return False
    made.replace(file)
    return True


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
