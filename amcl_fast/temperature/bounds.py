"""What every temperature must be."""

import torch

# Of any τ: it must be a number of float32, in which most losses are evaluated, and so must 1/τ², a slope of theirs.
SMALLEST_TAU, LARGEST_FLOAT32 = 1e-18, torch.finfo(torch.float32).max
