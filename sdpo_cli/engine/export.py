"""A trained adapter in the forms that other programs read."""

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from sdpo_cli.api.file_modes import open_to_readers
from sdpo_cli.api.finetune import WEIGHTS as FULL_WEIGHTS
from sdpo_cli.api.lora_file import from_diffusers, kohya_tensors, read_lora
from sdpo_cli.api.lora_place import WEIGHTS
from sdpo_cli.api.tensors import Mergeable
from sdpo_cli.engine.disk.artifacts import RunFolder, library_versions
from sdpo_cli.engine.disk.changes import recorded
from sdpo_cli.engine.disk.files import read_text, writing
from sdpo_cli.engine.evaluating.guarding import account_of
from sdpo_cli.engine.evaluating.records import from_json
from sdpo_cli.engine.evaluating.report import ModelCard, render_model_card
from sdpo_cli.engine.events import Event, Note, StageStarted
from sdpo_cli.engine.setup import load_model
from sdpo_cli.engine.sources import Source, run_source
from sdpo_cli.engine.training.adapter_files import AdapterFiles, adapter_files, base_changes
from sdpo_cli.errors import UsageError

Format = Literal["diffusers", "kohya", "merged"]
WHAT = {
    "diffusers": "for diffusers",
    "kohya": "for ComfyUI and kohya's tools",
    "merged": "for diffusers, with the adapter merged in",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter to export.

    Attributes:
        label: what to call it in file names.
        files: where and what it is.
        run, source: the run that trained it and its base model; None where the folder stands alone.
    """

    label: str
    files: AdapterFiles
    run: RunFolder | None = None
    source: Source | None = None


@dataclass(frozen=True)
class Order:
    """What to export: the format, for `merged` the whole pipeline or its denoiser alone, and the device to merge on."""

    format: Format
    denoiser_only: bool = False
    device: str = "cpu"


def find_adapter(place: Path, run: RunFolder | None) -> Adapter:
    """The adapter in a folder, and of which run it is. UsageError where there is none."""
    if run is not None:
        source = run_source(run)
        return Adapter(source.label, adapter_files(place), run, source)
    if not any((place / weights).is_file() for weights in (WEIGHTS, FULL_WEIGHTS)):
        raise UsageError("neither a run nor an adapter", place=str(place), remedy="name a folder that has one")
    return Adapter(place.resolve().name, adapter_files(place))


def check_order(adapter: Adapter, order: Order) -> None:
    """UsageError where the adapter cannot be had in that form."""
    if order.denoiser_only and order.format != "merged":
        raise UsageError("is for --format merged", place="--denoiser-only", remedy="leave it out")
    if order.format == "kohya" and adapter.files.kind == "full":
        fault = "this run trained the whole denoiser, so there is no LoRA"
        raise UsageError(fault, place=str(adapter.files.folder), remedy="use --format merged or diffusers")
    if order.format == "merged" and adapter.source is None:
        fault = "the base model to merge with is not known"
        raise UsageError(fault, place=str(adapter.files.folder), remedy="name the run's folder")


def export(adapter: Adapter, order: Order, folder: Path) -> Generator[Event, None, Path]:
    """Write the adapter into `folder`, which appears whole or not at all, with a model card where the run is known.

    Errors as in `check_order`; ArtifactError where a file cannot be read or written.
    """
    check_order(adapter, order)
    known = adapter.run and adapter.source
    card = render_model_card(card_of(adapter, adapter.run, adapter.source, order)) if known else None
    yield StageStarted("save", 0, 0, f"{order.format} form of {adapter.label}")
    with whole_folder(folder) as partial:
        if order.format == "merged" and adapter.source:
            write_merged(adapter.source, order, partial)
        elif order.format == "kohya":
            write_kohya(adapter.files, partial / kohya_name(adapter))
        else:
            copy_weights(adapter.files, partial)
        if card:
            (partial / "README.md").write_text(card, encoding="utf-8")
    yield Note(f"written {WHAT[order.format]}")
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which becomes `folder` if all goes well and else is removed."""
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def copy_weights(files: AdapterFiles, folder: Path) -> None:
    """The adapter's own files, which are in diffusers' form."""
    for name in (WEIGHTS,) if files.kind == "lora" else (FULL_WEIGHTS, "config.json"):
        shutil.copyfile(files.folder / name, folder / name)


def write_kohya(files: AdapterFiles, path: Path) -> None:
    """The LoRA in kohya's form."""
    lora = read_lora(files.folder)
    tensors = kohya_tensors(from_diffusers(lora.tensors, lora.config, files.component), files.component)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"format": "pt"})
    open_to_readers(path)


def kohya_name(adapter: Adapter) -> str:
    """The file's name: ComfyUI shows it."""
    return f"{adapter.label}.safetensors"


def write_merged(source: Source, order: Order, folder: Path) -> None:
    """The base model with the adapter merged in. UsageError where this kind of model cannot be written."""
    model = load_model(source, order.device)
    if not isinstance(model, Mergeable):
        fault = "this kind of base model cannot be merged"
        raise UsageError(fault, place=source.name, remedy="use --format diffusers")
    model.save_merged(folder, denoiser_only=order.denoiser_only)


def card_of(adapter: Adapter, run: RunFolder, source: Source, order: Order) -> ModelCard:
    """The card of what the run's adapter is exported to."""
    base = str(getattr(source.model.options, "path", source.name))
    whole = "pipeline" if order.format == "merged" and not order.denoiser_only else "denoiser"
    lora = adapter.files.kind == "lora" and order.format != "merged"
    return ModelCard(
        title=adapter.label,
        model=source.name,
        source=base,
        dtype=source.dtype,
        on_hub="/" in base and not Path(base).exists() and not base.endswith(".safetensors"),
        recipe=read_text(run.recipe),
        versions=library_versions(),
        report=from_json(read_text(run.evaluation), str(run.evaluation)) if run.evaluation.exists() else None,
        form=("kohya" if order.format == "kohya" else "lora") if lora else whole,
        component=adapter.files.component,
        file=kohya_name(adapter) if order.format == "kohya" else "",
        licence=source.model.spec.facts.get("licence", ""),
        base_changes=base_changes(source.model.all_options()),
        guard=account_of(run),
        changes=list(map(str, recorded(run))),
    )
