"""What a compiled program computes, moves and sends is read from its text: programs whose numbers are known."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lmjax.parallel import collectives, cost
from lmjax.parallel.collectives import sent_by_axes
from lmjax.parallel.hlo import Instruction, Program, Shape
from lmjax.parallel.mesh import ParallelConfig, make_mesh

pytestmark = pytest.mark.usefixtures("all_devices")


@pytest.fixture(scope="module")
def mesh(all_devices):
    return jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def program(step, *shapes, **options):
    return Program.parse(jax.jit(step, **options).lower(*shapes).compile().as_text())


def spread(mesh, shape, *names):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*names)))


def sent(mesh, step, *specs, shape=(8, 16)):
    """Returns what a device sends in `step`, which runs on each device's part of an array."""
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return sent_by_axes(collectives.collectives(program(mapped, spread(mesh, shape, *specs[0])), dict(mesh.shape)))


P = PartitionSpec


@pytest.mark.parametrize(
    ("step", "specs", "expected"),
    [
        # Of 8 x 16 float32 numbers, a device has 4 x 4, which is 64 bytes.
        (
            lambda x: jax.lax.psum(x, "tensor"),
            (P("data", "tensor"), P("data")),
            ("all-reduce", "tensor", 2 * 64 * 3 / 4),
        ),
        (lambda x: jax.lax.psum(x, "data"), (P("data", "tensor"), P(None, "tensor")), ("all-reduce", "data", 64)),
        (lambda x: jax.lax.all_gather(x, "tensor"), (P("data", "tensor"), P("data")), ("all-gather", "tensor", 64 * 3)),
        (
            lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True),
            (P("data", "tensor"), P(("data", "tensor"), None)),
            ("reduce-scatter", "tensor", 64 * 3 / 4),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True),
            (P("data", "tensor"), P("data", "tensor")),
            ("all-to-all", "tensor", 64 * 3 / 4),
        ),
        (
            lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]),
            (P("data", "tensor"), P("data", "tensor")),
            ("collective-permute", "data", 64),
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) and isinstance(x[0], str) else "",
)
def test_bytes_over_each_axis(mesh, step, specs, expected):
    kind, axis, size = expected
    assert sent(mesh, step, *specs) == {(kind, (axis,)): size}


def test_a_sum_over_both_axes_names_both(mesh):
    found = sent(mesh, lambda x: jax.lax.psum(x, ("data", "tensor")), P("data", "tensor"), P())
    assert found == {("all-reduce", ("data", "tensor")): 2 * 64 * 7 / 8}


def test_what_a_loop_sends_counts_as_often_as_the_loop_runs(mesh):
    def step(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c, "tensor") * 0.5, None), x, None, length=5)[0]

    assert sent(mesh, step, P("data", "tensor"), P("data", "tensor")) == {("all-reduce", ("tensor",)): 5 * 96}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("tensor",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[2,4]<=[8]", ("tensor",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups={}", ("data", "tensor")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("tensor",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ("data", "tensor")),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("tensor",)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,1,2,3,4,5,6,7) {'b'}", ("tensor",)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ("data",)),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", ("tensor",)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", ("tensor",)),
        ("source_target_pairs={{0,4},{4,0}}", ("data",)),
    ],
)
def test_axes_of_every_way_to_write_groups(groups, expected):
    kind = "collective-permute" if "pairs" in groups else "all-reduce"
    text = f"""HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} {kind}(%x), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add
}}
"""
    (found,) = collectives.collectives(Program.parse(text), {"data": 2, "tensor": 4})
    assert found.axes == expected


def test_groups_in_an_unknown_form_are_an_error_and_not_all_devices():
    given = Instruction("a", "all-reduce", (), (), ", replica_groups=new[2] {0}")
    with pytest.raises(ValueError, match="form that is not known"):
        collectives._groups(given, {"data": 2, "tensor": 4})


def test_flops_of_products_and_of_loops():
    x = jax.ShapeDtypeStruct((32, 48), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 48, 48), jnp.float32)

    def step(x, w):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0]

    assert cost.flops(program(step, x, w)) == 3 * 2 * 32 * 48 * 48
    batched = program(
        lambda a, b: jnp.einsum("bij,bkj->bik", a, b), *(jax.ShapeDtypeStruct((5, 7, 11), jnp.float32),) * 2
    )
    assert cost.flops(batched) == 2 * 5 * 7 * 7 * 11


@pytest.mark.parametrize(
    ("window", "labels", "shapes"),
    [
        # As libtpu 0.0.42 writes products: of a dimension of its own, and of batches.
        (
            "size=1x2 pad=0_0x1_1 rhs_reversal=0x1",
            "0bf1_i1o0->0b1f",
            ((8, 128, 128, 1), (128, 2, 64, 1), (8, 128, 2, 64)),
        ),
        (
            "size=8x2 stride=7x1 lhs_dilate=8x2",
            "01bf_01oi->01bf",
            ((8, 2, 128, 64), (8, 2, 128, 64), (8, 2, 128, 128)),
        ),
    ],
)
def test_flops_of_products_that_are_written_as_convolutions(window, labels, shapes):
    left, right, out = (Shape("f32", dims, False) for dims in shapes)
    known = {
        "a": Instruction("a", "parameter", (left,), ("0",), ""),
        "b": Instruction("b", "parameter", (right,), ("1",), ""),
        "y": Instruction("y", "convolution", (out,), ("a", "b"), f", window={{{window}}}, dim_labels={labels}"),
    }
    computation = cost.Computation("main", known, "y")
    inner = shapes[0][-1] if labels.startswith("01") else 128
    assert cost.flops(Program({"main": computation}, "main")) == 2 * np.prod(shapes[2]) * inner


def test_traffic_counts_a_fusion_once_and_a_slice_as_its_part():
    size = 4 * 1024 * 256
    x = jax.ShapeDtypeStruct((1024, 256), jnp.float32)
    added = cost.moved_bytes(program(lambda x: jnp.tanh(x) * 2 + 1, x))
    assert added == 2 * size
    stack = jax.ShapeDtypeStruct((6, 1024, 256), jnp.float32)
    # Each of 6 iterations reads its part of the stack and the sum, and writes the sum, beside a few counters.
    scanned = program(lambda s: jax.lax.scan(lambda c, x: (c + x, None), jnp.zeros((1024, 256)), s)[0], stack)
    assert 6 * 3 * size <= cost.moved_bytes(scanned) <= 1.15 * 6 * 3 * size


def test_lines_that_a_compiler_breaks_are_one_instruction():
    text = """HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = (f32[8]{0}, f32[8]{0}) custom-call(%x), custom_call_target="k", frontend_attributes={kernel_metadata={
"about": "{\\"block\\": 1}"
}}, metadata={op_name="a"}
  ROOT %z = f32[8]{0} get-tuple-element(%y), index=1
}
"""
    parsed = Program.parse(text)
    assert list(parsed.computations["main"].instructions) == ["x", "y", "z"]
    assert parsed.computations["main"].root == "z"


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which pip install lmjax[tpu] brings"
)
def test_an_axis_may_take_a_part_of_a_side_of_a_slice():
    """Neither 8 nor 2 is a product of the sides of 4 x 4."""
    from lmjax.parallel.topology import topology_devices

    devices = topology_devices("v5e:4x4")
    mesh = make_mesh(ParallelConfig(data=2, fsdp=8), devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 8, "expert": 1, "sequence": 1, "tensor": 1}
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which pip install lmjax[tpu] brings"
)
def test_a_program_for_a_tpu():
    """The scan's products, its gathers along the axis and the compiler's own peak, without a TPU."""
    from lmjax.parallel.topology import topology_devices

    devices = topology_devices("v5e:2x2")
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,), devices=devices)
    x, w = spread(mesh, (1024, 512), "fsdp"), spread(mesh, (3, 512, 512), None, "fsdp")

    def step(x, w):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0]

    done = jax.jit(step, out_shardings=x.sharding).lower(x, w).compile()
    parsed = Program.parse(done.as_text())
    assert cost.flops(parsed) == 3 * 2 * 256 * 512 * 512
    found = sent_by_axes(collectives.collectives(parsed, dict(mesh.shape)))
    assert sum(found.values()) in (3 * 3 * 128 * 512 * 4, 3 * 3 * 128 * 512 * 2), found
    assert {axes for _, axes in found} == {("fsdp",)}


@pytest.mark.parametrize(
    ("start", "limit", "step", "expected"), [(0, 8, 1, 8), (0, 8, 2, 4), (3, 8, 2, 3), (0, 1, 4, 1)]
)
def test_loops_that_count_in_steps(start, limit, step, expected):
    """XLA unrolls the loops of products that overlap their gathers, which then count by 2."""
    text = f"""HloModule m

%body (p: (f32[8,8], s32[])) -> (f32[8,8], s32[]) {{
  %p = (f32[8,8]{{1,0}}, s32[]) parameter(0)
  %x = f32[8,8]{{1,0}} get-tuple-element(%p), index=0
  %i = s32[] get-tuple-element(%p), index=1
  %s = s32[] constant({step})
  %y = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %j = s32[] add(%i, %s)
  ROOT %t = (f32[8,8]{{1,0}}, s32[]) tuple(%y, %j)
}}

%cond (q: (f32[8,8], s32[])) -> pred[] {{
  %q = (f32[8,8]{{1,0}}, s32[]) parameter(0)
  %k = s32[] get-tuple-element(%q), index=1
  %n = s32[] constant({limit})
  ROOT %lt = pred[] compare(%k, %n), direction=LT
}}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {{
  %x = f32[8,8]{{1,0}} parameter(0)
  %zero = s32[] constant({start})
  %copied = s32[] copy(%zero)
  %given = (f32[8,8]{{1,0}}, s32[]) tuple(%x, %copied)
  %loop = (f32[8,8]{{1,0}}, s32[]) while(%given), condition=%cond, body=%body
  ROOT %z = f32[8,8]{{1,0}} get-tuple-element(%loop), index=0
}}
"""
    assert cost.flops(Program.parse(text)) == expected * 2 * 8 * 8 * 8


def test_a_gather_that_runs_beside_other_work_counts_once():
    """A TPU's program has it in the computations that begin and end it, with one channel."""
    gather = (
        "  %all-gather.{0} = bf16[64,8]{{1,0}} all-gather(%p.{0}), channel_id=7, replica_groups=[2,4]<=[8], "
        'dimensions={{0}}, frontend_attributes={{chain_id="6"}}'
    )
    lines = ["HloModule step", ""]
    for i in (1, 2):
        lines += [f"%part.{i} (p.{i}: bf16[16,8]) -> bf16[64,8] {{", f"  %p.{i} = bf16[16,8]{{1,0}} parameter(0)"]
        lines += [f"{gather.format(i)}", f"  ROOT %end.{i} = bf16[64,8]{{1,0}} bitcast(%all-gather.{i})", "}", ""]
    lines += ["ENTRY %main (x: bf16[16,8]) -> bf16[64,8] {", "  %x = bf16[16,8]{1,0} parameter(0)"]
    lines += [f"  %f.{i} = bf16[64,8]{{1,0}} fusion(%x), kind=kCustom, calls=%part.{i}" for i in (1, 2)]
    lines += ["  ROOT %y = bf16[64,8]{1,0} add(%f.1, %f.2)", "}"]
    (found,) = collectives.collectives(Program.parse("\n".join(lines)), {"data": 2, "fsdp": 4})
    assert (found.kind, found.axes, found.sent) == ("all-gather", ("fsdp",), 3 * 16 * 8 * 2)
