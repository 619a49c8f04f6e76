"""What bpgan tells XLA about a program, and what a run remembers of it: on a GPU, both decide the bits.

Options go with each program (``jax.jit(compiler_options=...)``), not into the environment. They work in a notebook that
started JAX long ago, other programs of the process are left alone, and programs for a TPU have none.
"""

import collections
import functools
import os
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bpgan.runtime import records

_COMMANDS = (
    "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONVOLUTION,WHILE,CONDITIONAL"
)
"""What a CUDA graph may hold. The last three are not among XLA's defaults; without them, the host would begin each
step, and each branch in it, with a launch of its own. XLA leaves out what a driver before CUDA 12.3 cannot do."""

_WITHOUT_EFFECT = ("xla_dump_", "xla_force_host_platform_device_count")
"""Flags of XLA that do not change what a program computes; how many devices there are is compared by itself."""

_chosen = {"deterministic": True}


def choose(deterministic: bool) -> None:
    """Decides for this process whether programs for a GPU are deterministic, as they are if nobody says otherwise.

    JAX keeps which kernels were measured to be fastest beside its cache of compiled programs, and XLA takes what it
    finds there without a look at whether it is deterministic; so a deterministic process does not use that.
    """
    _chosen["deterministic"] = deterministic
    if deterministic and jax.default_backend() == "gpu":
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def options(
    platform: str,
    *,
    deterministic: bool | None = None,
    flags: str | None = None,
    matrices: bool = False,
) -> dict[str, Any]:
    """The compiler options of bpgan's programs; none for a TPU.

    ``xla_cpu_prefer_vector_width`` has loops over arrays use the 512-bit registers of a CPU that has them, as its
    matrix products do; XLA's own choice is 256. On others it changes nothing.
    ``xla_cpu_experimental_ynn_fusion_type`` lists what YNNPACK computes: here convolutions, and so neither the products
    nor the sums of a program that has no convolution.

    ``xla_gpu_exclude_nondeterministic_ops`` has XLA compile every operation to a deterministic kernel, or fail. It also
    takes the first kernel that works instead of the one measured to be fastest, which another process may measure
    differently. ``xla_gpu_deterministic_ops`` is the older and broader name of the same request.
    ``xla_gpu_enable_command_buffer`` lets loops and branches be in CUDA graphs, at best a whole call in one.
    cuDNN cannot start while a graph is captured, so it has started when this returns.

    Args:
      platform: of the device that a program is for: ``cpu``, ``gpu`` or ``tpu``.
      deterministic: whether the same program must compute the same bits in every process; None: as chosen.
      flags: the user's ``XLA_FLAGS``, by default those of the environment; what they set is not set here.
      matrices: whether the program is one of ``products.arranged``.
    """
    found: dict[str, Any] = {}
    if platform == "cpu":
        found["xla_cpu_prefer_vector_width"] = 512
        if matrices:
            found["xla_cpu_experimental_ynn_fusion_type"] = (
                "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
            )
    if platform == "gpu":
        _start_cudnn()
        found["xla_gpu_enable_command_buffer"] = _COMMANDS
        if _chosen["deterministic"] if deterministic is None else deterministic:
            found["xla_gpu_exclude_nondeterministic_ops"] = True
    given = _parse(os.environ.get("XLA_FLAGS", "") if flags is None else flags)
    return {name: value for name, value in found.items() if name not in given}


@functools.cache
def _start_cudnn() -> None:
    """Computes a convolution and its derivatives on every GPU of this process, outside of any CUDA graph.

    Otherwise a program that came from the cache of compiled programs would be the first to use cuDNN, within its graph,
    and fail with ``CUDNN_STATUS_EXECUTION_FAILED`` (JAX 0.11.2 on an H100). One that is compiled has measured there.
    """
    if jax.default_backend() != "gpu":  # programs are compiled for a GPU that is not here
        return

    def energy(x: jax.Array, w: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(
            lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout) ** 2
        )

    slopes = jax.value_and_grad(energy, argnums=(0, 1))
    for device in jax.local_devices():
        images = jnp.ones((64, 8, 8, 16), device=device)
        kernel = jnp.ones((3, 3, 16, 16), device=device)
        jax.block_until_ready(slopes(images, kernel))


def _parse(flags: str) -> dict[str, str]:
    """``--xla_a=1 --xla_b`` by name; a flag that is given twice counts as the last one."""
    try:
        words = shlex.split(flags)
    except ValueError:  # of a quotation that does not end
        words = flags.split()
    pairs = (word.lstrip("-").partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs}


def circumstances() -> dict[str, Any]:
    """What the bits of a run depend on beside its flags: three fields of ``records.RunRecord``.

    Returns:
      The ``versions`` of JAX, the ``devices``, and under ``compiler`` the ``xla_flags`` of the environment that change
      programs, the ``options`` that are bpgan's, the ``runtime`` as JAX says it, and where compiled programs are kept
      (``cache``).
    """
    device = jax.devices()[0]
    given = _parse(os.environ.get("XLA_FLAGS", ""))
    shown = {k: v for k, v in given.items() if not k.startswith(_WITHOUT_EFFECT)}
    enabled = jax.config.values["jax_enable_compilation_cache"]
    return {
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib")},
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "compiler": {
            "xla_flags": _said(shown),
            "options": _said(options(device.platform)),
            "runtime": " ".join(str(device.client.platform_version).split()),
            "cache": str(enabled and jax.config.values["jax_compilation_cache_dir"] or "off"),
        },
    }


def _said(pairs: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(pairs.items()))


def differences(before: records.RunRecord, now: Mapping[str, Any] | None = None) -> list[str]:
    """What has changed since a run was last trained that may change its bits, each with both values.

    Args:
      before: its record; what it lacks, being older, is not compared.
      now: as ``circumstances`` finds it, which is the default. The cache of compiled programs is compared on a GPU
        alone: elsewhere the compiler makes the same program again.
    """
    now = circumstances() if now is None else now
    pairs = [(name, before.versions.get(name), now["versions"][name]) for name in ("jax", "jaxlib")]
    if before.devices:
        pairs.append(("devices", _kinds(before.devices), _kinds(now["devices"])))
    words = {"xla_flags": "XLA_FLAGS", "options": "compiler options", "runtime": "runtime"}
    if now["devices"][0].startswith("gpu"):
        words["cache"] = "compilation cache"
    pairs += [
        (word, before.compiler.get(name), now["compiler"][name]) for name, word in words.items()
    ]
    return [
        f"{name} was {old or 'empty'}, now {new or 'empty'}"
        for name, old, new in pairs
        if old is not None and old != new
    ]


def _kinds(devices: Sequence[str]) -> str:
    """``gpu:0 NVIDIA H100``, ``gpu:1 NVIDIA H100`` as ``2 x NVIDIA H100``."""
    counts = collections.Counter(device.partition(" ")[2] for device in devices)
    return ", ".join(f"{n} x {kind}" for kind, n in sorted(counts.items()))
