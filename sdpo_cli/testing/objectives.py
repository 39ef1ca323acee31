"""The laws of an objective."""

from functools import cached_property

import torch
from torch import Tensor

from sdpo_cli.api.tensors import LossBatch, Objective, ObjectiveResult
from sdpo_cli.testing.laws import Stage, close, keep, noise, require, require_number


def check_objective(objective: Objective) -> None:
    """The loss is a finite mean over prompts whose gradient favours the better rollout. PluginError names the law."""
    keep(objective_laws(objective))


def objective_laws(objective: Objective) -> list[Stage]:
    """The laws of `check_objective`."""
    trial, plan = _Trial(objective), objective.plan
    return [
        {
            "a plan has rollouts": lambda: require(plan.rollouts >= 1, f"rollouts is {plan.rollouts}"),
            "a discount lies in 0..1": lambda: require(0 <= plan.gamma <= 1, f"gamma is {plan.gamma}"),
        },
        {
            "the loss is one finite number": lambda: require_number(trial.result.loss),
            "metrics are finite numbers": trial.metrics,
        },
        {"the loss depends on log_prob_new": trial.depends},
        {
            "the gradient is finite": lambda: require(bool(trial.gradient.isfinite().all()), "it is not"),
            "descending favours the better rollout": trial.favours_better,
            "the order of prompts is no matter": trial.order_free,
        },
    ]


class _Trial:
    """An objective under trial, with three prompts, at a step each or with two actions; later rollouts are better."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.rollouts = objective, objective.plan.rollouts

    @cached_property
    def batch(self) -> LossBatch:
        advantage = (torch.linspace(-1, 1, self.rollouts)[:, None] + 0.25) * torch.tensor([1.0, 0.5, 2.0])
        step = torch.tensor([0, 1, 2])
        if self.objective.plan.updates == "trajectory":
            advantage, step = advantage[..., None].expand(-1, -1, 2), torch.tensor([[0, 1]] * 3)
        old = noise(*advantage.shape)
        reference = old.clone() if self.objective.plan.reference else None
        return LossBatch(old.clone().requires_grad_(), old, advantage, step, reference)

    @cached_property
    def result(self) -> ObjectiveResult:
        return self.objective.loss(self.batch)

    @cached_property
    def gradient(self) -> Tensor:
        return torch.autograd.grad(self.result.loss, self.batch.log_prob_new, retain_graph=True)[0]

    def metrics(self) -> None:
        for name, value in self.result.metrics.items():
            scalar = isinstance(value, Tensor) and value.ndim == 0 and bool(value.isfinite())
            require(scalar, f"{name} is {value!r}")

    def depends(self) -> None:
        require(self.result.loss.requires_grad, "it carries no gradient")

    def favours_better(self) -> None:
        if self.rollouts > 1:
            require(bool((self.gradient[-1] < self.gradient[0]).all()), "the worse rollout gains as much or more")

    def order_free(self) -> None:
        order, batch = torch.tensor([2, 0, 1]), self.batch
        tables = (batch.log_prob_new, batch.log_prob_old, batch.advantage, batch.log_prob_reference)
        new, old, advantage, reference = (None if table is None else table[:, order] for table in tables)
        shuffled = LossBatch(new, old, advantage, batch.step[order], reference)
        require(close(self.objective.loss(shuffled).loss, self.result.loss), "another order gives another loss")
