"""The one Triton kernel: s[a:b] += scale * (f(z[a:b] Down + c) Up + e) for many segments, each with weights of its own.

Imported only where it is launched (`grouped.py`), because triton comes with torch's CUDA builds alone; with TRITON_INTERPRET=1 set
before that import it runs on the CPU, which is how its tests run it.

A program instance owns one tile: at most `tile_rows` adjacent tokens of one segment, no other instance touches their rows of s. So
nothing is atomic, the order of every sum is fixed, and a token's answer does not depend on its neighbours. Products accumulate in
float32; what lies between the two is rounded to the weights' type, as torch's own products round it. float32 operands are multiplied
as float32, not as TF32.
"""

import triton
import triton.language as tl


@triton.jit
def activated(x, activation: tl.constexpr):
    """f(x) in float32."""
    if activation == "relu":
        x = tl.maximum(x, 0.0)
    elif activation == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif activation == "silu":
        x = x * tl.sigmoid(x)
    elif activation == "tanh":
        x = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return x


@triton.jit
def add_low_rank(
    z,
    s,
    tiles,
    scales,
    z_row,
    s_row,
    inputs,
    outputs,
    down_at,
    down_input,
    down_width,
    up_at,
    up_width,
    up_output,
    down_bias_at,
    up_bias_at,
    width: tl.constexpr,
    activation: tl.constexpr,
    biased: tl.constexpr,
    scaled: tl.constexpr,
    widened: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_width: tl.constexpr,
    tile_inputs: tl.constexpr,
    tile_outputs: tl.constexpr,
):
    """One tile. z [T, inputs] and s [T, outputs], rows z_row and s_row numbers apart, may be the same memory.

    tiles [n, 3] int64: the address of the adapter's memory, first token, end. *_at: where in that memory, in numbers, its tensors begin;
    down_input, down_width, up_width, up_output: numbers between neighbours along each of their axes. scales [n] float32.
    widened: multiply float32 copies, which is exact: the interpreter's dot takes bfloat16 for integers.
    tile_rows, tile_width >= width, tile_inputs, tile_outputs: the blocks' sizes, powers of two from 16 on.
    """
    tile = tl.program_id(0)
    base = tl.load(tiles + 3 * tile).to(tl.pointer_type(s.dtype.element_ty))
    base = tl.multiple_of(base, 16)  # bytes; device memory is aligned to 256, and tensors in it to 16 numbers
    start = tl.load(tiles + 3 * tile + 1)
    end = tl.load(tiles + 3 * tile + 2)
    if start >= end:  # a place in the table that this batch has no work for
        return
    row = start + tl.arange(0, tile_rows)
    inside = row < end
    inner = tl.arange(0, tile_width)
    real = inner < width

    hidden = tl.zeros((tile_rows, tile_width), dtype=tl.float32)
    for first in range(0, inputs, tile_inputs):
        column = first + tl.arange(0, tile_inputs)
        there = column < inputs
        read = tl.load(z + row[:, None] * z_row + column[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        places = base + down_at + column[:, None] * down_input + inner[None, :] * down_width
        down = tl.load(places, mask=there[:, None] & real[None, :], other=0.0)
        if widened:
            read, down = read.to(tl.float32), down.to(tl.float32)
        hidden = tl.dot(read, down, hidden, input_precision="ieee")
    if biased:
        hidden += tl.load(base + down_bias_at + inner, mask=real, other=0.0).to(tl.float32)[None, :]
    made = activated(hidden, activation).to(s.dtype.element_ty)
    if widened:
        made = made.to(tl.float32)
    scale = 1.0
    if scaled:
        scale = tl.load(scales + tile)
    tl.debug_barrier()  # where z is s, all of it has been read before any of it is written

    for first in range(0, outputs, tile_outputs):
        column = first + tl.arange(0, tile_outputs)
        there = column < outputs
        places = base + up_at + inner[:, None] * up_width + column[None, :] * up_output
        up = tl.load(places, mask=real[:, None] & there[None, :], other=0.0)
        if widened:
            up = up.to(tl.float32)
        delta = tl.dot(made, up, input_precision="ieee")
        if biased:
            delta += tl.load(base + up_bias_at + column, mask=there, other=0.0).to(tl.float32)[None, :]
        written = s + row[:, None] * s_row + column[None, :]
        mine = inside[:, None] & there[None, :]
        total = tl.load(written, mask=mine, other=0.0).to(tl.float32) + scale * delta
        tl.store(written, total.to(s.dtype.element_ty), mask=mine)
