"""MA-BC: learns the expert, hears neighbours only if told to, ignores what it must not imitate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import planning
from networld_jax.baselines import BASELINES, DEFAULTS, BCConfig, make_bc
from networld_jax.baselines.transitions import sample_transitions
from tests import tiny

N = tiny.AGENTS


@pytest.fixture(scope="module")
def clones():
    """{use_mean_field: (baseline, trained params, R^2 on unseen states)}."""
    box = tiny.build()
    data = jax.tree.map(jnp.asarray, tiny.linear_task(12, 50))
    unseen = tiny.linear_task(2, 30, seed=50).obs[:, :-1].reshape(-1, N, tiny.OBS)
    graph = jnp.asarray(tiny.path_graph(N))
    target = tiny.expert_action(unseen, np.asarray(graph))

    def make(use_mean_field):
        config = BCConfig(hidden=(64,), use_mean_field=use_mean_field, learning_rate=3e-3, num_updates=300)
        baseline = make_bc(box.spec, config)

        @jax.jit
        def train(key):
            def body(state, step):
                sample_key, update_key = jax.random.split(jax.random.fold_in(key, step))
                batch = sample_transitions(sample_key, data, box.stats, 256)
                return baseline.update(update_key, state, batch, box.stats)

            return jax.lax.scan(body, baseline.init(jax.random.key(1), box.stats), jnp.arange(300))[0]

        params = planning.PolicyParams(train(jax.random.key(0)).ema_params, box.stats)
        carry = baseline.policy.init(jax.random.key(0), N)
        act = lambda obs: baseline.policy.act(None, params, carry, obs, graph, None)[0]  # noqa: E731
        action = np.asarray(jax.jit(jax.vmap(act))(jnp.asarray(unseen)))
        r2 = 1 - ((action - target) ** 2).sum() / ((target - target.mean((0, 1))) ** 2).sum()
        return baseline, params, r2

    with jax.debug_key_reuse(True):
        return {flag: make(flag) for flag in (False, True)}


def test_the_clone_recovers_the_expert(clones):
    """The expert is linear in (x, m, e): with the mean field nearly everything is predictable."""
    assert clones[True][2] > 0.9


def test_the_mean_field_carries_what_own_observations_lack(clones):
    assert clones[True][2] > clones[False][2] + 0.02


@pytest.mark.parametrize("use_mean_field", [False, True])
def test_information(clones, use_mean_field):
    baseline, params, _ = clones[use_mean_field]
    graph = jnp.asarray(tiny.path_graph(N))
    obs = jnp.asarray(tiny.linear_task(1, 3, seed=4).obs[0, 1])
    carry = baseline.policy.init(jax.random.key(0), N)
    act = jax.jit(lambda obs: baseline.policy.act(None, params, carry, obs, graph, None)[0])
    moved = np.abs(act(obs.at[0].add(0.5)) - act(obs)).max(-1) > 0
    assert moved.tolist() == [True, use_mean_field, False, False]
    assert baseline.policy.information == ("one_hop" if use_mean_field else "own")
    assert (baseline.policy.message_bytes > 0) == use_mean_field and not baseline.policy.reads_state


def test_rows_without_weight_teach_nothing(clones):
    baseline, params, _ = clones[False]
    data = jax.tree.map(jnp.asarray, tiny.linear_task(2, 10))
    rows = sample_transitions(jax.random.key(0), data, params.stats, 16)
    rows = rows.replace(weight=rows.weight.at[3].set(0.0))
    wild = rows.replace(action=rows.action.at[3].set(1.0), obs=rows.obs.at[3].set(9.0))
    state = baseline.init(jax.random.key(1), params.stats)
    update = jax.jit(lambda rows: baseline.update(jax.random.key(2), state, rows, params.stats)[0].params)
    jax.tree.map(np.testing.assert_array_equal, update(rows), update(wild))


def test_an_untrained_clone_answers_with_the_datas_mean(clones):
    baseline, params, _ = clones[False]
    state = baseline.init(jax.random.key(1), params.stats)
    fresh = planning.PolicyParams(state.params, params.stats)
    obs = jnp.asarray(tiny.linear_task(1, 3).obs[0, 0])
    carry = baseline.policy.init(jax.random.key(0), N)
    action, _ = baseline.policy.act(None, fresh, carry, obs, jnp.zeros((N, N)), None)
    # Histogram smoothed by 1e-3 per bin; the data's mean is within 0.05 of 0.
    np.testing.assert_allclose(action, np.zeros((N, 2)), atol=0.1)


def test_the_table_of_baselines():
    assert BASELINES["ma_bc"] is make_bc
    assert BASELINES.keys() == DEFAULTS.keys()


# ------------------------------------------------------------------------------------------------ other decodings


def test_shift_and_quantile_move_the_same_clone(clones):
    """Same weights, another decision: the shift is exact, the median of a symmetric answer is its mean."""
    _, params, _ = clones[False]
    obs = jnp.asarray(tiny.linear_task(1, 3, seed=4).obs[0, 1])

    def act(**fields):
        policy = make_bc(tiny.build().spec, BCConfig(hidden=(64,), **fields)).policy
        return np.asarray(policy.act(None, params, policy.init(None, N), obs, jnp.zeros((N, N)), None)[0])

    shift = act(shift_std=0.5) - act()
    measured = np.asarray(tiny.build().data.action).std((0, 1, 2))
    np.testing.assert_allclose(shift, np.tile(0.5 * measured, (N, 1)), rtol=0.1)  # two-hot and smoothing widen it
    assert np.abs(act(quantile=0.5) - act()).max() < 0.05 < (act(quantile=0.9) - act()).min()


def test_settings_are_checked():
    for fields, message in (
        (dict(quantile=1.5), "quantile must lie in"),
        (dict(quantile=0.5, shift_std=0.1), "not both"),
        (dict(message_bits=1), "message_bits must be 0"),
        (dict(learning_rate=0.0), "learning_rate must be positive"),
        (dict(num_updates=0), "num_updates must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            BCConfig(**fields)
