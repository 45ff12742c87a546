"""Types every environment and policy shares.

Axis letters used in all docstrings of this project:

    E env copies   B segments in a batch   R stored trajectories   L episode length   H horizon
    N agents       O observation features  A action components     D latent size      2D own latent ++ mean field
    K diffusion steps                      M two-hot bins

Agents are an array axis, absent agents are masked. Keys are typed (`jax.random.key`) and come first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
from flax import struct


@dataclasses.dataclass(frozen=True)
class Information:
    """Where one block of observation entries comes from; the state-influence test holds every environment to it."""

    entries: tuple[str, ...]  # names out of TaskSpec.obs_names
    whose: str  # "own", "one_hop" (graph neighbours), "two_hop" or "global": whose state these may depend on
    lag_steps: int  # age of the information in environment steps (0 = measured at the moment of the decision)
    num_bytes: int  # bytes received from other agents per agent and step to build these entries (0 = local measurement)
    source: str  # one phrase: how a real network obtains it


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Static description of a task. Hashable: usable as a static argument of `jit`."""

    name: str
    max_agents: int  # N
    obs_dim: int  # O
    action_dim: int  # A
    action_kind: str  # "box" (reals) or "integer" (whole numbers stored as float32)
    action_low: tuple[float, ...]  # [A], in the unit the environment documents
    action_high: tuple[float, ...]  # [A]
    obs_names: tuple[str, ...]  # [O]
    information: tuple[Information, ...]  # covers every observation entry exactly once
    message_delay_steps: int = 0  # age of the neighbours' mean-field message when it is used

    def __post_init__(self):
        if self.action_kind not in ("box", "integer"):
            raise ValueError(f"action_kind must be 'box' or 'integer', got {self.action_kind!r}")
        for field, expected in (
            ("action_low", self.action_dim),
            ("action_high", self.action_dim),
            ("obs_names", self.obs_dim),
        ):
            if len(getattr(self, field)) != expected:
                raise ValueError(
                    f"{self.name}: {field} must have {expected} entries, got {len(getattr(self, field))}"
                )
        declared = [entry for block in self.information for entry in block.entries]
        if sorted(declared) != sorted(self.obs_names):
            missing = sorted(set(self.obs_names) - set(declared))
            extra = sorted(set(declared) - set(self.obs_names))
            raise ValueError(
                f"{self.name}: information must declare every observation entry once, missing {missing}, extra {extra}"
            )


@struct.dataclass
class TimeStep:
    """What one environment step returns beside the new state."""

    obs: jax.Array  # [N, O] observation after the step
    reward: jax.Array  # [N] the task's local reward r_n of the step (0 for absent agents)
    action: jax.Array  # [N, A] the action as executed, in canonical form (projected, rounded)
    terminated: jax.Array  # [] bool; these tasks are continuing, so always False
    truncated: jax.Array  # [] bool; t >= params.episode_steps
    metrics: dict[str, jax.Array]  # name -> [] or [N]


class Environment(NamedTuple):
    """A wireless network as pure functions; everything works under jit, vmap, scan.

    `step(key, state, action, params)` equals `transition(state, action, draw(key, state, params), params)`: all
    randomness of a step is in `draws`, so that a parity test can feed recorded draws. No auto-reset.
    """

    spec: TaskSpec
    default_params: Any  # frozen pytree, field `episode_steps` included
    reset: Callable[..., tuple[Any, jax.Array]]  # (key, params) -> (state, obs [N, O]); draws the topology too
    step: Callable[..., tuple[Any, TimeStep]]  # (key, state, action [N, A], params) -> (state, TimeStep)
    transition: Callable[..., tuple[Any, TimeStep]]  # (state, action [N, A], draws, params) -> (state, TimeStep)
    observe: Callable[..., jax.Array]  # (state, params) -> obs [N, O]
    adjacency: Callable[..., jax.Array]  # (state, params) -> [N, N] float32, 1-hop, zero diagonal
    agent_mask: Callable[..., jax.Array]  # (state, params) -> [N] float32, 1 = present
    project_action: Callable[..., jax.Array]  # (action [N, A], params) -> [N, A]; applied inside step
    draw: Callable[..., Any]  # (key, state, params) -> draws


class Policy(NamedTuple):
    """Anything that acts: planner, baseline, expert, rule.

    Learned policies are called with `env_state=None`; an expert or rule may read of `env_state` what `information`
    declares.
    """

    init: Callable[..., Any]  # (key, num_agents) -> carry
    act: Callable[..., tuple[jax.Array, Any]]  # (key, params, carry, obs, adjacency, env_state) -> (action, carry)
    observe_reward: Callable[..., Any] = lambda carry, reward: carry  # (carry, reward [N]) -> carry
    information: str = "own"  # what an action depends on: "own" observation, "one_hop" messages, "two_hop", "global"
    reads_state: bool = True  # False = called with env_state=None
    message_bytes: int = 0  # bytes an agent broadcasts to its 1-hop neighbours per step
    is_demonstration: Callable[[Any], jax.Array] | None = None  # carry -> bool []; False = a disturbance


def check_action_shape(action: jax.Array, spec: TaskSpec) -> None:
    """Raises ValueError unless action is [N, A]."""
    if action.shape != (spec.max_agents, spec.action_dim):
        raise ValueError(
            f"{spec.name}: action must have shape [N={spec.max_agents}, A={spec.action_dim}], got {tuple(action.shape)}"
        )


def make_step(draw: Callable, transition: Callable, spec: TaskSpec) -> Callable:
    """step = transition after draw, with the shape check in front."""

    def step(key: chex.PRNGKey, state: Any, action: jax.Array, params: Any) -> tuple[Any, TimeStep]:
        check_action_shape(action, spec)
        return transition(state, action, draw(key, state, params), params)

    return step
