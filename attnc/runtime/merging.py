"""Outputs over different keys of the same rows, merged by their log-sum-exps."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merge the softmax over further keys into an output and log-sum-exp, in place; minus infinity is no keys.

    One pass over the output. A NaN in either log-sum-exp reaches the output, so that it is noticed.
    """
    share = torch.where(other_lse == -torch.inf, 0.0, torch.sigmoid(other_lse - lse))
    out.lerp_(other, share.unsqueeze(-1))
    lse.copy_(torch.logaddexp(lse, other_lse))
