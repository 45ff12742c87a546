"""Checkpoints and finished models (Orbax): atomic, restorable on another number of devices, no pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from networld_envs.types import Information, TaskSpec
from networld_jax.datasets import sha256, write_atomically
from networld_jax.training import PER_TASK
from networld_jax.types import Params, TaskStats, WorldModelConfig
from networld_jax.world_model import WorldModel, make_world_model

MODEL_FILE = "model.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit the run."""


class Checkpoints:
    """The numbered checkpoints of one run. Only whole checkpoints are ever visible (Orbax writes aside and renames)."""

    def __init__(self, directory: Path, max_to_keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def save(self, step: int, state: Any) -> None:
        """Stores a pytree under `step`."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, like: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest checkpoint shaped `like` the given pytree, or None when there is none.

        Raises CheckpointError when its structure or shapes differ.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        stored, wanted = _shapes(self._manager.item_metadata(step).tree), _shapes(like)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"checkpoint {self._manager.directory}/{step} does not fit this run ({name} has shape "
                    f"{stored.get(name)}, wanted {wanted.get(name)}); use another workdir or delete it"
                )
        state = self._manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))
        return step, state

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array. Compared before reading, since Orbax leaves a refused read half done."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf)) for path, leaf in leaves}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype if np.isscalar(x) else x.dtype)


# ---------------------------------------------------------------------------------------------------- finished models


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= _flatten(value, path + "/") if isinstance(value, Mapping) else {path: np.asarray(value)}
    return flat


def _unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def save_model(
    directory: Path, world_model: WorldModel, params: Params, stats: Mapping[str, TaskStats], **facts: Any
) -> None:
    """A finished model as `weights.npz` (plain arrays, names are paths) and `model.json` (configuration, task specs,
    checksum of the weights, and whatever `facts` say about its origin). `model.json` appears last."""
    directory = Path(directory)
    tree = {"params": params, "stats": {task: serialization.to_state_dict(s) for task, s in stats.items()}}
    buffer = io.BytesIO()
    np.savez(buffer, **_flatten(tree))
    write_atomically(directory / "weights.npz", buffer.getvalue())
    description = {
        "config": dataclasses.asdict(world_model.config),
        "specs": [dataclasses.asdict(spec) for spec in world_model.specs.values()],
        "weights_sha256": sha256(directory / "weights.npz"),
        "facts": facts,
    }
    signed = description | {"sha256": _digest(description)}
    write_atomically(directory / MODEL_FILE, json.dumps(signed, indent=1, sort_keys=True).encode())


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _read_description(path: Path) -> dict[str, Any]:
    """model.json without its checksum. Raises CheckpointError when missing, unreadable or altered."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing: no finished model there; run the stage that writes it")
    try:
        description = json.loads(path.read_bytes())
        claimed = description.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is no readable description of a model ({error})") from error
    if _digest(description) != claimed:
        raise CheckpointError(f"{path} does not match its checksum (altered)")
    return description


def load_model(directory: Path) -> tuple[WorldModel, Params, dict[str, TaskStats], dict[str, Any]]:
    """(world model, params, stats per task, facts). Raises CheckpointError when missing, truncated or altered."""
    directory = Path(directory)
    description = _read_description(directory / MODEL_FILE)
    try:
        config = WorldModelConfig(**_tuples(description["config"]))
        specs = [_spec_from_json(spec) for spec in description["specs"]]
        if sha256(directory / "weights.npz") != description["weights_sha256"]:
            raise CheckpointError(f"{directory / 'weights.npz'} does not match its checksum (truncated or altered)")
        with np.load(directory / "weights.npz", allow_pickle=False) as arrays:
            tree = _unflatten({name: jax.numpy.asarray(arrays[name]) for name in arrays.files})
    except (KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{directory} holds no readable model ({error})") from error
    world_model = make_world_model(config, specs)
    params = tree["params"]
    for name in PER_TASK:
        params.setdefault(name, {})
        for spec in specs:  # parameter-free subtrees (identity encoder) leave no array behind
            params[name].setdefault(spec.name, {})
    stats = {task: TaskStats(**s) for task, s in tree["stats"].items()}
    return world_model, params, stats, description["facts"]


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def _spec_from_json(fields: Mapping[str, Any]) -> TaskSpec:
    information = tuple(Information(**_tuples(block)) for block in fields["information"])
    return TaskSpec(**(_tuples(fields) | {"information": information}))
