"""A whole `sdpo eval`: load a source, compare, and write what was found into a folder."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo_cli.api import LoadContext, PromptSourceSpec, RewardSpec
from sdpo_cli.engine.disk.artifacts import library_versions
from sdpo_cli.engine.disk.files import write_bytes, write_json_lines, write_text
from sdpo_cli.engine.disk.images import png_bytes
from sdpo_cli.engine.evaluating.evaluate import Evaluation, Plan, evaluate
from sdpo_cli.engine.evaluating.grids import SHOWN, before_after
from sdpo_cli.engine.evaluating.records import to_json
from sdpo_cli.engine.evaluating.report import Picture, ReportPage, render_report
from sdpo_cli.engine.events import Event, FileWritten, Note, StageStarted
from sdpo_cli.engine.setup import listed, load_model, load_prompts, load_rewards, pick_device, schedule_for
from sdpo_cli.engine.sources import Source
from sdpo_cli.errors import UsageError
from sdpo_cli.recipe import EvalSection, dump_recipe
from sdpo_cli.recipe.schema import REWARD_TIMEOUT
from sdpo_cli.registry import Chosen, ResolvedRecipe, chosen_rewards, distinct_rewards, load_recipe, load_registry


@dataclass(frozen=True)
class Request:
    """What to evaluate; None and empty mean what the source's recipe says."""

    steps: tuple[int, ...] | None
    rewards: Sequence[str]
    prompts: str | None
    images_per_prompt: int | None
    seed: int | None
    eta: float | None
    batch: int
    device: str


def evaluate_source(
    source: Source, request: Request, folder: Path, note: str = ""
) -> Generator[Event, None, Evaluation]:
    """Evaluate and write report.json, values.jsonl, report.html and grid.png.

    The note is told once all that is asked for is found.
    """
    context = LoadContext(device=str(pick_device(request.device)))
    resolved = load_recipe(source.recipe) if source.recipe else None
    timeout = resolved.recipe.train.reward_timeout if resolved else REWARD_TIMEOUT
    named = distinct_rewards(rewards_of(source, resolved, request))
    prompts = load_prompts(prompts_of(resolved, request), context)
    if note:
        yield Note(note)
    yield StageStarted("load", 0, 0, listed("reward", list(named)))
    rewards = load_rewards(named, {}, context, timeout)
    yield StageStarted("load", 0, 0, f"model {source.name}")
    model = load_model(source, request.device)
    section = resolved.recipe.eval if resolved else EvalSection()
    plan = Plan(
        prompts=prompts,
        steps=request.steps or section.steps,
        images_per_prompt=request.images_per_prompt or section.images_per_prompt,
        seed=request.seed if request.seed is not None else (resolved.recipe.seed if resolved else 0),
        sampler=model.sampler if request.eta is None else replace(model.sampler, eta=request.eta),
        batch=request.batch,
        model=source.name,
    )
    for steps in plan.steps:
        schedule_for(model, steps, "--steps" if request.steps else "eval.steps")
    adapter = str(source.adapter) if source.adapter else None
    evaluation = yield from evaluate(model, rewards, plan, adapter=adapter, shown=SHOWN)
    recipe = dump_recipe(resolved.recipe) if resolved else f"model: {source.name}\n"
    write_evaluation(folder, source.label, recipe, plan, evaluation)
    yield FileWritten(folder / "report.html", "the report, for a browser")
    return evaluation


def rewards_of(source: Source, resolved: ResolvedRecipe | None, request: Request) -> Sequence[Chosen[RewardSpec]]:
    """The request's rewards, else those of the source's recipe. UsageError where there are none."""
    if request.rewards:
        return chosen_rewards(request.rewards, "--reward")
    if resolved:
        return [*resolved.rewards, *resolved.eval_rewards]
    raise UsageError(
        "no reward to measure with", place=source.label, remedy="add --reward NAME; see `sdpo plugins list`"
    )


def prompts_of(resolved: ResolvedRecipe | None, request: Request) -> Chosen[PromptSourceSpec]:
    """The request's prompts, else those that the source's recipe evaluates on, else simple animals."""
    if request.prompts or not resolved:
        return load_registry().prompts(request.prompts or "simple-animals", place="--prompts")
    return resolved.eval_prompts or resolved.prompts


def write_evaluation(folder: Path, title: str, recipe: str, plan: Plan, evaluation: Evaluation) -> None:
    """Everything that was found."""
    grid = png_bytes(before_after(evaluation, [prompt.text for prompt in plan.prompts[:SHOWN]]))
    write_bytes(folder / "grid.png", grid)
    write_json_lines(folder / "values.jsonl", list(value_rows(plan, evaluation)))
    page = ReportPage(
        title=title,
        report=evaluation.report,
        metrics=[],
        pictures=[Picture(grid, "The same prompts and seeds for both." if evaluation.tuned else "The base model.")],
        recipe=recipe,
        versions=library_versions(),
    )
    write_text(folder / "report.html", render_report(page))
    write_text(folder / "report.json", to_json(evaluation.report))


def value_rows(plan: Plan, evaluation: Evaluation) -> list[dict[str, object]]:
    """One row for each picture: how to draw it again, and its rewards."""
    rows = []
    for side, drawn in (("base", evaluation.base), ("tuned", evaluation.tuned or {})):
        for steps, one in drawn.items():
            for number, prompt in enumerate(plan.pictured):
                values = {name: value[number] for name, value in one.values.items()}
                about = {"model": side, "steps": steps, "prompt": prompt.text, "seed": plan.seed + number}
                rows.append({**about, **values})
    return rows
