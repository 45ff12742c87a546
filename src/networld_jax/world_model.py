"""The world model as a bundle of pure functions over plain dicts of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.types import TaskSpec
from networld_jax import action_heads, networks
from networld_jax.noise_levels import inputs_at_level
from networld_jax.normalisation import normalise_obs
from networld_jax.transforms import from_two_hot
from networld_jax.types import Params, WorldModelConfig


class WorldModel(NamedTuple):
    """Pure functions that share one configuration. `task` is a static name and selects encoder, inverse dynamics and
    value heads; `task_index` is an int32 array and enters the shared denoiser and classifier.

    Parameters are a plain dict with the subtrees "encoder", "decoder", "inverse_dynamics", "value", "action_value"
    (each
    {task: ...}), "denoiser" and "classifier".
    """

    config: WorldModelConfig
    specs: dict[str, TaskSpec]
    init: Callable[..., Params]  # (key) -> Params
    squash: Callable[..., jax.Array]  # (stats, obs [..., O]) -> [..., O] standardised symlog
    encode: Callable[..., jax.Array]  # (params, stats, task, obs [..., O]) -> z [..., D]
    reconstruct: Callable[..., jax.Array]  # (params, task, z [..., D]) -> squashed obs [..., O]
    predict: Callable[..., jax.Array]  # (params, task_index [B], x [B, H, 2D], k [B]) -> x0 or noise, as configured
    return_outputs: Callable[..., jax.Array]  # (params, task_index [B], x, k) -> [B, 1 or M] raw classifier output
    return_bins: jax.Array | None  # [M] of the two-hot head in standardised units; None = scalar head
    predict_return: Callable[..., jax.Array]  # (params, task_index [B], x, k) -> [B] standardised return
    predict_both: Callable[..., tuple[jax.Array, jax.Array]]  # (params, task_index, x, k) -> (predict, predict_return)
    action_logits: Callable[..., jax.Array]  # (params, stats, task, z, m, z_next [..., D], s [...]) -> [..., A, M]
    value: Callable[..., jax.Array]  # (params, task, z, m) -> [...] standardised return
    action_value: Callable[..., jax.Array]  # (params, stats, task, z, m, action [..., A]) -> [...]
    task_index: Callable[[str], int]
    channel_mask: Callable[[str], jax.Array]  # task -> [2D], 1 = channel in use


def num_action_bins(spec: TaskSpec, config: WorldModelConfig) -> int:
    """M of a task: one bin per integer of its range, or the configured number for a box."""
    if spec.action_kind == "integer":
        return int(max(spec.action_high) - min(spec.action_low)) + 1
    return config.num_action_bins


def make_world_model(config: WorldModelConfig, task_specs: Sequence[TaskSpec]) -> WorldModel:
    """Builds the functions for a fixed, ordered set of tasks (the held-out one included: it has a row in the task
    embedding).

    Raises ValueError for a horizon the U-Net cannot halve, repeated task names, or an identity encoder whose latent is
    smaller than an observation.
    """
    specs = {spec.name: spec for spec in task_specs}
    if len(specs) != len(task_specs) or not specs:
        raise ValueError(f"task names must be given and differ, got {[spec.name for spec in task_specs]}")
    networks.check_horizon(config.horizon, config.layout, config.width_mults)
    largest = max(spec.obs_dim for spec in task_specs)
    if config.encoder == "identity" and config.latent_dim < largest:
        raise ValueError(
            f"latent_dim must be at least {largest} (the largest observation) with encoder='identity', "
            f"got {config.latent_dim}; raise latent_dim or use encoder='mlp'"
        )
    order = {name: index for index, name in enumerate(specs)}
    dim = config.latent_dim
    compute_dtype = None if config.compute_dtype == "float32" else jnp.dtype(config.compute_dtype)
    unet = networks.TemporalUNet(
        out_channels=2 * dim,
        width=config.width,
        mults=config.width_mults,
        layout=config.layout,
        num_tasks=len(specs),
        compute_dtype=compute_dtype,
    )
    bins = None
    if config.num_return_bins:
        bins = jnp.linspace(-config.return_range, config.return_range, config.num_return_bins)
    classifier = networks.ReturnClassifier(
        num_outputs=config.num_return_bins or 1,
        width=config.width,
        mults=config.width_mults,
        layout=config.layout,
        num_tasks=len(specs),
        compute_dtype=compute_dtype,
    )
    head = networks.ReturnHead(num_outputs=config.num_return_bins or 1)  # what is left of it with a shared trunk
    encoder = networks.ScenarioEncoder(latent_dim=dim, hidden=config.encoder_hidden)
    value_head = networks.MLP(features=(*config.value_hidden, 1))
    decoders = {
        name: networks.ObservationDecoder(obs_dim=spec.obs_dim, hidden=config.encoder_hidden)
        for name, spec in specs.items()
    }
    inverse = {
        name: networks.InverseDynamics(
            action_dim=spec.action_dim, num_bins=num_action_bins(spec, config), hidden=config.inverse_dynamics_hidden
        )
        for name, spec in specs.items()
    }

    def init(key):
        keys = {name: jax.random.fold_in(key, index) for index, name in enumerate(specs)}
        shared_key = jax.random.fold_in(key, len(specs))
        unet_key, classifier_key = jax.random.split(shared_key)
        x, k = jnp.zeros((1, config.horizon, 2 * dim)), jnp.zeros(1, jnp.int32)
        denoiser = unet.init(unet_key, x, k, k)["params"]
        if config.shared_trunk:
            _, features = unet.apply({"params": denoiser}, x, k, k, return_features=True)
            params = {"denoiser": denoiser, "classifier": {"head": head.init(classifier_key, *features)["params"]}}
        else:
            params = {"denoiser": denoiser, "classifier": classifier.init(classifier_key, x, k, k)["params"]}
        per_task: Params = {"encoder": {}, "decoder": {}, "inverse_dynamics": {}, "value": {}, "action_value": {}}
        z = jnp.zeros((1, dim))
        for name, spec in specs.items():
            e, d, i, v, q = jax.random.split(keys[name], 5)
            per_task["encoder"][name] = (
                encoder.init(e, jnp.zeros((1, spec.obs_dim)))["params"] if config.encoder == "mlp" else {}
            )
            per_task["decoder"][name] = decoders[name].init(d, z)["params"]
            inputs = jnp.zeros((1, 3 * dim + config.noise_aware_inverse_dynamics))
            per_task["inverse_dynamics"][name] = inverse[name].init(i, inputs)["params"]
            per_task["value"][name] = value_head.init(v, jnp.zeros((1, 2 * dim)))["params"]
            with_action = jnp.zeros((1, 2 * dim + spec.action_dim))
            per_task["action_value"][name] = value_head.init(q, with_action)["params"]
        return params | per_task

    def encode(params, stats, task, obs):
        squashed = normalise_obs(obs, stats)
        if config.encoder == "identity":
            return jnp.pad(squashed, [(0, 0)] * (obs.ndim - 1) + [(0, dim - obs.shape[-1])])
        z = encoder.apply({"params": params["encoder"][task]}, squashed)
        leading = tuple(range(obs.ndim - 1))
        return (z - jnp.expand_dims(stats.latent_mean, leading)) / jnp.expand_dims(stats.latent_std, leading)

    def reconstruct(params, task, z):
        return decoders[task].apply({"params": params["decoder"][task]}, z)

    def predict(params, task_index, x, k):
        return unet.apply({"params": params["denoiser"]}, x, k, task_index)

    def predict_with_outputs(params, task_index, x, k):
        if not config.shared_trunk:
            outputs = classifier.apply({"params": params["classifier"]}, x, k, task_index)
            return predict(params, task_index, x, k), outputs
        prediction, features = unet.apply({"params": params["denoiser"]}, x, k, task_index, return_features=True)
        return prediction, head.apply({"params": params["classifier"]["head"]}, *features)

    def return_outputs(params, task_index, x, k):
        return predict_with_outputs(params, task_index, x, k)[1]  # what it does not need is never computed

    def scalar_return(outputs):
        return outputs[..., 0] if bins is None else from_two_hot(outputs, bins)

    def predict_return(params, task_index, x, k):
        return scalar_return(return_outputs(params, task_index, x, k))

    def predict_both(params, task_index, x, k):
        prediction, outputs = predict_with_outputs(params, task_index, x, k)
        return prediction, scalar_return(outputs)

    def action_logits(params, stats, task, z, m, z_next, noise=None):
        if config.noise_aware_inverse_dynamics:
            if noise is None:
                raise ValueError("a noise-aware inverse model must be told the noise s on z_next, got None")
            z_next = inputs_at_level(z_next, noise, stats.surprise)
        logits = inverse[task].apply({"params": params["inverse_dynamics"][task]}, jnp.concatenate([z, m, z_next], -1))
        return action_heads.add_prior(logits, stats)

    def value(params, task, z, m):
        return value_head.apply({"params": params["value"][task]}, jnp.concatenate([z, m], -1))[..., 0]

    def action_value(params, stats, task, z, m, action):
        leading = tuple(range(action.ndim - 1))
        low, high = (jnp.expand_dims(stats.action_bins[:, end], leading) for end in (0, -1))
        scaled = 2.0 * (action - low) / (high - low) - 1.0
        inputs = jnp.concatenate([z, m, scaled], -1)
        return value_head.apply({"params": params["action_value"][task]}, inputs)[..., 0]

    def channel_mask(task):
        used = specs[task].obs_dim if config.encoder == "identity" else dim
        half = (np.arange(dim) < used).astype(np.float32)
        return jnp.asarray(np.concatenate([half, half]))

    return WorldModel(
        config=config,
        specs=specs,
        init=init,
        squash=lambda stats, obs: normalise_obs(obs, stats),
        encode=encode,
        reconstruct=reconstruct,
        predict=predict,
        return_outputs=return_outputs,
        return_bins=bins,
        predict_return=predict_return,
        predict_both=predict_both,
        action_logits=action_logits,
        value=value,
        action_value=action_value,
        task_index=order.__getitem__,
        channel_mask=channel_mask,
    )
