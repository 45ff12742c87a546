"""JaxMARL's `MultiAgentEnv` over any environment of this package.

>>> env = to_jaxmarl(networld_envs.make("rb", episode_steps=200), observation_fn=networld_jax.transforms.symlog)
>>> jaxmarl.make = lambda name, **kwargs: env          # JaxMARL has no registry: this is how its scripts find it

Their scripts decide the details:

| | here |
|---|---|
| observation | `Box(-inf, inf, (O,))`, in the task's units, or through `observation_fn`: the scripts do not normalise |
| action, box tasks | `Box(-1, 1, (A,))`, clipped (their Gaussians are unbounded) and scaled to the task's bounds |
| action, integer tasks | `Discrete(n)`, the components flattened into one index; shape () or (1,) is accepted |
| reward | the local reward r_n, 0 for an absent agent, or `reward_fn`: see `team_reward`, `local_reward` |
| `dones` | per agent: the end of the episode, and always True for an absent agent; `__all__` is the end |
| `info` | every metric, `alive`, `terminated`, `truncated`, one number per agent each: their IPPO reshapes it |

JaxMARL resets inside `step` and so computes a reset on every step. `num_networks` makes that a look-up: episodes then
start in one of that many networks, prepared once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from networld_envs.adapters import common
from networld_envs.types import Environment

try:
    from jaxmarl.environments.multi_agent_env import MultiAgentEnv, State
    from jaxmarl.environments.spaces import Box, Discrete
except ImportError as error:
    raise ImportError(f"this adapter needs JaxMARL ({error}): pip install 'networld-jax[jaxmarl]'") from error

RewardFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(local rewards [N], alive [N] bool) -> rewards [N]."""


@struct.dataclass
class NetworldState(State):
    """JaxMARL's `done` and `step`, and the state of the network."""

    env_state: Any


class NetworldMultiAgentEnv(MultiAgentEnv):
    """See the module's docstring. Build it with `to_jaxmarl`."""

    def __init__(
        self,
        env: Environment,
        params: Any = None,
        observation_fn: Callable[[jax.Array], jax.Array] | None = None,
        num_networks: int | None = None,
        reward_fn: RewardFn | None = None,
    ):
        spec = env.spec
        super().__init__(num_agents=spec.max_agents)
        self.env = env
        self.params = env.default_params if params is None else params
        self.observation_fn = observation_fn or (lambda obs: obs)
        self.reward_fn = reward_fn or (lambda reward, alive: reward)
        self.is_discrete = spec.action_kind == "integer"
        action = Discrete(common.num_discrete_actions(spec)) if self.is_discrete else Box(-1.0, 1.0, (spec.action_dim,))
        self.observation_spaces = dict.fromkeys(self.agents, Box(-jnp.inf, jnp.inf, (spec.obs_dim,)))
        self.action_spaces = dict.fromkeys(self.agents, action)
        self.networks = None
        if num_networks is not None:
            if num_networks < 1:
                raise ValueError(
                    f"num_networks must be at least 1 (or None: a new network per reset), got {num_networks}"
                )
            keys = jax.random.split(jax.random.key(0), num_networks)
            self.networks = jax.jit(jax.vmap(lambda key: env.reset(key, self.params)[0]))(keys)

    @partial(jax.jit, static_argnums=(0,))
    def reset(self, key: jax.Array) -> tuple[dict[str, jax.Array], NetworldState]:
        """A new network, or one of the prepared ones."""
        key = _typed(key)
        if self.networks is None:
            env_state, _ = self.env.reset(key, self.params)
        else:
            count = jax.tree.leaves(self.networks)[0].shape[0]
            chosen = jax.random.randint(key, (), 0, count)
            env_state = jax.tree.map(lambda x: x[chosen], self.networks)
        state = NetworldState(done=jnp.bool_(False), step=jnp.int32(0), env_state=env_state)
        return self.get_obs(state), state

    @partial(jax.jit, static_argnums=(0,))
    def step_env(self, key: jax.Array, state: NetworldState, actions: dict[str, jax.Array]):
        """One environment step without reset: (obs, state, rewards, dones, info)."""
        env_state, time_step = self.env.step(_typed(key), state.env_state, self.task_action(actions), self.params)
        alive = self.env.agent_mask(env_state, self.params) > 0
        reward = self.reward_fn(time_step.reward, alive)
        over = jnp.logical_or(time_step.terminated, time_step.truncated)
        state = NetworldState(done=over, step=state.step + 1, env_state=env_state)
        dones = self._by_agent(jnp.logical_or(over, jnp.logical_not(alive))) | {"__all__": over}
        info = common.per_agent(time_step.metrics, self.num_agents)
        for name, value in (
            ("alive", alive),
            ("terminated", time_step.terminated),
            ("truncated", time_step.truncated),
        ):
            info[name] = jnp.broadcast_to(value, (self.num_agents,))
        return self.get_obs(state), state, self._by_agent(reward), dones, info

    def get_obs(self, state: NetworldState) -> dict[str, jax.Array]:
        """Observations by agent; zeros for an absent agent."""
        obs = self.observation_fn(self.env.observe(state.env_state, self.params))
        return self._by_agent(obs * self.env.agent_mask(state.env_state, self.params)[:, None])

    def task_action(self, actions: dict[str, jax.Array]) -> jax.Array:
        """JaxMARL's actions by agent as the task's action [N, A].

        Raises ValueError for an action of another shape than the action space's.
        """
        spec = self.env.spec
        shapes = ((), (1,)) if self.is_discrete else ((spec.action_dim,),)
        for agent in self.agents:
            if jnp.shape(actions[agent]) not in shapes:
                raise ValueError(
                    f"action of {agent} must have shape {shapes[0]}, got {jnp.shape(actions[agent])}"
                )
        stacked = jnp.stack([jnp.asarray(actions[agent]) for agent in self.agents])
        if self.is_discrete:
            return common.from_index(stacked.reshape(self.num_agents).astype(jnp.int32), spec)
        return common.from_unit_box(stacked, spec)

    @partial(jax.jit, static_argnums=(0,))
    def get_avail_actions(self, state: NetworldState) -> dict[str, jax.Array]:
        """Discrete actions an agent may choose: all of them, an absent agent only the first."""
        if not self.is_discrete:
            raise NotImplementedError(f"{self.env.spec.name} has continuous actions: all of the box is available")
        alive = self.env.agent_mask(state.env_state, self.params) > 0
        count = common.num_discrete_actions(self.env.spec)
        return self._by_agent(jnp.logical_or(alive[:, None], jnp.arange(count)[None, :] == 0))

    @property
    def name(self) -> str:
        return f"networld_{self.env.spec.name}"

    @property
    def agent_classes(self) -> dict[str, list[str]]:
        """All agents are of one kind."""
        return {self.env.spec.name: list(self.agents)}

    def _by_agent(self, values: jax.Array) -> dict[str, jax.Array]:
        return {agent: values[i] for i, agent in enumerate(self.agents)}


def to_jaxmarl(
    env: Environment,
    params: Any = None,
    *,
    observation_fn: Callable[[jax.Array], jax.Array] | None = None,
    num_networks: int | None = None,
    reward_fn: RewardFn | None = None,
) -> NetworldMultiAgentEnv:
    """`env` as a JaxMARL environment.

    Args:
      params: environment parameters (None: the default ones); `episode_steps` ends an episode.
      observation_fn: [N, O] -> [N, O] applied to observations, e.g. `networld_jax.transforms.symlog` (None: raw units).
      num_networks: episodes start in one of this many networks, drawn once (None: a new network per episode).
      reward_fn: (local rewards [N], alive [N] bool) -> rewards [N] that agents are given (None: the local ones).

    Raises ValueError when the joint integer action is too large to be flattened, or num_networks < 1.
    """
    return NetworldMultiAgentEnv(env, params, observation_fn, num_networks, reward_fn)


def team_reward(scale: float = 1.0) -> RewardFn:
    """Everybody is given `scale` times the mean over present agents: the metric itself.

    On `rb` an agent's local reward leaves out what its requests cost its neighbours, and independent learners on local
    rewards end below random.
    """

    def reward_fn(reward, alive):
        mean = jnp.sum(jnp.where(alive, reward, 0.0)) / jnp.maximum(jnp.sum(alive), 1)
        return jnp.where(alive, scale * mean, 0.0)

    return reward_fn


def local_reward(scale: float = 1.0) -> RewardFn:
    """Everybody is given `scale` times its own local reward.

    JaxMARL's PPO moves a predicted value by at most 0.2 per update: returns of order 1 train best.
    """
    return lambda reward, alive: jnp.where(alive, scale * reward, 0.0)


def _typed(key: jax.Array) -> jax.Array:
    """JaxMARL passes raw uint32 keys; the environments take typed ones."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
