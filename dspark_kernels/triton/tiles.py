"""The table of tiles: (op, dtype class, compute capability) -> entries in ascending order.

An entry is (size limits, block sizes, warps, stages, programs per SM); the size limits are those of
linear_topk (M, k), logits_topk (k,), draft_blocks (B,), tree_attention (query rows per KV head, E).

Not measured: chosen on paper and checked by compiling (`tests/test_triton_aot.py`).
"""

CROSSOVER = {80: 64, 90: 64, 100: 64}

TILES = {
    ("linear_topk", "half", 80): [
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 64}, 4, 4, 1),
        ((32, 64), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 32}, 4, 3, 1),
        ((64, 64), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 32}, 8, 3, 1),
    ],
    ("linear_topk", "single", 80): [
        ((64, 64), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32, "SLICE": 64}, 4, 3, 2),
    ],
    ("logits_topk", "single", 80): [
        ((64,), {"BLOCK_M": 1, "BLOCK_V": 1024}, 4, 2, 4),
    ],
    ("tree_attention", "half", 80): [
        ((16, 256), {"BLOCK_M": 16, "BLOCK_N": 64}, 2, 3, 4),
        ((64, 256), {"BLOCK_M": 64, "BLOCK_N": 64}, 4, 2, 2),
        ((1024, 256), {"BLOCK_M": 128, "BLOCK_N": 64}, 8, 2, 1),
    ],
    ("tree_attention", "fp8", 80): [((1024, 256), {"BLOCK_M": 64, "BLOCK_N": 64}, 4, 2, 2)],
    ("tree_attention", "single", 80): [((1024, 256), {"BLOCK_M": 32, "BLOCK_N": 32}, 4, 2, 2)],
}
