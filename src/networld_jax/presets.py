"""Named settings of the whole method: networks, losses, planner and sampler together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from networld_jax import sampling
from networld_jax.types import LossConfig, PlannerConfig, WorldModelConfig


class Preset(NamedTuple):
    """One complete reading of the method."""

    model: WorldModelConfig
    loss: LossConfig
    planner: PlannerConfig
    sampler: Callable[..., jax.Array]


SAMPLERS: dict[str, Callable[..., jax.Array]] = {
    "ddpm": sampling.sample_ddpm,
    "ddim": sampling.sample_ddim,
    "dpmpp_2m": sampling.sample_dpmpp_2m,
    "dpmpp_1": sampling.sample_dpmpp_1,
    "sde_dpmpp_1": sampling.sample_sde_dpmpp_1,
}

PRESETS: dict[str, Preset] = {
    # What works, at a size for 2 CPU cores.
    "small": Preset(WorldModelConfig(), LossConfig(), PlannerConfig(), sampling.sample_ddim),
    # The same at the paper's depth: 8 residual blocks in 4 down and 4 up levels; 16 divides the horizon.
    "networld": Preset(
        WorldModelConfig(horizon=16, width_mults=(1, 2, 4, 8)), LossConfig(), PlannerConfig(), sampling.sample_ddim
    ),
    # The temporal U-Net and value network of Janner et al. 2022, with a task index.
    "diffuser": Preset(
        WorldModelConfig(layout="diffuser", horizon=32, width_mults=(1, 2, 4, 8)),
        LossConfig(),
        PlannerConfig(num_steps=20, initial_noise_scale=1.0),
        sampling.sample_ddpm,
    ),
    # MA-CDMP (arXiv 2510.22969), the single-task ancestor, as far as its abstract tells: observations themselves are
    # diffused (no scenario encoder), the mean field enters the classifier, an inverse model acts, own return. With one
    # task the embedding has one row, a constant. It gets our noise-robust inverse model, as MA-DD does.
    "ma_cdmp": Preset(
        WorldModelConfig(encoder="identity"), LossConfig(label="own"), PlannerConfig(), sampling.sample_ddim
    ),
    # The paper where it speaks: diffusion gradient into the encoder, DDPM, four levels, own return, clean inverse
    # model.
    "paper_reading": Preset(
        WorldModelConfig(
            encoder="mlp", latent_dim=32, horizon=32, width_mults=(1, 2, 4, 8), prediction="noise", num_return_bins=41
        ),
        LossConfig(
            label="own",
            discount=0.99,
            next_row_weight=1.0,
            inverse_dynamics_noise=0.0,
            encoder_diffusion_grad=1.0,
        ),
        PlannerConfig(guide_scale=1.0, num_steps=20, initial_noise_scale=1.0, message_bits=0),
        sampling.sample_ddpm,
    ),
}
