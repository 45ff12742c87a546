"""Damages stored files at random and counts how often that is noticed and named.

python -m tools.fuzz [--corruptions=400] [--seed=0] [--publish]

Every kind of file that the stages write is damaged in turn: a flipped bit, a cut, a block of zeros, a byte too many, a
line taken out or doubled, a file that is gone. Reading it must end in an error or a warning that names the file (for
checkpoints: in the state of the one before), never in data.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import collect, runtime
from networld_jax import checkpoints, datasets, normalisation, training
from networld_jax.types import WorldModelConfig
from networld_jax.world_model import make_world_model
from tools import reliability

Read = Callable[[Path], str | None]
"""(folder) -> what the user is told about damage in it, None when all seems well."""


class Kind(NamedTuple):
    """Files that are read together."""

    pattern: str  # which files of the folder to damage
    read: Read
    is_needed: bool = True  # False: the file may be absent, and then is written


# ---------------------------------------------------------------------------------------------------- intact files


def data(seed: int, runs: int = 2, steps: int = 6, agents: int = 3):
    """Small random trajectories."""
    rng = np.random.default_rng(seed)
    graph = np.eye(agents, k=1) + np.eye(agents, k=-1)
    draw = lambda *shape: rng.normal(size=(runs, *shape))  # noqa: E731
    return datasets.from_arrays(draw(steps + 1, agents, 3), draw(steps, agents, 2), draw(steps, agents), graph)


def train_state(step: int):
    """A state that can be told apart from those of other steps."""
    params = {"a": {"kernel": jnp.full((4, 8), step, jnp.float32)}, "b": jnp.float32(step)}
    return training.init_train_state(params, training.make_optimiser(1e-3)).replace(step=jnp.int32(step))


def write_everything(folder: Path) -> None:
    """One of each kind of file."""
    trajectories = data(0)
    shards, log = [], collect.open_shard_log(folder / "data")
    for i in range(len(trajectories.reward)):
        digest = datasets.write_shard(folder / "data", i, jax.tree.map(lambda x: x[i], trajectories))  # noqa: B023
        shards.append({"file": datasets.shard_path(folder, i).name, "sha256": digest})
        log.append({"index": i, "sha256": digest})
    datasets.write_manifest(folder / "data", {"shards": shards, "rate": 1e-5})
    store = checkpoints.Checkpoints(folder / "run" / "checkpoints")
    metrics = runtime.MetricsLog(folder / "run" / "metrics.jsonl")
    for step in (1, 2):
        metrics.write(step, {"loss": 1 / 3 / step, "latent_std": 0.9})
        store.save(step, train_state(step))
    store.close()
    runtime.save_config(ml_collections.ConfigDict({"seed": 3}), folder / "run", "stage", ("seed",))
    spec = datasets.spec_from_trajectories("line", trajectories)
    config = WorldModelConfig(latent_dim=3, horizon=4, width=8, width_mults=(1,), num_action_bins=5)
    model = make_world_model(config, [spec])
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0)))
    stats = normalisation.task_stats(trajectories, spec, config)
    checkpoints.save_model(folder / "model", model, params, {"line": stats}, stage="fuzz")


# ---------------------------------------------------------------------------------------------------- readers


def told(function: Callable[[], Any]) -> str | None:
    """The message of the error that a stage would show, or what it printed as a warning."""
    screen = io.StringIO()
    console, runtime.console.file = runtime.console.file, screen
    try:
        function()
    except (ValueError, OSError) as error:
        return runtime.one_line(error)
    finally:
        runtime.console.file = console
    return screen.getvalue().replace("\n", " ") or None


def open_shard_log(folder: Path) -> None:
    """What collect does before it goes on with a dataset."""
    collect.open_shard_log(folder / "data")
    collect.finished_shards(folder / "data")


def read_checkpoint(folder: Path) -> str | None:
    """Names the damage, and the state restored is the one before, whole."""
    lines: list[str] = []
    with contextlib.closing(checkpoints.Checkpoints(folder / "run" / "checkpoints", report_fn=lines.append)) as store:
        step, state = store.restore_latest(train_state(0))
    if not lines:
        return None
    if step != 1 or not jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), state, train_state(1))):
        return None
    return lines[0]


KINDS: dict[str, Kind] = {
    "shard": Kind("data/shard_*.npz", lambda f: told(lambda: datasets.load(f / "data"))),
    "manifest": Kind("data/manifest.json", lambda f: told(lambda: datasets.load(f / "data"))),
    "shard log": Kind("data/shards.jsonl", lambda f: told(lambda: open_shard_log(f))),
    "checkpoint": Kind("run/checkpoints/2/**/*", read_checkpoint),
    "metrics": Kind("run/metrics.jsonl", lambda f: told(lambda: runtime.read_metrics(f / "run/metrics.jsonl", 2))),
    "stored configuration": Kind(
        "run/stage_config.json",
        lambda f: told(lambda: runtime.save_config(ml_collections.ConfigDict({"seed": 3}), f / "run", "stage", ())),
        is_needed=False,
    ),
    "model": Kind("model/*", lambda f: told(lambda: checkpoints.load_model(f / "model"))),
}


# ---------------------------------------------------------------------------------------------------- damage


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def zero_block(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content)), rng.randint(1, 64)
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def extend(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice((b"\n", b" ", b"\0", b"}", content[-20:]))


def take_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.pop(rng.randrange(len(lines)))
    return b"".join(lines)


def double_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def remove(content: bytes, rng: random.Random) -> None:
    return None


DAMAGES = (flip_bit, flip_bit, flip_bit, cut, cut, zero_block, extend, take_line, double_line, remove)
"""Bits and cuts more often: they are what disks and crashes do."""


def damage(path: Path, rng: random.Random, may_remove: bool = True) -> str:
    """Changes a file in place; says how."""
    before = path.read_bytes()
    while True:
        how = rng.choice(DAMAGES) if before else extend
        after = how(before, rng)
        if after is None and may_remove:
            path.unlink()
            return "removed"
        if after is not None and after != before:
            path.write_bytes(after)
            return how.__name__


def is_named(message: str | None, path: Path, folder: Path) -> bool:
    """Whether a message says which file (or checkpoint) is meant."""
    if message is None:
        return False
    is_checkpoint = "checkpoints" in path.parts
    return (str(folder / "run" / "checkpoints" / "2") if is_checkpoint else path.parent.name) in message and (
        is_checkpoint or path.name in message or path.parent.name == "model"
    )


def fuzz(corruptions: int, seed: int, scratch: Path) -> list[dict[str, Any]]:
    """Rows of results/reliability.json: per kind of file how many corruptions were noticed."""
    intact, folder, rng = scratch / "intact", scratch / "damaged", random.Random(seed)
    write_everything(intact)
    counts = {name: [0, 0] for name in KINDS}
    for name, kind in KINDS.items():
        if (message := kind.read(intact)) is not None:
            raise AssertionError(f"intact {name} is refused: {message}")
    for i in range(corruptions):
        name = list(KINDS)[i % len(KINDS)]
        shutil.copytree(intact, folder)
        path = rng.choice(sorted(p for p in folder.glob(KINDS[name].pattern) if p.is_file()))
        how = damage(path, rng, KINDS[name].is_needed)
        message = KINDS[name].read(folder)
        counts[name][0] += 1
        counts[name][1] += is_named(message, path, folder)
        if not is_named(message, path, folder):
            print(f"{name}: {path} {how}, not noticed or not named: {message}", file=sys.stderr)
        shutil.rmtree(folder)
    return [reliability.row(name, "corruption", *count) for name, count in counts.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corruptions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help="write results/reliability.json and its table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="networld_fuzz_") as scratch:
        rows = fuzz(options.corruptions, options.seed, Path(scratch))
    return reliability.finish(rows, options.publish)


if __name__ == "__main__":
    sys.exit(main())
