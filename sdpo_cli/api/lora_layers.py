"""The matrices of a LoRA on a bfloat16 network: kept in float32, multiplied in bfloat16.

PEFT turns every input of a float32 LoRA into float32, keeps that for the backward pass, and multiplies in float32: more
memory and time than the layer itself takes. The sum is rounded to bfloat16 either way. On float16 networks PEFT's way
stays: gradients would underflow in the LoRA's own products.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class NarrowLinear(nn.Linear):
    """A linear layer that multiplies in its input's number format, whatever its weights have."""

    def forward(self, input: Tensor) -> Tensor:
        """x Wᵀ"""
        return nn.functional.linear(input, self.weight.to(input.dtype))


class NarrowConv2d(nn.Conv2d):
    """A convolution that multiplies in its input's number format, whatever its weights have."""

    def forward(self, input: Tensor) -> Tensor:
        """x * W"""
        output: Tensor = self._conv_forward(input, self.weight.to(input.dtype), None)
        return output


NARROW: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: NarrowLinear, nn.Conv2d: NarrowConv2d}


def multiply_narrowly(denoiser: nn.Module, adapter: str) -> None:
    """Let a LoRA's matrices on bfloat16 layers be multiplied in bfloat16; those on other layers stay as they are."""
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A and is_bfloat16(layer):
            layer.cast_input_dtype_enabled = False
            for matrix in (layer.lora_A[adapter], layer.lora_B[adapter]):
                matrix.__class__ = NARROW[type(matrix)]


def is_bfloat16(layer: LoraLayer) -> bool:
    """Whether the layer under a LoRA computes in bfloat16."""
    base: Any = layer.get_base_layer()
    return bool(base.weight.dtype == torch.bfloat16)
