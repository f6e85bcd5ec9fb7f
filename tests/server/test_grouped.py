"""The kernel that adds many adapters in one launch equals the loop over segments; on the CPU in Triton's interpreter.

With TRITON_INTERPRET=0 on a machine with CUDA the same tests run the compiled kernel.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from adapter_store.methods import Bottleneck
from server.engine import grouped
from server.engine.bank import Bank, BankShape, Segment, Taken
from server.engine.grouped import LoRAGroups, LowRank, Tiles
from server.engine.linears import LinearWork, NodeTokens
from server.engine.sites import Tokens
from server.methods.bottleneck import BottleneckWeights, Dense
from server.methods.lora import Chain, LoRAWeights, ScaleWeights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no triton for this system")

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
# What the two may differ by, against the largest number of the answer: float32's sums in another order; in the half types the loop rounds
# the sum once more than the kernel does (2^-8 each for bfloat16), and one step at the inner numbers may go either way. The interpreter cuts
# bfloat16 off where a GPU rounds it, which is twice as rough.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-5, torch.float16: 2**-8}
SITE = "layers.0.output"
EXAMPLES = settings(deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))  # shrinking would take minutes here


def slots(hidden: int, width: int, activation: str, count: int, dtype: torch.dtype) -> tuple[BankShape, list[torch.Tensor]]:
    """Adapters of one shape with random weights, laid out."""
    config = Bottleneck(non_linearity=activation)
    laid = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        down, down_bias, up, up_bias = (
            torch.randn(*size, generator=generator) * 0.3 for size in ((width, hidden), (width,), (hidden, width), (hidden,))
        )
        weights = {site: BottleneckWeights(Dense(down, down_bias), Dense(up, up_bias)) for site in ("layers.0.mh", SITE)}
        shape = BankShape.of(config, weights)
        assert shape is not None
        slot = torch.empty(shape.numel, dtype=dtype)
        shape.lay_out(config, weights, slot)
        laid.append(slot.to(DEVICE))
    return shape, laid


def banks(shape: BankShape, laid: list[torch.Tensor]) -> tuple[Bank, Bank]:
    """The same adapters in a bank that launches and in one that loops."""
    launching, looping = Bank(shape, laid[0].dtype), Bank(shape)
    assert [launching.put(slot) for slot in laid] == [looping.put(slot) for slot in laid] == list(range(len(laid)))
    return launching, looping


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, against the largest number."""
    return float((one.float() - other.float()).abs().max() / other.float().abs().max().clamp(min=1.0))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 70)), min_size=1, max_size=6),
    hidden=st.sampled_from([16, 31, 64, 130]),
    width=st.sampled_from([1, 5, 16, 24, 48]),
    activation=st.sampled_from(sorted(grouped.ACTIVATIONS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    aliased=st.booleans(),
)
@settings(EXAMPLES, max_examples=30)
def test_a_launch_equals_the_loop(
    lengths: list[tuple[int, int]], hidden: int, width: int, activation: str, dtype: torch.dtype, aliased: bool
) -> None:
    """Segments with bare tokens between them, some of one token; z may be s itself, as at a pre-norm model's site."""
    launching, looping = banks(*slots(hidden, width, activation, 3, dtype))
    segments, end = [], 0
    for number, (gap, length) in enumerate(lengths):
        segments.append(Segment(end + gap, end + gap + length, number % 3))
        end += gap + length
    generator = torch.Generator().manual_seed(end)
    z, s = (torch.randn(end + 2, hidden, generator=generator).to(DEVICE, dtype) for _ in range(2))
    answers = []
    for bank in (launching, looping):
        total = z.clone() if aliased else s.clone()
        bank.add_delta(SITE, tuple(segments), total if aliased else z, total, Taken())
        answers.append(total)
    assert distance(*answers) <= TOLERANCE[dtype]
    bare = torch.ones(end + 2, dtype=torch.bool, device=DEVICE)
    for segment in segments:
        bare[segment.start : segment.end] = False
    assert torch.equal(answers[0][bare], (z if aliased else s)[bare])


def test_hundreds_of_segments_of_one_token() -> None:
    launching, looping = banks(*slots(32, 8, "relu", 7, torch.float32))
    segments = tuple(Segment(place, place + 1, place % 7) for place in range(0, 400, 2))
    z, s = torch.randn(400, 32, device=DEVICE), torch.randn(400, 32, device=DEVICE)
    one, other = s.clone(), s.clone()
    launching.add_delta(SITE, segments, z, one, Taken())
    looping.add_delta(SITE, segments, z, other, Taken())
    assert distance(one, other) <= TOLERANCE[torch.float32]


def test_a_row_in_company_is_bit_for_bit_the_row_alone() -> None:
    shape, laid = slots(48, 16, "gelu", 3, torch.bfloat16)
    bank, _ = banks(shape, laid)
    z, s = torch.randn(90, 48).to(DEVICE, torch.bfloat16), torch.randn(90, 48).to(DEVICE, torch.bfloat16)
    together = s.clone()
    bank.add_delta(SITE, (Segment(0, 33, 0), Segment(33, 50, 1), Segment(50, 90, 2)), z, together, Taken())
    alone = s[33:50].clone()
    bank.add_delta(SITE, (Segment(0, 17, 1),), z[33:50], alone, Taken())
    assert torch.equal(together[33:50], alone)


def test_slots_that_come_and_go() -> None:
    """A batch's table of addresses does not outlive the slots in it, though the segments are equal."""
    shape, laid = slots(16, 4, "relu", 3, torch.float32)
    bank = Bank(shape, torch.float32)
    z = torch.randn(5, 16, device=DEVICE)
    answers = []
    for slot in laid:
        number = bank.put(slot)
        s = torch.zeros(5, 16, device=DEVICE)
        bank.add_delta(SITE, (Segment(0, 5, number),), z, s, Taken())
        answers.append(s)
        bank.free(number)
    assert distance(answers[0], answers[1]) > 0.1
    assert distance(answers[1], answers[2]) > 0.1


def test_tiles() -> None:
    tiles = Tiles.of([(64, 0, 32), (128, 32, 33), (192, 40, 40), (64, 50, 115)], torch.device("cpu"), [1.0, 2.0, 3.0, 4.0])
    assert tiles.table.tolist() == [[64, 0, 32], [128, 32, 33], [64, 50, 82], [64, 82, 114], [64, 114, 115]]
    assert tiles.scales is not None
    assert tiles.scales.tolist() == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert Tiles.of([], torch.device("cpu")).table.shape == (0, 3)


def test_nothing_to_launch() -> None:
    s = torch.ones(3, 4)
    LowRank(4, 2, 4, (0, 2, 1), (8, 4, 1)).add(Tiles.of([], torch.device("cpu")), torch.ones(3, 4), s)
    assert torch.equal(s, torch.ones(3, 4))


def test_what_the_kernel_does_not_cover_is_left_to_the_loop() -> None:
    for hidden, width, activation, dtype, covered in (
        (16, 4, "gelu", torch.float32, True),
        (16, 4, "gelu_new", torch.float32, False),
        (16, 200, "relu", torch.float32, False),
        (16, 200, "relu", torch.bfloat16, True),
        (16, 300, "relu", torch.bfloat16, False),
        (16, 4, "relu", torch.float64, False),
    ):
        shape, laid = slots(hidden, width, activation, 1, dtype)
        assert set(grouped.bottlenecks(shape, dtype)) == ({"layers.0.mh", SITE} if covered else set())
        launching, looping = banks(shape, laid)
        z = torch.randn(6, hidden).to(DEVICE, dtype)
        one, other = torch.zeros_like(z), torch.zeros_like(z)
        launching.add_delta(SITE, (Segment(1, 5, 0),), z, one, Taken())
        looping.add_delta(SITE, (Segment(1, 5, 0),), z, other, Taken())
        assert distance(one, other) <= TOLERANCE.get(dtype, 1e-12)


def lora(rank: int, inputs: int, outputs: int, seed: int, scaling: float, dtype: torch.dtype) -> LoRAWeights:
    """A LoRA whose tensors lie in one piece of memory, behind something else."""
    a_numbers, b_numbers = rank * inputs, outputs * rank
    memory = (torch.randn(16 + a_numbers + b_numbers, generator=torch.Generator().manual_seed(seed)) * 0.3).to(DEVICE, dtype)
    a, b = memory[16 : 16 + a_numbers].view(rank, inputs), memory[16 + a_numbers :].view(outputs, rank)
    return LoRAWeights(a, b, scaling)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    sizes=st.sampled_from([(16, 16), (33, 20), (64, 130)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(EXAMPLES, max_examples=12)
def test_loras_in_one_launch_equal_the_loop(lengths: list[int], sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """Of two ranks, with scalings of their own, beside nodes that go step by step."""
    inputs, outputs = sizes
    nodes, start = [], 2
    for seed, length in enumerate(lengths):
        part = lora(8 if seed % 3 else 4, inputs, outputs, seed, 0.5 + seed, dtype)
        node = [part, part, Chain((part, lora(4, inputs, outputs, 50 + seed, 2.0, dtype)))][seed % 2 if inputs != outputs else seed % 3]
        nodes.append(NodeTokens(node, (Tokens(((start, start + length),), None),), False))
        start += length + seed % 2
    scaled = ScaleWeights(torch.rand(outputs).to(DEVICE, dtype))
    nodes.append(NodeTokens(scaled, (Tokens(((0, 2),), None),), False))
    groups = LoRAGroups(DEVICE)
    alone, launched = groups.parted(nodes)
    assert len(alone) + sum(isinstance(work.node, LoRAWeights) for work in nodes) == len(nodes)
    x = torch.randn(1, start + 1, inputs).to(DEVICE, dtype)
    weight = torch.randn(outputs, inputs).to(DEVICE, dtype) * 0.2
    one = LinearWork(tuple(alone), launched).apply(x[0], lambda x: torch.nn.functional.linear(x, weight))
    other = LinearWork(tuple(nodes)).apply(x[0], lambda x: torch.nn.functional.linear(x, weight))
    assert distance(one, other) <= 4 * TOLERANCE[dtype]  # two more products lie in between, of numbers ten times as large


def test_loras_trained_alike_share_their_tiles() -> None:
    """Two linears of the same adapters: one table of addresses for both."""
    memory = [torch.randn(400, device=DEVICE) for _ in range(2)]

    def works(place: int) -> list[NodeTokens]:
        return [
            NodeTokens(
                LoRAWeights(one[place : place + 64].view(4, 16), one[place + 64 : place + 128].view(16, 4), 1.0),
                (Tokens(((5 * row, 5 * row + 5),), None),),
                False,
            )
            for row, one in enumerate(memory)
        ]

    groups = LoRAGroups(DEVICE)
    (_, (first,)), (_, (second,)) = groups.parted(works(0)), groups.parted(works(128))
    assert first.layout != second.layout
    assert first.tiles.table.shape == (2, 3)
    assert first.tiles is second.tiles


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from server.engine import grouped
from server.engine.triton_kernel import add_low_rank

for kind, width, activation in (("bf16", 48, "gelu"), ("bf16", 256, "relu"), ("fp16", 8, "tanh"), ("fp32", 128, "silu")):
    sizes = dict(width=width, activation=activation, biased=True, scaled=True, widened=False, tile_rows=grouped.ROWS,
                 tile_width=max(16, 1 << (width - 1).bit_length()), tile_inputs=grouped.INPUTS, tile_outputs=grouped.OUTPUTS)
    types = dict(z="*" + kind, s="*" + kind, tiles="*i64", scales="*fp32")
    signature = {name: types.get(name, "constexpr" if name in sizes else "i32") for name in add_low_rank.arg_names}
    places = {(add_low_rank.arg_names.index(name),): value for name, value in sizes.items()}
    source = ASTSource(add_low_rank, signature, constexprs=places)
    for capability in (80, 90):
        options = {"num_warps": grouped.WARPS, "num_stages": grouped.STAGES}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["cubin"]
        print(kind, width, capability, made.metadata.shared, "mma" in made.asm["ptx"])
"""


def test_the_kernel_compiles_for_gpus(tmp_path: Path) -> None:
    """To machine code for an A100 and an H100, whose shared memory it fits, on tensor cores in the half types; that needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 8
    for kind, _, _, shared, tensor_cores in lines:
        assert int(shared) <= 99 * 1024
        assert (tensor_cores == "True") == (kind != "fp32")
