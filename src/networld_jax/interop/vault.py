"""OG-MARL's dataset format: a Flashbax Vault out of a dataset tier, and a dataset out of a Vault.

A Vault `<rel_dir>/<name>.vlt/<uid>` holds one stream of joint steps (Formanek et al., Off-the-Grid MARL, 2023):

    observations [1, T, N, O]    actions [1, T, N, A] float32, or [1, T, N] int32 indices    rewards [1, T, N]
    terminals, truncations [1, T, N] bool    infos: state [1, T, N O], legals [1, T, N, n] bool (discrete only)

Trajectories follow one another; each ends in a truncation (these tasks never terminate), so OG-MARL's `analyse_vault`
needs done_flags=("terminals", "truncations"). What the format has no place for (the observation after the last action,
graph, present agents, disturbed steps) lies in `networld.npz` beside it, with `networld.json` on top: our own Vaults
come back bit for bit. For a Vault of somebody else the graph must be given, and the last step of each episode is lost:
its following observation was not stored.

Needs `pip install 'networld-jax[vault]'`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from networld_jax import datasets
from networld_jax.files import read_signed, sha256, write_atomically, write_signed
from networld_jax.types import Trajectories

SIDE_ARRAYS, SIDE_FACTS = "networld.npz", "networld.json"
FORMAT = "networld-vault/1"
KEPT_FACTS = ("action_kind", "action_low", "action_high", "obs_names", "request", "reference_scores")


class VaultError(ValueError):
    """A Vault that is missing, damaged, or whose episodes do not fit what is asked for."""


def _flashbax():
    """(Vault, TrajectoryBufferState). Raises ImportError with the command that helps."""
    try:
        from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
        from flashbax.vault import Vault
    except ImportError as error:
        raise ImportError(f"Vaults need flashbax ({error}): pip install 'networld-jax[vault]'") from error
    return Vault, TrajectoryBufferState


def _quietly(function, *args, **kwargs):
    """Vault reports on standard output; commands here keep that for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


# ------------------------------------------------------------------------------------------------------ export


def joint_steps(trajectory: Trajectories, action_kind: str, num_actions: int, first_action: int) -> dict[str, Any]:
    """One trajectory (no leading R) in OG-MARL's names and shapes, [1, L, ...]; its last step ends an episode.

    Args:
      action_kind: "box" or "integer"; integer actions of one component become indices from 0.
      num_actions: n of an integer action; of every agent, absent ones may only choose 0.
      first_action: the integer that index 0 stands for.
    """
    obs, mask = np.asarray(trajectory.obs, np.float32)[:-1], np.asarray(trajectory.agent_mask) > 0
    length, num_agents = obs.shape[:2]
    terminated = np.asarray(trajectory.terminated, bool)
    truncated = np.asarray(trajectory.truncated, bool).copy()
    truncated[-1] = not terminated[-1]
    by_agent = lambda flag: np.broadcast_to(flag[None, :, None], (1, length, num_agents)).copy()  # noqa: E731
    action = np.asarray(trajectory.action, np.float32)
    infos = {"state": obs.reshape(1, length, -1)}
    if action_kind == "integer":
        action = np.round(action[..., 0]).astype(np.int32) - np.int32(first_action)
        legal = mask[:, None] | (np.arange(num_actions)[None, :] == 0)
        infos["legals"] = np.broadcast_to(legal, (1, length, num_agents, num_actions)).copy()
    return {
        "observations": obs[None],
        "actions": action[None],
        "rewards": np.asarray(trajectory.reward, np.float32)[None],
        "terminals": by_agent(terminated),
        "truncations": by_agent(truncated),
        "infos": infos,
    }


def statistics(rewards: np.ndarray, agent_mask: np.ndarray) -> dict[str, Any]:
    """Episode returns of rewards [R, L, N]: of the mean over present agents, and of agent 0, which OG-MARL reports."""
    present = agent_mask.sum(-1)
    returns = {
        "mean_over_agents": (rewards.sum(1) * agent_mask).sum(-1) / present,
        "agent_0": rewards[:, :, 0].sum(1),
    }
    shown = {
        name: {"mean": float(r.mean()), "std": float(r.std()), "min": float(r.min()), "max": float(r.max())}
        for name, r in returns.items()
    }
    return {"episodes": len(rewards), "transitions": int(rewards.shape[0] * rewards.shape[1]), "episode_return": shown}


def export_vault(directory: Path | str, vault: Path | str) -> Path:
    """Writes the dataset in `directory` as the Vault `<anything>/<name>.vlt/<uid>`; returns its path.

    Shard by shard, so memory holds one trajectory.

    Raises:
      DatasetError: a broken dataset.
      VaultError: a Vault that exists already, or integer actions of several components.
      ImportError: flashbax is not installed.
    """
    Vault, BufferState = _flashbax()
    directory, vault = Path(directory), Path(vault).absolute()
    manifest = datasets.read_manifest(directory)
    if vault.exists():
        raise VaultError(f"{vault} exists already; delete it or choose another name")
    shards = manifest["shards"]
    read = lambda i: datasets.read_shard(directory, i, shards[i]["sha256"])  # noqa: E731
    kind, (low, high) = manifest.get("action_kind", "box"), _action_range(manifest, directory)
    names = ("obs_last", "adjacency", "agent_mask", "terminated", "truncated", "is_demonstration", "reward")
    store, kept = None, dict[str, list[np.ndarray]]({name: [] for name in names})
    for i in range(len(shards)):
        trajectory = read(i)
        if kind == "integer" and trajectory.action.shape[-1] != 1:
            raise VaultError(f"integer actions must have one component, got {trajectory.action.shape[-1]}")
        steps = joint_steps(trajectory, kind, high - low + 1, low)
        if store is None:
            store = _quietly(Vault, vault.parent.name, steps, str(vault.parent.parent), vault.name)
        length = steps["rewards"].shape[1]
        state = BufferState(experience=steps, current_index=np.int32(length), is_full=np.bool_(True))
        store.write(state, source_interval=(0, length))
        kept["obs_last"].append(np.asarray(trajectory.obs)[-1])
        for name in kept.keys() - {"obs_last"}:
            kept[name].append(np.asarray(getattr(trajectory, name)))
    arrays = {name: np.stack(values) for name, values in kept.items()}
    rewards = arrays.pop("reward")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(vault / SIDE_ARRAYS, buffer.getvalue())
    facts = {
        "format": FORMAT,
        "action_kind": kind,
        "action_low": [low],
        "action_high": [high],
        "num_steps": int(rewards.shape[1]),
        "arrays_sha256": sha256(vault / SIDE_ARRAYS),
        "statistics": statistics(rewards, arrays["agent_mask"]) | {"features": manifest.get("statistics", {})},
    } | {name: manifest[name] for name in KEPT_FACTS[3:] if name in manifest}
    write_signed(vault / SIDE_FACTS, facts)
    return vault


def _action_range(manifest: Mapping[str, Any], directory: Path) -> tuple[int, int]:
    """(smallest, largest) integer action: the task's where the manifest knows it, else the data's. (0, 0) for a box."""
    if manifest.get("action_kind", "box") != "integer":
        return 0, 0
    if "action_low" in manifest:
        return int(manifest["action_low"][0]), int(manifest["action_high"][0])
    actions = [datasets.read_shard(directory, i).action for i in range(len(manifest["shards"]))]
    return int(min(a.min() for a in actions)), int(max(a.max() for a in actions))


# ------------------------------------------------------------------------------------------------------ import


def read_vault(
    vault: Path | str,
    adjacency: np.ndarray | None = None,
    num_steps: int | None = None,
    agent_mask: np.ndarray | None = None,
) -> tuple[Trajectories, dict[str, Any]]:
    """(Trajectories as NumPy arrays, facts: action_kind and what the exporter wrote) of a Vault.

    Args:
      adjacency: [N, N] 1-hop graph; needed for a Vault that we did not write.
      num_steps: cut every episode into pieces of this many steps, and drop what is left over (None: episodes must be
        equally long).
      agent_mask: [N], 1 = present (None: all).

    Raises:
      VaultError: no Vault there, a damaged one, no graph, or episodes of different lengths.
      ImportError: flashbax is not installed.
    """
    Vault, _ = _flashbax()
    vault = Path(vault).absolute()
    if not (vault / "metadata.json").exists():
        raise VaultError(f"{vault} is no Vault (no metadata.json); a Vault is <name>.vlt/<uid>")
    store = _quietly(Vault, vault.parent.name, None, str(vault.parent.parent), vault.name)
    experience = jax.tree.map(np.asarray, store.read().experience)
    if missing := {"observations", "actions", "rewards", "terminals", "truncations"} - experience.keys():
        raise VaultError(f"{vault} has no {sorted(missing)}; found {sorted(experience)}")
    facts, side = _read_side(vault)
    if side is not None and num_steps is None and adjacency is None:
        return _ours(experience, side, facts), facts
    if adjacency is None:
        if side is None:
            raise VaultError(f"{vault} was written elsewhere and holds no graph: pass adjacency [N, N], 1 = one hop")
        raise VaultError("num_steps cuts a Vault as if it came from elsewhere: pass adjacency too")
    facts = {"action_kind": "integer" if np.issubdtype(experience["actions"].dtype, np.integer) else "box"}
    if "legals" in experience.get("infos", {}) and facts["action_kind"] == "integer":
        facts |= {"action_low": [0], "action_high": [experience["infos"]["legals"].shape[-1] - 1]}
    return _theirs(experience, np.asarray(adjacency, np.float32), num_steps, agent_mask, vault), facts


def read_facts(vault: Path | str) -> dict[str, Any]:
    """What `export_vault` wrote down about a Vault of ours: statistics, action range, origin.

    Raises FileNotFoundError, DamagedFileError, or VaultError for another format.
    """
    path = Path(vault) / SIDE_FACTS
    facts = read_signed(path)
    if facts.get("format") != FORMAT:
        raise VaultError(f"{path} has format {facts.get('format')!r}, this version reads {FORMAT!r}")
    return facts


def _read_side(vault: Path) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    if not (vault / SIDE_FACTS).exists():
        return {}, None
    facts = read_facts(vault)
    try:
        if sha256(vault / SIDE_ARRAYS) != facts["arrays_sha256"]:
            raise VaultError(f"{vault / SIDE_ARRAYS} does not match its checksum (truncated or altered)")
        with open(vault / SIDE_ARRAYS, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return facts, {name: arrays[name] for name in arrays.files}
    except (KeyError, TypeError, OSError) as error:
        raise VaultError(f"{vault / SIDE_ARRAYS} is not readable ({error})") from error


def _actions(experience: Mapping[str, np.ndarray], first_action: int) -> np.ndarray:
    actions = experience["actions"][0]
    actions = actions[..., None] if actions.ndim == 2 else actions  # [T, N] indices -> [T, N, 1]
    return actions.astype(np.float32) + np.float32(first_action if np.issubdtype(actions.dtype, np.integer) else 0)


def _ours(experience: Mapping[str, np.ndarray], side: dict[str, np.ndarray], facts: dict[str, Any]) -> Trajectories:
    length = facts["num_steps"]
    runs = len(side["obs_last"])
    split = lambda x: x.reshape(runs, length, *x.shape[1:])  # noqa: E731
    if experience["rewards"].shape[1] != runs * length:
        raise VaultError(f"the Vault holds {experience['rewards'].shape[1]} steps, {SIDE_FACTS} says {runs} x {length}")
    obs = np.concatenate([split(experience["observations"][0]), side["obs_last"][:, None]], axis=1)
    return Trajectories(
        obs=obs,
        action=split(_actions(experience, facts["action_low"][0])),
        reward=split(experience["rewards"][0]),
        terminated=side["terminated"],
        truncated=side["truncated"],
        adjacency=side["adjacency"],
        agent_mask=side["agent_mask"],
        is_demonstration=side["is_demonstration"],
    )


def _theirs(
    experience: Mapping[str, np.ndarray],
    adjacency: np.ndarray,
    num_steps: int | None,
    agent_mask: np.ndarray | None,
    vault: Path,
) -> Trajectories:
    terminal = experience["terminals"][0].astype(bool).all(-1)
    over = terminal | experience["truncations"][0].astype(bool).all(-1)
    ends = np.append(np.flatnonzero(over), len(over) - 1)  # what follows the last end is an episode that was cut
    starts = np.append(0, ends[:-1] + 1)
    episodes = [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b > a]  # b: row of the last observation
    if num_steps is None:
        lengths = sorted({b - a for a, b in episodes})
        if len(lengths) != 1:
            raise VaultError(
                f"{vault} has episodes of {lengths[0]} to {lengths[-1]} steps; num_steps cuts them into equal pieces"
            )
        num_steps = lengths[0]
    if num_steps < 1:
        raise VaultError(f"num_steps must be at least 1, got {num_steps}")
    pieces = [first for a, b in episodes for first in range(a, b - num_steps + 1, num_steps)]
    if not pieces:
        raise VaultError(f"{vault} has no episode of {num_steps} steps and a following observation")
    rows = np.array(pieces)[:, None] + np.arange(num_steps + 1)[None, :]
    mask = None if agent_mask is None else np.tile(np.asarray(agent_mask, np.float32), (len(pieces), 1))
    data = datasets.from_arrays(
        experience["observations"][0][rows],
        _actions(experience, 0)[rows[:, :-1]],
        experience["rewards"][0][rows[:, :-1]],
        adjacency,
        agent_mask=mask,
    )
    return data.replace(terminated=terminal[rows[:, :-1]])


def import_vault(
    vault: Path | str,
    directory: Path | str,
    adjacency: np.ndarray | None = None,
    num_steps: int | None = None,
    agent_mask: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes a Vault as a dataset of ours into `directory`; returns its manifest. Arguments and errors of `read_vault`.

    Raises DatasetError when a dataset is there already.
    """
    directory = Path(directory)
    if (directory / datasets.MANIFEST).exists():
        raise datasets.DatasetError(f"{directory} holds a dataset already; delete it or choose another folder")
    data, facts = read_vault(vault, adjacency, num_steps, agent_mask)
    shards = []
    for i in range(len(data.reward)):
        digest = datasets.write_shard(directory, i, jax.tree.map(lambda x: x[i], data))  # noqa: B023
        shards.append({"file": datasets.shard_path(directory, i).name, "sha256": digest})
    manifest = {k: facts[k] for k in KEPT_FACTS if facts.get(k)}
    manifest |= {"shards": shards, "statistics": facts.get("statistics", {}).get("features", {})}
    datasets.write_manifest(directory, manifest | {"imported_from": str(vault)})
    return datasets.read_manifest(directory)
