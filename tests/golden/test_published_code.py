"""Parity with the published SDPO code on every case and epoch stored in `reference_cases.npz`.

The file holds that code's inputs and outputs (float32, CPU); nothing here knows its cases, so another file can take
its place. Tolerances: 1e-5 relative, log-probabilities 1e-4 absolute.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from sdpo_cli import maths
from sdpo_cli.builtin.models.ddim import ddim_schedule

CASES = np.load(Path(__file__).with_name("reference_cases.npz"))
EPOCHS = sorted({"/".join(key.split("/")[:2]) for key in CASES.files if key.count("/") == 2})
STEPS, ETA, PAIRS, GAMMA, DECAY, ETA_SCALE, CLIP, ADVANTAGE_CLIP, EPOCH_COUNT = range(9)
ROLLOUTS = ("1", "2")


@dataclass(frozen=True)
class Case:
    """One case of one epoch: `case["x0_", "1"]` is the array stored as `x0_1`."""

    name: str

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(CASES[f"{self.name}/{key}"])

    def config(self, index: int) -> float:
        return float(CASES[f"{self.name.split('/')[0]}/cfg"][index])

    def text(self, key: str) -> str:
        return str(CASES[f"{self.name.split('/')[0]}/{key}"])

    @property
    def clip(self) -> float | None:
        return self.config(CLIP) or None


@pytest.fixture(params=EPOCHS)
def case(request) -> Case:
    return Case(request.param)


def schedule_of(case: Case) -> maths.Schedule:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing=case.text("spacing"),
        prediction_type=case.text("pred"),
    )
    return maths.with_floor(ddim_schedule(scheduler, int(case.config(STEPS))))


def kernel_of(case: Case) -> maths.Kernel:
    return maths.kernel_for(schedule_of(case), "ddim", case.config(ETA))


def close(actual: Tensor, expected: Tensor, *, absolute: float = 1e-6) -> None:
    # a case without noise has no density: its NaN must be NaN here too
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=absolute, equal_nan=True)


def test_file_holds_every_epoch_its_configuration_names():
    cases = {name.split("/")[0] for name in EPOCHS}
    assert cases
    assert len(EPOCHS) == sum(int(CASES[f"{name}/cfg"][EPOCH_COUNT]) for name in cases)


def test_timesteps(case):
    assert torch.equal(schedule_of(case).timestep, case["timesteps"].double())


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_clean_estimates_latents_and_log_probabilities(case, rollout):
    kernel, x_t = kernel_of(case), case[f"lat{rollout}"]
    steps = torch.arange(len(kernel)).expand(x_t.shape[0], -1)
    at = kernel.at(steps)
    x0 = maths.model_output_to_x0(case[f"mo{rollout}"], x_t[:, :-1], at.alpha, at.sigma, case.text("pred"))
    close(x0, case[f"x0_{rollout}"], absolute=1e-5)
    mean = maths.step_mean(x_t[:, :-1], x0, at)
    close(mean + at.std[..., None, None, None] * case[f"z{rollout}"], x_t[:, 1:], absolute=1e-5)
    if (kernel.std > 0).all():
        log_prob = maths.gaussian_log_prob(x_t[:, 1:], mean, at.std)
        torch.testing.assert_close(log_prob, case[f"lp{rollout}"], rtol=0, atol=1e-4)


def key_steps_of(case: Case, rollout: str) -> Tensor:
    return maths.key_steps(case[f"x0_{rollout}"], rule="any")


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_similarities_and_anchors(case, rollout):
    x0, steps = case[f"x0_{rollout}"], key_steps_of(case, rollout)
    assert torch.equal(steps[:, 2], case[f"anc{rollout}"])
    for place, name in enumerate(("sf", "sl", "sa")):
        close(maths.cosine_similarities(x0, steps[:, place]), case[f"{name}{rollout}"])


@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_dense_rewards(case, rollout):
    x0, steps = case[f"x0_{rollout}"], key_steps_of(case, rollout)
    reward = case[f"R{rollout}"][:, [0, 2, 1]]  # stored as first, anchor, last
    similarity = torch.stack([maths.cosine_similarities(x0, steps[:, k]) for k in range(3)], dim=1)
    dense = maths.write_true_rewards(maths.predict_dense_rewards(similarity, reward), steps, reward)
    close(dense, case[f"dense{rollout}"])


def test_returns(case):
    dense = torch.cat([case["dense1"], case["dense2"]])
    close(maths.discounted_returns(maths.align_credit(dense, "current"), case.config(GAMMA)), case["returns"])


@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in EPOCHS}))
def test_advantages_keep_their_statistics_from_epoch_to_epoch(name):
    statistics = maths.StepStatistics(size=8, min_count=4)
    for epoch in range(sum(key.startswith(f"{name}/") for key in EPOCHS)):
        case = Case(f"{name}/e{epoch}")
        prompts = [str(prompt) for prompt in CASES[f"{case.name}/prompts"]] * 2
        advantages, statistics = maths.stepwise_advantages(statistics, prompts, case["returns"])
        close(advantages, case["adv"], absolute=1e-5)


def test_losses_and_gradients(case):
    new = torch.stack([case["newlp1"], case["newlp2"]]).requires_grad_()
    old = torch.stack([case["lp1"], case["lp2"]])
    pairs = case["newlp1"].shape[0]
    advantage = maths.clip_advantages(case["adv"].view(2, pairs, -1), case.config(ADVANTAGE_CLIP))
    steps = torch.arange(new.shape[-1])
    weight = maths.importance_weight(steps, case.config(DECAY), case.config(ETA_SCALE))
    losses = torch.stack(
        [
            maths.reward_difference_loss(
                new[..., i], old[..., i], advantage[..., i], weight[i].expand(pairs), case.clip
            ).loss.mean()
            for i in steps.tolist()
        ]
    )
    close(losses, case["loss_per_step"])
    (gradient,) = torch.autograd.grad(losses.mean(), new)
    for row, rollout in enumerate(ROLLOUTS):
        close(gradient[row], case[f"g{rollout}"])
