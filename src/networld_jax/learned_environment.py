"""A learned simulator behind the interface of every environment: policies act, are scored and are trained in it.

    reset:  o_0 of all agents of one network at one logged moment; one of the simulators for the whole episode
    step:   o_{t+1} ~ p(. | o_t, a_t, graph),      r_t = E[r | o_t, a_t, graph]

A world model in the sense of Ha & Schmidhuber (2018), of a network of agents: what is logged of a mixed population is
asked what another population would see and earn. It knows what the data show; the further a policy is from them, the
less its answers are worth (docs/experiments.md, E29 and E30).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from networld_envs.types import Environment, TaskSpec, TimeStep, make_step
from networld_jax.baselines.actions import executed
from networld_jax.graph_dynamics import Simulator
from networld_jax.normalisation import normalise_obs, raw_obs, raw_reward
from networld_jax.types import Params, TaskStats, Trajectories


@struct.dataclass
class LearnedParams:
    """What a learned environment is made of."""

    members: Params  # of the simulators, stacked along a first axis
    stats: TaskStats  # of the data, from `graph_dynamics.with_observation_bins`
    obs: jax.Array  # [R, L, N, O] logged moments, any of which an episode starts from
    adjacency: jax.Array  # [R, N, N]
    agent_mask: jax.Array  # [R, N]
    episode_steps: int = struct.field(pytree_node=False, default=250)


@struct.dataclass
class LearnedState:
    """One network at one moment."""

    obs: jax.Array  # [N, O] raw units
    adjacency: jax.Array  # [N, N]
    agent_mask: jax.Array  # [N]
    member: jax.Array  # [] int32, which simulator the episode follows
    step: jax.Array  # [] int32


def make_learned_environment(
    spec: TaskSpec,
    simulator: Simulator,
    members: Params,
    stats: TaskStats,
    trajectories: Trajectories,
    episode_steps: int = 250,
) -> Environment:
    """The environment that `simulator` learned of `trajectories`. `members` are its parameters, stacked along a first
    axis; `stats` those it was trained with.

    Raises ValueError when `stats` lack the observation bins.
    """
    if "obs_bins" not in stats.extra:
        raise ValueError(
            f"{spec.name}: stats must come from graph_dynamics.with_observation_bins, got only {sorted(stats.extra)}"
        )
    low, high = (jnp.asarray(end, jnp.float32)[None] for end in (spec.action_low, spec.action_high))
    obs, adjacency, agent_mask = map(jnp.asarray, (trajectories.obs, trajectories.adjacency, trajectories.agent_mask))
    params = LearnedParams(members, stats, obs, adjacency, agent_mask, episode_steps)

    def reset(key, params: LearnedParams):
        runs, length = params.obs.shape[:2]
        run_key, time_key, member_key = jax.random.split(key, 3)
        run = jax.random.randint(run_key, (), 0, runs)
        obs = params.obs[run, jax.random.randint(time_key, (), 0, length)]
        count = jax.tree.leaves(params.members)[0].shape[0]
        member = jax.random.randint(member_key, (), 0, count)
        return LearnedState(obs, params.adjacency[run], params.agent_mask[run], member, jnp.int32(0)), obs

    def transition(state: LearnedState, action, key, params: LearnedParams):
        action = project(action, params)
        member = jax.tree.map(lambda leaf: leaf[state.member], params.members)
        now = normalise_obs(state.obs, params.stats)
        drawn, reward = simulator.step(key, member, params.stats, now, action, state.adjacency)
        present = state.agent_mask[:, None]
        state = state.replace(obs=raw_obs(drawn, params.stats) * present, step=state.step + 1)
        return state, TimeStep(
            obs=state.obs,
            reward=raw_reward(reward, params.stats) * state.agent_mask,
            action=action * present,
            terminated=jnp.bool_(False),
            truncated=state.step >= params.episode_steps,
            metrics={"member": state.member},
        )

    def project(action, params):
        del params
        return jnp.clip(executed(action, spec), low, high)

    def draw(key, state, params):
        del state, params
        return key

    return Environment(
        spec=spec,
        default_params=params,
        reset=reset,
        step=make_step(draw, transition, spec),
        transition=transition,
        observe=lambda state, params: state.obs,
        adjacency=lambda state, params: state.adjacency,
        agent_mask=lambda state, params: state.agent_mask,
        project_action=project,
        draw=draw,
    )
