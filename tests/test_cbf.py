"""The default face: parity with a NumPy loop, the channel law, invariants, information, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.numpy_cbf import ArrayNetwork
from networld_envs import cbf_dynamics, cbf_links, cbf_observation, channel, make
from networld_envs.cbf_hermitian import hermitian_eigen, hermitian_to_reals, reals_to_hermitian, recompose
from tests.reference.cbf_loop import LoopNetwork, LoopParams, LoopReference

NUM_SLOTS = 4


@pytest.fixture(scope="module")
def seven():
    """Seven cells, with jitted step and reset."""
    env = make("cbf", num_cells=7)
    return env, jax.jit(env.reset), jax.jit(env.step)


def random_actions(seed, num_agents, width=6):
    """Beams inside and outside the power ball, one of them silent."""
    action = np.random.default_rng(seed).normal(size=(NUM_SLOTS, num_agents, width)) * 40
    action[1, 2] = 0
    return action


def loop_of(env, state, **fields):
    params = env.default_params
    return LoopParams(
        adjacency=np.asarray(params.adjacency),
        responses=np.asarray(state.topology.responses) / np.sqrt(params.max_snr),
        noise_mw=params.noise_mw,
        p_max_mw=params.p_max_mw,
        correlation=params.correlation,
        num_neighbours=params.num_neighbours,
        **fields,
    )


@pytest.mark.parametrize("scope", ["one_hop", pytest.param("global", marks=pytest.mark.slow)])
def test_parity_with_loop(scope):
    """Same topology, same innovations: executed action, rate, reward and every observation entry in float64."""
    with jax.enable_x64(True):
        env = make("cbf", num_cells=7, price_scope=scope)
        params = env.default_params
        state, _ = jax.jit(env.reset)(jax.random.key(3), params)
        beams_mw = np.sqrt(params.p_max_mw) * np.asarray(cbf_dynamics.normalised_beam(state))
        loop = LoopNetwork(loop_of(env, state, price_scope=scope), state.fading, beams_mw)
        transition = jax.jit(env.transition)
        for t, action in enumerate(random_actions(0, 7)):
            draws = env.draw(jax.random.key(10 + t), state, params)
            state, timestep = transition(state, jnp.asarray(action), draws, params)
            rate, reward, obs, executed = loop.step(action, np.asarray(draws.innovation))
            np.testing.assert_allclose(timestep.action, executed, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(timestep.metrics["rate"], rate, rtol=1e-9, atol=1e-12)
            # The loop subtracts r_nk from the total, which cancels up to ten digits of sixteen.
            np.testing.assert_allclose(timestep.reward, reward, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(timestep.obs, obs, rtol=1e-6, atol=1e-6)


def test_reference_face_parity_with_loop():
    with jax.enable_x64(True):
        env = make("cbf", face="reference", num_cells=7, num_neighbours=3, num_codes=8)
        params = env.default_params
        state, _ = jax.jit(env.reset)(jax.random.key(5), params)
        loop = LoopReference(loop_of(env, state), state.fading, params.codebook, params.power_levels * params.p_max_mw)
        transition = jax.jit(env.transition)
        actions = np.random.default_rng(1).integers(0, params.num_actions, (NUM_SLOTS, 7))
        for t, action in enumerate(actions):
            draws = env.draw(jax.random.key(20 + t), state, params)
            state, timestep = transition(state, jnp.asarray(action[:, None], float), draws, params)
            rate, reward, obs = loop.step(action, np.asarray(draws.innovation))
            np.testing.assert_allclose(timestep.metrics["rate"], rate, rtol=1e-9)
            np.testing.assert_allclose(timestep.reward, reward, rtol=1e-6, atol=1e-6)
            if t >= 2:  # by then both memories come from the same slots
                np.testing.assert_allclose(timestep.obs, obs, rtol=1e-9)


def test_ranks_are_the_places_of_a_stable_sort():
    """Ties go to the lower index, the diagonal comes last whatever it holds."""
    received = np.random.default_rng(0).integers(0, 4, (9, 9)).astype(np.float32)
    order = np.argsort(-np.where(np.eye(9, dtype=bool), -1, received), axis=1, kind="stable")
    np.testing.assert_array_equal(np.argsort(cbf_links.ranks(jnp.asarray(received)), axis=1), order)
    np.testing.assert_array_equal(cbf_links.strongest(jnp.asarray(received), 5), order[:, :5])


def test_the_numpy_form_of_the_benchmark_equals_the_loop():
    env = make("cbf", num_cells=7)
    state, _ = jax.jit(env.reset)(jax.random.key(3), env.default_params)
    beams = np.sqrt(env.default_params.p_max_mw) * np.asarray(cbf_dynamics.normalised_beam(state))
    fading = np.asarray(state.fading, complex)
    forms = [form(loop_of(env, state), fading, beams) for form in (LoopNetwork, ArrayNetwork)]
    rng = np.random.default_rng(4)
    for action in random_actions(0, 7):
        innovation = rng.normal(size=state.fading.shape) + 1j * rng.normal(size=state.fading.shape)
        loop, arrays = (form.step(action, innovation) for form in forms)
        for got, want in zip(arrays, loop[:3], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


# --- channel law -----------------------------------------------------------------------------------------------------


def test_users_are_uniform_in_distance():
    bs_xy_m = jnp.zeros((4000, 2))
    ue_xy_m = channel.draw_users(jax.random.key(0), bs_xy_m, 10.0, 200.0)
    distance_m = np.sort(np.linalg.norm(ue_xy_m, axis=1))
    expected = (distance_m - 10) / 190
    gap = np.max(np.abs(expected - (np.arange(4000) + 0.5) / 4000))
    assert gap < 1.95 / np.sqrt(4000)  # Kolmogorov-Smirnov at the 0.1 % level; uniform in area gives 0.22


def test_path_gain_law():
    """Mean 120.9 + 37.6 log10(d / km) dB and 8 dB of shadowing."""
    bs_xy_m, ue_xy_m = jnp.zeros((100, 2)), jnp.tile(jnp.array([[500.0, 0.0]]), (100, 1))
    gain_db = 10 * np.log10(channel.draw_path_gain(jax.random.key(1), bs_xy_m, ue_xy_m, 8.0)).ravel()
    assert abs(gain_db.mean() + 120.9 + 37.6 * np.log10(0.5)) < 4 * 8 / 100  # four standard errors of 10^4 draws
    assert abs(gain_db.std() / 8 - 1) < 4 / np.sqrt(2e4)


def test_fading_is_stationary_rayleigh_with_correlation_rho():
    start, move = jax.random.split(jax.random.key(2))
    g = channel.complex_normal(start, (20000,))
    after = channel.fade(g, channel.complex_normal(move, (20000,)), 0.64)
    power = np.sort(np.abs(after) ** 2)
    gap = np.max(np.abs(1 - np.exp(-power) - (np.arange(20000) + 0.5) / 20000))
    assert gap < 1.95 / np.sqrt(20000)  # Exp(1) power, Kolmogorov-Smirnov at the 0.1 % level
    correlation = np.mean(np.conj(g) * after)
    assert abs(correlation - 0.64) < 4 / np.sqrt(20000)


def test_equivalent_paths_have_the_covariance_of_the_paths():
    """The law of a complex Gaussian channel is its covariance; equal to float32 rounding of the largest entry."""
    angle_rad = channel.draw_path_angles(jax.random.key(3), jnp.linspace(0, 6, 50), 4, 0.05, False)
    paths = channel.steering_vectors(angle_rad, 3)
    equivalent = channel.equivalent_responses(paths)
    assert equivalent.shape == (50, 3, 3)
    for name, responses in (("paths", paths), ("equivalent", equivalent)):
        covariance = np.einsum("blk,blm->bkm", np.conj(responses), responses)
        if name == "paths":
            expected = covariance
    np.testing.assert_allclose(covariance, expected, atol=2e-6)
    smallest = np.linalg.svd(np.asarray(paths, complex), compute_uv=False)[:, 1]
    kept = np.linalg.svd(np.asarray(equivalent, complex), compute_uv=False)[:, 1]
    np.testing.assert_allclose(kept, smallest, rtol=1e-2, atol=1e-6)  # the second direction survives float32


def test_path_angles_one_sided_and_symmetric():
    nominal = jnp.ones(2000)
    one_sided = channel.draw_path_angles(jax.random.key(4), nominal, 4, 0.1, True) - 1.0
    symmetric = channel.draw_path_angles(jax.random.key(4), nominal, 4, 0.1, False) - 1.0
    assert -0.1 - 1e-6 <= one_sided.min() < -0.099 and -0.051 < one_sided.max() <= -0.05 + 1e-6
    assert -0.05 - 1e-6 <= symmetric.min() < -0.049 and 0.049 < symmetric.max() <= 0.05 + 1e-6


# --- invariants ------------------------------------------------------------------------------------------------------


def test_projection_meets_the_power_limit_and_fixes_the_phase(seven):
    env, _, _ = seven
    params = env.default_params
    action = jnp.asarray(random_actions(1, 7)[1], jnp.float32)
    projected = env.project_action(action, params)
    beam = cbf_dynamics.reals_to_beam(projected)
    before_mw, after_mw = np.sum(np.square(action), 1), np.sum(np.square(projected), 1)
    np.testing.assert_allclose(after_mw, np.minimum(before_mw, params.p_max_mw), rtol=1e-5)
    assert np.all(beam[:, 0].imag == 0) and np.all(beam[:, 0].real >= 0)
    np.testing.assert_allclose(env.project_action(projected, params), projected, rtol=1e-6, atol=1e-5)
    assert env.spec.action_high == pytest.approx((79.4328,) * 6, rel=1e-5)  # sqrt of 38 dBm in mW


def test_common_phase_of_a_beam_changes_nothing(seven):
    env, reset, step = seven
    params = env.default_params
    state, _ = reset(jax.random.key(0), params)
    action = random_actions(2, 7)[0]
    turned = (action[:, :3] + 1j * action[:, 3:]) * np.exp(1j * np.arange(7))[:, None]
    turned = np.concatenate([turned.real, turned.imag], 1)
    outs = [step(jax.random.key(1), state, jnp.asarray(a, jnp.float32), params)[1] for a in (action, turned)]
    np.testing.assert_allclose(outs[0].reward, outs[1].reward, atol=1e-3)  # float32 of 30 bit/s/Hz and deep nulls
    np.testing.assert_allclose(outs[0].action, outs[1].action, atol=1e-3)
    assert np.any(np.abs(action - turned) > 1)


def test_vmap_equals_loop_and_step_is_transition_after_draw(seven):
    env, _, step = seven
    params = env.default_params
    reset_keys, step_keys = jax.random.split(jax.random.key(7), (2, 2))
    states, obs = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(reset_keys, params)
    assert obs.shape == (2, 7, env.spec.obs_dim)
    action = jnp.asarray(random_actions(3, 7)[:2], jnp.float32)

    def transition(key, state, action, params):
        return env.transition(state, action, env.draw(key, state, params), params)

    batched = jax.jit(jax.vmap(transition, in_axes=(0, 0, 0, None)))(
        jax.random.clone(step_keys), states, action, params
    )
    for b in range(2):
        state = jax.tree.map(lambda x, b=b: x[b], states)
        _, single = step(step_keys[b], state, action[b], params)
        np.testing.assert_allclose(single.obs, batched[1].obs[b], atol=2e-3)  # logs of nulls amplify rounding
        np.testing.assert_allclose(single.reward, batched[1].reward[b], atol=1e-4)


def test_silent_cell_gets_zero_and_observations_stay_finite(seven):
    env, reset, step = seven
    params = env.default_params
    state, _ = reset(jax.random.key(1), params)
    state, timestep = step(jax.random.key(2), state, jnp.zeros((7, 6)), params)
    assert np.all(timestep.reward == 0) and np.all(timestep.metrics["rate"] == 0)
    assert np.all(np.isfinite(timestep.obs))
    _, timestep = step(jax.random.key(3), state, jnp.full((7, 6), 20.0), params)
    assert np.all(np.isfinite(timestep.obs)) and np.all(timestep.metrics["rate"] > 0)


def test_truncation_after_episode_steps(seven):
    env, reset, step = seven
    params = env.default_params
    state, _ = reset(jax.random.key(0), params)
    state = state.replace(t=jnp.int32(params.episode_steps - 2))
    flags = []
    for t in range(2):
        state, timestep = step(jax.random.key(t), state, jnp.ones((7, 6)), params)
        flags.append((bool(timestep.truncated), bool(timestep.terminated)))
    assert flags == [(False, False), (True, False)]


# --- information -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["one_hop", "global"])
def test_state_of_another_agent_reaches_only_declared_entries(scope):
    """Perturb everything that belongs to cell j; entries of obs_i change only where TaskSpec.information allows."""
    env = make("cbf", price_scope=scope)
    params, spec = env.default_params, env.spec
    state, _ = jax.jit(env.reset)(jax.random.key(11), params)
    observe = jax.jit(env.observe)
    obs = observe(state, params)  # the same compiled function, so that equal means bit for bit
    allowed = {name: block.whose for block in spec.information for name in block.entries}
    adjacency = np.asarray(env.adjacency(state, params))
    moved = set()
    for j in (7, 12):  # corner cells: most others are no neighbours
        links = state.links.replace(
            rate=state.links.rate.at[j].add(3.0),
            wanted=state.links.wanted.at[j].multiply(5.0),
            interference=state.links.interference.at[j].multiply(7.0),
        )
        changed = state.replace(
            links=links,
            power=state.power.at[j].set(0.01),
            direction=state.direction.at[j].set(jnp.array([1.0, 0, 0])),
            channel=state.channel.at[j].multiply(2.0),
            estimate=state.estimate.at[j].multiply(2.0),
            last_estimate=state.last_estimate.at[j].multiply(2.0),
        )
        difference = np.abs(np.asarray(observe(changed, params)) - np.asarray(obs)) > 0
        for i in range(19):
            for o in np.flatnonzero(difference[i]):
                whose = allowed[spec.obs_names[o]]
                if i != j:
                    moved.add(spec.obs_names[o].split("_")[0])
                    assert whose == "global" or (whose == "one_hop" and adjacency[i, j]), (i, j, spec.obs_names[o])
    assert {"leakage", "interference"} <= moved  # the test sees influence where it is declared


def test_bytes_and_sizes_of_the_observation():
    env = make("cbf")
    assert env.spec.obs_dim == 36 and env.spec.action_dim == 6 and env.spec.message_delay_steps == 1
    blocks = {block.entries[0]: block.num_bytes for block in env.spec.information}
    assert blocks["leakage_0"] == 4 * 6 and make("cbf", price_scope="global").spec.information[4].num_bytes == 4 * 18
    assert make("cbf", slnr_feature=True).spec.obs_dim == 41
    reference = make("cbf", face="reference").spec
    assert reference.obs_dim == 62 and reference.action_high == (19.0,) and reference.action_kind == "integer"


def test_decoded_observation_returns_the_physical_quantities():
    env = make("cbf", price_scope="global")
    params = env.default_params
    state, obs = jax.jit(env.reset)(jax.random.key(2), params)
    view = cbf_observation.decode_local_csi(obs, params)
    np.testing.assert_allclose(view.interference, cbf_dynamics.measure(state)[1], rtol=1e-3)
    leakage = np.asarray(cbf_observation.leakage_of(state, params))
    scale = np.abs(leakage).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(view.leakage / scale, leakage / scale, atol=1e-4)  # float32 through a logarithm and back
    own = cbf_links.canonical_phase(cbf_links.own(state.channel))
    np.testing.assert_allclose(view.channel, own, rtol=1e-3, atol=1e-3 * float(jnp.abs(own).max()))


# --- user's own networks ---------------------------------------------------------------------------------------------


def test_supplied_gains_and_traces():
    gain = np.full((4, 4), 1e-12) + np.eye(4) * 1e-9
    env = make("cbf", path_gain=gain, adjacency=np.ones((4, 4)) - np.eye(4), num_neighbours=2, num_antennas=2)
    state, obs = jax.jit(env.reset)(jax.random.key(0), env.default_params)
    np.testing.assert_allclose(state.topology.path_gain, gain, rtol=1e-6)
    assert obs.shape == (4, 7 + 3 + 3 + 4 + 4)
    rng = np.random.default_rng(0)
    trace = (rng.normal(size=(8, 7, 7, 3)) + 1j * rng.normal(size=(8, 7, 7, 3))) * 1e-5
    env = make("cbf", channels=trace, episode_steps=6)
    params = env.default_params
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    np.testing.assert_allclose(state.channel, trace[1] * np.sqrt(params.max_snr), rtol=1e-5)  # slot -1 was the warm-up


def test_estimation_error_has_the_stated_power():
    env = make("cbf", csi_error_db=-10.0)
    state, _ = jax.jit(env.reset)(jax.random.key(0), env.default_params)
    error = np.abs(state.estimate - state.channel) ** 2 / np.asarray(state.topology.mean_gain)[..., None]
    assert abs(error.mean() / 0.1 - 1) < 4 / np.sqrt(error.size)  # exponential draws: relative standard error 1/sqrt(n)
    exact, _ = jax.jit(make("cbf").reset)(jax.random.key(0), make("cbf").default_params)
    np.testing.assert_array_equal(exact.estimate, exact.channel)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"face": "other"}, "face must be"),
        ({"num_cells": 8}, "num_cells must be 1, 7 or 19"),
        ({"num_neighbours": 19}, "num_neighbours must lie in 1..18"),
        ({"price_scope": "all"}, "price_scope must be"),
        ({"correlation": 1.0}, "correlation must lie"),
        ({"nois_dbm": 1.0}, "unknown cbf parameter 'nois_dbm'"),
        ({"path_gain": np.ones((4, 4))}, "has no default graph"),
        ({"channels": np.ones((3, 7, 7, 3))}, "lower episode_steps"),
    ],
)
def test_errors_name_the_mistake(overrides, message):
    with pytest.raises(ValueError, match=message):
        make("cbf", **overrides)


# --- small Hermitian matrices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_jacobi_against_lapack(x64):
    """Graded matrices over six decades; error relative to the largest eigenvalue is rounding."""
    rng = np.random.default_rng(0)
    factor = (rng.normal(size=(40, 5, 3)) + 1j * rng.normal(size=(40, 5, 3))) * 10.0 ** rng.uniform(-3, 3, (40, 5, 1))
    factor[0] = 0
    with jax.enable_x64(x64):
        matrix = jnp.asarray(np.einsum("blk,blm->bkm", factor.conj(), factor))
        values, vectors = jax.jit(hermitian_eigen)(matrix)
        tolerance = 1e-13 if x64 else 2e-6
        scale = np.maximum(np.abs(matrix).max(axis=(1, 2)), 1e-30)[:, None]
        np.testing.assert_allclose(np.sort(values) / scale, np.linalg.eigvalsh(matrix) / scale, atol=10 * tolerance)
        np.testing.assert_allclose(
            recompose(values, vectors) / scale[..., None], matrix / scale[..., None], atol=10 * tolerance
        )
        np.testing.assert_allclose(reals_to_hermitian(hermitian_to_reals(matrix)), matrix)
