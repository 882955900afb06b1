"""The float dtypes that the backend under test computes in."""

import torch

from dspark_kernels._library import INTERPRETER

# Triton's interpreter does bf16 arithmetic on raw bits
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETER else [torch.bfloat16])]
EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
