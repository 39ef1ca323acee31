"""What is trained on a base model made of a diffusers pipeline: a LoRA, or the whole denoiser."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from sdpo_cli.api.file_modes import open_to_readers
from sdpo_cli.api.finetune import Finetune, finetuned_weights
from sdpo_cli.api.fused import forget_weights
from sdpo_cli.api.lora import LoraAdapter, fresh_lora, load_lora
from sdpo_cli.api.tensors import AdapterOptions


class Adaptable:
    """The part of a base model that its adapter is about.

    Attributes:
        pipeline: the diffusers pipeline, an instance of `pipeline_class`.
        denoiser: its network `component`, `unet` or `transformer`.
        dtype: what the denoiser computes in.
        adapter: what is trained; None as long as there is nothing.
    """

    pipeline_class: ClassVar[Any]
    component: ClassVar[str]
    pipeline: Any
    denoiser: Any
    dtype: torch.dtype
    adapter: LoraAdapter | Finetune | None = None

    def add_adapter(self, options: AdapterOptions) -> None:
        """A fresh LoRA, a saved one to go on with, or the denoiser's own weights to be trained."""
        if options.kind == "full":
            self.adapter = Finetune(self.denoiser, self.dtype)
        elif options.start:
            self.adapter = load_lora(self.denoiser, self.pipeline_class, self.component, options.start)
        else:
            self.adapter = fresh_lora(self.denoiser, self.pipeline_class, self.component, options)

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The adapter's weights."""
        return self.adapter.parameters() if self.adapter else {}

    def without_adapter(self) -> AbstractContextManager[None]:
        """The base denoiser while entered."""
        return self.adapter.left_out() if self.adapter else nullcontext()

    def save_adapter(self, folder: Path) -> None:
        """What `pipeline.load_lora_weights(folder)` loads, or the denoiser's class with `from_pretrained(folder)`."""
        if self.adapter:
            self.adapter.save(folder)

    def load_adapter(self, folder: Path) -> None:
        """What `save_adapter` wrote, or any LoRA file that the pipeline itself would load."""
        if self.adapter:
            self.adapter.remove()
            self.adapter = None
        weights = finetuned_weights(self.denoiser, folder)
        if weights:
            self.adapter = Finetune(self.denoiser, self.dtype)
            self.denoiser.load_state_dict(weights)
        else:
            self.adapter = load_lora(self.denoiser, self.pipeline_class, self.component, folder)

    def save_merged(self, folder: Path, *, denoiser_only: bool = False) -> None:
        """Write the pipeline, or its denoiser alone, with the adapter merged in, in the number format it was loaded in.

        Afterwards the model is what was written, without an adapter.
        """
        if self.adapter:
            self.adapter.merge()
            self.adapter = None
            forget_weights(self.denoiser)
        (self.denoiser if denoiser_only else self.pipeline).save_pretrained(folder, safe_serialization=True)
        open_to_readers(folder)
