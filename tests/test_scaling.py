"""The estimate of a step against cases computed by hand, and docs/scaling.md against the record that it is made of."""

import math

import pytest

from benchmarks import hlo, scaling
from experiments import image_gan

FIGURES = scaling.Figures(
    precision="bfloat16",
    kernels=1000,
    temp_mib=1024.0,
    arguments_mib=256.0,
    gflop=1978.0,
    mb=6700.0,
    collectives={"all-reduce": [10, 8_000_000]},
    gathered=0,
    state=16_000_000,
    data=100_000_000,
    checkpoint=[16_000_000, 0],
    cpu_s=1.0,
)
CHIP = scaling.Chip(
    "card",
    {"bfloat16": 989e12, "float32": 494.5e12},
    80e9,
    3.35e12,
    2e-6,
    scaling.Nodes(near=400e9, far=50e9, start=6e-6, near_hop=1e-6, far_hop=5e-6),
)


def test_arithmetic_memory_and_launches_go_on_together():
    found = scaling.estimate(FIGURES._replace(collectives={}), CHIP, 8)
    assert found.arithmetic == pytest.approx(2e-3)  # 1978 GFLOP at 989 TFLOP/s
    assert found.memory == pytest.approx(2e-3)  # 6.7 GB at 3.35 TB/s
    assert found.launches == pytest.approx(2e-3)  # 1000 of 2 microseconds
    assert found.wire == found.waits == 0
    assert found.step == pytest.approx(2e-3)
    slow = scaling.estimate(FIGURES._replace(precision="float32", collectives={}), CHIP, 8)
    assert slow.step == pytest.approx(4e-3) and slow.bound == "arithmetic"


def test_an_all_reduce_in_a_node_passes_the_share_of_each_of_the_others_twice():
    found = scaling.estimate(FIGURES, CHIP, 8)
    assert found.wire == pytest.approx(2 * 7 * 1e6 / 400e9)  # each of eight parts is 1 MB
    assert found.waits == pytest.approx(10 * (6e-6 + 2 * 7 * 1e-6))
    assert found.step == pytest.approx(2e-3 + 35e-6 + 200e-6)


def test_among_nodes_each_device_passes_its_eighth_only():
    found = scaling.estimate(FIGURES, CHIP, 32)
    between = 2 * 3 * 0.25e6 / 50e9  # of its 1 MB, the parts of the three other nodes, twice
    assert found.wire == pytest.approx(35e-6 + between)
    assert found.waits == pytest.approx(10 * (6e-6 + 2 * (7e-6 + 2 * 5e-6)))  # a tree of four nodes


def test_a_gather_passes_once_what_an_all_reduce_passes_twice():
    gather = FIGURES._replace(collectives={"all-gather": [10, 8_000_000]})
    both = FIGURES._replace(collectives={"all-gather": [4, 3_000], "all-reduce": [6, 1_000]})
    for devices in scaling.DEVICES:
        reduced = scaling.estimate(FIGURES, CHIP, devices)
        gathered = scaling.estimate(gather, CHIP, devices)
        assert gathered.wire == pytest.approx(reduced.wire / 2)
        assert gathered.waits == pytest.approx(reduced.waits)
        mixed = scaling.estimate(both, CHIP, devices)
        assert mixed.wire == pytest.approx(reduced.wire * 5_000 / 16_000_000)
        assert mixed.waits == pytest.approx(reduced.waits)


@pytest.mark.parametrize(
    ("devices", "links", "hops"),
    [
        (8, 2, 2 * (1 + 3)),  # 2 x 4: from one end of each side to the other, and back
        (64, 2, 2 * (7 + 7)),
        (256, 4, 2 * (8 + 8)),  # 16 x 16 is closed: half round
    ],
)
def test_a_torus_has_four_links_where_it_is_closed(devices, links, hops):
    torus = scaling.Torus(link=50e9, hop=1e-6)
    found = scaling.estimate(FIGURES, CHIP._replace(network=torus), devices)
    assert found.wire == pytest.approx(2 * 8e6 * (devices - 1) / devices / (links * 50e9))
    assert found.waits == pytest.approx(10 * hops * 1e-6)


def test_no_more_devices_make_a_collective_cheaper_in_nodes():
    for name, chip in scaling.CHIPS.items():
        waits = [chip.network.wait(n) for n in scaling.DEVICES]
        assert waits == sorted(waits), name
    wires = [scaling.CHIPS["h100"].network.wire(n) for n in scaling.DEVICES]
    assert wires == sorted(wires)


@pytest.mark.parametrize(
    ("grows", "change", "share", "word"),
    [
        (True, dict(), 1, "bytes between devices"),  # the same program: only the network is larger
        (True, dict(collectives={"all-reduce": [1000, 8]}), 1, "collectives that begin"),
        (True, dict(mb=67_000.0), 1, "memory traffic"),
        (False, dict(), 32, "bytes between devices"),  # neither they get fewer with the rows,
        (False, dict(collectives={"all-reduce": [1, 8]}), 32, "launches of kernels"),  # nor these
    ],
)
def test_what_a_curve_loses_goes_to_the_part_that_grew_most(grows, change, share, word):
    each = scaling.curve(scaling.RECIPES[0], "h100", grows)
    first = FIGURES._replace(kernels=100, collectives={"all-reduce": [1, 80_000_000]})
    last = first._replace(gflop=first.gflop / share, mb=first.mb / share)._replace(**change)
    known = {point.name: first if point is each[0] else last for point in each}
    assert scaling.cause(known, each) == word
    assert scaling.kept(known, each)[0] == 1 > scaling.kept(known, each)[-1]


def test_a_checkpoint_is_shared_by_hosts_if_an_axis_can_be_cut_for_all_devices():
    shapes = [((3, 3, 64, 128), 4), ((5,), 4), ((), 4), ((2, 192), 2)]
    kernel, rest, last = 4 * 9 * 64 * 128, 24, 2 * 2 * 192
    assert scaling.written(shapes, 8) == (kernel + rest + last, kernel + last)
    assert scaling.written(shapes, 64) == ((kernel + last) // 8 + rest, (kernel + last) // 8)
    assert scaling.written(shapes, 256) == (kernel + rest + last, 0)


def test_at_8_devices_both_curves_begin_at_the_same_point():
    names = [point.name for point in scaling.points()]
    assert len(names) == len(set(names)) == 2 * 3 * 5
    for recipe in scaling.RECIPES:
        grows, fixed = (scaling.curve(recipe, "v5e", grows) for grows in (True, False))
        assert grows[0] == fixed[0]
        assert {point.batch // point.devices for point in grows} == {recipe.batch // 8}
        assert {point.batch for point in fixed} == {recipe.batch}
        assert recipe.preset in image_gan.PRESETS


# A loop of a TPU, whose length is in its condition only: two steps that read 4 KB and write 4 KB, and copies.
TPU = """HloModule jit_chunk, is_scheduled=true

%cond (p.0: (s32[], f32[1024])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %p.0 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.0, %five), direction=LT, metadata={op_name="lt"}
}

%fused (a.0: f32[1024], b.0: f32[4096]) -> f32[1024] {
  %a.0 = f32[1024]{0:T(1024)} parameter(0)
  %b.0 = f32[4096]{0:T(1024)} parameter(1)
  %s.0 = f32[1024]{0:T(1024)} slice(%b.0), slice={[0:1024]}
  ROOT %sum = f32[1024]{0:T(1024)} add(%a.0, %s.0)
}

%body (p.1: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %p.1 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = f32[1024]{0:T(1024)} get-tuple-element(%p.1), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i.1, %one)
  %near = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%x.1)
  %near.done = f32[1024]{0:T(1024)S(1)} copy-done(%near)
  %cut = ((f32[1024]{0:T(1024)}), f32[256]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%x.1), slice={[0:256]}
  %cut.done = f32[256]{0:T(1024)S(1)} slice-done(%cut)
  %all = f32[4096]{0:T(1024)S(1)} all-gather(%cut.done), dimensions={0}
  %y.1 = f32[1024]{0:T(1024)} fusion(%near.done, %all), kind=kLoop, calls=%fused
  %z.1 = f32[1024]{0:T(1024)} all-reduce(%y.1), to_apply=%add
  ROOT %t.1 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) tuple(%next, %z.1)
}

ENTRY %main (a: f32[1024]) -> (s32[], f32[1024]) {
  %a = f32[1024]{0:T(1024)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %t.2 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) tuple(%zero, %a)
  ROOT %w.2 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) while(%t.2), condition=%cond, body=%body
}
"""


def test_of_a_tpu_only_the_large_memory_counts_and_no_scalars():
    module = hlo.Module(TPU)
    copies = 4096 + 1024  # read by the copy and by the slice, which write to the small memory
    reduced = 2 * 4096
    # The fusion reads what is near and writes its result; the counter is read, and so is what is added to it.
    assert module.bytes("body") == copies + 4096 + reduced + 2 * 4
    assert module.operations("body") == 3  # gather, fusion, all-reduce
    assert module.bytes("main") == 5 * module.bytes("body")
    assert module.operations("main") == 15


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    module = hlo.Module(TPU)
    assert module.communication("body") == {"all-gather": [1, 16384], "all-reduce": [1, 4096]}
    assert module.communication("main") == {
        "all-gather": [5, 5 * 16384],
        "all-reduce": [5, 5 * 4096],
    }


def test_of_an_operand_that_a_fusion_slices_only_the_slice_is_read():
    module = hlo.Module(TPU.replace("S(1)", ""))
    fusion = next(i for i in module.launched() if i.name == "y.1")
    assert module._traffic(fusion) == 3 * 4096


@pytest.fixture(scope="module")
def known():
    return scaling.read()


def test_the_devices_hold_every_point_of_the_record(known):
    points = [point for point in scaling.points() if point.name in known]
    assert list(known) == [point.name for point in points]
    missing = {point.name for point in scaling.points() if point.kind == "h100"} - set(known)
    assert missing == {"r3-64 h100x256 batch 256"}  # which XLA cannot compile, as the page says
    for point in points:
        figures, chip = known[point.name], scaling.CHIPS[point.kind]
        preset = image_gan.PRESETS[point.recipe.preset]
        assert figures.precision == preset.get("precision", "float32")
        assert scaling.memory(known, point) <= chip.memory, point.name
        first, other = figures.checkpoint
        assert first + (point.hosts - 1) * other == pytest.approx(figures.state, abs=point.devices)


def test_a_device_does_not_do_more_if_there_are_more_of_them(known):
    """Neither memory nor bytes nor communication grow with their number, nor, of as many rows each, the work."""
    for grows, each in scaling.curves(known):
        first = known[each[0].name]
        for point in each[1:]:
            now = known[point.name]
            assert math.isclose(now.gflop, first.gflop, rel_tol=1e-3) or not grows
            # Of a single row a TPU has more kernels, and smaller ones.
            for field in ("temp_mib", "mb", "kernels") if grows else ("temp_mib", "mb"):
                assert getattr(now, field) <= 1.02 * getattr(first, field), (point.name, field)
            moved, before = (sum(size for _, size in f.collectives.values()) for f in (now, first))
            assert moved <= 1.02 * before and now.gathered <= max(first.gathered, 64 << 10)


def test_the_page_and_the_picture_are_those_of_the_record(known, tmp_path):
    text = scaling.PAGE.read_text()
    assert scaling.page(text, known) == text
    scaling.draw(known, tmp_path / "scaling.svg")
    assert (tmp_path / "scaling.svg").read_bytes() == scaling.PICTURE.read_bytes()
