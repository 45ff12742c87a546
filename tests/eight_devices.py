"""One device against eight and two, in one process with eight CPU devices: started by tests/test_scale_out.py.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/eight_devices.py

Bit for bit wherever rows go through the same program on every mesh (collection, evaluation, planning, windows,
checkpoints). Training sums gradients over the devices, so its order of summation depends on them; it runs in float64
here, where that is 1e-16 relative per sum and anything larger is a mistake.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networld_envs
from experiments import collect, evaluate, train_loop
from networld_envs.instances import instance_keys
from networld_jax import checkpoints, planning, sharding, training
from networld_jax.evaluation import Protocol
from networld_jax.mean_field import neighbour_lists
from networld_jax.types import LossConfig, PlannerConfig
from networld_jax.windows import sample_segments
from tests import tiny, toy_environment, toy_run

MESHES = {"8": (8, 1), "4x2": (4, 2)}


@pytest.fixture(scope="module", params=["8", pytest.param("4x2", marks=pytest.mark.slow)])
def mesh(request):
    assert jax.device_count() == 8
    data, model = MESHES[request.param]
    return sharding.make_mesh(data, model, jax.devices()[: data * model])


@pytest.fixture(scope="module")
def box():
    return tiny.with_linear_nets(tiny.build())


def assert_same_bits(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


# ------------------------------------------------------------------------------------------------ rows


def test_collection_has_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(networld_envs.ENVIRONMENTS, "queues", toy_environment.make_queues)
    monkeypatch.setattr(collect, "reference_scores", lambda *args: {})  # process 0's affair, on one device
    config = toy_run.get_config()
    config.collect.num_trajectories["queues"] = 9
    env = networld_envs.make("queues")
    policy = toy_environment.tiers(None)["random"]
    for name, (data, model) in {"one": (1, 1), "many": (4, 2)}.items():
        config.mesh.data, config.mesh.model = data, model
        collect.collect_task(config, tmp_path / name, "queues", env, policy)
    one, many = (collect.dataset_dir(tmp_path / name, "queues", "expert") for name in ("one", "many"))
    files = sorted(path.name for path in one.glob("shard_*.npz"))
    assert len(files) == 9
    for name in (*files, "manifest.json"):
        assert (one / name).read_bytes() == (many / name).read_bytes()


def test_scores_have_the_same_bits(mesh):
    env = toy_environment.make_queues()
    policy = toy_environment.policies(None)["random"]
    one, many = (
        evaluate.Evaluator(env, Protocol(num_instances=10, num_steps=6), "test", 2, m)(policy, {}) for m in (None, mesh)
    )
    assert len(one.reward) == 10
    assert_same_bits((one.reward, one.metrics, one.per_agent), (many.reward, many.metrics, many.per_agent))


@pytest.mark.parametrize("lists", [False, True], ids=["matrix", "lists"])
def test_plans_have_the_same_bits(mesh, lists):
    num_agents = 21  # no multiple of the devices
    data = tiny.linear_task(num_runs=2, num_steps=12, num_agents=num_agents)
    box = tiny.with_linear_nets(tiny.build(data=data))
    params = planning.PolicyParams(box.params, box.stats)
    graph = neighbour_lists(data.adjacency[0]) if lists else jnp.asarray(data.adjacency[0])
    actions = []
    for spread in (planning.in_chunks(2), sharding.over_agents(mesh, planning.in_chunks(2))):
        planner = planning.make_planner(
            box.world_model, box.schedule, "line", PlannerConfig(num_candidates=2), map_fn=spread
        )
        carry = planner.init(jax.random.key(0), num_agents)
        act = jax.jit(lambda *args, planner=planner: planner.act(*args, None)[0])
        actions.append(act(jax.random.key(1), params, carry, jnp.asarray(data.obs[0, 3]), graph))
    assert_same_bits(*actions)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("num_windows", [16, 7], ids=["even", "uneven"])
def test_windows_of_a_split_dataset(mesh, box, num_windows):
    data = tiny.linear_task(num_runs=5)  # no multiple of the devices
    rows = sharding.local_trajectories(mesh, 5)
    split = sharding.place_trajectories(mesh, jax.tree.map(lambda x: x[rows], data))
    assert split.reward.addressable_shards[0].data.shape[0] == -(-5 // mesh.shape["data"])

    def draw(data, **options):
        return sample_segments(jax.random.key(3), data, num_windows, 4, 1, **options)

    whole = jax.jit(draw)(jax.tree.map(jnp.asarray, data))
    cut = jax.jit(lambda data: draw(data, num_trajectories=5, windows_fn=sharding.make_windows(mesh)))
    assert_same_bits(whole, cut(split))
    program = cut.lower(split).compile().as_text()
    assert "all-reduce" in program and "reduce-scatter" not in program  # see make_windows
    if num_windows == 16:  # windows travel, the dataset does not; an uneven result is gathered to leave the jit at all
        assert "all-gather" not in program


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, tree)


def train(mesh, box, num_updates):
    """State and metrics after updates in float64, and the state's place."""
    rows = sharding.local_trajectories(mesh, 6)
    data = sharding.place_trajectories(mesh, jax.tree.map(lambda x: x[rows], float64(box.data)))
    optimiser = training.make_optimiser(1e-3)
    loss = training.world_model_loss(box.world_model, box.schedule, LossConfig())
    sample = training.multi_task_sampler(
        {"line": 16}, tiny.HORIZON, {"line": 1}, num_trajectories={"line": 6}, windows_fn=sharding.make_windows(mesh)
    )
    epoch = training.make_epoch(training.make_update(loss, optimiser, 0.98), sample, num_updates)
    state = training.init_train_state(jax.tree.map(jnp.asarray, float64(box.params)), optimiser)
    epoch = train_loop.compile_epoch(mesh, epoch, state)
    state = train_loop.place_state(mesh, state)
    stats = sharding.copy_to_all(mesh, jax.tree.map(jnp.asarray, float64(box.stats)))
    arguments = (state, ({"line": data}, {"line": stats}), sharding.copy_to_all(mesh, jax.random.key(5)))
    program = epoch.lower(*arguments).compile()
    assert "reduce-scatter" not in program.as_text()  # neither ours nor the partitioner's, see make_windows
    return program(*arguments)


@pytest.fixture(scope="module")
def trained_on_one_device(box):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, train(None, box, 5))


def test_training_differs_by_the_order_of_sums_only(mesh, box, trained_on_one_device, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT_CHANNELS", 4)
    state, metrics = trained_on_one_device
    with jax.enable_x64(True):
        many, many_metrics = train(mesh, box, 5)
        leaves = jax.tree.leaves(many)
        assert all(leaf.sharding.device_set == set(mesh.devices.flat) for leaf in leaves)
        assert any(not leaf.is_fully_replicated for leaf in leaves) == (mesh.shape["model"] > 1)
        # 16 windows x 4 agents x 4 rows: sums of some 1e3 numbers, 1e-16 relative each, amplified by Adam's division
        # by sqrt(v) + 1e-8 where a gradient is small.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), metrics, many_metrics)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), state.params, many.params)
    before, after = box.params["denoiser"], state.params["denoiser"]
    assert min(np.abs(after[name] - before[name]).max() for name in before) > 1e-4


def test_wide_layers_are_split_over_the_model_axis_and_nothing_else():
    mesh = sharding.make_mesh(4, 2)
    shapes = {"wide": (3, 8, 256), "narrow": (8, 64), "odd": (8, 129), "bias": (256,)}
    tree = {name: np.zeros(shape) for name, shape in shapes.items()}
    placed = sharding.place(tree, sharding.split_channels(mesh, tree))
    held = {name: leaf.addressable_shards[0].data.shape for name, leaf in placed.items()}
    assert held == shapes | {"wide": (3, 8, 128)}


# ------------------------------------------------------------------------------------------------ checkpoints


def test_checkpoints_move_between_numbers_of_devices(tmp_path):
    """8 -> 1 -> 2 devices, the same bits each time, on the devices asked for."""
    optimiser = training.make_optimiser(1e-3)
    rng = np.random.default_rng(0)
    params = {"wide": jnp.asarray(rng.normal(size=(8, 256))), "bias": jnp.asarray(rng.normal(size=256))}
    state = training.init_train_state(params, optimiser)
    previous = state
    for step, (data, model) in enumerate([(4, 2), (1, 1), (1, 2), (8, 1)]):
        mesh = sharding.make_mesh(data, model, jax.devices()[: data * model])
        like = jax.tree.map(jnp.zeros_like, state)
        if mesh is not None:
            like = sharding.place(like, sharding.split_channels(mesh, like))
        store = checkpoints.Checkpoints(tmp_path)
        if step:
            found, restored = store.restore_latest(like)
            assert found == step
            assert_same_bits(restored, state)
            wanted = {d.id for d in jax.devices()[: data * model]}
            for leaf, model_leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
                assert {d.id for d in leaf.sharding.device_set} == wanted
                assert leaf.sharding.is_equivalent_to(model_leaf.sharding, leaf.ndim)
            previous = restored
        elif mesh is not None:
            previous = sharding.place(previous, sharding.split_channels(mesh, previous))
        store.save(step + 1, previous)
        store.close()


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [(9, 1, "needs 9 devices, got 8"), (-1, 16, "1 x 16 needs 16 devices"), (0, 1, "at least 1"), (2, 0, "at least 1")],
)
def test_meshes_that_do_not_fit_are_refused(data, model, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data, model)


def test_one_device_needs_no_mesh():
    assert sharding.make_mesh(1, 1) is None
    assert sharding.num_devices(None) == 1


def test_keys_are_placed_with_their_values():
    mesh = sharding.make_mesh(8)
    keys = instance_keys("queues", "test", 16)
    placed = sharding.split_rows(mesh, keys)
    assert placed.sharding.device_set == set(mesh.devices.flat)
    assert_same_bits(jax.random.key_data(keys), jax.random.key_data(placed))
