"""Run the kernels on a GPU where there is one, else under Triton's interpreter."""

import os
import sys
from pathlib import Path

import torch

# Read by triton.jit when a kernel's module is imported, so before any test module.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
