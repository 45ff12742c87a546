"""One step of a whole network of agents: messages over the 1-hop graph, twice, then a distribution per entry."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from networld_jax.mean_field import mean_field
from networld_jax.networks.temporal import mish


def within_two_hops(adjacency: jax.Array) -> jax.Array:
    """1-hop graph [..., N, N] -> agents within two hops of each other [..., N, N], zero diagonal, 0 or 1."""
    reached = (adjacency + jnp.matmul(adjacency, adjacency)) > 0
    others = jnp.broadcast_to(~jnp.eye(adjacency.shape[-1], dtype=bool), adjacency.shape)
    return (reached & others).astype(adjacency.dtype)


class GraphDynamics(nn.Module):
    """Observations [..., N, O] and actions [..., N, A], both standardised, of all agents -> logits over every agent's
    next observation [..., N, O, M], and its reward [..., N].

    Shared resources are divided among those within two hops, so their number and their *sums* of observations and
    actions are inputs; means alone do not tell a full neighbourhood from an empty one.
    """

    num_bins: int  # M
    hidden: int = 128
    num_rounds: int = 2  # of messages

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array, adjacency: jax.Array) -> tuple[jax.Array, jax.Array]:
        num_agents = adjacency.shape[-1]
        own = jnp.concatenate([obs, action], -1)
        inputs = [own]
        for graph in (adjacency, within_two_hops(adjacency)):
            inputs += [graph.sum(-1, keepdims=True) / num_agents, jnp.matmul(graph, own) / num_agents]
        h = mish(nn.Dense(self.hidden, name="inputs")(jnp.concatenate(inputs, -1)))
        for i in range(self.num_rounds):
            heard = jnp.concatenate([h, mean_field(h, adjacency), jnp.matmul(adjacency, h) / num_agents], -1)
            update = mish(nn.LayerNorm(name=f"norm{i}")(nn.Dense(self.hidden, name=f"hear{i}")(heard)))
            h = h + nn.Dense(self.hidden, name=f"update{i}")(update)
        h = mish(nn.Dense(self.hidden, name="hidden")(nn.LayerNorm(name="norm")(h)))
        logits = nn.Dense(obs.shape[-1] * self.num_bins, kernel_init=nn.initializers.zeros, name="logits")(h)
        reward = nn.Dense(1, kernel_init=nn.initializers.zeros, name="reward")(h)[..., 0]
        return logits.reshape(*obs.shape, self.num_bins), reward
