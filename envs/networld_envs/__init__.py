"""Three wireless networks as pure JAX functions: `cbf` (beamforming), `rb` (resource blocks), `ns` (slicing).

>>> env = make("rb")
>>> state, obs = env.reset(jax.random.key(0), env.default_params)
"""

from __future__ import annotations

from collections.abc import Callable

from networld_envs.cbf import make_cbf
from networld_envs.instances import instance_keys
from networld_envs.ns import make_ns
from networld_envs.rb import make_rb
from networld_envs.types import Environment, Information, Policy, TaskSpec, TimeStep

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "cbf": make_cbf,
    "rb": make_rb,
    "ns": make_ns,
}


def make(name: str, **overrides) -> Environment:
    """The environment `name` with parameters changed, e.g. make("ns", preset="tiny").

    Raises ValueError for an unknown name or a parameter outside its range.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}; choose one of {sorted(ENVIRONMENTS)}")
    return ENVIRONMENTS[name](**overrides)


__all__ = ["ENVIRONMENTS", "Environment", "Information", "Policy", "TaskSpec", "TimeStep", "instance_keys", "make"]
