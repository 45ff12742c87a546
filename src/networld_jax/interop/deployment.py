"""One agent of one task as two compiled programs that need JAX, and neither this library nor Flax, to run.

    message.stablehlo   obs [O] -> message, uint8 [bytes]
    action.stablehlo    obs [O], mean of the neighbours' messages [U], key uint32 [2] -> action [A]
    agent.json          shapes, units, entries, quantisation of messages, bytes, versions, checksums
    agent.py            loads and runs them (`agent_runtime`): packing, averaging, checks

The weights and the task's constants are inside the programs. All agents of a task share them, as they share parameters;
an agent alone computes what the batched planner computes for it (`planning.make_agent_plans`). U, the entries of a
message, are the latent's channels in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from networld_jax import planning, sampling
from networld_jax.files import write_atomically, write_signed
from networld_jax.interop import agent_runtime
from networld_jax.planning import ImagineFn, PolicyParams, RankFn
from networld_jax.schedules import NoiseSchedule
from networld_jax.types import PlannerConfig
from networld_jax.world_model import WorldModel

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

ProjectFn = Callable[[jax.Array], jax.Array]


def pack(z: jax.Array, num_bits: int, limit: float) -> jax.Array:
    """Latent entries [U] as the bytes of a message, uint8 [ceil(U bits / 8)]; 0 bits: float32, 4 bytes each.

    The levels of `planning.quantise`, each as an unsigned number of `num_bits` bits, the lowest bit first.
    """
    if not num_bits:
        return jax.lax.bitcast_convert_type(z, jnp.uint8).reshape(-1)
    half = 2 ** (num_bits - 1) - 1
    level = (jnp.round(jnp.clip(z / limit, -1.0, 1.0) * half) + half).astype(jnp.uint32)
    bits = (level[:, None] >> jnp.arange(num_bits, dtype=jnp.uint32)[None, :]) & 1
    bits = jnp.pad(bits.reshape(-1), (0, -bits.size % 8)).reshape(-1, 8)
    return (bits << jnp.arange(8, dtype=jnp.uint32)[None, :]).sum(-1).astype(jnp.uint8)


def make_agent(
    world_model: WorldModel,
    schedule: NoiseSchedule,
    task: str,
    policy_params: PolicyParams,
    config: PlannerConfig | None = None,
    *,
    sampler: Callable[..., jax.Array] = sampling.sample_ddim,
    imagine_fn: ImagineFn | None = None,
    rank_fn: RankFn | None = None,
    project_fn: ProjectFn | None = None,
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array, jax.Array, jax.Array], jax.Array]]:
    """(message, act) of one agent, pure functions with the weights inside.

    message(obs [O]) -> uint8 [bytes]; act(obs [O], mean_message [U], key uint32 [2]) -> action [A], through
    `project_fn` if there is one. Other arguments as in `planning.make_planner`.

    Raises ValueError for warm_start, which needs a memory.
    """
    config = config or PlannerConfig()
    if config.warm_start:
        raise ValueError(f"warm_start must be 0: an exported agent keeps no plan, got {config.warm_start}")
    dim, used = world_model.config.latent_dim, int(world_model.channel_mask(task).sum()) // 2
    imagine_fn = imagine_fn or planning.diffusion_imagination(world_model, schedule, task, config, sampler)
    decode_fn = planning.decoder(world_model, task, config)
    plans = planning.make_agent_plans(world_model, task, imagine_fn, config.num_candidates, rank_fn, decode_fn)

    def message(obs):
        z = world_model.encode(policy_params.params, policy_params.stats, task, obs)
        return pack(z[:used], config.message_bits, config.message_range)

    def act(obs, mean_message, key):
        z = world_model.encode(policy_params.params, policy_params.stats, task, obs)
        m = jnp.pad(mean_message, (0, dim - used))
        action = plans(policy_params, jax.random.wrap_key_data(key)[None], z[None], m[None]).action[0]
        return action if project_fn is None else project_fn(action)

    return message, act


def export_agent(
    directory: Path | str,
    world_model: WorldModel,
    schedule: NoiseSchedule,
    task: str,
    policy_params: PolicyParams,
    config: PlannerConfig | None = None,
    *,
    platforms: Sequence[str] = ("cpu",),
    units: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    **planner: Any,
) -> Path:
    """Writes the agent of a task into `directory`; `agent.json` last. Returns `directory`.

    Args:
      platforms: what the programs run on: "cpu", "cuda", "rocm", "tpu".
      units: {"observation": ..., "action": ...} in words, for the reader of agent.json.
      facts: whatever else should stand in agent.json (origin, scores).
      planner: sampler, imagine_fn, rank_fn, project_fn of `make_agent`.

    Raises ValueError for an unknown platform or task, and as `make_agent` does.
    """
    if unknown := sorted(set(platforms) - set(PLATFORMS)):
        raise ValueError(f"platforms must be among {', '.join(PLATFORMS)}, got {unknown[0]!r}")
    if task not in world_model.specs:
        raise ValueError(f"task must be one of {sorted(world_model.specs)}, got {task!r}")
    config = config or PlannerConfig()
    directory, spec = Path(directory), world_model.specs[task]
    message, act = make_agent(world_model, schedule, task, policy_params, config, **planner)
    used = int(world_model.channel_mask(task).sum()) // 2
    obs = jax.ShapeDtypeStruct((spec.obs_dim,), jnp.float32)
    mean = jax.ShapeDtypeStruct((used,), jnp.float32)
    key = jax.ShapeDtypeStruct(jax.random.key_data(jax.random.key(0)).shape, jnp.uint32)
    programs = {"message": (message, (obs,)), "action": (act, (obs, mean, key))}
    description: dict[str, Any] = {"format": agent_runtime.FORMAT, "task": task, "platforms": list(platforms)}
    for name, (function, inputs) in programs.items():
        exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(*inputs)
        content = bytes(exported.serialize())
        write_atomically(directory / f"{name}.stablehlo", content)
        description[name] = {
            "file": f"{name}.stablehlo",
            "sha256": hashlib.sha256(content).hexdigest(),
            "inputs": [{"shape": list(x.shape), "dtype": str(x.dtype)} for x in inputs],
            "output": {"shape": list(exported.out_avals[0].shape), "dtype": str(exported.out_avals[0].dtype)},
            "calling_convention_version": exported.calling_convention_version,
        }
    delay = spec.message_delay_steps if config.message_delay_steps is None else config.message_delay_steps
    units = units or {}
    description["message"] |= {
        "bytes": description["message"]["output"]["shape"][0],
        "entries": used,
        "bits": config.message_bits,
        "half_levels": 2 ** (config.message_bits - 1) - 1 if config.message_bits else 0,
        "range": config.message_range,
        "unit": "latent standard deviations",
        "expected_delay_steps": delay,
    }
    description["action"] |= {
        "kind": spec.action_kind,
        "low": list(spec.action_low),
        "high": list(spec.action_high),
        "unit": units.get("action", ""),
        "num_denoising_evaluations": config.num_steps,
    }
    description["observation"] = {
        "shape": [spec.obs_dim],
        "dtype": "float32",
        "entries": list(spec.obs_names),
        "unit": units.get("observation", ""),
    }
    description["versions"] = {"jax": jax.__version__, "numpy": np.__version__}
    description["facts"] = dict(facts or {})
    write_atomically(directory / "agent.py", Path(agent_runtime.__file__).read_bytes())
    write_signed(directory / "agent.json", description)
    return directory
