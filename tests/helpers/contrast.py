"""What tests of the contrast share: which columns are skipped, and its extra logit as one more tensor."""

import torch


def pairs(rows):
    """Skipped columns (rows, 2) of the views of rows / 2 images: a row itself, and its partner."""
    own = torch.arange(rows)
    return torch.stack([own, (own + rows // 2) % rows], dim=1)


def with_extra(operator):
    """A contrast whose seventh tensor is the extra logit."""
    return lambda *tensors, **settings: operator(*tensors[:6], extra=tensors[6], **settings)
