"""One device mesh for every stage: what is split, what is copied, and how host values become global arrays.

Two axes. `data` splits training batches and the stored trajectories; `model` (optional) splits the output channels of
wide layers. Work that needs no communication (trajectories to collect, instances to score, agents to plan for) is split
into rows over all devices, whatever their axis.

`None` instead of a mesh means one device: nothing is placed or constrained, and the compiled programs are those of a
library without meshes.

Draws depend on global indices (trajectory, instance, agent, row of the batch) and never on the device. Row work runs in
batches whose size per device is the caller's and not a function of the number of devices, so every row passes through
the same program and its bits do not depend on the mesh. Training adds up gradients in an order that does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import multihost

from networld_jax.types import Segments, Trajectories
from networld_jax.windows import windows

DATA, MODEL = "data", "model"
ROWS = P((DATA, MODEL))
MIN_SPLIT_CHANNELS = 128
"""Layers with fewer outputs are copied: splitting them costs more communication than it saves arithmetic."""


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The mesh [data, model] over the devices of all processes, or None for a single device.

    Args:
      data: size of the data axis; -1 = as many as there are devices for.
      model: size of the model axis, within one host.
      devices: default: all, in the order of processes.

    Raises ValueError when the axes do not fit the devices, or would leave a process without work.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or (data < 1 and data != -1):
        raise ValueError(f"mesh axes must be at least 1 (data: or -1 for all devices), got data={data}, model={model}")
    if data == -1:
        data = max(1, len(devices) // model)
    if data * model > len(devices):
        raise ValueError(
            f"mesh.data x mesh.model = {data} x {model} needs {data * model} devices, got {len(devices)}; make it "
            f"smaller (on one CPU host, XLA_FLAGS=--xla_force_host_platform_device_count={data * model} makes devices)"
        )
    per_process = len(devices) // jax.process_count()
    if jax.process_count() > 1 and (data * model != len(devices) or per_process % model):
        raise ValueError(
            f"with {jax.process_count()} processes of {per_process} devices mesh.model must divide {per_process} and "
            f"mesh.data be {len(devices)} / mesh.model (or -1), got data={data}, model={model}"
        )
    if data * model == 1:
        return None
    return Mesh(np.asarray(devices[: data * model]).reshape(data, model), (DATA, MODEL))


def num_devices(mesh: Mesh | None) -> int:
    """Devices that share the rows."""
    return 1 if mesh is None else mesh.size


# ---------------------------------------------------------------------------------------------------- placement


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def split_channels(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of params, optimiser moments or a whole TrainState, by shape: arrays [..., in, out]
    with at least MIN_SPLIT_CHANNELS outputs that the model axis divides are split on `out`, everything else copied."""
    size = mesh.shape[MODEL]

    def rule(leaf):
        shape = np.shape(leaf)
        wide = len(shape) >= 2 and shape[-1] >= MIN_SPLIT_CHANNELS and shape[-1] % size == 0
        return NamedSharding(mesh, P(*[None] * (len(shape) - 1), MODEL) if size > 1 and wide else P())

    return jax.tree.map(rule, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Values that every process holds in full, as global arrays. `shardings`: one for all leaves, or a matching tree.

    Unlike `jax.device_put` it needs no communication and no equal dtype check between processes.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(x, sharding):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def copy_to_all(mesh: Mesh | None, tree: Any) -> Any:
    """Equal values of all processes, copied to every device."""
    return tree if mesh is None else place(tree, replicated(mesh))


def split_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays [rows, ...] that every process holds in full, their rows spread over all devices."""
    return tree if mesh is None else place(tree, NamedSharding(mesh, ROWS))


def local_rows(mesh: Mesh | None, num_rows: int) -> range:
    """The rows of `split_rows` that lie on this process's devices; its devices are neighbours in the mesh."""
    if mesh is None:
        return range(num_rows)
    per_device = num_rows // mesh.size
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(mine[0] * per_device, (mine[-1] + 1) * per_device)


def to_host(tree: Any) -> Any:
    """NumPy values of whole arrays on every process. Communicates where an array is spread over processes."""

    def fetch(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def local_to_host(tree: Any) -> Any:
    """NumPy values of the rows on this process's devices, see `local_rows`. Never communicates."""

    def fetch(x):
        if x.is_fully_addressable:
            return np.asarray(x)
        parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(fetch, tree)


def wait_for_all(name: str, timeout_s: int = 24 * 3600) -> None:
    """All processes wait for each other; ends with an error when one is lost. A name is used once per job.

    Goes through the coordinator and not through the devices: collectives on CPU (gloo) may give up after 30 s
    (jax-ml/jax#40831), so processes that may be far apart (one has read a dataset, compiled, scored) meet here before
    they exchange arrays.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=timeout_s * 1000)


def same_everywhere(tree: Any) -> Any:
    """Process 0's values on every process; shapes and dtypes must agree already."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


# ---------------------------------------------------------------------------------------------------- row work


def over_rows(fn: Callable[..., Any], mesh: Mesh | None, is_row: Sequence[bool]) -> Callable[..., Any]:
    """`fn` with its rows shared out: each device calls it on its own rows of the arguments marked in `is_row` and on
    the whole of the others, without communication. Every result has leading rows. The number of rows must be a multiple
    of the number of devices."""
    if mesh is None:
        return fn
    specs = tuple(ROWS if row else P() for row in is_row)
    return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False)


def over_agents(mesh: Mesh | None, map_fn: Callable[[Callable], Callable] = lambda fn: fn) -> Callable:
    """`map_fn` argument of `planning.make_planner` that plans for N agents on all devices. An inner
    `map_fn=planning.in_chunks(size)` fixes the batch per device, and with it the bits of every plan."""

    def transform(plan_agents: Callable[..., Any]) -> Callable[..., Any]:
        if mesh is None:
            return map_fn(plan_agents)

        def spread(policy_params, *rows):
            num_agents = rows[0].shape[0]
            padded = jnp.minimum(jnp.arange(-(-num_agents // mesh.size) * mesh.size), num_agents - 1)
            shared = over_rows(map_fn(plan_agents), mesh, (False, *[True] * len(rows)))
            result = shared(policy_params, *(row[padded] for row in rows))
            return jax.tree.map(lambda x: x[:num_agents], result)

        return spread

    return transform


# ---------------------------------------------------------------------------------------------------- training data


def local_trajectories(mesh: Mesh | None, num_trajectories: int) -> np.ndarray:
    """Indices of the trajectories that this process has to load. Every device of the data axis holds equally many; the
    last trajectory is repeated to make it so, and never drawn twice as often."""
    if mesh is None:
        return np.arange(num_trajectories)
    per_device = -(-num_trajectories // mesh.shape[DATA])
    first = mesh.devices[:, 0]
    mine = [i for i, device in enumerate(first) if device.process_index == jax.process_index()]
    return np.minimum(np.arange(mine[0] * per_device, (mine[-1] + 1) * per_device), num_trajectories - 1)


def place_trajectories(mesh: Mesh | None, local: Trajectories) -> Trajectories:
    """The `local_trajectories` of all processes as one global dataset, split over the data axis."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, local)
    sharding = NamedSharding(mesh, P(DATA))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local)


def make_windows(mesh: Mesh | None) -> Callable[[Trajectories, jax.Array, int, int], Segments]:
    """`windows.windows` over a dataset split along trajectories, with the batch of windows split over the data axis.

    Each device cuts the windows whose trajectory it holds and the sum over devices, all others being zero, brings every
    window to where it is needed: exact, and batch-sized traffic instead of dataset-sized.

    The sum is a psum of which each device keeps its part, not a psum_scatter: between processes on CPU that goes
    through gloo's reduce-scatter, reported to return wrong values for large chunks without an error
    (jax-ml/jax#40830, on jax 0.12 development builds; a race). It costs twice the traffic where XLA does not fuse it.
    """
    if mesh is None:
        return windows

    def cut(trajectories, where, horizon, message_delay):
        held = trajectories.reward.shape[0]
        run = where[:, 0] - held * jax.lax.axis_index(DATA)
        mine = (run >= 0) & (run < held)
        local = jnp.stack([jnp.clip(run, 0, held - 1), where[:, 1]], -1)

        def collect(x):
            share = jnp.where(jnp.expand_dims(mine, tuple(range(1, x.ndim))), x, jnp.zeros((), x.dtype))
            share = share.astype(jnp.int32) if x.dtype == bool else share
            return jax.lax.psum(share, DATA).astype(x.dtype)

        return jax.tree.map(collect, windows(trajectories, local, horizon, message_delay))

    def sharded_windows(trajectories, where, horizon, message_delay):
        fn = functools.partial(cut, horizon=horizon, message_delay=message_delay)
        gather = jax.shard_map(fn, mesh=mesh, in_specs=(P(DATA), P()), out_specs=P(), check_vma=False)
        return jax.lax.with_sharding_constraint(gather(trajectories, where), NamedSharding(mesh, P(DATA)))

    return sharded_windows
