"""Whether a device can compute in a number format, asked before anything is loaded."""

import torch
from torch.nn.functional import conv2d

from sdpo_cli.errors import UsageError


def check_dtype(device: torch.device, name: str) -> None:
    """UsageError unless networks can be trained on `device` in the torch dtype `name`.

    bfloat16 that a card only imitates, as those before NVIDIA's Ampere do, counts as none: it is slower than float32.
    """
    imitated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if imitated and name == "bfloat16":
        raise lacking(torch.cuda.get_device_name(device), name, "float16 or float32")
    try:
        compute(device, getattr(torch, name))
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        raise lacking(f"device {device}", name, "float32") from None


def compute(device: torch.device, dtype: torch.dtype) -> None:
    """A convolution and a product, forth and back, of a few numbers: what every denoiser is made of."""
    x = torch.ones(1, 2, 4, 4, dtype=dtype, device=device, requires_grad=True)
    kernel = torch.ones(2, 2, 3, 3, dtype=dtype, device=device)
    (conv2d(x, kernel, padding=1) @ x).float().sum().backward()


def lacking(device: str, name: str, others: str) -> UsageError:
    """What to say of a number format that a device does not have."""
    return UsageError(f"{device} has no such arithmetic", place=f"model.dtype {name}", remedy=f"use {others}")
