"""Networks over one step: encoder, decoder, inverse dynamics, values, the denoiser of an action."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from networld_jax.networks.temporal import TimeMLP, mish


class MLP(nn.Module):
    """Dense layers of the given sizes with Mish between them: x [..., F] -> [..., features[-1]].

    Value and action-value networks are MLPs with one output.
    """

    features: tuple[int, ...]
    zero_init: bool = False  # start the last layer's kernel at zero
    layer_norm: bool = False  # normalise every hidden layer before its Mish

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, size in enumerate(self.features[:-1]):
            x = nn.Dense(size, name=f"fc{i}")(x)
            x = mish(nn.LayerNorm(name=f"norm{i}")(x) if self.layer_norm else x)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return nn.Dense(self.features[-1], kernel_init=init, name=f"fc{len(self.features) - 1}")(x)


def init_twins(net: nn.Module, key: jax.Array, example: jax.Array) -> dict:
    """Parameters of two independent copies of a net, stacked along a first axis."""
    return jax.vmap(lambda key: net.init(key, example)["params"])(jax.random.split(key, 2))


def apply_twins(net: nn.Module, params: dict, x: jax.Array) -> jax.Array:
    """Outputs [2, ...] of both copies at the same input."""
    return jax.vmap(lambda params: net.apply({"params": params}, x))(params)


class ScenarioEncoder(nn.Module):
    """Observation [..., O] (symlog'd, standardised) -> latent [..., D]: a three-layer MLP, one per task.

    With `layer_norm` every latent has mean 0 and variance 1 over its D entries (no affine), so that guidance scales are
    comparable between tasks.
    """

    latent_dim: int
    hidden: tuple[int, ...] = (256, 256)
    layer_norm: bool = True

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        latent = MLP((*self.hidden, self.latent_dim), name="mlp")(obs)
        return nn.LayerNorm(use_scale=False, use_bias=False)(latent) if self.layer_norm else latent


class ObservationDecoder(nn.Module):
    """Latent [..., D] -> reconstructed observation [..., O], in the space the encoder reads."""

    obs_dim: int
    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        return MLP((*self.hidden, self.obs_dim), name="mlp")(latent)


class InverseDynamics(nn.Module):
    """Logits over action bins: x [..., F], the concatenated z_0, m_0, z_1, -> [..., A, M].

    The logit layer's kernel starts at zero: an untrained head returns the distribution of `bias_init` (uniform by
    default; the log-histogram of the data is a good start).
    """

    action_dim: int  # A
    num_bins: int  # M
    hidden: tuple[int, ...] = (256, 256)
    bias_init: Callable = nn.initializers.zeros  # (key, (A, M), dtype) -> logits

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, size in enumerate(self.hidden):
            x = mish(nn.Dense(size, name=f"fc{i}")(x))
        kernel_shape = (x.shape[-1], self.action_dim * self.num_bins)
        kernel = self.param("logits_kernel", nn.initializers.zeros, kernel_shape)
        bias = self.param("logits_bias", self.bias_init, (self.action_dim, self.num_bins))
        logits = (x @ kernel).reshape(*x.shape[:-1], self.action_dim, self.num_bins)
        return logits + jnp.expand_dims(bias, range(x.ndim - 1))


class ActionDenoiser(nn.Module):
    """Noised action x [..., A], diffusion step k [...], features [..., F] -> clean action [..., A]."""

    hidden: tuple[int, ...] = (256, 256)
    embedding_dim: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, k: jax.Array, features: jax.Array) -> jax.Array:
        embedding = TimeMLP(self.embedding_dim, name="time_mlp")(k)
        inputs = jnp.concatenate([x, embedding, features], axis=-1)
        return MLP((*self.hidden, x.shape[-1]), zero_init=True, name="mlp")(inputs)
