"""The table of tiles: (op, dtype class, capability) -> entries; the first that fits serves.

An entry is (size limits, block sizes, warps, stages, programs per SM). The sizes are (M, k) for
linear_topk, (k,) for logits_topk, (V,) for sample_logits, (B,) for draft_blocks, (M, columns of the
output per SM) for fused_linear and (query rows per KV head, E, slots of the cache per SM) for
tree_attention.

`python -m benchmarks.tune` rewrites this file. What MEASURED does not name was chosen on paper, and
checked by compiling (`tests/test_triton_aot.py`).
"""

ANY = 1 << 30

MEASURED = {90: "H200, torch 2.11.0+cu130, Triton 3.6.0 (half, without E 256 and linear_topk)"}

# rows of x up to which an op is fused; above it, plain products
# (fused_linears: several weights at once)
CROSSOVER = {
    ("linear_topk", "half", 80): 64,
    ("linear_topk", "half", 90): 64,
    ("linear_topk", "half", 100): 64,
    ("linear_topk", "single", 80): 64,
    ("linear_topk", "single", 90): 64,
    ("linear_topk", "single", 100): 64,
    ("fused_linear", "half", 80): 64,
    ("fused_linear", "half", 90): 64,
    ("fused_linear", "half", 100): 64,
    ("fused_linear", "single", 80): 256,
    ("fused_linear", "single", 90): 256,
    ("fused_linear", "single", 100): 256,
    ("fused_linears", "half", 80): 64,
    ("fused_linears", "half", 90): 128,
    ("fused_linears", "half", 100): 64,
    ("fused_linears", "single", 80): 256,
    ("fused_linears", "single", 90): 256,
    ("fused_linears", "single", 100): 256,
}

TILES = {
    ("linear_topk", "half", 80): [
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 64}, 4, 3, 2),
        ((32, 16), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 32}, 4, 3, 2),
        ((32, 64), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 64}, 8, 5, 1),
        ((ANY, 16), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 32}, 8, 3, 1),
        ((ANY, 64), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 64}, 8, 3, 1),
    ],
    ("linear_topk", "half", 90): [
        ((16, 16), {"BLOCK_M": 16, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 128}, 8, 5, 1),
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128, "SLICE": 64}, 8, 4, 2),
        ((32, 16), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 32}, 8, 5, 1),
        ((32, 64), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 64}, 8, 4, 1),
        ((ANY, 1), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 64, "SLICE": 16}, 8, 5, 2),
        ((ANY, 16), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 32}, 8, 4, 1),
        ((ANY, 64), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 64}, 8, 5, 1),
    ],
    ("linear_topk", "half", 100): [
        ((16, 16), {"BLOCK_M": 16, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 64}, 8, 5, 1),
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 64}, 8, 5, 1),
        ((32, 16), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 32}, 4, 4, 2),
        ((32, 64), {"BLOCK_M": 32, "BLOCK_V": 128, "BLOCK_D": 128, "SLICE": 64}, 8, 4, 1),
        ((ANY, 16), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 16}, 4, 4, 2),
        ((ANY, 64), {"BLOCK_M": 64, "BLOCK_V": 128, "BLOCK_D": 64, "SLICE": 64}, 8, 5, 1),
    ],
    ("linear_topk", "single", 80): [
        ((ANY, 64), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32, "SLICE": 64}, 8, 3, 1),
    ],
    ("linear_topk", "single", 90): [
        ((ANY, 64), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32, "SLICE": 64}, 8, 3, 1),
    ],
    ("linear_topk", "single", 100): [
        ((ANY, 64), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32, "SLICE": 64}, 8, 3, 1),
    ],
    ("logits_topk", "single", 80): [
        ((64,), {"BLOCK_M": 1, "BLOCK_V": 1024}, 4, 2, 4),
    ],
    ("logits_topk", "single", 90): [
        ((64,), {"BLOCK_M": 1, "BLOCK_V": 1024}, 4, 2, 4),
    ],
    ("logits_topk", "single", 100): [
        ((64,), {"BLOCK_M": 1, "BLOCK_V": 1024}, 4, 2, 4),
    ],
    ("sample_logits", "single", 80): [
        ((ANY,), {"BLOCK_V": 512}, 4, 2, 1),
    ],
    ("sample_logits", "single", 90): [
        ((65536,), {"BLOCK_V": 512}, 4, 2, 1),
        ((ANY,), {"BLOCK_V": 512}, 16, 2, 1),
    ],
    ("sample_logits", "single", 100): [
        ((ANY,), {"BLOCK_V": 512}, 4, 2, 1),
    ],
    ("draft_blocks", "half", 80): [
        ((16,), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 3, 1),
        ((ANY,), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 64}, 4, 3, 2),
    ],
    ("draft_blocks", "half", 90): [
        ((16,), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 3, 1),
        ((ANY,), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 64}, 4, 4, 1),
    ],
    ("draft_blocks", "half", 100): [
        ((16,), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 4, 2),
        ((ANY,), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 3, 2),
    ],
    ("draft_blocks", "single", 80): [
        ((ANY,), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3, 2),
    ],
    ("draft_blocks", "single", 90): [
        ((ANY,), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3, 2),
    ],
    ("draft_blocks", "single", 100): [
        ((ANY,), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3, 2),
    ],
    ("fused_linear", "half", 80): [
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 32, "BLOCK_D": 128}, 4, 4, 2),
        ((16, ANY), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 64}, 4, 4, 1),
        ((ANY, ANY), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 64}, 4, 3, 1),
    ],
    ("fused_linear", "half", 90): [
        ((16, 16), {"BLOCK_M": 16, "BLOCK_V": 16, "BLOCK_D": 256}, 4, 3, 3),
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 6, 1),
        ((16, ANY), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 3, 1),
        ((64, ANY), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 4, 1),
        ((ANY, ANY), {"BLOCK_M": 128, "BLOCK_V": 64, "BLOCK_D": 64}, 8, 4, 1),
    ],
    ("fused_linear", "half", 100): [
        ((16, 32), {"BLOCK_M": 16, "BLOCK_V": 16, "BLOCK_D": 256}, 4, 5, 2),
        ((16, 64), {"BLOCK_M": 16, "BLOCK_V": 32, "BLOCK_D": 128}, 4, 6, 2),
        ((16, ANY), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 128}, 4, 3, 2),
        ((ANY, ANY), {"BLOCK_M": 64, "BLOCK_V": 64, "BLOCK_D": 64}, 8, 4, 2),
    ],
    ("fused_linear", "single", 80): [
        ((ANY, ANY), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3, 2),
    ],
    ("fused_linear", "single", 90): [
        ((ANY, ANY), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3, 2),
    ],
    ("fused_linear", "single", 100): [
        ((ANY, ANY), {"BLOCK_M": 16, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3, 2),
    ],
    ("tree_attention", "half", 80): [
        ((32, 128, ANY), {"BLOCK_M": 32, "BLOCK_N": 64}, 4, 2, 2),
        ((ANY, 128, ANY), {"BLOCK_M": 64, "BLOCK_N": 32}, 4, 3, 2),
        ((ANY, 256, ANY), {"BLOCK_M": 32, "BLOCK_N": 32}, 8, 2, 1),
    ],
    ("tree_attention", "half", 90): [
        ((64, 128, ANY), {"BLOCK_M": 64, "BLOCK_N": 64}, 4, 3, 2),
        ((ANY, 128, 1024), {"BLOCK_M": 64, "BLOCK_N": 64}, 4, 3, 1),
        ((ANY, 128, ANY), {"BLOCK_M": 128, "BLOCK_N": 64}, 8, 3, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 64, "BLOCK_N": 32}, 8, 3, 1),
    ],
    ("tree_attention", "half", 100): [
        ((ANY, 128, ANY), {"BLOCK_M": 128, "BLOCK_N": 32}, 4, 4, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 128, "BLOCK_N": 32}, 8, 3, 1),
    ],
    ("tree_attention", "fp8", 80): [
        ((ANY, 128, ANY), {"BLOCK_M": 64, "BLOCK_N": 32}, 4, 3, 2),
        ((ANY, 256, ANY), {"BLOCK_M": 32, "BLOCK_N": 32}, 8, 2, 1),
    ],
    ("tree_attention", "fp8", 90): [
        ((64, 128, ANY), {"BLOCK_M": 64, "BLOCK_N": 64}, 4, 4, 2),
        ((ANY, 128, ANY), {"BLOCK_M": 128, "BLOCK_N": 64}, 8, 4, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 64, "BLOCK_N": 32}, 8, 3, 1),
    ],
    ("tree_attention", "fp8", 100): [
        ((64, 128, ANY), {"BLOCK_M": 64, "BLOCK_N": 32}, 4, 6, 2),
        ((ANY, 128, ANY), {"BLOCK_M": 128, "BLOCK_N": 32}, 8, 4, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 64, "BLOCK_N": 32}, 8, 3, 1),
    ],
    ("tree_attention", "single", 80): [
        ((ANY, 128, ANY), {"BLOCK_M": 16, "BLOCK_N": 16}, 8, 2, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 16, "BLOCK_N": 16}, 8, 1, 1),
    ],
    ("tree_attention", "single", 90): [
        ((ANY, 128, ANY), {"BLOCK_M": 16, "BLOCK_N": 16}, 8, 2, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 16, "BLOCK_N": 16}, 8, 1, 1),
    ],
    ("tree_attention", "single", 100): [
        ((ANY, 128, ANY), {"BLOCK_M": 16, "BLOCK_N": 16}, 8, 2, 1),
        ((ANY, 256, ANY), {"BLOCK_M": 16, "BLOCK_N": 16}, 8, 1, 1),
    ],
}
