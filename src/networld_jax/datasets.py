"""Offline data: arrays in memory, sharded files on disk, windows drawn inside the training scan.

On disk a dataset is a folder of `shard_00000.npz` (one trajectory each, uncompressed) and `manifest.json`. Every file
is written under a temporary name, fsynced and renamed, the manifest last, so a reader sees a whole dataset or an error.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.types import Information, TaskSpec
from networld_jax.files import DamagedFileError, read_signed, sha256, write_atomically, write_signed
from networld_jax.labels import LABELS
from networld_jax.mean_field import mean_field
from networld_jax.transforms import data_bins, symexp, symlog, two_hot
from networld_jax.types import Segments, TaskStats, Trajectories, Transitions, WorldModelConfig

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


def _cut(trajectories: Trajectories, runs: int, keep: int) -> Trajectories:
    """The first `keep` steps of the first `runs` trajectories."""
    cut = {
        "obs": keep + 1,
        "action": keep,
        "reward": keep,
        "terminated": keep,
        "truncated": keep,
        "is_demonstration": keep,
    }
    fields = {f: getattr(trajectories, f)[:runs] for f in FIELDS}
    return Trajectories(**{f: v[:, : cut[f]] if f in cut else v for f, v in fields.items()})


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


# ---------------------------------------------------------------------------------------------------- broken on purpose


def shuffle_time(key: jax.Array, trajectories: Trajectories) -> Trajectories:
    """Control: every trajectory's steps in random order, all agents alike. Observation, action and reward of a step
    stay together, so every marginal survives; what follows what does not."""
    runs, length = trajectories.reward.shape[:2]
    order = np.asarray(jax.vmap(lambda k: jax.random.permutation(k, length))(jax.random.split(key, runs)))
    fields = {}
    for name in FIELDS:
        values = np.array(getattr(trajectories, name))
        if name not in ("adjacency", "agent_mask"):
            values[:, :length] = np.stack([values[r, order[r]] for r in range(runs)])
        fields[name] = values
    return Trajectories(**fields)


def autoregressive(key: jax.Array, trajectories: Trajectories) -> Trajectories:
    """Control: observations replaced by noise that is merely smooth. In symlog units every entry follows

        x' = mu + rho (x - mu) + sqrt(1 - rho^2) sigma noise

    with its mean mu, std sigma and lag-1 correlation rho from the data, independent between agents and entries. Actions
    and rewards stay and have nothing to do with it.
    """
    present = np.asarray(trajectories.agent_mask)[:, None, :, None] > 0
    obs = np.asarray(symlog(jnp.asarray(trajectories.obs)), np.float64)
    count = np.broadcast_to(present, obs.shape).sum((0, 1, 2))
    mean = np.where(present, obs, 0.0).sum((0, 1, 2)) / count
    centred = np.where(present, obs - mean, 0.0)
    variance = (centred**2).sum((0, 1, 2)) / count
    num_pairs = np.broadcast_to(present, obs[:, 1:].shape).sum((0, 1, 2))
    lagged = (centred[:, 1:] * centred[:, :-1]).sum((0, 1, 2)) / num_pairs
    rho = np.clip(np.where(variance > 0, lagged / np.where(variance > 0, variance, 1.0), 0.0), 0.0, 1.0)
    noise = np.asarray(jax.random.normal(key, obs.shape), np.float64)
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, x.shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    squashed = jnp.asarray(mean + np.sqrt(variance) * x, jnp.float32)
    synthetic = np.where(present, np.asarray(symexp(squashed), np.float32), 0.0)
    return trajectories.replace(obs=synthetic.astype(np.float32))


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


# ---------------------------------------------------------------------------------------------------- statistics


def normalise_obs(obs: jax.Array, stats: TaskStats) -> jax.Array:
    """Standardised symlog of raw observations [..., O]."""
    leading = tuple(range(obs.ndim - 1))
    return (symlog(obs) - jnp.expand_dims(stats.obs_mean, leading)) / jnp.expand_dims(stats.obs_std, leading)


def present_rows(trajectories: Trajectories, field: str) -> np.ndarray:
    """`obs`, `action` or `reward` of present agents at all steps, [rows, ...]."""
    values = np.asarray(getattr(trajectories, field), np.float32)
    present = np.asarray(trajectories.agent_mask)[:, None, :] > 0
    return values[np.broadcast_to(present, values.shape[:3])]


def action_bins(trajectories: Trajectories, spec: TaskSpec, num_bins: int) -> np.ndarray:
    """Two-hot bin centres [A, M] per action component.

    Integer actions: one bin per integer of the task's range. Box actions: `transforms.data_bins` over the range of the
    present agents' data only.
    """
    if spec.action_kind == "integer":
        grid = np.arange(min(spec.action_low), max(spec.action_high) + 1)
        return np.tile(grid[None], (spec.action_dim, 1)).astype(np.float32)
    flat = present_rows(trajectories, "action")
    return np.asarray(data_bins(flat.min(0), flat.max(0), num_bins))


def task_stats(
    trajectories: Trajectories,
    spec: TaskSpec,
    model: WorldModelConfig | None = None,
    discount: float = 0.95,
    min_std: float = 1e-2,
) -> TaskStats:
    """Normalisation constants from training data only.

    Args:
      model: horizon, latent size and number of action bins (default: WorldModelConfig()).
      discount: of the return labels; windows of the model's horizon at every half horizon are labelled.
      min_std: floor of the observation std in symlog units, so that a nearly constant entry is not blown up.
    """
    model = model or WorldModelConfig()
    rows = present_rows(trajectories, "obs")
    squashed = np.sign(rows) * np.log1p(np.abs(rows))
    rewards = present_rows(trajectories, "reward")
    bins = action_bins(trajectories, spec, model.num_action_bins)
    actions = present_rows(trajectories, "action")
    actions = actions[:: max(1, len(actions) // 50_000)]
    histogram = np.asarray(jax.vmap(two_hot, in_axes=(1, 0))(jnp.asarray(actions), jnp.asarray(bins))).mean(1)
    mean, std = {}, {}
    for name, label_fn in LABELS.items():
        values = _all_labels(trajectories, lambda segments, f=label_fn: f(segments, discount), model.horizon)
        mean[name], std[name] = np.float32(values.mean()), np.float32(max(values.std(), 1e-6))
    obs_mean = squashed.mean(0, dtype=np.float64).astype(np.float32)
    obs_std = np.maximum(squashed.std(0, dtype=np.float64), min_std).astype(np.float32)
    stats = TaskStats(
        obs_mean=obs_mean,
        obs_std=obs_std,
        latent_mean=np.zeros(model.latent_dim, np.float32),
        latent_std=np.ones(model.latent_dim, np.float32),
        surprise=_latent_surprise(trajectories, model, obs_mean, obs_std),
        return_mean=mean,
        return_std=std,
        reward_mean=np.float32(rewards.mean()),
        reward_std=np.float32(max(rewards.std(), 1e-6)),
        action_bins=bins,
        action_log_histogram=np.log(histogram + 1e-3).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, stats)


def surprise(z: np.ndarray, adjacency: np.ndarray, agent_mask: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """How much of every channel one step leaves open: rms residual of the ridge regression of z_{t+1} on (z_t, m_t, 1).

    A copied channel has 0, white noise its standard deviation. It is the scale on which plans differ, so the noise of
    the inverse dynamics and the steps of guidance are counted in it.

    Args: z [R, L+1, N, D] latents; adjacency [R, N, N]; agent_mask [R, N]. Returns [D].
    """
    z = np.asarray(z, np.float64)
    weights = adjacency / np.maximum(adjacency.sum(-1, keepdims=True), 1.0)
    m = np.einsum("rij,rtjd->rtid", weights, z)
    present = np.broadcast_to(np.asarray(agent_mask)[:, None, :] > 0, z[:, 1:].shape[:3])
    inputs = np.concatenate([z[:, :-1], m[:, :-1], np.ones_like(z[:, :-1, :, :1])], -1)[present]
    targets = z[:, 1:][present]
    gram = inputs.T @ inputs + ridge * len(inputs) * np.eye(inputs.shape[1])
    errors = targets - inputs @ np.linalg.solve(gram, inputs.T @ targets)
    return np.sqrt(np.mean(errors**2, 0))


MIN_SURPRISE = 0.1  # a sampled plan is off by about this much even where the data repeat themselves


def _latent_surprise(
    trajectories: Trajectories, model: WorldModelConfig, obs_mean: np.ndarray, obs_std: np.ndarray
) -> np.ndarray:
    """`surprise` of the identity encoder's latents, at least MIN_SURPRISE; ones for latents that are yet to be
    learned."""
    known = np.ones(model.latent_dim, np.float32)
    if model.encoder == "identity":
        obs = np.asarray(trajectories.obs, np.float64)
        z = (np.sign(obs) * np.log1p(np.abs(obs)) - obs_mean) / obs_std
        rms = surprise(z, np.asarray(trajectories.adjacency), np.asarray(trajectories.agent_mask))
        known[: obs.shape[-1]] = np.maximum(rms, MIN_SURPRISE)[: model.latent_dim]
    return known


def _all_labels(trajectories: Trajectories, label_fn: Callable[[Segments], jax.Array], horizon: int) -> np.ndarray:
    """Labels of present agents over windows every horizon / 2 steps, flattened."""
    values = []
    for r in range(trajectories.reward.shape[0]):
        starts = np.arange(0, trajectories.reward.shape[1] - horizon + 1, max(1, horizon // 2))
        where = np.stack([np.full_like(starts, r), starts], -1)
        segments = windows(trajectories, where, horizon, message_delay=0)
        label = np.asarray(label_fn(segments))
        values.append(label[np.asarray(segments.agent_mask) > 0])
    return np.concatenate(values)


# ---------------------------------------------------------------------------------------------------- windows


def windows(trajectories: Trajectories, where: jax.Array, horizon: int, message_delay: int) -> Segments:
    """Segments at given places. `where` [B, 2] int: (trajectory, start). Windows never cross trajectories.

    Messages at step t carry observations of step max(t - message_delay, 0). NumPy arrays in, NumPy arrays out: the same
    windows on the host.
    """
    run, begin = where[:, 0], where[:, 1]
    t = begin[:, None] + np.arange(horizon + 1)[None]
    late = (t - message_delay).clip(0)
    agent_major = lambda x: x.swapaxes(1, 2)  # noqa: E731

    obs = agent_major(trajectories.obs[run[:, None], t])
    message_obs = obs if message_delay == 0 else agent_major(trajectories.obs[run[:, None], late])
    return Segments(
        obs=obs,
        message_obs=message_obs,
        action=agent_major(trajectories.action[run[:, None], t[:, :-1]]),
        reward=agent_major(trajectories.reward[run[:, None], t[:, :-1]]),
        is_demonstration=trajectories.is_demonstration[run[:, None], t[:, :-1]],
        start=begin,
        adjacency=trajectories.adjacency[run],
        agent_mask=trajectories.agent_mask[run],
    )


def sample_segments(
    key: jax.Array,
    trajectories: Trajectories,
    batch_size: int,
    horizon: int,
    message_delay: int = 0,
    *,
    num_trajectories: int | None = None,
    windows_fn: Callable[[Trajectories, jax.Array, int, int], Segments] = windows,
) -> Segments:
    """`batch_size` windows, uniform over trajectories and starts. Pure: runs inside the training scan.

    Args:
      num_trajectories: draw among the first so many (default: all); a dataset split over devices is padded.
      windows_fn: how windows are cut, see `sharding.make_windows`.

    Raises ValueError when the trajectories are shorter than the horizon.
    """
    runs, length = trajectories.reward.shape[:2]
    where = sample_places(key, num_trajectories or runs, num_starts(length, horizon), batch_size)
    return windows_fn(trajectories, where, horizon, message_delay)


def num_starts(length: int, horizon: int) -> int:
    """Windows that a trajectory holds. Raises ValueError when there is none."""
    if length < horizon:
        raise ValueError(f"trajectories of {length} steps hold no window of horizon {horizon}; use a smaller horizon")
    return length - horizon + 1


def sample_places(key: jax.Array, num_runs: int, num_starts: int, batch_size: int) -> jax.Array:
    """[B, 2] int32 (trajectory, start), each uniform."""
    run_key, start_key = jax.random.split(key)
    run = jax.random.randint(run_key, (batch_size,), 0, num_runs)
    begin = jax.random.randint(start_key, (batch_size,), 0, num_starts)
    return jnp.stack([run, begin], -1)


def sample_transitions(
    key: jax.Array, trajectories: Trajectories, stats: TaskStats, batch_size: int, message_delay: int = 0
) -> Transitions:
    """About `batch_size` agent transitions: batch_size / N joint steps with the agent axis folded. Pure."""
    num_agents = trajectories.reward.shape[-1]
    joint = max(1, batch_size // num_agents)
    segments = sample_segments(key, trajectories, joint, 1, message_delay)
    return transitions(segments, stats)


def transitions(segments: Segments, stats: TaskStats) -> Transitions:
    """Agent transitions of windows of horizon 1, [B * N] rows."""
    obs = normalise_obs(segments.obs, stats)
    heard = normalise_obs(segments.message_obs, stats)
    mean = mean_field(jnp.swapaxes(heard, 1, 2), segments.adjacency[:, None])  # [B, 2, N, O]
    weight = segments.agent_mask * segments.is_demonstration  # [B, N] * [B, 1]
    fold = lambda x: x.reshape((-1,) + x.shape[2:])  # noqa: E731
    return Transitions(
        obs=fold(obs[:, :, 0]),
        next_obs=fold(obs[:, :, 1]),
        neighbour_mean=fold(mean[:, 0]),
        next_neighbour_mean=fold(mean[:, 1]),
        action=fold(segments.action[:, :, 0]),
        reward=fold(segments.reward[:, :, 0]),
        terminated=jnp.zeros(weight.size, bool),  # continuing tasks: a cut is a truncation, bootstrapping goes on
        agent_mask=segments.agent_mask.reshape(-1),
        weight=weight.reshape(-1),
    )
