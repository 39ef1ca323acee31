"""Whether a device can compute in a number format, asked before anything is loaded."""

import torch
from torch.nn.functional import conv2d

from sdpo_cli.errors import UsageError, first_line


def check_dtype(device: torch.device, name: str) -> None:
    """UsageError unless networks can be trained on `device` in the torch dtype `name`.

    bfloat16 that a card only imitates, as those before NVIDIA's Ampere do, counts as none.
    """
    imitated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if imitated and name == "bfloat16":
        card = torch.cuda.get_device_name(device)
        raise UsageError(f"{card} only imitates it", place=f"model.dtype {name}", remedy="use float16 or float32")
    try:
        compute(device, getattr(torch, name))
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        fault = f"device {device} cannot compute in it ({first_line(error)})"
        raise UsageError(fault, place=f"model.dtype {name}", remedy="use float32") from error


def compute(device: torch.device, dtype: torch.dtype) -> None:
    """A convolution and a product, forth and back, of a few numbers: what every denoiser is made of."""
    x = torch.ones(1, 2, 4, 4, dtype=dtype, device=device, requires_grad=True)
    kernel = torch.ones(2, 2, 3, 3, dtype=dtype, device=device)
    (conv2d(x, kernel, padding=1) @ x).float().sum().backward()
