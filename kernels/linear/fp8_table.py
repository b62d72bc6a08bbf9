"""The tuning table of FP8 linears: the layout for a shape, from one row to thousands.

Swept on an H200 over the four linears of an 8B layer; benchmarks/RESULTS.md has the figures. What
is chosen is kept: every launch of a layer asks, and a start launches thousands.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tokenbus.kernels.launch import ceil_div, next_power_of_2
from tokenbus.kernels.linear.fp8_block_rows import BlockRowsTuning
from tokenbus.kernels.linear.fp8_blocks import BlocksTuning
from tokenbus.kernels.linear.fp8_matmul import MatmulTuning
from tokenbus.kernels.linear.fp8_rows import RowsTuning
from tokenbus.kernels.linear.table import LinearRole, LinearTuning
from tokenbus.kernels.quantize import GROUP

# Rows up to which the weights are the tall operand of the product.
MAX_TALL_ROWS = 128
# The same where a wide gate follows: 53 us for gate and product of 256 rows of an 8B layer, against
# 59 of torch's product and the gate in turn.
MAX_GATED_ROWS = 256
# Multiprocessors of an H100 or H200.
_PROCESSORS = 132
# Shared memory of a program, with 1 KiB left for its barriers.
_SHARED_BYTES = 226 * 1024
# Outputs from which on cuBLAS's product is 6 to 13 % faster: the tiles of the kernel here write
# their results before they go on, and wide products have most of those for their columns.
_WIDE = 16384
# Rows up to which the kernel here is faster for narrower ones, of 256 rows by a fifth. Of more,
# cuBLAS needs 0.79 to 1.03 of its time.
_MAX_OWN_ROWS = 256
# Rows from which on all numbers of them get one tile: the most that a warm-up takes.
_MOST_TOLD_APART = 4096
# Tiles by what they reach of the best rate, where there are enough of them.
_TILES = (
    (1.0, MatmulTuning(128, 256, 128, 8, 3)),
    (0.93, MatmulTuning(128, 128, 128, 8, 5)),
    (0.84, MatmulTuning(128, 64, 128, 4, 6, halves=False)),
)


@cache
def choose_matvec_tuning(width_in: int, width_out: int, role: LinearRole) -> LinearTuning:
    """Pick the layout for one row.

    Before a sum: in a step of the 8B shape, which is 2,720 us, programs of 8 outputs that all find
    a place at once take 95 us less in `o` than twice as many of 4; whole rows for a warp and ten
    pieces in flight take 53 us less in `down`. Behind a norm such a warp was no faster.
    """
    del width_out
    if width_in < 4096:
        return LinearTuning(4, 1024, 4)
    if role is LinearRole.GATED:
        return LinearTuning(4, 4096, 4)
    if role is LinearRole.RESIDUAL and width_in == 4096:
        return LinearTuning(8, 1024, 4)
    # Of more inputs the compiler has no registers for the pieces.
    if role is LinearRole.RESIDUAL and 8192 <= width_in <= 16384:
        return LinearTuning(4, 512, 4, groups=2, ahead=10, by_warp=True)
    return LinearTuning(2 if width_in >= 8192 else 4, 2048, 4)


@cache
def choose_rows_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole, *, blocks: bool = False
) -> RowsTuning:
    """Pick the layout for rows that are tall, of weights with a scale per output or in `blocks`."""
    if blocks:
        return RowsTuning(64, GROUP, 4, 3)
    if num_rows <= 16 and width_in >= 4096 and role is not LinearRole.GATED:
        # Long steps: 17.5 us for `down` of 8 rows, where two programs for a tile took 18.3.
        return RowsTuning(64, 512, 4, 4)
    return _choose_rows_tuning(num_rows, width_in, width_out, role)


def _choose_rows_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole
) -> RowsTuning:
    height = next_power_of_2(max(num_rows, 16))
    if role is LinearRole.GATED:
        if height <= 32:
            return RowsTuning(64, 256, 4, 4)
        if height == 128:
            return RowsTuning(128, 128, 8, 4)
        return RowsTuning(64, 128, 4, 3) if height == 64 else RowsTuning(64, 128, 8, 4)
    tiles = ceil_div(width_out, 64)
    # Programs for the whole chip, but each with columns enough to fill its queue.
    least = 4096 if 2 * tiles >= _PROCESSORS // 2 else 1024
    splits = 1
    while 2 * splits * tiles <= _PROCESSORS and 2 * splits * least <= width_in:
        splits *= 2
    if splits > 1:
        return RowsTuning(64, 256, 4, 4, splits)
    return RowsTuning(64, 256, 4, 5) if height <= 64 else RowsTuning(64, 128, 4, 6)


def is_tall(num_rows: int, width_out: int, role: LinearRole, *, blocks: bool = False) -> bool:
    """Say whether weights are the tall operand, read once for all rows; width_out: behind gates."""
    is_gate = role is LinearRole.GATED
    if blocks:
        return num_rows <= (MAX_TALL_ROWS // 2 if is_gate else MAX_TALL_ROWS)
    if num_rows <= MAX_TALL_ROWS:
        return True
    return is_gate and num_rows <= MAX_GATED_ROWS and is_wide(2 * width_out)


def is_wide(width_out: int) -> bool:
    """Say whether cuBLAS's product of more than 128 rows is faster."""
    return width_out >= _WIDE


def is_for_library(num_rows: int, width_out: int, *, adds_bias: bool = False) -> bool:
    """Say whether cuBLAS is faster by a weight with a scale per output, of rows not tall.

    adds_bias: it needs a launch more for that, which only wide products make up for.
    """
    return is_wide(width_out) or (num_rows > _MAX_OWN_ROWS and not adds_bias)


@cache
def choose_turns_tuning(
    num_rows: int, width_in: int, width_out: int, role: LinearRole
) -> BlockRowsTuning | BlocksTuning:
    """Pick the layout over blocks where warps take turns: of up to 64 rows, or of more."""
    is_gate = role is LinearRole.GATED
    if num_rows <= MAX_TALL_ROWS // 2 and not (is_gate and width_out % 64):
        tuning = _choose_few_rows(num_rows, width_in, width_out, is_gate=is_gate)
        if tuning.stages >= 3:
            return tuning
    return _choose_blocks_tuning(num_rows, width_in, width_out * (1 + is_gate))


def _choose_few_rows(
    num_rows: int, width_in: int, width_out: int, *, is_gate: bool
) -> BlockRowsTuning:
    """Pick what a program has in flight: as measured, if the scales of all its steps leave room."""
    few, splits = num_rows <= 16, 1
    if is_gate:
        # Two programs have a multiprocessor, of more than 32 rows one.
        stages = 6 if few else 4 if num_rows <= 32 else 8
    else:
        fills_chip = 2 * ceil_div(width_out, 64) > _PROCESSORS
        splits = 1 if fills_chip or (few and width_in <= 4096) else 2
        stages = 10 if not few else 16 if fills_chip or splits > 1 else 20
    height, tiles = next_power_of_2(max(num_rows, 16)), 1 + is_gate
    steps = next_power_of_2(2 * ceil_div(width_in, 2 * GROUP * splits))
    room = _SHARED_BYTES - 4 * steps * height * tiles
    return BlockRowsTuning(min(stages, room // (GROUP * (height + 64 * tiles))), splits)


def _choose_blocks_tuning(num_rows: int, width_in: int, width_out: int) -> BlocksTuning:
    """Pick the tiles of rows times blocks of a weight that end first, and who shares them.

    Tall ones are 7 % faster where as many are under way. A part of a tile's columns takes 28 steps
    at least: shorter ones end no earlier. Rows are told apart by octaves, as for other tiles.
    """
    octave = min(next_power_of_2(num_rows), _MOST_TOLD_APART)
    tiles = ceil_div(octave, 128) * ceil_div(width_out, GROUP)
    tall = ceil_div(octave, 256) * ceil_div(width_out, GROUP)
    if 0.93 * 2 * ceil_div(tall, _PROCESSORS) < ceil_div(tiles, _PROCESSORS):
        return BlocksTuning(256, 4, group=8)
    splits = 1
    while 2 * splits * tiles <= _PROCESSORS and 2 * splits * 28 * GROUP <= width_in:
        splits *= 2
    return BlocksTuning(128, 5, group=8, splits=splits)


@cache
def choose_matmul_tuning(num_rows: int, width_out: int, *, blocks: bool = False) -> MatmulTuning:
    """Pick the tile that ends first for more rows.

    All tiles of a round take as long as one, so what counts are rounds times the size of a tile.
    Numbers of rows are told apart by octaves alone, so that a few steps meet all tiles there are.
    """
    if blocks:
        # Every step's sums are scaled by themselves, while another program multiplies.
        return MatmulTuning(64, 128, GROUP, 4, 3, group=16, halves=False, programs=2)
    group = 8 if width_out <= 4096 else 16
    octave = min(next_power_of_2(num_rows), _MOST_TOLD_APART)

    def cost(tile: tuple[float, MatmulTuning]) -> float:
        rate, tuning = tile
        tiles = ceil_div(octave, tuning.block_m) * ceil_div(width_out, tuning.block_n)
        return ceil_div(tiles, _PROCESSORS) * tuning.block_m * tuning.block_n / rate

    return replace(min(_TILES, key=cost)[1], group=group)
