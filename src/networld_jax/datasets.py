"""Offline data: arrays in memory and sharded files on disk.

On disk a dataset is a folder of `shard_00000.npz` (one trajectory each, uncompressed) and `manifest.json`. Every file
is written under a temporary name, fsynced and renamed, the manifest last, so a reader sees a whole dataset or an error.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from networld_envs.types import Information, TaskSpec
from networld_jax.files import DamagedFileError, read_signed, sha256, write_atomically, write_signed
from networld_jax.types import Trajectories

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
FIELDS = tuple(Trajectories.__dataclass_fields__)


class DatasetError(DamagedFileError):
    """A dataset that cannot be trusted: missing, truncated, altered, or of another schema."""


# ---------------------------------------------------------------------------------------------------- in memory


def from_arrays(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    adjacency: np.ndarray,
    agent_mask: np.ndarray | None = None,
    is_demonstration: np.ndarray | None = None,
) -> Trajectories:
    """Trajectories out of logged arrays, enough to train and adapt without a simulator.

    Args:
      obs: [R, L+1, N, O] in the task's own units, the observation after the last action included.
      action: [R, L, N, A] as executed.
      reward: [R, L, N] local rewards.
      adjacency: [N, N] or [R, N, N] 1-hop graph with zero diagonal.
      agent_mask: [R, N], 1 = present (default: all).
      is_demonstration: [R, L], False = never imitate this action (default: all True).

    Raises ValueError when shapes disagree or an entry is not finite.
    """
    obs, action, reward = (np.asarray(x, np.float32) for x in (obs, action, reward))
    if obs.ndim != 4 or action.ndim != 4 or reward.ndim != 3:
        raise ValueError(
            "need obs [R, L+1, N, O], action [R, L, N, A], reward [R, L, N], "
            f"got shapes {obs.shape}, {action.shape}, {reward.shape}"
        )
    runs, steps, agents = reward.shape
    if obs.shape[:3] != (runs, steps + 1, agents) or action.shape[:3] != (runs, steps, agents):
        raise ValueError(
            f"reward {reward.shape} asks for obs {(runs, steps + 1, agents, 'O')} and action "
            f"{(runs, steps, agents, 'A')}, got {obs.shape} and {action.shape}"
        )
    adjacency = np.asarray(adjacency, np.float32)
    if adjacency.shape not in ((agents, agents), (runs, agents, agents)):
        raise ValueError(f"adjacency must be [N, N] or [R, N, N] with N = {agents}, got {adjacency.shape}")
    adjacency = np.broadcast_to(adjacency, (runs, agents, agents))
    if np.any(np.diagonal(adjacency, axis1=-2, axis2=-1) != 0):
        raise ValueError("adjacency must have a zero diagonal (an agent is no neighbour of itself)")
    for name, values in (("obs", obs), ("action", action), ("reward", reward), ("adjacency", adjacency)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name} holds a value that is not finite")
    mask = np.ones((runs, agents), np.float32) if agent_mask is None else np.asarray(agent_mask, np.float32)
    shown = np.ones((runs, steps), bool) if is_demonstration is None else np.asarray(is_demonstration, bool)
    if mask.shape != (runs, agents):
        raise ValueError(f"agent_mask must be [R, N] = {(runs, agents)}, got {mask.shape}")
    if shown.shape != (runs, steps):
        raise ValueError(f"is_demonstration must be [R, L] = {(runs, steps)}, got {shown.shape}")
    if np.any(adjacency * (1 - mask[:, :, None] * mask[:, None, :])):
        raise ValueError("adjacency must have zero rows and columns for every absent agent (agent_mask 0)")
    never = np.zeros((runs, steps), bool)
    return Trajectories(obs, action, reward, never, never, adjacency, mask, shown)


def spec_from_trajectories(name: str, trajectories: Trajectories, action_kind: str = "box") -> TaskSpec:
    """A TaskSpec for logged data without a simulator; action bounds are the data's."""
    num_obs, num_actions = trajectories.obs.shape[-1], trajectories.action.shape[-1]
    names = tuple(f"obs_{i}" for i in range(num_obs))
    flat = np.asarray(trajectories.action).reshape(-1, num_actions)
    return TaskSpec(
        name=name,
        max_agents=trajectories.obs.shape[-2],
        obs_dim=num_obs,
        action_dim=num_actions,
        action_kind=action_kind,
        action_low=tuple(flat.min(0).tolist()),
        action_high=tuple(flat.max(0).tolist()),
        obs_names=names,
        information=(Information(names, "own", 0, 0, "logged data"),),
    )


def concatenate(parts: Iterable[Trajectories]) -> Trajectories:
    """One Trajectories along R."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def take_steps(trajectories: Trajectories, num_steps: int) -> Trajectories:
    """The first `num_steps` agent-time steps per network, spread over as many trajectories as needed (few-shot sizes).

    Raises ValueError when the data holds fewer steps.
    """
    runs, length = trajectories.reward.shape[:2]
    if not 1 <= num_steps <= runs * length:
        raise ValueError(f"num_steps must lie in 1..{runs * length} (what the data holds), got {num_steps}")
    whole = min(runs, -(-num_steps // length))
    return _cut(trajectories, whole, min(length, -(-num_steps // whole)))


def _cut(trajectories: Trajectories, runs: int, keep: int, start: int = 0) -> Trajectories:
    """`keep` steps, from step `start` on, of the first `runs` trajectories."""
    cut = {
        "obs": keep + 1,
        "action": keep,
        "reward": keep,
        "terminated": keep,
        "truncated": keep,
        "is_demonstration": keep,
    }
    fields = {f: getattr(trajectories, f)[:runs] for f in FIELDS}
    return Trajectories(**{f: v[:, start : start + cut[f]] if f in cut else v for f, v in fields.items()})


def chop(trajectories: Trajectories, num_steps: int) -> Trajectories:
    """[R, L] steps as [R * (L // num_steps), num_steps]: the first piece of every trajectory, then the second piece of
    every one, and so on; a rest is left out.

    Raises ValueError when no piece fits.
    """
    runs, length = trajectories.reward.shape[:2]
    if not 1 <= num_steps <= length:
        raise ValueError(f"num_steps must lie in 1..{length} (one trajectory), got {num_steps}")
    starts = range(0, length - num_steps + 1, num_steps)
    return concatenate([_cut(trajectories, runs, num_steps, start) for start in starts])


def take_topologies(trajectories: Trajectories, num_topologies: int, num_steps: int) -> Trajectories:
    """The first num_steps / num_topologies steps of the first `num_topologies` trajectories: the same amount of data
    from more or fewer networks.

    Raises ValueError when the data holds too few or too short trajectories, or the division leaves a rest.
    """
    runs, length = trajectories.reward.shape[:2]
    each, rest = divmod(num_steps, max(num_topologies, 1))
    if not 1 <= num_topologies <= runs or rest or not 1 <= each <= length:
        raise ValueError(
            f"num_topologies must lie in 1..{runs} and divide num_steps into at most {length} steps each, "
            f"got {num_topologies} and {num_steps}"
        )
    return _cut(trajectories, num_topologies, each)


# ---------------------------------------------------------------------------------------------------- on disk


def shard_path(directory: Path, index: int) -> Path:
    """File of trajectory `index`."""
    return Path(directory) / f"shard_{index:05d}.npz"


def _smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers within 0..255 as uint8, everything else unchanged: integer tasks take a quarter of the space."""
    if values.dtype == np.float32 and values.size and values.min() >= 0 and values.max() <= 255:
        small = values.astype(np.uint8)
        if np.array_equal(small, values) and not np.signbit(values).any():  # -0.0 stays a float
            return small
    return values


def write_shard(directory: Path, index: int, trajectory: Trajectories) -> str:
    """Stores one trajectory (no leading R) and returns its sha256. Equal arrays give equal bytes."""
    arrays = {f: _smallest(np.asarray(getattr(trajectory, f))) for f in FIELDS}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    write_atomically(shard_path(directory, index), content)
    return hashlib.sha256(content).hexdigest()


def read_shard(directory: Path, index: int, expected_sha256: str | None = None) -> Trajectories:
    """One trajectory. Raises DatasetError, naming the file, when it is missing, truncated or altered."""
    path = shard_path(directory, index)
    if not path.exists():
        raise DatasetError(f"{path} is missing; run the collect stage again, it fills gaps")
    if expected_sha256 and sha256(path) != expected_sha256:
        raise DatasetError(f"{path} does not match its checksum (truncated or altered); delete it and collect again")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            fields = {f: arrays[f] for f in FIELDS}
    except (ValueError, KeyError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is no readable shard ({error}); delete it and collect again") from error
    keep = {"terminated", "truncated", "is_demonstration"}
    return Trajectories(**{f: v if f in keep else v.astype(np.float32) for f, v in fields.items()})


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Stores the manifest with its own checksum; the last file of a dataset to appear."""
    write_signed(Path(directory) / MANIFEST, {"schema_version": SCHEMA_VERSION, **manifest})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Raises DatasetError when the manifest is missing, unreadable, altered, or of another schema."""
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise DatasetError(f"{path} is missing: no dataset there, or its collection was interrupted; run collect again")
    try:
        manifest = read_signed(path)
    except DamagedFileError as error:
        raise DatasetError(f"{error}; delete it and run collect again, which keeps whole shards") from error
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise DatasetError(f"{path} has schema {manifest['schema_version']}, this version reads {SCHEMA_VERSION}")
    return manifest


def load(
    directory: Path | str, num_trajectories: int | None = None, rows: Iterable[int] | None = None
) -> tuple[Trajectories, dict[str, Any]]:
    """(Trajectories as NumPy arrays, manifest), every shard checked against its checksum.

    Args:
      num_trajectories: the first so many (default: all).
      rows: these trajectories only, repeats allowed: one host's share of a dataset.

    Raises DatasetError for a broken dataset, ValueError when it holds fewer trajectories than asked for.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    shards = manifest["shards"]
    wanted = len(shards) if num_trajectories is None else num_trajectories
    if not 1 <= wanted <= len(shards):
        raise ValueError(f"{directory} holds {len(shards)} trajectories, got num_trajectories={num_trajectories}")
    parts = [read_shard(directory, i, shards[i]["sha256"]) for i in (range(wanted) if rows is None else rows)]
    return jax.tree.map(lambda *xs: np.stack(xs), *parts), manifest
