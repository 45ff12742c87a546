"""Data types of the library. Axis letters: see `networld_envs.types`.

E env copies   B segments in a batch   R stored trajectories   L episode length   H horizon
N agents       O observation features  A action components     D latent size      2D own latent ++ mean field
K diffusion steps                      M two-hot bins
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import struct

from networld_jax.noise_levels import NOISE_LEVELS

UNITS = ("latent", "surprise")  # per channel: its standard deviation, or that of what one step does not predict

Params = dict[str, Any]  # nested dict of arrays, see WorldModel.init


@struct.dataclass
class Trajectories:
    """Logged joint behaviour. `rollout` returns one without the leading R."""

    obs: jax.Array  # [R, L+1, N, O] raw units of the task; entry L is the observation after the last action
    action: jax.Array  # [R, L, N, A] as executed
    reward: jax.Array  # [R, L, N] local reward r_n
    terminated: jax.Array  # [R, L] bool
    truncated: jax.Array  # [R, L] bool
    adjacency: jax.Array  # [R, N, N] float32, 1-hop graph of the trajectory, zero diagonal
    agent_mask: jax.Array  # [R, N] float32, 1 = present
    is_demonstration: jax.Array  # [R, L] bool; False = action drawn to disturb the state, never imitated


@struct.dataclass
class Segments:
    """Agent-major windows of H steps; the diffused window is obs[..., :H, :]."""

    obs: jax.Array  # [B, N, H+1, O]
    message_obs: (
        jax.Array
    )  # [B, N, H+1, O] what neighbours' messages at these steps describe: obs, `message_delay` older
    action: jax.Array  # [B, N, H, A]
    reward: jax.Array  # [B, N, H]
    is_demonstration: jax.Array  # [B, H] bool
    start: jax.Array  # [B] int32, environment step of entry 0
    adjacency: jax.Array  # [B, N, N]
    agent_mask: jax.Array  # [B, N]


@struct.dataclass
class Transitions:
    """Agent transitions with messages, the row format of the baselines. Observations are normalised
    symlog."""

    obs: jax.Array  # [B, O]
    next_obs: jax.Array  # [B, O]
    neighbour_mean: jax.Array  # [B, O] mean of the neighbours' (delayed) observations
    next_neighbour_mean: jax.Array  # [B, O]
    action: jax.Array  # [B, A]
    reward: jax.Array  # [B]
    terminated: jax.Array  # [B] bool
    agent_mask: jax.Array  # [B] 0 for absent agents
    weight: jax.Array  # [B] 0 for absent agents and for actions that are no demonstration


@struct.dataclass
class TaskStats:
    """Normalisation constants of one task, computed from its training data only."""

    obs_mean: jax.Array  # [O] of symlog(obs)
    obs_std: jax.Array  # [O]
    latent_mean: jax.Array  # [D] of the encoder's output; zero until measured
    latent_std: jax.Array  # [D]; one until measured
    surprise: jax.Array  # [D] rms error of the best linear one-step prediction of a latent, see normalisation.surprise
    return_mean: dict[str, jax.Array]  # label name -> []
    return_std: dict[str, jax.Array]
    reward_mean: jax.Array  # []
    reward_std: jax.Array  # []
    action_bins: jax.Array  # [A, M] ascending bin centres per action component
    action_log_histogram: jax.Array  # [A, M] log of the (smoothed) two-hot histogram of the data
    extra: dict[str, jax.Array] = struct.field(default_factory=dict)  # what one method alone needs, by name


@struct.dataclass
class Plan:
    """What a planner imagined for N agents, and what it does about it."""

    x: jax.Array  # [N, H, 2D] sampled latents
    predicted_return: jax.Array  # [N] standardised
    action: jax.Array  # [N, A]


@struct.dataclass
class TrainState:
    """Everything a resumed run needs beside the seed; keys are fold_in(key(seed), step)."""

    step: jax.Array  # [] int32 updates done
    params: Params
    ema_params: Params
    opt_state: Any


def require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def require_message_bits(num_bits: int) -> None:
    """Raises ValueError for a single bit."""
    if num_bits == 1:
        raise ValueError("message_bits must be 0 (float32) or at least 2 (one bit holds no mid-tread level), got 1")


@dataclasses.dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and choices of the networks. Hashable."""

    latent_dim: int = 40  # D
    encoder: str = "identity"  # "identity" (standardised symlog, zero-padded to D) or "mlp" (the paper's 3-layer MLP)
    encoder_hidden: tuple[int, ...] = (128, 128)  # with the latent layer: the paper's three
    horizon: int = 8  # H
    layout: str = "networld"  # U-Net wiring, see networks.TemporalUNet
    width: int = 32  # channels at full resolution
    width_mults: tuple[int, ...] = (1, 2)
    diffusion_steps: int = 20  # K
    prediction: str = "x0"  # what the denoiser outputs: "x0" or "noise"
    inverse_dynamics_hidden: tuple[int, ...] = (256, 256)
    noise_aware_inverse_dynamics: bool = False  # learns for all noise on z_{t+1} and is told which
    value_hidden: tuple[int, ...] = (128, 128)
    num_return_bins: int = 0  # M of the classifier's two-hot head; 0 = scalar head
    return_range: float = 5.0  # bins of the two-hot head span +- this many standard deviations
    num_action_bins: int = 41  # M per component of a box action
    shared_trunk: bool = False  # the classifier is a head on the denoiser's down path: one forward pass gives both
    compute_dtype: str = "float32"  # of convolutions; "bfloat16" for accelerators (weights, sums, sampler: float32)

    def __post_init__(self):
        choices = {
            "encoder": ("identity", "mlp"),
            "prediction": ("x0", "noise"),
            "compute_dtype": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            require_choice(name, getattr(self, name), allowed)
        for name in ("latent_dim", "horizon", "width", "diffusion_steps", "num_action_bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the joint loss. Hashable."""

    label: str = "neighbourhood"  # return label: "own" or "neighbourhood", see losses.LABELS
    label_horizon: int = 0  # steps whose rewards the label counts; 0 = the whole window
    centred: bool = False  # subtract V(z_0, m_0) from the label the classifier learns
    discount: float = 0.95
    next_row_weight: float = 3.0  # weight of row 1, the one the inverse dynamics reads; row 0 (clamped) has weight 0
    inverse_dynamics_noise: float = 0.6  # s: std of the noise added to z_{t+1} in training, in `noise_unit`s (unless
    # the model is noise-aware)
    noise_unit: str = "surprise"  # per channel: "surprise" (TaskStats.surprise) or "latent" (its standard deviation)
    inverse_dynamics_weight: float = 1.0
    advantage_weighting: float = 0.0  # beta: actions weigh exp(beta A / std A), A = label - V(z_0, m_0); 0 = all alike
    classifier_weight: float = 1.0
    value_weight: float = 1.0
    reconstruction_weight: float = 0.0
    encoder_diffusion_grad: float = (
        0.0  # multiplier of the diffusion gradient into the encoder; 1 = the paper's wording, collapses
    )
    message_bits: int = 0  # messages of training windows are quantised as a planner's with so many bits; 0 = float32
    message_range: float = 3.0  # as the planner's
    message_dropout: float = 0.0  # probability that an agent's mean field is zeroed for a whole window

    def __post_init__(self):
        require_choice("noise_unit", self.noise_unit, UNITS)
        require_message_bits(self.message_bits)


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    """How a plan is sampled and turned into an action. Hashable."""

    guide_scale: float = 10.0  # w in x0 <- x0 + w sigma_k^2 grad J
    guide_metric: str = "latent"  # what a unit step of guidance is: "latent" (one std) or "surprise" (one-step std)
    num_steps: int = 3  # network evaluations of the sampler
    initial_noise_scale: float = 0.5
    latent_clip: float = 6.0
    inverse_dynamics_noise: float = 0.6  # s a noise-aware inverse model is told: small trusts the plan, large clones
    action_shift_std: float = 0.0  # added to every decoded action, in standard deviations of the data's actions
    num_averaged: int = 1  # plans per agent (and candidate) whose mean is decoded: averages the sampler's luck out
    num_candidates: int = 1  # P plans per agent; the best by `rank_fn` is executed
    message_delay_steps: int | None = None  # None = what the task declares
    message_loss: float = 0.0  # probability that one neighbour's message is lost
    message_bits: int = 4  # quantisation of every latent entry of a message; 0 = float32
    message_range: float = 3.0  # latents beyond +- this many standard deviations are clipped in messages
    warm_start: float = 0.0  # share of the K levels denoised, from the shifted previous plan; 0 = from pure noise

    def __post_init__(self):
        require_choice("guide_metric", self.guide_metric, UNITS)
        require_message_bits(self.message_bits)
        low, high = NOISE_LEVELS
        if not low <= self.inverse_dynamics_noise <= high:
            raise ValueError(f"inverse_dynamics_noise must lie in [{low}, {high}], got {self.inverse_dynamics_noise}")
        if self.num_averaged < 1:
            raise ValueError(f"num_averaged must be at least 1 plan, got {self.num_averaged}")
        if not 0.0 <= self.warm_start <= 1.0:
            raise ValueError(f"warm_start must lie in [0, 1] (share of the diffusion steps), got {self.warm_start}")
