"""Other queried steps, other numbers of them, and a learnt predictor.

`python docs/evidence/anchors.py > anchors.jsonl`. As fidelity.py, with `credit: next`: rewards between queried steps
are interpolated along the arc of the clean estimates. `learnt`: kernel ridge regression from the whole latent to the
reward (Gaussian kernel of the median distance, λ 0.1), fitted to the queried steps of all rollouts; what it misses at
a rollout's own queried steps is interpolated along the arc and added.
"""

import json
from collections.abc import Iterator

import torch
from fidelity import compared, scored_rollouts

from sdpo_cli.maths import interpolate_along_arc

FIRST = 1
"""The earliest rewarded step with `credit: next`."""
RIDGE = 0.1


def arc_length(x0: torch.Tensor) -> torch.Tensor:
    """Σ_{j<i} ‖x0(j + 1) - x0(j)‖ of every step, [R B S]."""
    lengths = (x0[:, :, 1:] - x0[:, :, :-1]).flatten(3).norm(dim=-1)
    return torch.cat([torch.zeros_like(lengths[..., :1]), lengths.cumsum(-1)], dim=-1)


def queries(x0: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Which steps are asked for, by name, [R B K]."""
    rollouts, prompts, steps = x0.shape[:3]
    last = steps - 1

    def at(*places: int) -> torch.Tensor:
        return torch.tensor(places, device=x0.device).expand(rollouts, prompts, -1)

    arc = arc_length(x0)
    halfway = (arc[..., FIRST : FIRST + 1] + arc[..., -1:]) / 2
    nearest = (arc - halfway).abs()[..., FIRST + 1 : last].argmin(-1, keepdim=True) + FIRST + 1
    yield "first and last (2)", at(FIRST, last)
    yield "and the step halfway (3)", at(FIRST, last, (FIRST + last) // 2)
    yield "and the step halfway along the arc (3)", torch.cat([at(FIRST, last), nearest], dim=-1)
    yield (
        "and the steps at a third and two (4)",
        at(FIRST, last, FIRST + (last - FIRST) // 3, FIRST + 2 * (last - FIRST) // 3),
    )


def learnt(x0: torch.Tensor, key: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """The ridge regression's rewards of all steps [R B S], exact at a rollout's own queried steps."""
    latents = x0.flatten(3)
    known = latents.gather(2, key[..., None].expand(-1, -1, -1, latents.shape[-1])).flatten(0, 2)
    apart = torch.cdist(known, known)
    width = apart[apart > 0].median()
    kernel = (-((apart / width) ** 2) / 2).exp() + RIDGE * torch.eye(len(known), device=x0.device)
    weights = torch.linalg.solve(kernel, reward.flatten() - reward.mean())
    across = (-((torch.cdist(latents.flatten(0, 2), known) / width) ** 2) / 2).exp()
    guess = (across @ weights + reward.mean()).view(x0.shape[:3])
    return guess + interpolate_along_arc(x0, key, reward - guess.gather(-1, key))


def main() -> None:
    """One line of JSON for each reward, number of steps, choice of queries, and predictor."""
    for steps, text, rollouts, truth in scored_rollouts():
        for name, key in queries(rollouts.x0):
            known = truth.gather(-1, key)
            for kind, predict in (("arc", interpolate_along_arc), ("learnt", learnt)):
                rows = compared(truth, predict(rollouts.x0, key, known), key, FIRST)
                print(json.dumps({"steps": steps, "reward": text, "queries": name, "predictor": kind, **rows}))


if __name__ == "__main__":
    main()
