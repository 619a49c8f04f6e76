"""Files that hold a trained generator for others, who need neither bpgan nor the run.

================  ==================================================================================================
``safetensors``   the variables alone: a JSON header, then the bytes of the arrays, with the model card's facts
``stablehlo``     the function with its variables, for JAX: ``jax.export.deserialize(bytearray(raw)).call(z)``
``onnx``          the function with its variables, for ONNX Runtime and others
================  ==================================================================================================

Functions take any number of latents ``z[b, ...]``, and int32 ``labels[b]`` of a run with labels, and give images
``[b, h, w, c]`` in [-1, 1]. The safetensors format is that of https://github.com/huggingface/safetensors.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from bpgan.nets.primitives import as_plain_lax
from bpgan.runtime.program import serialize
from bpgan.trained.run import Run
from bpgan.types import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
"""That a StableHLO file runs on."""
_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "bool": "BOOL",
}  # fmt: skip
"""Of types in safetensors."""


def flat(variables: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths, such as ``params/Dense_0/kernel``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/") or "value": np.asarray(x) for path, x in leaves}


def safetensors(arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> bytes:
    """A file of arrays, in the order of their names, and of texts about them."""
    header: dict[str, Any] = {"__metadata__": dict(facts)}
    parts, start = [], 0
    for name in sorted(arrays):
        raw = np.ascontiguousarray(arrays[name]).tobytes()
        kind, shape = _NAMES[str(arrays[name].dtype)], list(arrays[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + len(raw)]}
        parts.append(raw)
        start += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def function_of(run: Run, truncation: float | None = None) -> tuple[Callable[..., Any], list[Any]]:
    """The generator with its variables in it, and the shapes of its arguments for one sample.

    Raises:
      UserError: if the run has no generator that draws from latents alone, and as ``Run.sample`` for the truncation.
    """
    if run.words:
        reason = f"a run of {run.experiment} draws what captions say, which only safetensors keeps"
        raise UserError(reason)
    generator, z = run.generator_with(truncation), run.latents(1)
    one = [jax.ShapeDtypeStruct(z.shape, z.dtype)]
    one += [jax.ShapeDtypeStruct((1,), jnp.int32)] if run.classes else []
    if run.attributes:
        one.append(jax.ShapeDtypeStruct(run.conditions(1).shape, jnp.float32))
    return (lambda *inputs: generator(*inputs)), one


def _any_number(arguments: list[Any]) -> list[Any]:
    (b,) = jax.export.symbolic_shape("b")
    return [jax.ShapeDtypeStruct((b, *each.shape[1:]), each.dtype) for each in arguments]


def stablehlo(run: Run, truncation: float | None = None) -> bytes:
    """The generator as JAX exports functions; see ``function_of``."""
    need("flatbuffers")
    function, arguments = function_of(run, truncation)
    with run.settings():
        return serialize(function, _any_number(arguments), PLATFORMS)


def onnx(run: Run, truncation: float | None = None) -> bytes:
    """The generator as an ONNX model with inputs ``z`` and, with labels or attributes, ``labels``; see ``function_of``.

    Raises:
      UserError: also if it has an operation that the converter does not know.
    """
    need("jax2onnx")
    need("onnxruntime")
    import jax2onnx  # pyright: ignore[reportMissingImports]

    function, arguments = function_of(run, truncation)
    arguments = _any_number(arguments)
    try:
        with run.settings():
            with as_plain_lax():
                # Traced here: the converter has replaced functions of JAX while it traces.
                plain = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(function)(*arguments))
            model = jax2onnx.to_onnx(
                lambda *inputs: plain(*inputs)[0], arguments, model_name="generator"
            )
    except Exception as error:  # the converter raises many types
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"the generator cannot be converted ({reason[0][:200]}); `to=stablehlo` has no such limit"
        ) from None
    _name(model.graph, [*model.graph.input], ["z", "labels"])
    _name(model.graph, [*model.graph.output], ["images"])
    raw = model.SerializeToString()
    _check_onnx(raw, run, function)
    return raw


def _check_onnx(raw: bytes, run: Run, function: Callable[..., Any]) -> None:
    """Raises a UserError if ONNX Runtime does not take a model, or finds something else: the converter may be wrong."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    inputs = {"z": run.latents(2)}
    inputs |= {"labels": np.arange(2, dtype=np.int32) % run.classes} if run.classes else {}
    inputs |= {"labels": run.conditions(2)} if run.attributes else {}
    with run.settings():
        wanted = np.asarray(function(*inputs.values()))
    try:
        (output,) = onnxruntime.InferenceSession(raw).run(None, inputs)
        found = np.asarray(output)
    except Exception as error:  # of onnxruntime's own types
        reason = f"ONNX Runtime refuses it: {' '.join(str(error).split())[:200]}"
    else:
        off = float(np.max(np.abs(found - wanted))) if found.shape == wanted.shape else np.inf
        reason = "" if off < 1e-3 else f"ONNX Runtime's images differ by {off:.2g}"
    if reason:
        raise UserError(f"the generator cannot be converted ({reason})")


def _name(graph: Any, values: list[Any], names: list[str]) -> None:
    """Gives inputs or outputs of a graph names of their own."""
    new = {value.name: name for value, name in zip(values, names, strict=False)}
    for value in values:
        value.name = new[value.name]
    for part in (part for node in graph.node for part in (node.input, node.output)):
        part[:] = [new.get(each, each) for each in part]


def need(package: str) -> None:
    """Raises a UserError if a package of the extra ``export``, or the converter to ONNX, is not installed."""
    if importlib.util.find_spec(package) is not None:
        return
    if (
        package == "jax2onnx"
    ):  # its requirements cannot be met beside bpgan's, and are not needed here
        raise UserError("needs jax2onnx, installed without its requirements: see docs/using.md")
    raise UserError(f"needs {package}: pip install 'bpgan[export]'")
