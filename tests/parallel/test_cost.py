"""FLOPs and memory traffic of programs, given as text in the form of those that XLA makes for a TPU."""

import re

import pytest

from lmjax.parallel import cost
from lmjax.parallel.hlo import Program

# Scanned layers: a product reads its part of the stacked kernels in a fusion inside a fusion.
LAYERS = """HloModule m

%cut (a: bf16[6,64,32], i: s32[]) -> bf16[64,32] {
  %a = bf16[6,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = bf16[1,64,32]{2,1,0} dynamic-slice(%a, %i, %i, %i), dynamic_slice_sizes={1,64,32}
  ROOT %b = bf16[64,32]{1,0} bitcast(%s)
}

%put (c: bf16[6,16,32], d: bf16[1,16,32], j: s32[]) -> bf16[6,16,32] {
  %c = bf16[6,16,32]{2,1,0} parameter(0)
  %d = bf16[1,16,32]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %u = bf16[6,16,32]{2,1,0} dynamic-update-slice(%c, %d, %j, %j, %j)
}

%layer (k: bf16[6,64,32], n: s32[], x: bf16[16,64], y: bf16[6,16,32]) -> bf16[6,16,32] {
  %k = bf16[6,64,32]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = bf16[16,64]{1,0} parameter(2)
  %y = bf16[6,16,32]{2,1,0} parameter(3)
  %w = bf16[64,32]{1,0} fusion(%k, %n), kind=kLoop, calls=%cut
  %p = bf16[16,32]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %q = bf16[1,16,32]{2,1,0} bitcast(%p)
  ROOT %z = bf16[6,16,32]{2,1,0} fusion(%y, %q, %n), kind=kLoop, calls=%put
}

ENTRY %main (kernels: bf16[6,64,32], number: s32[], rows: bf16[16,64]) -> bf16[6,16,32] {
  %kernels = bf16[6,64,32]{2,1,0} parameter(0)
  %number = s32[] parameter(1)
  %rows = bf16[16,64]{1,0} parameter(2)
  %room = bf16[6,16,32]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %all = bf16[6,16,32]{2,1,0} fusion(%kernels, %number, %rows, %room), kind=kOutput, calls=%layer, \
metadata={op_name="step/layer_3/mlp/dot"}
}
""".replace("\\\n", "")

KERNEL = """HloModule m

ENTRY %main (q: bf16[2,4,SIZE,64], k: bf16[2,1,SIZE,64]) -> RESULTS {
  %q = bf16[2,4,SIZE,64]{3,2,1,0} parameter(0)
  %k = bf16[2,1,SIZE,64]{3,2,1,0} parameter(1)
  %m = s32[1,2,2]{2,1,0} constant({...})
  ROOT %NAME.1 = RESULTS custom-call(%m, %m, %q, %k, %k), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512, \\"block_q_dkv\\": 512, \\"block_kv_dkv\\": BLOCK, \
\\"block_q_dq\\": 256, \\"block_kv_dq\\": 128}"
}}, metadata={op_name="a"}
}
""".replace("\\\n", "")
_QUERIES, _KEYS = "bf16[2,4,SIZE,64]{3,2,1,0}", "bf16[2,1,SIZE,64]{3,2,1,0}"
_LANES = "f32[2,4,SIZE,128]{3,2,1,0}"
# By the results of a kernel, beside working memory: how many rows of a head they have together.
FORWARD = f"(f32[2,512,64]{{2,1,0}}, {_QUERIES}, {_LANES})", 4
KEYS = f"(f32[2,512,64]{{2,1,0}}, {_KEYS}, {_KEYS})", 2
ALL = f"(bf16[2,1,4,SIZE,64]{{4,3,2,1,0}}, {_KEYS}, {_KEYS})", 6
QUERIES = f"(f32[2,512,64]{{2,1,0}}, {_QUERIES})", 4


def test_a_slice_in_a_fusion_inside_a_fusion_counts_as_its_part():
    """Otherwise each scanned layer counts the kernels of all; memory that is reserved for the results counts never."""
    program = Program.parse(LAYERS)
    inputs, part, result = 2 * 16 * 64, 2 * 64 * 32, 2 * 16 * 32
    number = 4
    assert cost.moved_bytes(program) == inputs + part + result + number
    assert cost.least_bytes(program, 2) == inputs + part + result
    assert cost.least_bytes(program, 4) == 2 * (inputs + part + result)


def test_an_array_that_is_also_read_whole_counts_whole():
    text = LAYERS.replace("ROOT %b = bf16[64,32]{1,0} bitcast(%s)", "%e = bf16[6,64,32]{2,1,0} negate(%a)\n"
                          "  %f = bf16[64,32]{1,0} bitcast(%s)\n  ROOT %b = bf16[64,32]{1,0} add(%f, %f)")  # fmt: skip
    inputs, whole, result, number = 2 * 16 * 64, 2 * 6 * 64 * 32, 2 * 16 * 32, 4
    assert cost.moved_bytes(Program.parse(text)) == inputs + whole + result + number


def test_traffic_by_operation_counts_layers_together():
    program = Program.parse(LAYERS)
    assert cost.moved_by_source(program) == {"step/layer_N/mlp/dot": cost.moved_bytes(program)}


@pytest.mark.parametrize(
    ("name", "size", "block", "results", "causal", "products"),
    [
        ("splash_mha_fwd_segmented_residuals", 2048, 512, FORWARD, False, 2),
        # 1 + 2 + 3 + 4 of 16 blocks
        ("splash_mha_fwd_segmented_residuals", 2048, 512, FORWARD, True, 2 * 10 / 16),
        ("splash_mha_dkv_no_residuals", 1024, 512, KEYS, True, 4 * 3 / 4),
        ("splash_mha_dkv_no_residuals", 1024, 1024, ALL, True, 5),
        ("splash_mha_dkv_no_residuals", 1024, 1024, ALL, False, 5),
        # Four rows of 8 blocks, of which 2, 4, 6 and 8 are computed.
        ("splash_mha_dq_no_residuals", 1024, 512, QUERIES, True, 3 * 20 / 32),
        ("another_kernel", 1024, 512, FORWARD, False, 0),
    ],
)
@pytest.mark.parametrize("batch", [2, 1])
def test_flops_of_an_attention_kernel_follow_from_its_blocks(name, size, block, results, causal, products, batch):
    """Results in float32 with 64 or 128 columns are working memory, or one number of each query.

    A batch of one row has no dimension in the kernel.
    """
    text, rows = KERNEL.replace("RESULTS", results[0]), results[1]
    for key, value in (("SIZE", size), ("NAME", name), ("BLOCK", block)):
        text = text.replace(key, str(value))
    if batch == 1:
        for rank in (3, 4, 5):
            layout = ",".join(map(str, reversed(range(rank))))
            text = re.sub(rf"\[2,([\d,]+)\]\{{{layout}\}}", rf"[\1]{{{layout.partition(',')[2]}}}", text)
    program = Program.parse(text)
    assert cost.flops(program, causal=causal) == products * 2 * batch * 4 * size * size * 64
    if products:
        assert cost.least_bytes(program, 2) == 2 * batch * size * 64 * (4 + 1 + 1 + rows)


SLICES = """HloModule m

ENTRY %main (a: bf16[8,64], b: bf16[64]) -> bf16[64] {{
  %a = bf16[8,64]{{1,0{near}}} parameter(0)
  %b = bf16[64]{{0}} parameter(1)
  ROOT %r = {line}
}}
"""


@pytest.mark.parametrize(
    ("line", "reads_of_a", "others"),
    [
        ("((bf16[8,64]{1,0NEAR}), bf16[2,64]{1,0}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:64]}", 256, 256),
        ("((bf16[8,64]{1,0NEAR}), bf16[2,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:64]}", 256, 0),
        ("bf16[2,64]{1,0} slice(%a), slice={[0:2], [0:64]}", 256, 256),
        ("bf16[2,64]{1,0:S(1)} slice(%a), slice={[0:2], [0:64]}", 256, 0),
        ("bf16[8,64]{1,0} dynamic-update-slice(%a, %b, %i, %i)", 128, 128),
    ],
)
@pytest.mark.parametrize("near", [False, True])
def test_of_a_slice_the_part_alone_is_moved_from_where_it_is_to_where_it_goes(line, reads_of_a, others, near):
    """What is in the memory on the chip is not moved to or from main memory, and the rest of the array is not read."""
    place = ":S(1)" if near else ""
    program = Program.parse(SLICES.format(near=place, line=line.replace("NEAR", place)))
    assert cost.moved_bytes(program) == (0 if near else reads_of_a) + others
