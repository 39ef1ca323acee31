"""How well the rewards of all steps are predicted from three: `python docs/evidence/fidelity.py > fidelity.jsonl`.

Rollouts of the base model with every clean estimate scored; predictors with the same three queries are compared with
the truth at the steps that were not queried. Error: mean absolute error over the standard deviation of the last step's
reward. Rank: Spearman's correlation along those steps of a rollout, mean over rollouts. Pairs: Pearson's correlation of
the two rollouts' difference, which is what SDPO's loss uses.
"""

import json
from collections.abc import Iterator
from itertools import product

import torch

from sdpo_cli import maths
from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.engine.learning.credit import (
    KeyRewards,
    ask_rewards,
    dense_rewards,
    key_rewards,
    queried_steps,
)
from sdpo_cli.engine.learning.rollout import Draw, Rollouts, encode_distinct, first_rewarded_step, roll_out
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.setup import distinct_rewards, load_rewards, pick_device
from sdpo_cli.registry import chosen_rewards, load_registry

REWARDS = ("{emoji-style: {style: 3d}}", "jpeg-incompressibility", "emoji-clip", "colorfulness")
PLANS = {
    "published: any anchor, cosine": {"anchor": "any", "predictor": "cosine"},
    "interior anchor, cosine": {"anchor": "interior", "predictor": "cosine"},
    "interior anchor, sharpened": {"anchor": "interior", "predictor": "sharpened"},
    "interior anchor, arc": {"anchor": "interior", "predictor": "arc"},
    "middle anchor, cosine": {"anchor": "middle", "predictor": "cosine"},
    "middle anchor, sharpened": {"anchor": "middle", "predictor": "sharpened"},
    "middle anchor, arc": {"anchor": "middle", "predictor": "arc"},
}


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Places along the last axis."""
    return values.argsort(-1).argsort(-1).float()


def correlation(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Pearson's, along the last axis."""
    left, right = left - left.mean(-1, keepdim=True), right - right.mean(-1, keepdim=True)
    return (left * right).sum(-1) / (left.norm(dim=-1) * right.norm(dim=-1) + 1e-12)


def scored_rollouts(prompts: int = 45) -> Iterator[tuple[int, str, Rollouts, torch.Tensor]]:
    """Rollouts of 8, 16 and 50 steps, with the true rewards [R B S] of all their steps, reward by reward."""
    context = LoadContext(device=str(pick_device("auto")))
    model = load_registry().model("emoji-turbo", {}, "fidelity").load(context)
    source = load_registry().prompts("simple-animals", place="fidelity").load(context)[:prompts]
    draw = Draw(source, 0, encode_distinct(model, [prompt.text for prompt in source]))
    exact = LearningPlan(dense="exact", credit="current")
    for steps in (8, 16, 50):
        kernel = maths.kernel_for(maths.with_floor(model.schedule(steps)), "ddim", 1.0).to(model.device)
        rollouts = roll_out(model, kernel, draw, LearningPlan(), 0, 45)
        for text in REWARDS:
            rewards = load_rewards(distinct_rewards(chosen_rewards([text], "fidelity")), {}, context, 600.0)
            with Scorer(rewards) as scorer:
                asked = key_rewards(scorer, [ask_rewards(model, scorer, rollouts, exact, 512)])
            yield steps, text, rollouts, dense_rewards(rollouts, asked, exact)


def main() -> None:
    """One line of JSON for each credit, reward, number of steps and predictor."""
    for steps, text, rollouts, truth in scored_rollouts():
        for credit, (name, settings) in product(("current", "next"), PLANS.items()):
            plan = LearningPlan(credit=credit, **settings)
            key = queried_steps(rollouts, plan)
            known = KeyRewards(key, truth.gather(-1, key), {}, queries=0, last=1)
            rows = compared(truth, dense_rewards(rollouts, known, plan), key, first_rewarded_step(plan))
            print(json.dumps({"credit": credit, "steps": steps, "reward": text, "predictor": name, **rows}))


def compared(truth: torch.Tensor, guess: torch.Tensor, key: torch.Tensor, first: int) -> dict[str, float]:
    """How far a prediction [R B S] is from the truth at the steps from `first` on that were not asked."""
    hidden = torch.ones_like(truth, dtype=torch.bool).scatter(-1, key, False)
    hidden[..., :first] = False
    apart, guessed_apart, unasked = truth[0] - truth[1], guess[0] - guess[1], hidden.all(0)
    each = zip(truth.flatten(0, 1), guess.flatten(0, 1), hidden.flatten(0, 1), strict=True)
    rank = [correlation(ranks(true[rows]), ranks(guessed[rows])) for true, guessed, rows in each]
    return {
        "error": float((truth - guess)[hidden].abs().mean() / truth[..., -1].std()),
        "rank": float(torch.stack(rank).mean()),
        "pairs": float(correlation(apart[unasked], guessed_apart[unasked])),
    }


if __name__ == "__main__":
    main()
