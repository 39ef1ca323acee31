"""SDPO's formulas as pure tensor functions (public API). Source of all: arXiv 2411.11727.

Axes: R rollouts of a prompt, B prompts, S steps (0 the noisiest), C H W a latent. `*batch` is any leading axes.
"""

from sdpo_cli.maths.dense_reward import (
    anchor_step,
    cosine_similarities,
    key_steps,
    predict_dense_rewards,
    write_true_rewards,
)
from sdpo_cli.maths.objectives import SdpoLoss, importance_weight, reward_difference_loss
from sdpo_cli.maths.returns import (
    StepStatistics,
    align_credit,
    clip_advantages,
    discounted_returns,
    stepwise_advantages,
)
from sdpo_cli.maths.transition import (
    TRANSITIONS,
    Kernel,
    Schedule,
    cps_std,
    ddim_std,
    gaussian_log_prob,
    kernel_for,
    model_output_to_x0,
    renoise_std,
    step_mean,
    with_floor,
)

__all__ = [
    "TRANSITIONS",
    "Kernel",
    "Schedule",
    "SdpoLoss",
    "StepStatistics",
    "align_credit",
    "anchor_step",
    "clip_advantages",
    "cosine_similarities",
    "cps_std",
    "ddim_std",
    "discounted_returns",
    "gaussian_log_prob",
    "importance_weight",
    "kernel_for",
    "key_steps",
    "model_output_to_x0",
    "predict_dense_rewards",
    "renoise_std",
    "reward_difference_loss",
    "step_mean",
    "stepwise_advantages",
    "with_floor",
    "write_true_rewards",
]
