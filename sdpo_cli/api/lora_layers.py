"""A LoRA on bfloat16 layers: its matrices are kept in float32 and multiplied in bfloat16.

PEFT turns every input of a float32 LoRA into float32, keeps that for the backward pass, multiplies in float32, and
scales and adds in passes of their own: more memory and time than the layer itself takes. The sum is rounded to bfloat16
either way. On float16 layers PEFT's way stays: gradients would underflow in the LoRA's own products.
"""

from typing import Any

import torch
from peft.tuners.lora import Conv2d, Linear, LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, pad

ALIGNED = 8
"""Numbers of a row that the matrix units take at once: matrices of a smaller rank are filled up with zeros."""


class NarrowMatrix(nn.Conv2d):
    """A convolution that multiplies in its input's number format, whatever its weights have."""

    def forward(self, input: Tensor) -> Tensor:
        """x * W"""
        output: Tensor = self._conv_forward(input, self.weight.to(input.dtype), None)
        return output


class NarrowLinear(Linear):
    """PEFT's layer, with the LoRA multiplied in the input's number format."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + scale B A x"""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or kwargs.get("adapter_names") is not None:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        matrices: list[Any] = [self.lora_A[active[0]], self.lora_B[active[0]]]
        down, up = (matrix.weight.to(x.dtype) for matrix in matrices)
        return added(self.base_layer(x, *args, **kwargs), x, down, up, self.scaling[active[0]])


def added(base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """base + scale (x downᵀ) upᵀ

    Args:
        base: [..., out]
        x: [..., in]
        down: [rank, in]
        up: [out, rank]
    """
    missing = -len(down) % ALIGNED
    hidden = linear(x, pad(down, (0, 0, 0, missing)))
    return torch.add(base, linear(hidden, pad(up, (0, missing))), alpha=scale)  # addmm would copy base first


def multiply_narrowly(denoiser: nn.Module, adapter: str) -> None:
    """Let a LoRA's matrices on bfloat16 layers be multiplied in bfloat16; those on other layers stay as they are."""
    layers: list[Any] = [one for one in denoiser.modules() if isinstance(one, LoraLayer)]
    for layer in layers:
        if adapter not in layer.lora_A or not is_bfloat16(layer):
            continue
        if type(layer) is Linear:
            layer.__class__ = NarrowLinear
        elif type(layer) is Conv2d:
            layer.cast_input_dtype_enabled = False
            for matrix in (layer.lora_A[adapter], layer.lora_B[adapter]):
                matrix.__class__ = NarrowMatrix


def is_bfloat16(layer: LoraLayer) -> bool:
    """Whether the layer under a LoRA computes in bfloat16."""
    base: Any = layer.get_base_layer()
    return bool(base.weight.dtype == torch.bfloat16)
