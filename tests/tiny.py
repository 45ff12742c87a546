"""A small controllable task as logged arrays, and a world model that compiles in seconds.

Agents sit on a path 0-1-2-...; agent i has a state x_i in R^2 that its action moves, and disturbances e_i in R^2 that
nobody moves. The expert pulls x_i towards its neighbours' mean and answers e_i:

    x' = 0.7 x + a + 0.1 noise,   e' = 0.8 e + 0.6 noise,   expert(x, m, e) = -0.4 x + 0.4 m_x + 0.3 e,   r = -|x'|^2
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from networld_jax import datasets, normalisation, training
from networld_jax.schedules import NoiseSchedule, cosine_schedule
from networld_jax.types import LossConfig, Segments, TaskStats, TrainState, Trajectories, WorldModelConfig
from networld_jax.world_model import WorldModel, make_world_model

AGENTS = 4
OBS, ACTIONS, HORIZON = 4, 2, 4
CONFIG = WorldModelConfig(
    latent_dim=6,
    horizon=HORIZON,
    width=8,
    width_mults=(1,),
    encoder_hidden=(32, 32),
    inverse_dynamics_hidden=(64,),
    value_hidden=(16,),
    num_action_bins=15,
)


def path_graph(num_agents: int) -> np.ndarray:
    """[N, N] neighbours on a path."""
    return np.eye(num_agents, k=1, dtype=np.float32) + np.eye(num_agents, k=-1, dtype=np.float32)


def expert_action(obs: np.ndarray, adjacency: np.ndarray) -> np.ndarray:
    """The expert's action [..., N, 2] without exploration noise."""
    x, e = obs[..., :2], obs[..., 2:]
    mean = adjacency @ x / np.maximum(adjacency.sum(-1, keepdims=True), 1)
    return -0.4 * x + 0.4 * mean + 0.3 * e


def linear_task(num_runs: int = 6, num_steps: int = 50, seed: int = 0, num_agents: int = AGENTS) -> Trajectories:
    """Expert trajectories with exploration noise, NumPy arrays."""
    rng = np.random.default_rng(seed)
    graph = path_graph(num_agents)
    obs = np.zeros((num_runs, num_steps + 1, num_agents, OBS), np.float32)
    action = np.zeros((num_runs, num_steps, num_agents, ACTIONS), np.float32)
    obs[:, 0] = rng.normal(size=obs[:, 0].shape)
    for t in range(num_steps):
        x, e = obs[:, t, :, :2], obs[:, t, :, 2:]
        action[:, t] = expert_action(obs[:, t], graph) + 0.2 * rng.normal(size=x.shape)
        obs[:, t + 1, :, :2] = 0.7 * x + action[:, t] + 0.1 * rng.normal(size=x.shape)
        obs[:, t + 1, :, 2:] = 0.8 * e + 0.6 * rng.normal(size=e.shape)
    reward = -(obs[:, 1:, :, :2] ** 2).sum(-1)
    return datasets.from_arrays(obs, action, reward, graph)


class Tiny(NamedTuple):
    """One untrained task, ready to use."""

    data: Trajectories
    spec: Any
    world_model: WorldModel
    schedule: NoiseSchedule
    stats: TaskStats
    params: dict


def random_params(world_model: WorldModel, seed: int = 0) -> dict:
    """Weights of the right shapes drawn by NumPy: compiling `world_model.init` takes longer than most tests.

    No layer is zero, unlike after `init`, so every path of gradients and of information is open.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name.endswith("bias"):
            return jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)
        if name == "gn_scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        fan_in = 1 if name == "embedding" else np.prod(leaf.shape[:-1])
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(world_model.init, jax.random.key(0)))


def build(config: WorldModelConfig = CONFIG, data: Trajectories | None = None, name: str = "line") -> Tiny:
    """Everything around one task."""
    data = linear_task() if data is None else data
    spec = datasets.spec_from_trajectories(name, data)
    world_model = make_world_model(config, [spec])
    stats = normalisation.task_stats(data, spec, config)
    return Tiny(data, spec, world_model, cosine_schedule(config.diffusion_steps), stats, random_params(world_model))


def linear_nets(world_model: WorldModel) -> WorldModel:
    """The model with linear maps for U-Net and classifier: tests what surrounds them without compiling them."""
    channels, horizon = 2 * world_model.config.latent_dim, world_model.config.horizon

    def init(key):
        mix_key, bias_key, weight_key, rest_key = jax.random.split(key, 4)
        denoiser = {
            "mix": jax.random.normal(mix_key, (channels, channels)) / channels**0.5,
            "bias": 0.3 * jax.random.normal(bias_key, (channels,)),
        }
        classifier = {"weight": jax.random.normal(weight_key, (channels * horizon, 1)) / (channels * horizon) ** 0.5}
        return world_model.init(rest_key) | {"denoiser": denoiser, "classifier": classifier}

    def predict(params, task_index, x, k):
        return x @ params["denoiser"]["mix"] + params["denoiser"]["bias"][None, None, :]

    def return_outputs(params, task_index, x, k):
        return x.reshape(x.shape[0], -1) @ params["classifier"]["weight"]

    return world_model._replace(
        init=init,
        predict=predict,
        return_outputs=return_outputs,
        predict_return=lambda *args: return_outputs(*args)[..., 0],
        predict_both=lambda *args: (predict(*args), return_outputs(*args)[..., 0]),
    )


def with_linear_nets(tiny: Tiny) -> Tiny:
    """The same task and model with `linear_nets`."""
    world_model = linear_nets(tiny.world_model)
    return tiny._replace(world_model=world_model, params=random_params(world_model, seed=1))


def make_epoch(tiny: Tiny, loss: LossConfig, num_updates: int, windows: int = 16, learning_rate: float = 3e-3):
    """(initial state, unjitted epoch) of the joint loss on one task."""
    optimiser = training.make_optimiser(learning_rate)
    update = training.make_update(training.world_model_loss(tiny.world_model, tiny.schedule, loss), optimiser, 0.98)
    name = tiny.spec.name
    sample = training.multi_task_sampler({name: windows}, tiny.world_model.config.horizon, {name: 0})
    return training.init_train_state(tiny.params, optimiser), training.make_epoch(update, sample, num_updates)


def train(tiny: Tiny, loss: LossConfig, num_updates: int, **options: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    """One dispatch of `num_updates`, and its mean metrics over the last tenth."""
    data = ({tiny.spec.name: jax.tree.map(jnp.asarray, tiny.data)}, {tiny.spec.name: tiny.stats})
    state, epoch = make_epoch(tiny, loss, num_updates // 10, **options)
    epoch = jax.jit(epoch)
    for _ in range(10):
        state, metrics = epoch(state, data, jax.random.key(5))
    return state, metrics


@functools.cache
def trained() -> tuple[Tiny, TrainState]:
    """The world model trained once per session; shared by the tests of training and planning."""
    with jax.debug_key_reuse(True):
        tiny = build()
        return tiny, train(tiny, LossConfig(), 600)[0]


def random_segments(num_agents: int = AGENTS, batch: int = 3, seed: int = 0, **fields: Any) -> Segments:
    """Random windows on a path graph; `fields` replace some of the arrays."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    obs = draw(batch, num_agents, HORIZON + 1, OBS)
    segments = Segments(
        obs=obs,
        message_obs=obs,
        action=draw(batch, num_agents, HORIZON, ACTIONS) * 0.3,
        reward=draw(batch, num_agents, HORIZON),
        is_demonstration=jnp.ones((batch, HORIZON), bool),
        start=jnp.zeros(batch, jnp.int32),
        adjacency=jnp.tile(path_graph(num_agents)[None], (batch, 1, 1)),
        agent_mask=jnp.ones((batch, num_agents)),
    )
    return segments.replace(**fields)


def without_agent(segments: Segments, agent: int) -> Segments:
    """The same windows with one agent absent: zero row and column, zero mask."""
    present = jnp.ones(segments.agent_mask.shape[-1]).at[agent].set(0.0)
    return segments.replace(
        adjacency=segments.adjacency * present[None, :, None] * present[None, None, :],
        agent_mask=segments.agent_mask * present[None, :],
    )


def integer_valued(data):
    """The same data with whole actions from 0 on."""
    return data.replace(action=np.round(10 * np.abs(data.action)))
