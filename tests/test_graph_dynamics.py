"""The learned simulator: bins that hold the data, agents without order, draws whose frequencies are the data's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, graph_dynamics, networks, normalisation, training
from networld_jax.normalisation import normalise_obs
from networld_jax.transforms import host_symexp
from networld_jax.windows import sample_segments
from tests import tiny

N = tiny.AGENTS


def raw(obs, stats):
    return host_symexp(np.asarray(obs) * np.asarray(stats.obs_std) + np.asarray(stats.obs_mean))


def counted_data(num_runs=6, num_steps=60):
    """Entries of every kind: counts, reals, a constant; N agents on a path."""
    rng = np.random.default_rng(0)
    shape = (num_runs, num_steps + 1, N)
    obs = np.stack([rng.poisson(0.2, shape), rng.normal(3.0, 1.0, shape), np.full(shape, 5.0)], -1)
    action = rng.uniform(-1, 1, (num_runs, num_steps, N, 1))
    return datasets.from_arrays(obs, action, action[..., 0], tiny.path_graph(N))


def build(data, num_bins=12):
    spec = datasets.spec_from_trajectories("line", data)
    stats = normalisation.task_stats(data, spec, tiny.CONFIG)
    return spec, graph_dynamics.with_observation_bins(data, stats, num_bins)


def test_bins_are_the_integers_or_quantiles_of_the_data():
    data = counted_data()
    _, stats = build(data)
    log_histogram = stats.extra["obs_log_histogram"]
    centres = raw(stats.extra["obs_bins"].T, stats).T
    np.testing.assert_allclose(centres[0], np.arange(12), atol=1e-4)
    np.testing.assert_allclose(centres[2], 5 + np.arange(12), atol=1e-3)  # a constant is the first of its bins
    assert np.all(np.diff(centres, axis=-1) > 0)
    np.testing.assert_allclose(centres[1, [0, -1]], [data.obs[..., 1].min(), data.obs[..., 1].max()], rtol=1e-4)
    np.testing.assert_allclose(np.exp(log_histogram).sum(-1), 1.0, atol=0.01)
    share = np.mean(data.obs[..., 0] == 0)
    np.testing.assert_allclose(np.exp(log_histogram[0, 0]), share, atol=0.01)


def test_a_single_bin_is_refused():
    data = counted_data(1, 4)
    with pytest.raises(ValueError, match="num_obs_bins must be at least 2, got 1"):
        build(data, num_bins=1)


def test_two_hops_of_a_path():
    reached = np.asarray(networks.within_two_hops(jnp.asarray(tiny.path_graph(5))))
    distance = np.abs(np.arange(5)[:, None] - np.arange(5)[None])
    np.testing.assert_array_equal(reached, (distance > 0) & (distance <= 2))


def test_agents_have_no_order():
    """Renumbering the agents renumbers the answers."""
    net = networks.GraphDynamics(num_bins=5, hidden=8)
    rng = np.random.default_rng(0)
    obs, action = (jnp.asarray(rng.normal(size=(N, size)), jnp.float32) for size in (3, 2))
    graph, order = jnp.asarray(tiny.path_graph(N)), np.array([2, 0, 3, 1])
    shapes = jax.eval_shape(net.init, jax.random.key(0), obs, action, graph)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), shapes)
    apply = jax.jit(net.apply)
    straight = apply(params, obs, action, graph)
    renumbered = apply(params, obs[order], action[order], graph[order][:, order])
    for a, b in zip(straight, renumbered, strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-5)


def test_an_untrained_simulator_draws_the_datas_histogram():
    data = counted_data()
    spec, stats = build(data)
    simulator = graph_dynamics.make_simulator(spec, 12, hidden=8)
    params = simulator.init(jax.random.key(0))
    obs, action = jnp.zeros((500, N, 3)), jnp.zeros((500, N, 1))
    graph = jnp.broadcast_to(jnp.asarray(tiny.path_graph(N)), (500, N, N))
    drawn, reward = jax.jit(simulator.step)(jax.random.key(1), params, stats, obs, action, graph)
    counts = raw(drawn, stats)[..., 0]
    assert set(np.unique(np.round(counts, 3))) <= set(range(12))  # counts stay counts
    np.testing.assert_allclose(np.mean(counts < 0.5), np.mean(data.obs[..., 0] == 0), atol=0.03)
    np.testing.assert_array_equal(reward, 0.0)


def test_the_simulator_learns_what_an_action_does():
    """x' = 0.7 x + a + 0.1 noise and r = -|x'|^2: imagined steps move as real ones, along the graph's agents."""
    data = tiny.linear_task(12, 50)
    spec, stats = build(data, num_bins=24)
    simulator = graph_dynamics.make_simulator(spec, 24, hidden=64, num_rounds=1)
    optimiser = training.make_optimiser(training.learning_rate_schedule(3e-3, 400))
    data = jax.tree.map(jnp.asarray, data)

    @jax.jit
    def fit(params):
        def body(carry, key):
            params, opt_state = carry
            segments = sample_segments(key, data, 32, 1)
            loss_fn = lambda params: simulator.loss(params, stats, segments)  # noqa: E731
            params, opt_state, metrics = training.descend(loss_fn, params, optimiser, opt_state)
            return (params, opt_state), metrics

        return jax.lax.scan(body, (params, optimiser.init(params)), jax.random.split(jax.random.key(1), 400))

    (params, _), metrics = fit(simulator.init(jax.random.key(0)))
    assert metrics["reward_error"][-20:].mean() < 0.1 < metrics["reward_error"][:5].mean()
    unseen = tiny.linear_task(2, 30, seed=50)
    obs = normalise_obs(jnp.asarray(unseen.obs[:, :-1]), stats).reshape(-1, N, tiny.OBS)
    graph = jnp.broadcast_to(jnp.asarray(tiny.path_graph(N)), (len(obs), N, N))
    push = jnp.asarray(unseen.action).reshape(-1, N, tiny.ACTIONS)
    step = jax.jit(simulator.step)

    def imagined(action):
        draws = [step(jax.random.key(k), params, stats, obs, action, graph)[0] for k in range(10)]
        return np.mean([raw(drawn, stats) for drawn in draws], 0)

    moved = (imagined(push + 0.2) - imagined(push - 0.2)).mean((0, 1))
    # Nobody moves the disturbances; but the data's actions answer them, which a regression never tells apart entirely.
    np.testing.assert_allclose(moved, [0.4, 0.4, 0.0, 0.0], atol=0.12)
