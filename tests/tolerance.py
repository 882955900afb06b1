"""How far a kernel may be from its float32 reference."""

import torch


def assert_close(actual, expected, same_dtype, factor=2.0):
    """Elementwise: at most `factor` times the error that PyTorch makes in the dtype under test.

    actual: what the kernel gave; expected: the float32 reference; same_dtype: plain PyTorch,
    computed in the dtype under test. Infinite entries must agree exactly, NaN never passes.
    """
    actual, expected, same_dtype = actual.float(), expected.float(), same_dtype.float()
    finite = torch.isfinite(expected)
    assert torch.equal(actual[~finite], expected[~finite])
    if not finite.any():
        return
    allowed = factor * (same_dtype - expected)[finite].abs().max() + 1e-5 * (
        1 + expected[finite].abs().max()
    )
    error = (actual - expected)[finite].abs().max()
    assert error <= allowed, f"error {error:.3g} is above {allowed:.3g}"
