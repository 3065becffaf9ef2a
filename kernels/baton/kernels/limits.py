"""What the Triton kernels take; checked at start, before weights are read."""

import torch

OLDEST_CAPABILITY = (8, 0)
"""bf16 matrix products and asynchronous copies start there (Ampere), and Triton supports nothing older, whatever the dtype."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

LARGEST_HEAD_DIM = 256
"""Any size up to it, tiles being padded to a power of two. At 512 a prompt's tile takes 262,144 bytes of shared memory, and no
device has more than 232,448 for a block."""
