"""Exports the generator of a trained run, for others who have neither bpgan nor the run.

Run:     python -m experiments.export --run=runs/mnist_gan/default --to=safetensors
             its variables, as arrays
         python -m experiments.export --run=runs/mnist_gan/default --to=stablehlo
             a function for JAX on any device, with the variables in it
         python -m experiments.export --run=runs/mnist_gan/default --to=onnx
             the same for ONNX Runtime
         python -m experiments.export --run=runs/image_gan/cgan28 --to=safetensors,stablehlo,onnx --license=cc-by-4.0
             all three, and a license in the model card

Beside the files stands a model card, ``README.md``, with the config, the hash of the data, what was measured and the
versions. Functions take any number of latents. StableHLO and ONNX need packages: pip install 'bpgan[export]';
ONNX needs its converter, too: pip install --no-deps 'jax2onnx>=0.17.1'.
"""

import dataclasses
import json
import pathlib

import bpgan
from bpgan import cli
from bpgan.files import replaced
from bpgan.runtime import records
from bpgan.trained import card, export
from bpgan.trained.run import Run, parse_truncation
from bpgan.types import UserError

FORMATS = {"safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx"}
"""And the suffixes of their files."""


def _formats(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= FORMATS.keys() or len(set(names)) < len(names):
        raise ValueError(f"must be some of {', '.join(FORMATS)}, separated by commas")
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.RUN
    to: cli.Parsed[list[str]] = cli.field(
        "safetensors", f"{', '.join(FORMATS)}; several, separated by commas", parse=_formats
    )
    checkpoint: str = cli.CHECKPOINT
    truncation: cli.Parsed[float | None] = cli.field(
        "", "of the samples, in the place of the run's own; empty: that", parse=parse_truncation
    )
    ema: cli.Parsed[float | None] = cli.AVERAGE
    license: str = cli.field("", "of the model, for its card, such as cc-by-4.0")
    trust: bool = cli.TRUST


PRESETS = {"smoke": dict(to="safetensors")}


def run(cfg: Config) -> None:
    """Exports what ``cfg`` asks for."""
    if not cfg.run:
        raise UserError("must name a run directory", argument="run")
    for kind, package in {"stablehlo": "flatbuffers", "onnx": "jax2onnx"}.items():
        if kind in cfg.to.value:
            export.need(package)
    out = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    opened = bpgan.load(cfg.run, cfg.checkpoint, trust=cfg.trust, ema=cfg.ema.value)
    truncation = cfg.truncation.value
    if opened.average:
        print(opened.average)
    opened.generator  # noqa: B018 - it says which run has none
    facts = card.facts(opened, truncation)
    files = {}
    for kind in cfg.to.value:
        files[kind] = f"generator_step{opened.step:08d}{FORMATS[kind]}"
        _write(out / files[kind], _content(kind, opened, truncation, facts))
    if opened.private:
        _warn(opened)
    text = card.write(opened, facts, files, " ".join(cfg.license.split()))
    _write(out / "README.md", text.encode())
    print("\n".join(str(out / name) for name in [*files.values(), "README.md"]))


def _warn(opened: Run) -> None:
    """Says what of an export of a private run its epsilon does not cover."""
    if not (opened.result and opened.result.privacy.get("guarantee")):
        records.warn(f"{opened.path}: {' '.join(records.guaranteed(opened.result))}")
    if opened.evaluations:
        records.warn(f"{opened.path}: the metrics in its card {records.UNACCOUNTED}")


def _content(kind: str, opened: Run, truncation: float | None, facts: dict) -> bytes:
    """Of a file."""
    if kind == "stablehlo":
        return export.stablehlo(opened, truncation)
    if kind == "onnx":
        return export.onnx(opened, truncation)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    return export.safetensors(export.flat(opened.generator.variables), texts)


def _write(file: pathlib.Path, content: bytes) -> None:
    """Replaces a file as a whole. Raises a UserError if something is in the way."""
    try:
        with replaced(file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        reason = f"{file} cannot be written ({error.strerror})"
        raise UserError(reason, argument="workdir", value=file.parent) from None


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
