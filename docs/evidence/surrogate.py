"""How much of a reward a small network could learn from latents: `python docs/evidence/surrogate.py > surrogate.jsonl`.

Antithetic pairs of 2-step rollouts of the base model. A convolutional network is trained on the last clean estimates of
the first n pairs and their rewards; how well it foretells the difference of 128 other pairs (Pearson's correlation)
says what share of a gradient's noise it could take away as a control variate.
"""

import json

import torch
from fidelity import REWARDS, correlation
from torch import nn

from sdpo_cli import maths
from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.engine.learning.credit import ask_rewards, key_rewards
from sdpo_cli.engine.learning.rollout import Draw, draw_prompts, encode_distinct, roll_out
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.setup import distinct_rewards, load_rewards, pick_device
from sdpo_cli.registry import chosen_rewards, load_registry

PAIRS, UNSEEN = 640, 128
PLAN = LearningPlan(antithetic=True, dense="final")


def scored_pairs() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clean estimates [2 B C H W] and each reward of them [2 B]."""
    context = LoadContext(device=str(pick_device("auto")))
    model = load_registry().model("emoji-turbo", {}, "surrogate").load(context)
    prompts = draw_prompts(load_registry().prompts("simple-animals", place="surrogate").load(context), PAIRS, 1, 0)
    draw = Draw(prompts, 0, encode_distinct(model, [prompt.text for prompt in prompts]))
    kernel = maths.kernel_for(maths.with_floor(model.schedule(2)), "ddim", 1.0).to(model.device)
    rollouts = roll_out(model, kernel, draw, PLAN, 0, 64)
    found = {}
    for text in REWARDS:
        rewards = load_rewards(distinct_rewards(chosen_rewards([text], "surrogate")), {}, context, 600.0)
        with Scorer(rewards) as scorer:
            found[text] = key_rewards(scorer, [ask_rewards(model, scorer, rollouts, PLAN, 512)]).reward[..., -1]
    return rollouts.x0[:, :, -1], found


def trained(latents: torch.Tensor, reward: torch.Tensor) -> nn.Module:
    """The network after 400 steps of AdamW on differences and, less, on rewards."""
    torch.manual_seed(0)
    wide = 48
    network = nn.Sequential(
        nn.Conv2d(latents.shape[2], wide, 3, padding=1), nn.SiLU(),
        nn.Conv2d(wide, wide, 3, padding=1, stride=2), nn.SiLU(),
        nn.Conv2d(wide, wide, 3, padding=1, stride=2), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 1),
    ).to(latents.device)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
    reward = (reward - reward.mean()) / reward.std()
    for step in range(400):
        rows = torch.randint(reward.shape[1], (64,))
        pictures = latents[:, rows].flip(-1) if step % 2 else latents[:, rows]
        guess, truth = network(pictures.flatten(0, 1)).view(2, -1), reward[:, rows]
        apart = (guess[0] - guess[1] - truth[0] + truth[1]).square().mean()
        optimizer.zero_grad()
        (apart + 0.3 * (guess - truth).square().mean()).backward()
        optimizer.step()
    return network


def main() -> None:
    """One line of JSON for each reward and number of pairs."""
    latents, rewards = scored_pairs()
    for text, reward in rewards.items():
        unseen = reward[:, -UNSEEN:]
        for pairs in (64, 256, 512):
            network = trained(latents[:, :pairs], reward[:, :pairs])
            with torch.no_grad():
                guess = network(latents[:, -UNSEEN:].flatten(0, 1)).view(2, -1)
            found = correlation(guess[0] - guess[1], unseen[0] - unseen[1])
            print(json.dumps({"reward": text, "pairs": pairs, "correlation": round(float(found), 3)}), flush=True)


if __name__ == "__main__":
    main()
