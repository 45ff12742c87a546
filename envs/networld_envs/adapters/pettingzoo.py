"""PettingZoo's `ParallelEnv` over any environment of this package.

>>> env = to_pettingzoo(networld_envs.make("cbf", episode_steps=200))
>>> observations, infos = env.reset(seed=0)

Actions are in the task's own units (`Box(action_low, action_high)`), integer actions one `Discrete` index; observations
are `Box(-inf, inf, (O,))`. `agents` holds the agents that are present in the running episode: `rb` has 8 or 9 of its 9
possible ones. All agents are truncated together, after `episode_steps`; then `agents` is empty until `reset`.

For interoperability, not for speed: a step costs one compiled call, one transfer, and a few dictionaries.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from networld_envs.adapters import common
from networld_envs.types import Environment, TimeStep

try:
    from gymnasium.spaces import Box, Discrete, Space
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError(f"this adapter needs PettingZoo ({error}): pip install 'networld-jax[pettingzoo]'") from error


class NetworldParallelEnv(ParallelEnv):
    """See the module's docstring. Build it with `to_pettingzoo`."""

    def __init__(self, env: Environment, params: Any = None):
        spec = env.spec
        self.env = env
        self.params = env.default_params if params is None else params
        self.metadata = {"name": f"networld_{spec.name}_v0", "render_modes": [], "is_parallelizable": True}
        self.render_mode = None
        self.possible_agents = [f"agent_{i}" for i in range(spec.max_agents)]
        self.agents: list[str] = []
        self.is_discrete = spec.action_kind == "integer"
        self._observation_spaces = {a: _box(-np.inf, np.inf, spec.obs_dim) for a in self.possible_agents}
        self._action_spaces = {a: self._make_action_space() for a in self.possible_agents}
        self._key: jax.Array | None = None
        self._state: Any = None
        self._obs = np.zeros((spec.max_agents, spec.obs_dim), np.float32)

        def reset(key):
            next_key, reset_key = jax.random.split(key)
            state, obs = env.reset(reset_key, self.params)
            return next_key, state, (obs, env.agent_mask(state, self.params))

        def step(key, state, action):
            next_key, step_key = jax.random.split(key)
            task_action = common.from_index(action, spec) if self.is_discrete else action
            state, time_step = env.step(step_key, state, task_action, self.params)
            return next_key, state, time_step.replace(metrics=common.per_agent(time_step.metrics, spec.max_agents))

        self._jitted_reset, self._jitted_step = jax.jit(reset), jax.jit(step)

    def _make_action_space(self) -> Space:
        spec = self.env.spec
        if self.is_discrete:
            return Discrete(common.num_discrete_actions(spec))
        return Box(np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32))

    def observation_space(self, agent: str) -> Space:
        """The same object at every call, as seeding needs it."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Space:
        """The same object at every call, as seeding needs it."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """A new network: (observations, infos). Without a seed the random stream goes on; `options` are not used."""
        del options
        if seed is not None or self._key is None:
            self._key = jax.random.key(np.random.SeedSequence(seed).generate_state(1)[0])
        self._key, self._state, (obs, mask) = self._jitted_reset(self._key)
        self._obs, mask = jax.device_get((obs, mask))
        self.agents = [agent for i, agent in enumerate(self.possible_agents) if mask[i] > 0]
        return self._by_agent(self._obs), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """(observations, rewards, terminations, truncations, infos) of the agents that acted.

        Raises ValueError when the episode is over, or when an agent's action is missing or of another shape.
        """
        self._key, self._state, time_step = self._jitted_step(self._key, self._state, self._gather(actions))
        step: TimeStep = jax.device_get(time_step)
        self._obs = step.obs
        acted = self.agents
        result = (
            self._by_agent(step.obs),
            {agent: float(step.reward[self._index(agent)]) for agent in acted},
            dict.fromkeys(acted, bool(step.terminated)),
            dict.fromkeys(acted, bool(step.truncated)),
            {a: {name: float(value[self._index(a)]) for name, value in step.metrics.items()} for a in acted},
        )
        if step.terminated or step.truncated:
            self.agents = []
        return result

    def state(self) -> np.ndarray:
        """All observations side by side, [N O]: a global state for centralised critics."""
        return self._obs.reshape(-1).copy()

    def render(self) -> None:
        """There is nothing to look at here; `experiments.pictures` draws the networks."""

    def close(self) -> None:
        """Nothing is held open."""

    def _gather(self, actions: dict[str, Any]) -> np.ndarray:
        if not self.agents:
            raise ValueError("the episode is over (no agents are left); call reset() first")
        if missing := sorted(set(self.agents) - set(actions)):
            raise ValueError(f"every present agent needs an action; missing: {missing}")
        spec = self.env.spec
        shape = () if self.is_discrete else (spec.action_dim,)
        gathered = np.zeros((spec.max_agents, *shape), np.int32 if self.is_discrete else np.float32)
        for agent in self.agents:
            if np.shape(actions[agent]) != shape:
                raise ValueError(f"action of {agent} must have shape {shape}, got {np.shape(actions[agent])}")
            gathered[self._index(agent)] = actions[agent]
        return gathered

    def _index(self, agent: str) -> int:
        return self.possible_agents.index(agent)

    def _by_agent(self, values: np.ndarray) -> dict[str, np.ndarray]:
        return {agent: np.array(values[self._index(agent)]) for agent in self.agents}


def to_pettingzoo(env: Environment, params: Any = None) -> NetworldParallelEnv:
    """`env` as a PettingZoo parallel environment.

    Args:
      params: environment parameters (None: the default ones); `episode_steps` ends an episode.

    Raises ValueError when the joint integer action is too large to be flattened.
    """
    return NetworldParallelEnv(env, params)


def _box(low: float, high: float, size: int) -> Box:
    return Box(low, high, (size,), np.float32)
