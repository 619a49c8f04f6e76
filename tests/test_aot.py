"""What is read from compiled programs, on texts with known counts; and bpgan's own programs, compiled for an H100."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import aot, hlo
from bpgan.nets import conv

ROOT = pathlib.Path(__file__).parent.parent

LOOPS = """HloModule jit_chunk, is_scheduled=true

%fused_gather (param_0: f32[1000,8], param_1: s32[4,1]) -> f32[4,8] {
  %param_0 = f32[1000,8]{1,0} parameter(0)
  %param_1 = s32[4,1]{1,0} parameter(1)
  ROOT %gather.1 = f32[4,8]{1,0} gather(%param_0, %param_1), offset_dims={1}
}

%wrapped (param_0.1: f32[4,8]) -> f32[4,8] {
  ROOT %param_0.1 = f32[4,8]{1,0} parameter(0)
}

%cond (p.0: (f32[4,8])) -> pred[] {
  %p.0 = (f32[4,8]{1,0}) parameter(0)
  ROOT %compare.1 = pred[] fusion(%p.0), kind=kLoop, calls=%wrapped
}

%inner_body (p.1: (f32[4,8])) -> (f32[4,8]) {
  %p.1 = (f32[4,8]{1,0}) parameter(0)
  %x.1 = f32[4,8]{1,0} get-tuple-element(%p.1), index=0
  %f.1 = f32[4,8]{1,0} fusion(%x.1), kind=kLoop, calls=%wrapped
  %f.2 = f32[4,8]{1,0} fusion(%f.1), kind=kLoop, calls=%wrapped
  ROOT %t.1 = (f32[4,8]{1,0}) tuple(%f.2)
}

%yes (p.2: f32[4,8]) -> f32[4,8] {
  %p.2 = f32[4,8]{1,0} parameter(0)
  %c.1 = f32[4,6,6,8]{3,2,1,0} custom-call(%p.2), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %c.2 = f32[4,6,6,8]{1,3,2,0} custom-call(%p.2), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  ROOT %f.3 = f32[4,8]{1,0} fusion(%c.1), kind=kLoop, calls=%wrapped
}

%no (p.3: f32[4,8]) -> f32[4,8] {
  %p.3 = f32[4,8]{1,0} parameter(0)
  ROOT %copy.1 = f32[4,8]{1,0} copy(%p.3)
}

%step (p.4: (f32[4,8])) -> (f32[4,8]) {
  %p.4 = (f32[4,8]{1,0}) parameter(0)
  %d = f32[1000,8]{1,0} constant(0)
  %i = s32[4,1]{1,0} constant(0)
  %g = f32[4,8]{1,0} fusion(%d, %i), kind=kLoop, calls=%fused_gather
  %w.1 = (f32[4,8]{1,0}) while(%p.4), condition=%cond, body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}
  %x.2 = f32[4,8]{1,0} get-tuple-element(%w.1), index=0
  %b = f32[4,8]{1,0} conditional(%x.2, %x.2, %x.2), branch_computations={%no, %yes}
  %s = f32[32,8]{1,0} all-gather-start(%b), dimensions={0}
  %e = f32[32,8]{1,0} all-gather-done(%s)
  %s.2 = (f32[4]{0}, f32[32]{0}) all-gather-start(%b), dimensions={0}
  %r = f32[7]{0} all-reduce(%b), to_apply=%add
  ROOT %t.2 = (f32[4,8]{1,0}) tuple(%b)
}

ENTRY %main (a: f32[4,8], n: s32[]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %t.3 = (f32[4,8]{1,0}) tuple(%a)
  ROOT %w.2 = (f32[4,8]{1,0}) while(%t.3), condition=%cond, body=%step
}
"""

THUNKS = """000: kCommandBuffer [source | sink]
    001: kWhile [source | sink]
002: kWhile [source | sink]
condition:
    003: kKernel [source | sink] a
  body:
    000: kCommandBuffer [source | sink]
        004: kConditional [source | sink]
    005: kConditional [source | sink]
      false_branch:
        000: kCommandBuffer [source | sink]
      true_branch:
        006: kKernel [source | sink] b
"""


def test_kernels_are_counted_with_the_loops_and_branches_they_are_in():
    module = hlo.Module(LOOPS)
    kernels = module.kernels(module.step)
    assert module.step == "step"
    assert str(kernels) == "4 + 5 x 2 + (1 | 3)"
    assert kernels.total == 4 + 5 * 2 + 3


def test_of_an_operand_that_rows_are_taken_from_only_these_are_moved():
    module = hlo.Module(LOOPS)
    assert module.bytes("inner_body") == 4 * 4 * 32
    gather = next(i for i in module.launched() if i.name == "g")
    assert module._traffic(gather) == 4 * 8 * 4 + 4 * 8 * 4 + 4 * 4


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
    assert hlo.Module(LOOPS).collectives() == {
        "all-gather": [32 * 8 * 4, 32 * 4],
        "all-reduce": [28],
    }


def test_convolutions_know_whether_their_channels_lie_side_by_side():
    assert sorted(nhwc for _, nhwc in hlo.Module(LOOPS).convolutions()) == [False, True]


@pytest.mark.parametrize(
    ("text", "size"),
    [("f32[64,28]{1,0}", 7168), ("(bf16[3]{0}, pred[5], u8[0]{0}, s4[2])", 13), ("f64[]", 8)],
)
def test_sizes_of_types(text, size):
    assert hlo.size_of(text) == size


def test_what_is_inside_a_command_buffer_is_not_decided_by_the_host():
    assert hlo.thunks_of(THUNKS) == hlo.Thunks(command_buffers=3, loops=1, conditionals=1)


@pytest.mark.parametrize(("stride", "pad"), [(1, 1), (2, 1), (1, 0)])
def test_convolutions_are_counted_by_the_products_of_elements_that_are_there(stride, pad):
    x, w = jnp.ones((2, 6, 5, 3)), jnp.ones((3, 3, 3, 4))

    def apply(x, w):
        return conv.conv(x, w, stride=stride, padding=pad)

    # On ones, each response is the number of its products over all taps and channels.
    once = 2 * int(jnp.sum(apply(x, w)))
    assert aot.products(jax.make_jaxpr(apply)(x, w).jaxpr)[0] == once
    both = jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(apply(x, w)) ** 2, (0, 1)))(x, w)
    assert aot.products(both.jaxpr)[0] == 3 * once

    def by_lax(x, w):
        pads = [(pad, pad)] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=numbers)

    assert aot.products(jax.make_jaxpr(by_lax)(x, w).jaxpr)[0] == once


def test_products_in_loops_and_branches_and_their_precision():
    a = jnp.ones((4, 8))
    high = jax.lax.Precision.HIGHEST

    def low_product(x):
        return x @ x.T @ x

    def high_product(x):
        return jnp.dot(jnp.dot(x, x.T, precision=high), x, precision=high)

    one = 2 * 2 * 4 * 4 * 8
    loop = jax.make_jaxpr(
        lambda x: jax.lax.scan(lambda c, _: (low_product(c), None), x, length=3)[0]
    )
    assert aot.products(loop(a).jaxpr) == (3 * one, 2)
    assert aot.products(loop(a).jaxpr, once=True) == (one, 2)
    branch = jax.make_jaxpr(lambda x: jax.lax.cond(x[0, 0] > 0, high_product, lambda x: x, x))
    assert aot.products(branch(a).jaxpr) == (one, 0)


def test_products_of_one_device_of_several_count_for_all_of_them():
    mesh = jax.sharding.AbstractMesh((4,), ("rows",))
    rows = jax.sharding.PartitionSpec("rows")
    whole = jax.sharding.PartitionSpec()
    split = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows, check_vma=False
    )
    found = jax.make_jaxpr(split)(jnp.ones((16, 8)), jnp.ones((8, 3)))
    assert aot.products(found.jaxpr) == (2 * 16 * 8 * 3, 1)


GOOD = dict(
    kernels=10, structure="10", command_buffers=1, loops=2, conditionals=0, temp_mib=1.0, gflop=1.0, once_gflop=1.0,
    counted_gflop=1.0, mb=1.0, collectives={}, gathered=0, convolutions=3, nhwc=3, f64=0, scatters=0, host=0,
    imprecise=0, cpu_s=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        (dict(kernels=11), "kernels 11; recorded 10"),
        (dict(command_buffers=2), "command_buffers 2; recorded 1"),
        (dict(loops=3), "loops 3; recorded 2"),
        (dict(conditionals=1), "conditionals 1; recorded 0"),
        (dict(temp_mib=1.2), "temp_mib 1.2; recorded 1.0"),
        (dict(temp_mib=1.09, kernels=9), ""),
        (dict(f64=1), "1 arrays of float64"),
        (dict(scatters=2), "2 scatters"),
        (dict(host=1), "1 transfers with the host"),
        (dict(gathered=70_000), "70000 bytes gathered at once"),
        (dict(nhwc=2), "2 of 3 convolutions are NHWC"),
        (dict(imprecise=4), "4 products below the highest precision"),
        (dict(gflop=1.2), "1.2 GFLOP; must be within 10% of the counted 1.0"),
    ],
)
def test_what_is_worse_than_recorded_is_named_with_its_figure_and_its_bound(change, says):
    case = aot.Case(lambda devices: None, several=True, precise=True)
    found = aot.failures(case, aot.target_of("h100x8"), aot.Figures(**(GOOD | change)), GOOD)
    assert len(found) == bool(says)
    assert all(says in line for line in found)


def test_the_recorded_file_has_the_cheap_programs_and_only_standing_ones():
    recorded = json.loads(aot.RECORD.read_text())["targets"]
    known = aot.programs()
    for text, figures in recorded.items():
        target = aot.target_of(text)
        assert set(figures) <= {name for name, case in known.items() if case.suits(target)}
        for each in figures.values():
            assert set(each) == set(aot.Figures._fields)
    assert {"article", "default", "default-every-step", "vae", "classifier"} <= set(
        recorded["h100"]
    )


def test_the_table_of_results_is_that_of_the_recorded_file():
    results = aot.RESULTS.read_text()
    assert aot.with_table(results, aot.read_record()) == results


def _environment() -> str:
    """The Python of an environment that has the compilers, if there is one."""
    found = os.environ.get("BPGAN_AOT_PYTHON") or str(ROOT / ".venv-aot/bin/python")
    return found if os.path.exists(found) else ""


def _run(*argv: str) -> subprocess.CompletedProcess:
    if not (python := _environment()):
        pytest.skip(
            "no environment that has the compilers: `make aot` makes one, or set BPGAN_AOT_PYTHON"
        )
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [python, *argv],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_the_cheap_programs_are_as_recorded():
    result = _run("-m", "benchmarks.aot", "article", "default", "--target=h100,h100x8")
    assert result.returncode == 0, result.stdout + result.stderr


BAD = """
from benchmarks import aot
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

def trace(devices):
    mesh = Mesh(np.array(devices), ("batch",))
    rows, whole = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((64, 28, 28, 16), jnp.float32, sharding=rows)
    take = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    def lazy(x, step):  # a penalty in which each device needs the whole batch
        far = lambda x: jnp.sum(jax.lax.with_sharding_constraint(jnp.tanh(x), whole)[::-1] * x)
        return jax.lax.cond(step % 4 == 0, far, lambda x: 0.0, x)
    return jax.jit(lazy).trace(x, take)

case, target = aot.Case(trace, several=True), aot.target_of("h100x8")
print(*aot.failures(case, target, aot.compile_case(case, target, {}), None), sep="\\n")
"""


@pytest.mark.slow
def test_a_lazy_penalty_that_gathers_the_batch_is_found():
    result = _run("-c", BAD)
    assert "bytes gathered at once; must be at most" in result.stdout, result.stdout + result.stderr


def test_without_the_compilers_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(aot, "missing", lambda target: "libtpu")
    monkeypatch.setattr(sys, "argv", ["aot", "article", "--target=v5e"])
    assert aot.main() == 2
    assert (
        capsys.readouterr().out
        == "v5e: libtpu is not installed; pip install -r requirements-aot.txt\n"
    )
