"""Networks over a history of tokens: the decision transformer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from networld_jax.networks.dense import InverseDynamics


class CausalBlock(nn.Module):
    """GPT-2 block: x + attention(norm x), then x + MLP(norm x); x [B, T, W], mask [B, T, T] (1 = may look)."""

    num_heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, -1)  # noqa: E731
        query, key, value = map(heads, jnp.split(nn.Dense(3 * width, name="qkv")(nn.LayerNorm(name="norm0")(x)), 3, -1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(jnp.float32(width // self.num_heads))
        attention = drop(jax.nn.softmax(jnp.where(mask[:, None] > 0, scores, -1e9), axis=-1))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, value).reshape(x.shape)
        x = x + drop(nn.Dense(width, name="out")(mixed))
        hidden = jax.nn.relu(nn.Dense(4 * width, name="fc0")(nn.LayerNorm(name="norm1")(x)))
        return x + drop(nn.Dense(width, name="fc1")(hidden))


class DecisionTransformer(nn.Module):
    """Tokens (return-to-go, features, action) of T steps -> logits [B, T, A, M] read from the features' tokens
    (Chen et al. 2021). Step t's logits depend on the tokens up to features_t, not on action_t."""

    action_dim: int  # A
    num_bins: int  # M
    max_steps: int  # rows of the time embedding
    width: int = 128
    num_layers: int = 3
    num_heads: int = 1
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self,
        return_to_go: jax.Array,
        features: jax.Array,
        action: jax.Array,
        time: jax.Array,
        valid: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """Args: return_to_go [B, T], features [B, T, F], action [B, T, A] scaled, time [B, T] int32 within the episode,
        valid [B, T] (0 = padding: nobody looks at it)."""
        batch, steps = time.shape
        position = nn.Embed(self.max_steps, self.width, name="time")(time)
        embed = lambda x, name: nn.Dense(self.width, name=name)(x) + position  # noqa: E731
        tokens = [embed(return_to_go[..., None], "return"), embed(features, "features"), embed(action, "action")]
        x = nn.LayerNorm(name="norm_in")(jnp.stack(tokens, axis=2).reshape(batch, 3 * steps, self.width))
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        mask = jnp.tril(jnp.ones((3 * steps, 3 * steps)))[None] * jnp.repeat(valid, 3, axis=1)[:, None, :]
        for i in range(self.num_layers):
            x = CausalBlock(self.num_heads, self.dropout, name=f"block{i}")(x, mask, deterministic)
        x = nn.LayerNorm(name="norm_out")(x).reshape(batch, steps, 3, self.width)[:, :, 1]
        return InverseDynamics(self.action_dim, self.num_bins, hidden=(), name="logits")(x)
