"""How well the rewards of all steps are predicted from three: `python docs/evidence/fidelity.py > fidelity.json`.

Rollouts of the base model with every clean estimate scored; predictors with the same three queries are compared with
the truth at the steps that were not queried. Error: mean absolute error over the standard deviation of the last step's
reward. Rank: Spearman's correlation along the steps of a rollout, mean over rollouts. Pairs: Pearson's correlation of
the two rollouts' difference, which is what SDPO's loss uses.
"""

import json
import sys

import torch

from sdpo_cli import maths
from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.engine.credit import ask_rewards, dense_rewards, key_rewards
from sdpo_cli.engine.rollout import Draw, encode_distinct, roll_out
from sdpo_cli.engine.scorer import Scorer
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


def main(prompts: int = 45) -> None:
    """One line of JSON for each reward, number of steps and predictor."""
    context = LoadContext(device=str(pick_device("auto")))
    model = load_registry().model("emoji-turbo", {}, "fidelity").load(context)
    source = load_registry().prompts("simple-animals", place="fidelity").load(context)[:prompts]
    draw = Draw(source, 0, encode_distinct(model, [prompt.text for prompt in source]))
    for steps in (8, 16, 50):
        kernel = maths.kernel_for(maths.with_floor(model.schedule(steps)), "ddim", 1.0).to(model.device)
        rollouts = roll_out(model, kernel, draw, LearningPlan(), 0, 45)
        for text in REWARDS:
            rewards = load_rewards(distinct_rewards(chosen_rewards([text], "fidelity")), {}, context, 600.0)
            exact = LearningPlan(dense="exact", credit="current")
            with Scorer(rewards) as scorer:
                truth_asked = key_rewards(scorer, [ask_rewards(model, scorer, rollouts, exact, 512)], exact)
                truth = dense_rewards(rollouts, truth_asked, exact)
                for name, settings in PLANS.items():
                    plan = LearningPlan(credit="current", **settings)
                    asked = key_rewards(scorer, [ask_rewards(model, scorer, rollouts, plan, 512)], plan)
                    guess = dense_rewards(rollouts, asked, plan)
                    report(steps, text, name, truth, guess, asked.key_step)


def report(steps: int, reward: str, name: str, truth: torch.Tensor, guess: torch.Tensor, key: torch.Tensor) -> None:
    """Compare a prediction with the truth."""
    hidden = torch.ones_like(truth, dtype=torch.bool).scatter(-1, key, False)
    apart, guessed_apart = (truth[0] - truth[1]), (guess[0] - guess[1])
    unasked = hidden.all(0)
    row = {
        "steps": steps,
        "reward": reward,
        "predictor": name,
        "error": float((truth - guess)[hidden].abs().mean() / truth[..., -1].std()),
        "rank": float(correlation(ranks(truth), ranks(guess)).mean()),
        "pairs": float(correlation(apart[unasked], guessed_apart[unasked])),
        "queries": int((~hidden).sum()),
    }
    print(json.dumps(row), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
