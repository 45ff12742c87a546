"""Checkpoints and finished models (Orbax): atomic, restorable on another number of devices, no pickle."""

from __future__ import annotations

import dataclasses
import io
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from networld_envs.types import Information, TaskSpec
from networld_jax.files import DamagedFileError, read_signed, sha256, sync_folder, write_atomically, write_signed
from networld_jax.sharding import wait_for_all
from networld_jax.training import PER_TASK
from networld_jax.types import Params, TaskStats, WorldModelConfig
from networld_jax.world_model import WorldModel, make_world_model

MODEL_FILE = "model.json"
SUMS_FILE = "sha256.json"


class CheckpointError(ValueError):
    """A checkpoint or model that is missing, damaged, or does not fit the run."""


class Checkpoints:
    """The numbered checkpoints of one run, each with the checksums of all its files.

    Orbax writes aside and renames, the checksums follow last: a checkpoint without them was cut short. Damaged
    checkpoints are moved to `<directory>_damaged/`, never deleted, and the newest intact one is used.

    Args:
      report_fn: told in one line about everything that is wrong with a checkpoint (default: a Python warning).
    """

    def __init__(
        self, directory: Path, max_to_keep: int = 2, report_fn: Callable[[str], None] | None = None
    ):
        self._directory = Path(directory).absolute()
        self._report = report_fn or warnings.warn
        self._set_aside_damaged()
        wait_for_all(f"checkpoints in {self._directory} checked")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def _set_aside_damaged(self) -> None:
        """Newest first, up to the first intact checkpoint: older ones are not needed and not read."""
        if jax.process_index() != 0:
            return
        for step in reversed(steps(self._directory)):
            folder = self._directory / str(step)
            problem = damage(folder)
            if problem is None:
                return
            target = self._directory.with_name(f"{self._directory.name}_damaged") / str(step)
            shutil.rmtree(target, ignore_errors=True)  # damaged twice at one step: the later one is kept
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
            sync_folder(self._directory)
            self._report(f"checkpoint {folder} is damaged ({problem}); moved to {target}, the one before is used")

    def save(self, step: int, state: Any) -> None:
        """Stores a pytree under `step`. Raises OSError naming the checkpoint when it cannot be written."""
        folder = self._directory / str(step)
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
            self._manager.wait_until_finished()
        except Exception as error:  # tensorstore reports a full disk as ValueError, others as OSError
            reason = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(0, f"checkpoint cannot be written ({reason}); the one before is kept", str(folder)) from error
        if jax.process_index() == 0:
            write_signed(folder / SUMS_FILE, {"step": step, "files": _sums(folder)})

    def restore_latest(self, like: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest intact checkpoint shaped `like` the given pytree, or None when there is none.

        Arrays land on the devices of `like`, however many devices saved them.

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


def steps(directory: Path) -> list[int]:
    """Numbers of the checkpoints in a folder, ascending; empty when there is no folder."""
    folders = Path(directory).iterdir() if Path(directory).exists() else ()
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def _sums(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file of a checkpoint but the list itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS_FILE)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None when every file is there with its bytes and no other."""
    try:
        wanted = read_signed(folder / SUMS_FILE)["files"]
    except FileNotFoundError:
        return f"{SUMS_FILE} is missing: it was cut short"
    except DamagedFileError as error:
        return str(error)
    found = _sums(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "is altered" if name in wanted else "does not belong to it"
            return f"{name} {what}"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array. Compared before reading, since Orbax leaves a refused read half done."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf)) for path, leaf in leaves}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of a leaf; without a place Orbax would look for the devices that saved it."""
    dtype = np.asarray(x).dtype if np.isscalar(x) else x.dtype
    return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=x.sharding if isinstance(x, jax.Array) else None)


# ---------------------------------------------------------------------------------------------------- finished models


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
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
    write_signed(directory / MODEL_FILE, description)


def _read_description(path: Path) -> dict[str, Any]:
    """model.json without its checksum. Raises CheckpointError when missing, unreadable or altered."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing: no finished model there; run the stage that writes it")
    try:
        return read_signed(path)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error


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
    except (KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
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
