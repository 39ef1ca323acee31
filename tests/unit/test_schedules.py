"""Noise levels read from diffusers schedulers: numbers by hand, steps that cannot be had, what the options change."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from sdpo_cli.api.tensors import Sampler
from sdpo_cli.builtin.models.lcm import boundary
from sdpo_cli.builtin.models.noise import noise_of
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.maths import kernel_for, with_floor

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def noise(kind: type, options: dict | None = None, **settings: object):
    settings = {**BETAS, "timestep_spacing": "trailing", "clip_sample": False, **settings}
    return noise_of(kind.from_config(settings), UNetOptions(path="some/model", **options or {}))


class TestEuler:
    def test_levels_are_those_of_the_noise_table_made_to_preserve_variance(self):
        schedule = noise(EulerDiscreteScheduler).schedule(4)
        assert schedule.timestep.tolist() == [999, 749, 499, 249]
        assert (schedule.alpha**2 + schedule.sigma**2).tolist() == pytest.approx([1] * 4)
        assert schedule.sigma[0] / schedule.alpha[0] == pytest.approx(14.6146, abs=1e-3)
        assert (schedule.alpha_next[-1], schedule.sigma_next[-1]) == (1, 0)
        assert torch.equal(schedule.sigma_next[:-1], schedule.sigma[1:])

    @pytest.mark.parametrize(("spacing", "scale"), [("trailing", 14.6146 / math.sqrt(1 + 14.6146**2)), ("leading", 1)])
    def test_sampling_starts_from_the_schedulers_own_noise(self, spacing, scale):
        schedule = noise(EulerDiscreteScheduler, timestep_spacing=spacing).schedule(4)
        assert schedule.initial_scale == pytest.approx(scale, abs=1e-6)

    def test_a_step_is_eulers_in_the_coordinates_of_the_noise_table(self, generator):
        theirs = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
        theirs.set_timesteps(3)
        kernel = kernel_for(noise(EulerDiscreteScheduler).schedule(3), "ddim", 0.0)
        s, s_next = theirs.sigmas[1].item(), theirs.sigmas[2].item()
        x, x0 = torch.randn(2, 1, 4, 3, 3, generator=generator).double()
        euler = x + (x - x0) / s * (s_next - s)
        at = kernel.at(torch.tensor([1]))
        assert float(at.mean_x0) == pytest.approx(1 / math.sqrt(1 + s_next**2))
        ours = at.mean_x0 * x0 + at.mean_eps * (x - x0) / s
        torch.testing.assert_close(ours, euler / math.sqrt(1 + s_next**2), rtol=1e-5, atol=1e-6)

    def test_the_last_state_may_keep_the_schedulers_least_noise(self):
        schedule = noise(EulerDiscreteScheduler, final_sigmas_type="sigma_min").schedule(2)
        assert schedule.alpha_next[-1] == 1
        assert schedule.sigma_next[-1] == pytest.approx(math.sqrt(0.00085 / (1 - 0.00085)), rel=1e-4)

    def test_ancestral_noise_is_ddims_with_eta_one(self):
        theirs = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
        theirs.set_timesteps(4)
        above, below = theirs.sigmas[:-1].double(), theirs.sigmas[1:].double()
        up = (below**2 * (above**2 - below**2) / above**2).sqrt()
        ours = noise(EulerAncestralDiscreteScheduler)
        kernel = kernel_for(ours.schedule(4), ours.rule.sampler.transition, ours.rule.sampler.eta)
        torch.testing.assert_close(kernel.std.double(), up / (1 + below**2).sqrt(), rtol=1e-5, atol=1e-7)


class TestLcm:
    def test_timesteps_are_of_the_distillation_grid(self):
        assert noise(LCMScheduler).schedule(4).timestep.tolist() == [999, 759, 499, 259]

    def test_a_step_goes_to_the_level_of_the_next_timestep(self):
        schedule = noise(LCMScheduler).schedule(4)
        assert torch.equal(schedule.alpha_next[:-1], schedule.alpha[1:])
        assert (schedule.alpha_next[-1], schedule.sigma_next[-1]) == (1, 0)

    def test_boundary_scalings_by_hand(self):
        # u = 10 t: t 0 gives x_t itself; t .05 gives u .5 = d: c_skip 1/2, c_out 1/√2
        x0, x_t = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 7.0)
        f = boundary(x0, x_t, torch.tensor([0.0, 0.05]), 10.0)
        assert f.flatten().tolist() == pytest.approx([7.0, 3.5 + 3 / math.sqrt(2)])


class TestTheCheckpointDecides:
    @pytest.mark.parametrize(
        ("kind", "sampler"),
        [
            (DDIMScheduler, Sampler("ddim", 0.0)),
            (EulerDiscreteScheduler, Sampler("ddim", 0.0)),
            (EulerAncestralDiscreteScheduler, Sampler("ddim", 1.0)),
            (LCMScheduler, Sampler("renoise", 1.0)),
            (PNDMScheduler, Sampler("ddim", 0.0)),
            (DPMSolverMultistepScheduler, Sampler("ddim", 0.0)),
        ],
    )
    def test_how_it_draws(self, kind, sampler):
        assert noise(kind).rule.sampler == sampler

    def test_a_solver_of_higher_order_keeps_its_betas_and_spacing(self):
        schedule = noise(PNDMScheduler, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False).schedule(4)
        ddim = noise(DDIMScheduler, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False).schedule(4)
        assert schedule.timestep.tolist() == [751, 501, 251, 1]
        assert torch.equal(schedule.alpha, ddim.alpha)

    def test_options_come_before_it(self):
        options = {"scheduler": "euler", "timestep_spacing": "linspace", "prediction": "sample"}
        ours = noise(PNDMScheduler, options)
        assert isinstance(ours.scheduler, EulerDiscreteScheduler)
        assert ours.prediction == "sample"
        assert ours.schedule(4).timestep.tolist() == [999, 666, 333, 0]


class TestTraining:
    @pytest.mark.parametrize(
        "kind", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, LCMScheduler]
    )
    @pytest.mark.parametrize("steps", [1, 2, 4, 8])
    def test_rollouts_end_at_the_least_noisy_level_so_that_every_step_has_a_density(self, kind, steps):
        ours = noise(kind)
        schedule = with_floor(ours.schedule(steps))
        assert schedule.sigma_next[-1] == pytest.approx(math.sqrt(0.00085), rel=1e-4)
        assert (kernel_for(schedule, ours.rule.sampler.transition, 1.0).std > 0).all()

    @pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
    def test_a_last_step_that_starts_at_that_level_has_no_noise_rather_than_a_trace_of_it(self, kind):
        schedule = noise(kind, timestep_spacing="linspace").schedule(4)
        assert schedule.timestep[-1] == 0
        assert kernel_for(with_floor(schedule), "ddim", 1.0).std[-1] == 0


class TestRefusals:
    def said(self, steps: int, kind: type, **settings: object) -> str:
        with pytest.raises(UsageError) as fault:
            noise(kind, **settings).schedule(steps)
        return str(fault.value)

    @pytest.mark.parametrize(
        ("kind", "longest"), [(DDIMScheduler, 1000), (EulerDiscreteScheduler, 1000), (LCMScheduler, 50)]
    )
    def test_more_steps_than_there_are(self, kind, longest):
        said = f"some/model: {{}} steps cannot be sampled; use 1 to {longest} steps"
        assert self.said(longest + 1, kind) == said.format(longest + 1)
        assert self.said(0, kind) == said.format(0)

    @pytest.mark.parametrize(
        ("kind", "steps", "settings"),
        [
            (DDIMScheduler, 61, {}),  # 1000 / 61 comes 62 times, by rounding
            (EulerDiscreteScheduler, 61, {}),
            (DDIMScheduler, 1000, {"timestep_spacing": "leading", "steps_offset": 1}),
            (EulerDiscreteScheduler, 1000, {"timestep_spacing": "leading", "steps_offset": 1}),
        ],
    )
    def test_a_grid_that_leaves_the_table(self, kind, steps, settings):
        assert self.said(steps, kind, **settings) == (
            f"some/model: {steps} steps cannot be sampled; "
            "its timesteps would leave its table: use another number, or another timestep_spacing"
        )

    def test_noise_predicted_from_noise_alone(self):
        assert self.said(4, DDIMScheduler, rescale_betas_zero_snr=True) == (
            "some/model: 4 steps cannot be sampled; its first level is noise alone, and it predicts noise: "
            "use option scheduler euler"
        )
        noise(DDIMScheduler, rescale_betas_zero_snr=True, prediction_type="v_prediction").schedule(4)

    @pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, EDMEulerScheduler])
    def test_a_scheduler_of_another_kind_of_model(self, kind):
        with pytest.raises(ArtifactError) as fault:
            noise_of(kind(), UNetOptions(path="some/model"))
        assert str(fault.value) == (
            f"some/model: its scheduler {kind.__name__} has no table of betas; "
            "name a checkpoint of this family as its authors published it"
        )

    def test_an_unknown_prediction(self):
        with pytest.raises(ArtifactError) as fault:
            noise(DPMSolverMultistepScheduler, prediction_type="flow_prediction")
        assert str(fault.value) == (
            "some/model: its scheduler names no known prediction type; "
            "set option prediction to epsilon, v_prediction or sample"
        )

    @pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
    def test_clipped_estimates(self, setting):
        with pytest.raises(ArtifactError) as fault:
            noise(DDIMScheduler, **{setting: True})
        assert str(fault.value) == (
            f"some/model: its scheduler clips clean estimates ({setting}), which no rollout does; "
            f"set {setting} to false in its scheduler_config.json, or name one as option scheduler"
        )
        named = noise(DDIMScheduler, {"scheduler": "ddim"}, **{setting: True})
        assert not named.scheduler.config[setting]  # a merged pipeline draws with it

    def test_nothing_is_clipped_where_the_settings_leave_it_to_the_class(self):
        settings = EulerDiscreteScheduler(**BETAS).config
        assert "clip_sample" not in settings
        options = UNetOptions(path="some/model", scheduler="ddim")
        assert not noise_of(EulerDiscreteScheduler(**BETAS), options).scheduler.config.clip_sample
