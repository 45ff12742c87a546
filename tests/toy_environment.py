"""Queues on a ring: what a user writes to add a fourth environment, in one file.

Agent i serves its queue with effort a_i in [0, 1]; its neighbours' effort takes capacity away:

    q_i' = max(q_i + arrivals_i - capacity a_i (1 - 0.25 sum_{j in N(i)} a_j), 0),   arrivals ~ Exponential(mean 0.4)
    r_i  = -q_i' - 0.1 a_i

Observed: own queue, own last arrivals. One line adds it: ENVIRONMENTS["queues"] = make_queues.
"""

import jax
import jax.numpy as jnp
from flax import struct

from networld_envs.policies import stateless
from networld_envs.types import Environment, Information, TaskSpec, TimeStep, make_step

NUM_QUEUES = 5


@struct.dataclass
class QueueParams:
    capacity: float = 1.5  # jobs per step
    mean_arrivals: float = 0.4  # jobs per step
    episode_steps: int = 20


@struct.dataclass
class QueueState:
    queue: jax.Array  # [N] jobs
    arrivals: jax.Array  # [N] jobs of the last step
    t: jax.Array  # [] int32


def ring():
    return jnp.roll(jnp.eye(NUM_QUEUES), 1, axis=0) + jnp.roll(jnp.eye(NUM_QUEUES), -1, axis=0)


def make_queues(name: str = "queues", **overrides) -> Environment:
    spec = TaskSpec(
        name=name,
        max_agents=NUM_QUEUES,
        obs_dim=2,
        action_dim=1,
        action_kind="box",
        action_low=(0.0,),
        action_high=(1.0,),
        obs_names=("queue", "arrivals"),
        information=(Information(("queue", "arrivals"), "own", 0, 0, "own buffer"),),
    )

    def observe(state, params):
        return jnp.stack([state.queue, state.arrivals], -1)

    def reset(key, params):
        queue = 2.0 * jax.random.uniform(key, (NUM_QUEUES,))
        state = QueueState(queue, jnp.zeros(NUM_QUEUES), jnp.int32(0))
        return state, observe(state, params)

    def project_action(action, params):
        return jnp.clip(action, 0.0, 1.0)

    def draw(key, state, params):
        return params.mean_arrivals * jax.random.exponential(key, (NUM_QUEUES,))

    def transition(state, action, arrivals, params):
        action = project_action(action, params)
        effort = action[:, 0]
        served = params.capacity * effort * (1 - 0.25 * ring() @ effort)
        queue = jnp.maximum(state.queue + arrivals - served, 0.0)
        state = QueueState(queue, arrivals, state.t + 1)
        reward = -queue - 0.1 * effort
        truncated = state.t >= params.episode_steps
        step = TimeStep(observe(state, params), reward, action, jnp.bool_(False), truncated, {"queue": queue})
        return state, step

    return Environment(
        spec=spec,
        default_params=QueueParams(**overrides),
        reset=reset,
        step=make_step(draw, transition, spec),
        transition=transition,
        observe=observe,
        adjacency=lambda state, params: ring(),
        agent_mask=lambda state, params: jnp.ones(NUM_QUEUES),
        project_action=project_action,
        draw=draw,
    )


def make_slow_queues(**overrides) -> Environment:
    return make_queues("slow_queues", **{"capacity": 1.0} | overrides)


def make_busy_queues(**overrides) -> Environment:
    return make_queues("busy_queues", **{"mean_arrivals": 0.6} | overrides)


def policies(params):
    random = stateless(lambda key, obs, adjacency, state: jax.random.uniform(key, (obs.shape[0], 1)), reads_state=False)
    expert = stateless(lambda key, obs, adjacency, state: jnp.clip(obs[:, :1], 0.0, 1.0), reads_state=False)
    return {"random": random, "expert": expert}


def tiers(params):
    return policies(params)
