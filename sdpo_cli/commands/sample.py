"""`sdpo sample`: pictures from a base model or a trained adapter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_prompts
from sdpo_cli.commands.sources import LARGEST_SEED, DeviceOption, EtaOption, SourceArgument, said_of_source

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import BaseModel, Sampler


def sample(
    source: SourceArgument = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw. May be repeated.", show_default=False)] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="A prompt source or file instead.", show_default=False, autocompletion=complete_prompts),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 4,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the first picture; the next has the next number.")
    ] = 0,
    eta: EtaOption = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; default: samples/SOURCE.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 16,
    device: DeviceOption = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the paths and errors.")] = False,
) -> None:
    """Draw pictures. The same seed gives the same picture, here and in diffusers.

    The prompt, seed, steps, model and adapter stand in each PNG's metadata and in samples.jsonl.
    """
    texts = prompt_texts(prompt, prompts)
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.engine.disk.artifacts import new_folder
    from sdpo_cli.engine.sources import find_source

    found = find_source(source)
    folder = new_folder(out, Path("samples") / found.label)
    if not quiet and (line := said_of_source(source, found, "sdpo sample")):
        typer.echo(line, err=True)
    from sdpo_cli.engine.evaluating.drawing import Order, draw_into  # imports torch, which takes seconds
    from sdpo_cli.engine.setup import load_model, schedule_for

    model = load_model(found, device)
    schedule_for(model, steps, "--steps")
    order = Order(texts, count, seed, steps, sampler_of(model, eta), batch, found.name)
    for path in show(draw_into(folder, model, order, adapter=found.adapter), Console(stderr=True), quiet=quiet):
        typer.echo(path)


def prompt_texts(given: list[str] | None, source: str | None) -> list[str]:
    """The prompts of --prompt and --prompts. UsageError where there are none or one is empty."""
    from unicodedata import category

    from sdpo_cli.api import LoadContext
    from sdpo_cli.errors import UsageError
    from sdpo_cli.registry import load_registry

    texts = list(given or [])
    if source:
        texts += [prompt.text for prompt in load_registry().prompts(source, place="--prompts").load(LoadContext())]
    for text in texts:
        if not text.strip():
            raise UsageError("empty prompt", place="--prompt", remedy="say what to draw")
        if any(category(letter) in ("Cc", "Cs") for letter in text):
            raise UsageError(f"{text!a} has characters that are no text", place="--prompt", remedy="leave them out")
    if not texts:
        raise UsageError("nothing to draw", place="sdpo sample", remedy="add --prompt 'a dog', or --prompts FILE")
    return texts


def sampler_of(model: "BaseModel", eta: float | None) -> "Sampler":
    """How the model draws by itself, with another η if one is given. UsageError where that would change nothing."""
    from dataclasses import replace

    from sdpo_cli.errors import UsageError

    if eta not in (None, model.sampler.eta) and model.sampler.transition == "renoise":
        fault = "this model noises its clean estimate anew at every step, whatever eta"
        raise UsageError(fault, place="--eta", remedy="leave it out")
    return model.sampler if eta is None else replace(model.sampler, eta=eta)
