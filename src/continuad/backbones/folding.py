"""A convolution and its batch norm; as one convolution where they are frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalised(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return norm(conv(x)), for a convolution without bias.

    In eval mode the norm's scale goes into the kernel and its shift into the bias. Doing so at each call
    costs a pass over the kernel and saves one over the image; the parameters stay those of the checkpoint.
    """
    if norm.training:
        batch: Tensor = norm(conv(x))
        return batch
    assert norm.running_mean is not None  # noqa: S101 - a frozen norm has statistics
    assert norm.running_var is not None  # noqa: S101
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    kernel, bias = conv.weight * gain.view(-1, 1, 1, 1), norm.bias - norm.running_mean * gain
    result: Tensor = conv._conv_forward(x, kernel, bias)  # the padding of a subclass counts
    return result
