"""A model card: what an exported generator is, in Markdown (Mitchell et al. 2019, arXiv:1810.03993)."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpgan.cli import experiments
from bpgan.runtime import records
from bpgan.runtime.records import printable
from bpgan.trained.run import Run
from bpgan.types import counted

_USE = {
    "safetensors": """The variables by their paths, as arrays:

```python
import safetensors.numpy

arrays = safetensors.numpy.load_file("{file}")
```""",
    "stablehlo": """With JAX alone, on CPU, NVIDIA GPUs and TPUs:

```python
import jax, numpy as np

generator = jax.export.deserialize(bytearray(open("{file}", "rb").read()))
images = generator.call({call})  # [b, h, w, c] in [-1, 1]
```""",
    "onnx": """With ONNX Runtime:

```python
import numpy as np, onnxruntime

generator = onnxruntime.InferenceSession("{file}")
(images,) = generator.run(None, {{{feed}}})  # [b, h, w, c] in [-1, 1]
```""",
}


def facts(run: Run, truncation: float | None) -> dict[str, Any]:
    """What is to be known of the generator, for JSON."""
    z = run.latents(1)
    shape = run.sample(1).shape[1:]
    own = vars(run.config).get("truncation", 0.0)
    return {
        "experiment": run.experiment,
        "step": run.step,
        "run": run.record.run,
        "latents": list(z.shape[1:]),
        "dtype": str(z.dtype),
        "classes": run.classes,
        "class_names": list(run.class_names),
        "output": list(shape),
        "truncation": own if truncation is None else truncation,
        **({"average": str(run.average)} if run.average else {}),
        "parameters": int(sum(np.size(x) for x in _leaves(run.generator.variables))),
        **_told(run),
        "versions": run.record.versions,
        "config": run.record.config,
    }


def _told(run: Run) -> dict[str, Any]:
    """Of the data, their hash; of a private run, in its place, what it spent."""
    if not run.private:
        return {"data": run.record.data}
    return {"privacy": dict(run.result.privacy) if run.result else {}}


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def write(run: Run, found: Mapping[str, Any], files: Mapping[str, str], license: str) -> str:
    """The card, as Markdown.

    Args:
      run: what was exported.
      found: its ``facts``.
      files: their names by format.
      license: of the model, as its author says; empty: not stated.
    """
    labeled = run.classes > 0
    head = {"license": license or "unknown", "library_name": "jax", "tags": ["image-generation"]}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    name = experiments.label_of(run.experiment)
    lines += [f"# Generator of a run of {printable(name)}", ""]
    z, output = (" x ".join(map(str, found[part])) or "1" for part in ("latents", "output"))
    rows = {
        "Input": f"latents `z` [b, {z}]{_distribution(run)}"
        + (f", int32 `labels` [b] of {run.classes} classes" if labeled else "")
        + (f", {_vector(run)}" if run.attributes else ""),
        "Output": f"[b, {output}], images in [-1, 1]",
        "Parameters": f"{found['parameters']:,}",
        "Trained for": counted(run.step, "step"),
        "Truncation": _truncation(run, found["truncation"]),
        "License": license or "not stated by its author",
    }
    lines += [*_table(rows), ""]
    if run.class_names:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(run.class_names))
        lines += [f"Classes: {printable(names)}.", ""]
    for kind, file in files.items():
        shape = ", ".join(map(str, [4, *found["latents"]]))
        call = f"np.random.default_rng(0).normal(size=({shape})).astype(np.{found['dtype']})"
        feed = f'"z": {call}'
        if labeled:
            call += ", np.arange(4, dtype=np.int32)"
            feed += ', "labels": np.arange(4, dtype=np.int32)'
        if run.attributes:
            vectors = f"np.zeros((4, {run.conditions(1).shape[1]}), np.float32)"
            call += f", {vectors}"
            feed += f', "labels": {vectors}'
        lines += [
            f"## {kind}: `{file}`",
            "",
            _USE[kind].format(file=file, call=call, feed=feed),
            "",
        ]
    lines += ["## Data", "", *_data(run), "", *_privacy(run)]
    lines += ["## Metrics", "", *_metrics(run), ""]
    lines += ["## Training", "", *_table(_training(run)), "", "Flags:", ""]
    flags = {f"`{k}`": f"`{printable(str(v))}`" for k, v in sorted(run.record.config.items())}
    return "\n".join([*lines, *_table(flags), ""])


def _vector(run: Run) -> str:
    """What the vector of classes and attributes is made of."""
    has = run.attributes
    assert has is not None
    size = run.conditions(1).shape[1]
    classes = size - len(has.names)
    parts = [
        f"(`{printable(n)}` - {m:.6g}) / {s:.6g}"
        for n, m, s in zip(has.names, has.mean, has.std, strict=True)
    ]
    first = [f"indicators of {classes} classes"] if classes else []
    return f"float32 `labels` [b, {size}]: {', '.join([*first, *parts])}"


def _truncation(run: Run, bound: float) -> str:
    """Of styles it is a part of the function; of latents it is for those who draw them."""
    if not bound:
        return "none"
    if np.array_equal(run.latents(8, truncation=0.0), run.latents(8, truncation=bound)):
        return f"psi {bound:g} of the styles, in the function"
    return f"draw each number of `z` between -{bound:g} and {bound:g}"


def _distribution(run: Run) -> str:
    """Of the latents, where the config names it."""
    text = vars(run.config).get("latents")
    return f" of `{text}`" if isinstance(text, str) else ""


def _data(run: Run) -> list[str]:
    dataset = run.record.dataset
    rows = {} if run.private else {"SHA-256": f"`{run.record.data}`"}
    if dataset is not None:
        shape = " x ".join(map(str, dataset.shape))
        rows = {
            "Name": f"`{printable(dataset.name)}`",
            "Images": f"{sum(dataset.counts):,} of {shape}, {counted(len(dataset.counts), 'class', 'classes')}",
        } | rows
    return _table(rows)


def _privacy(run: Run) -> list[str]:
    """What a private run guarantees, and what is outside of that."""
    if not run.private:
        return []
    lines = ["## Privacy", "", " ".join(records.guaranteed(run.result)), ""]
    if run.result and run.result.privacy:
        lines += [*_table({k: f"{v}" for k, v in run.result.privacy.items()}), ""]
    if run.evaluations:
        lines += [f"The metrics below {records.UNACCOUNTED}.", ""]
    return lines


def _metrics(run: Run) -> list[str]:
    if not run.evaluations:
        ended = run.result.metrics if run.result else {}
        program = " ".join(["python", "-m", *experiments.program_of("evaluate")])
        lines = [f"None was measured (`{program}`)."]
        return [*lines, "", *_table({k: f"{v:.4g}" for k, v in ended.items()})] if ended else lines
    lines = ["| metric | value | real | of | circumstances |", "|---|---|---|---|---|"]
    for values in run.evaluations:
        row = records.EvaluationRow(**values)
        real = "" if row.real is None else f"{row.real:.4g}"
        circumstances = printable(records.circumstances(row))
        cells = row.metric, f"{row.value:.4g}", real, row.features, circumstances
        lines.append(f"| {' | '.join(printable(cell) for cell in cells)} |")
    return lines


def _training(run: Run) -> dict[str, str]:
    record = run.record
    rows = {
        "Experiment": f"`{printable(run.experiment)}`",
        "Run": f"`{record.run}`",
        "Versions": ", ".join(f"{k} {v}" for k, v in record.versions.items()),
        "Devices": ", ".join(record.devices),
        "Revision": record.git or "",
        "Command": f"`{record.command}`" if record.command else "",
    }
    return {key: printable(value) for key, value in rows.items() if value}


def _table(rows: Mapping[str, str]) -> list[str]:
    cells = (f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items())
    return ["| | |", "|---|---|", *cells]
