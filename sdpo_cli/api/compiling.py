"""torch.compile for a diffusers pipeline, block by block.

A network's blocks repeat, so that a block compiled once serves all of its shape: seconds of compiling where the whole
network takes minutes. The modules stay what they are, under the names they have: LoRAs are put on, left out, saved and
merged as before.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sdpo_cli.errors import UsageError

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""What UNets and VAEs are made of; classes of diffusers name the blocks that are worth it as `_repeated_blocks`."""
GRAPHS = 128
"""Of one kind of block: widths, resolutions, batch sizes, with and without gradient, with and without the LoRA. Above
torch's limit, 8, blocks would silently run uncompiled."""


OLDEST_CARD = (7, 0)
"""The compute capability that Triton demands."""


def check_compiler(device: torch.device) -> None:
    """UsageError where nothing could be compiled or run: on a CPU no C++ compiler, on CUDA no Triton or an old card."""
    if device.type == "cpu":
        check_cpp()
    elif device.type == "cuda":
        check_triton(device)


def check_cpp() -> None:
    """UsageError where torch finds no C++ compiler."""
    try:
        import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except RuntimeError:  # torch's own are of this kind, on Windows too
        remedy = "install one, such as g++, or leave compile off"
        raise UsageError("needs a C++ compiler", place="model.compile", remedy=remedy) from None


def check_triton(device: torch.device) -> None:
    """UsageError where Triton is missing, as on Windows, or demands another card."""
    try:
        import_module("triton")
    except ImportError:
        remedy = "install it, or leave compile off"
        raise UsageError("needs Triton on CUDA", place="model.compile", remedy=remedy) from None
    if torch.cuda.get_device_capability(device) < OLDEST_CARD:
        fault = "needs a card of compute capability 7.0 or newer"
        raise UsageError(fault, place="model.compile", remedy="leave compile off")


def compile_blocks(network: nn.Module, backend: str = "inductor", *, middle: bool = True) -> int:
    """Compile every repeated block of `network` for the shapes it will meet, at its first call; gives their number.

    Without `middle` the block in the middle of a UNet is left out where it is one alone: no other has its shapes, and
    it takes little time.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    keep_compiled_attention()
    names = getattr(network, "_repeated_blocks", None) or BLOCKS
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    inside = {id(module) for module in network_middle(network)}
    alone = [module for module in blocks if id(module) in inside]
    if not middle and len(alone) == 1:
        blocks.remove(alone[0])
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


def network_middle(network: nn.Module) -> list[nn.Module]:
    """The modules of a UNet's middle block; none of another network."""
    middle = getattr(network, "mid_block", None)
    return [] if middle is None else list(middle.modules())


def keep_compiled_attention() -> None:
    """Let torch keep compiled blocks on disk although they say which attention to take: that is part of their key."""
    config = import_module("torch._inductor.config")
    known: dict[str, str] = getattr(config, "unsafe_marked_cacheable_functions", {})
    for name in ("_backend_from_string", "_sdpa_kernel"):
        known[f"torch.nn.attention.{name}"] = torch.__version__


def padded(rows: Tensor, count: int) -> Tensor:
    """`rows` [B ...] with the last one repeated until there are `count`."""
    return rows if len(rows) >= count else torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])
