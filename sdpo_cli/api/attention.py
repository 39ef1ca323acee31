"""cuDNN's attention kernels: on a Hopper card a third faster than those that torch chooses."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

CAPABILITY = (9, 0)
"""Of the cards that they were measured on."""
HEAD = 64
"""Channels of a head that they were measured with, forward and backward. With FLUX's 128, gradients were NaN."""
OLDEST = 91900
"""The cuDNN release that they were measured with."""
ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The first that can do what is asked is taken."""


class CudnnAttention(AttnProcessor2_0):
    """Attention as diffusers computes it, by cuDNN where it can."""

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the parent's."""
        with sdpa_kernel(ORDER, set_priority=True):
            output: torch.Tensor = super().__call__(*args, **kwargs)
            return output


def prefer_cudnn(network: nn.Module) -> int:
    """Let the attention layers that it is fit for use cuDNN; gives their number."""
    layers: list[Any] = [one for one in network.modules() if type(one) is Attention and is_fit(one)]
    processor: Any = CudnnAttention
    for layer in layers:
        layer.set_processor(processor())
    return len(layers)


def is_fit(layer: Any) -> bool:
    """Whether a layer computes in diffusers' usual way, in heads of the width that cuDNN is known to be right with."""
    return bool(type(layer.processor) is AttnProcessor2_0 and layer.inner_dim == HEAD * layer.heads)


def is_cudnn_faster(device: torch.device) -> bool:
    """Whether the device is of the kind that was measured, and its cuDNN as new."""
    if device.type != "cuda" or torch.version.hip is not None:  # there the version would be MIOpen's
        return False
    cudnn: Any = torch.backends.cudnn
    return bool(torch.cuda.get_device_capability(device) == CAPABILITY and (cudnn.version() or 0) >= OLDEST)
