"""The formulas of SDPO and of the methods it is compared with, as pure tensor functions (public API).

Source, where none is named: arXiv 2411.11727.

Axes: R rollouts of a prompt, B prompts, S steps (0 the noisiest), C H W a latent. `*batch` is any leading axes.
"""

from sdpo_cli.maths.dense_reward import (
    anchor_step,
    cosine_similarities,
    interpolate_along_arc,
    key_steps,
    predict_dense_rewards,
    predict_sharpened_rewards,
    write_true_rewards,
)
from sdpo_cli.maths.diversity import mean_unlikeness
from sdpo_cli.maths.objectives import (
    PairLoss,
    clipped_policy_loss,
    importance_weight,
    preference_loss,
    reward_difference_loss,
)
from sdpo_cli.maths.returns import (
    StepStatistics,
    align_credit,
    clip_advantages,
    credited_returns,
    discounted_returns,
    group_advantages,
    stepwise_advantages,
)
from sdpo_cli.maths.transition import (
    TRANSITIONS,
    Kernel,
    Schedule,
    cps_std,
    ddim_std,
    gaussian_kl,
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
    "PairLoss",
    "Schedule",
    "StepStatistics",
    "align_credit",
    "anchor_step",
    "clip_advantages",
    "clipped_policy_loss",
    "cosine_similarities",
    "cps_std",
    "credited_returns",
    "ddim_std",
    "discounted_returns",
    "gaussian_kl",
    "gaussian_log_prob",
    "group_advantages",
    "importance_weight",
    "interpolate_along_arc",
    "kernel_for",
    "key_steps",
    "mean_unlikeness",
    "model_output_to_x0",
    "predict_dense_rewards",
    "predict_sharpened_rewards",
    "preference_loss",
    "renoise_std",
    "reward_difference_loss",
    "step_mean",
    "stepwise_advantages",
    "with_floor",
    "write_true_rewards",
]
