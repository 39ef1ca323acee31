"""The blocks of diffusers' UNets and VAEs, kept channels-last: fewer passes over memory, less kept for gradients.

For networks whose own weights are frozen, on CUDA. A block whose weights are trained, or that has a LoRA on its
convolutions, computes as diffusers does. Numbers are the same but for rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, gelu, linear

from sdpo_cli.api.fused_norm import NormAct, Sum
from sdpo_cli.api.fused_upsample import Interleave, parts_of_kernel

_published = False
"""Whether blocks do as many operations as diffusers' do; see `as_published`. One for all threads: autograd's own ones
compute checkpointed blocks again."""


class FrozenConv(torch.autograd.Function):
    """A convolution of stride 1 without bias whose weight gets no gradient: its input is not kept, as torch would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: Any) -> Tensor:
        """x [N C H W] convolved."""
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return conv2d(x, weight, None, 1, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        # not torch.nn.grad.conv2d_input: it turns the gradient channels-first and back
        (weight,) = ctx.saved_tensors
        return conv_transpose2d(grad, weight, None, 1, ctx.padding), None, None


class FusedResnet(ResnetBlock2D):
    """A ResNet block: biases and the timestep's embedding are added by the passes that read the pictures anyway."""

    norm1: Any
    conv1: Any
    norm2: Any
    conv2: Any
    conv_shortcut: Any

    def forward(self, input_tensor: Tensor, temb: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's."""
        if not all(is_frozen(layer) for layer in (self.norm1, self.conv1, self.norm2, self.conv2)):
            output: Tensor = super().forward(input_tensor, temb, *args, **kwargs)
            return output
        addend: Any = self.conv1.bias.expand(len(input_tensor), -1)
        if self.time_emb_proj is not None and temb is not None:
            addend = addend + self.time_emb_proj(nn.functional.silu(temb))
        hidden = convolved(self.conv1, normalised(self.norm1, input_tensor))
        if addend.requires_grad:
            hidden, addend = hidden + addend[:, :, None, None], None
        hidden = convolved(self.conv2, normalised(self.norm2, hidden, addend))
        if self.conv_shortcut is None:
            return summed(input_tensor, hidden, self.conv2.bias)
        if not is_frozen(self.conv_shortcut):
            return summed(self.conv_shortcut(input_tensor), hidden, self.conv2.bias)
        weight, bias = self.conv_shortcut.weight.flatten(1), self.conv_shortcut.bias
        bias = self.conv2.bias if bias is None else bias + self.conv2.bias
        return hidden + linear(input_tensor.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class FusedTransformer(Transformer2DModel):
    """A transformer of a picture's places: these come as rows of channels and go as they come."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        norm = normalised(self.norm, hidden_states, act=False) if is_frozen(self.norm) else self.norm(hidden_states)
        if not self.use_linear_projection:
            norm = self.proj_in(norm)
        rows = norm.permute(0, 2, 3, 1).flatten(1, 2)
        rows = self.proj_in(rows) if self.use_linear_projection else rows
        if self.is_first(rows):
            rows = rows.detach().requires_grad_()  # the first block would be two graphs of its own
        return rows, norm.shape[1]

    def is_first(self, rows: Tensor) -> bool:
        """Whether no block before this one is trained, and one of its own is."""
        wanted = torch.is_grad_enabled() and not rows.requires_grad and not _published
        return wanted and is_trained(self.transformer_blocks)

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        output: Tensor = picture if self.use_linear_projection else self.proj_out(picture)
        return output + residual


class FusedUpsample(Upsample2D):
    """Twice as many rows and columns, from convolutions of the small picture.

    Attributes:
        parts: its four kernels, as of `parts_of_kernel`. A buffer; None before they are asked for: a network all of
            whose weights are trained never does.
    """

    conv: Any
    parts: Tensor | None

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's."""
        if output_size is not None or _published or not is_frozen(self.conv):
            output: Tensor = super().forward(hidden_states, output_size, *args, **kwargs)
            return output
        if self.parts is None:
            self.parts = parts_of_kernel(self.conv.weight.detach())
        return interleaved(untyped(FrozenConv.apply)(hidden_states, self.parts, 1), self.conv.bias)


class FusedNorm(nn.GroupNorm):
    """A normalisation that no block holds, such as a network's last one."""

    def forward(self, input: Tensor) -> Tensor:
        """As the parent's."""
        return normalised(self, input, act=False) if is_frozen(self) else super().forward(input)


class SplitGEGLU(GEGLU):
    """A gated layer whose two halves are computed apart while gradients are kept: theirs need not be joined."""

    proj: Any

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's."""
        if not torch.is_grad_enabled() or type(self.proj) is not nn.Linear or self.proj.weight.requires_grad:
            output: Tensor = super().forward(hidden_states, *args, **kwargs)
            return output
        weights = self.proj.weight.chunk(2)
        biases = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        value, gate = (linear(hidden_states, *both) for both in zip(weights, biases, strict=True))
        return value * gelu(gate)


def normalised(norm: Any, x: Tensor, addend: Tensor | None = None, *, act: bool = True) -> Tensor:
    """The norm of x + addend [N C], and SiLU of it."""
    output: Tensor = untyped(NormAct.apply)(x, addend, norm.weight, norm.bias, norm.num_groups, norm.eps, act)
    return output


def summed(one: Tensor, other: Tensor, bias: Tensor) -> Tensor:
    """Two pictures and a number for each channel."""
    output: Tensor = untyped(Sum.apply)(one, other, bias)
    return output


def interleaved(parts: Tensor, bias: Tensor) -> Tensor:
    """The picture of twice the size from its four parts, and a number for each channel."""
    output: Tensor = untyped(Interleave.apply)(parts, bias)
    return output


def convolved(conv: Any, x: Tensor) -> Tensor:
    """The convolution without its bias."""
    output: Tensor = untyped(FrozenConv.apply)(x, conv.weight, conv.padding)
    return output


def untyped(function: Any) -> Any:
    """A function of torch that has no types."""
    return function


def is_frozen(layer: Any) -> bool:
    """Whether a layer is a plain convolution or normalisation, no LoRA on it, and is not trained."""
    weight: Any = layer.weight if type(layer) in (nn.Conv2d, nn.GroupNorm, FusedNorm) else None
    return weight is not None and not weight.requires_grad


def is_trained(module: nn.Module) -> bool:
    """Whether any weight in a module is trained, a LoRA's on it too."""
    return any(weight.requires_grad for weight in module.parameters())


def is_fusible(block: Any) -> bool:
    """Whether a block is of the common kind that its fused class computes."""
    kind = type(block)
    if kind is ResnetBlock2D:
        plain = block.upsample is None and block.downsample is None and block.time_embedding_norm != "scale_shift"
        steady = block.output_scale_factor == 1.0 and block.dropout.p == 0.0 and not block.skip_time_act
        return bool(plain and steady and isinstance(block.nonlinearity, nn.SiLU))
    if kind is Transformer2DModel:
        return bool(block.is_input_continuous)
    if kind is Upsample2D:
        plain = block.use_conv and block.name == "conv" and not block.use_conv_transpose and block.norm is None
        return bool(plain and block.interpolate and is_plain_convolution(block.conv))
    return kind is GEGLU


def is_plain_convolution(conv: Any) -> bool:
    """Whether a layer is a convolution by 3x3 kernels of a picture with zeros around it, with a bias."""
    if type(conv) is not nn.Conv2d or conv.bias is None:
        return False
    plain = conv.groups == 1 and conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    ResnetBlock2D: FusedResnet,
    Transformer2DModel: FusedTransformer,
    Upsample2D: FusedUpsample,
    GEGLU: SplitGEGLU,
}


@contextmanager
def as_published() -> Iterator[None]:
    """While entered, what saves or adds operations is left out: those of the networks as published are counted."""
    global _published
    before, _published = _published, True
    try:
        yield
    finally:
        _published = before


def fuse_blocks(network: Any) -> int:
    """Let the network's blocks compute so, and its last normalisation; gives the blocks' number."""
    last = getattr(network, "conv_norm_out", None)
    if is_frozen(last):
        last.__class__ = FusedNorm
    blocks = [block for block in network.modules() if is_fusible(block)]
    for block in blocks:
        block.__class__ = FUSED[type(block)]
        if isinstance(block, FusedUpsample):
            block.register_buffer("parts", None, persistent=False)
    if blocks:
        network.to(memory_format=torch.channels_last)
    return len(blocks)


def forget_weights(network: nn.Module) -> None:
    """Let go of what was made from the network's own weights: they have changed, as by a merged LoRA."""
    for block in network.modules():
        if isinstance(block, FusedUpsample):
            block.parts = None
