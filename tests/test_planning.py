"""The planner: decentralised execution bit for bit, messages, candidates, guidance, one trace."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, planning, sampling
from networld_jax.mean_field import mean_field, quantise
from networld_jax.types import PlannerConfig
from networld_jax.windows import windows
from tests import tiny

N, D = tiny.AGENTS, tiny.CONFIG.latent_dim
EXACT = PlannerConfig(message_bits=0)  # messages in float32


@pytest.fixture(scope="module")
def box():
    """Random weights in all networks, the U-Net included: no path of information is closed by a zero."""
    return tiny.build()


@pytest.fixture(scope="module")
def params(box):
    return planning.PolicyParams(box.params, box.stats)


@pytest.fixture(scope="module")
def graph():
    return jnp.asarray(tiny.path_graph(N))


def observations(steps=1, seed=3):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(steps, N, tiny.OBS)), jnp.float32)


class Player:
    """A planner compiled once; counts its traces."""

    def __init__(self, box, config, **options):
        self.policy = planning.make_planner(box.world_model, box.schedule, "line", config, **options)
        self.traces = 0

        def act(key, params, carry, obs, graph):
            self.traces += 1
            return self.policy.act(key, params, carry, obs, graph, None)

        self.act = jax.jit(act)

    def play(self, params, obs, graph, seed=0):
        """Actions [T, N, A] along observations [T, N, O]."""
        carry, actions = self.policy.init(jax.random.key(9), obs.shape[1]), []
        for t in range(len(obs)):
            action, carry = self.act(jax.random.fold_in(jax.random.key(seed), t), params, carry, obs[t], graph)
            actions.append(np.asarray(action))
        return np.stack(actions)


@pytest.fixture(scope="module")
def player(box):
    return Player(box, EXACT)


@pytest.fixture(scope="module")
def delayed(box):
    """Messages one step late; linear nets, as only the messages are looked at."""
    return Player(tiny.with_linear_nets(box), dataclasses.replace(EXACT, message_delay_steps=1))


@pytest.fixture(scope="module")
def linear_params(box):
    linear = tiny.with_linear_nets(box)
    return planning.PolicyParams(linear.params, linear.stats)


# ------------------------------------------------------------------------------------------------ decentralised


@pytest.mark.parametrize("changed", range(N))
def test_an_action_depends_on_own_and_neighbours_observations_only(player, params, graph, changed):
    obs = observations()
    before = player.play(params, obs, graph)[0]
    after = player.play(params, obs.at[0, changed].add(0.7), graph)[0]
    for i in range(N):
        if i == changed or graph[i, changed]:
            assert np.abs(after[i] - before[i]).max() > 1e-4, f"agent {i} ignores agent {changed}"
        else:
            np.testing.assert_array_equal(after[i], before[i])


def test_a_delayed_message_acts_one_step_later(delayed, linear_params, graph):
    obs = observations(3)
    before = delayed.play(linear_params, obs, graph)
    after = delayed.play(linear_params, obs.at[1, 0].add(0.7), graph)  # agent 0 at step 1
    moved = np.abs(after - before).max(-1) > 0
    expected = np.zeros((3, N), bool)
    expected[1, 0] = expected[2, 1] = True
    np.testing.assert_array_equal(moved, expected)


def test_the_first_message_is_heard_at_once_and_again(delayed, linear_params, graph):
    """Before any message could arrive the step-0 message is used, as in the windows of training."""
    obs = observations(2)
    before = delayed.play(linear_params, obs, graph)
    after = delayed.play(linear_params, obs.at[0, 0].add(0.7), graph)
    moved = np.abs(after - before).max(-1) > 0
    np.testing.assert_array_equal(moved, np.array([[1, 1, 0, 0], [0, 1, 0, 0]], bool))


def test_permuting_agents_permutes_plans(box, params, graph):
    """Apart from the noise, which follows the agent's number: switched off here."""
    imagine = planning.diffusion_imagination(
        box.world_model, box.schedule, "line", dataclasses.replace(EXACT, initial_noise_scale=0.0)
    )
    plan = jax.jit(planning.make_plan(box.world_model, "line", imagine))
    order = jnp.array([2, 0, 3, 1])
    z = box.world_model.encode(box.params, box.stats, "line", observations()[0])
    plain = plan(params, jax.random.key(0), z, mean_field(z, graph))
    mixed_graph = graph[order][:, order]
    mixed = plan(params, jax.random.key(0), z[order], mean_field(z[order], mixed_graph))
    # The order of the two summands of a mean may change: float32 rounding through three network evaluations.
    np.testing.assert_allclose(mixed.x, plain.x[order], atol=2e-5)
    np.testing.assert_allclose(mixed.action, plain.action[order], atol=2e-5)


def test_one_exported_agent_reproduces_the_batch(box, params, graph):
    """Agent 2 alone: own latent, received mean, own key."""
    imagine = planning.diffusion_imagination(box.world_model, box.schedule, "line", EXACT)
    z = box.world_model.encode(box.params, box.stats, "line", observations()[0])
    m = mean_field(z, graph)
    batch = jax.jit(planning.make_plan(box.world_model, "line", imagine))(params, jax.random.key(4), z, m)

    @jax.jit
    def alone(key, z, m):
        x = imagine(params, key[None], z[None], m[None])
        return x[0], planning.decode_plans(box.world_model, "line", params, x)[0]

    x, action = alone(jax.random.fold_in(jax.random.key(4), 2), z[2], m[2])
    # Matrix products of another batch size are summed in another order.
    np.testing.assert_allclose(x, batch.x[2], atol=2e-5)
    np.testing.assert_allclose(action, batch.action[2], atol=2e-5)


def test_actions_shift_by_standard_deviations_of_the_data(box, params, graph, player):
    """Same plans, same keys: every action is larger by 0.3 standard deviations of what was logged, component by
    component."""
    shifted = Player(box, dataclasses.replace(EXACT, action_shift_std=0.3))
    obs = observations()
    moved = shifted.play(params, obs, graph) - player.play(params, obs, graph)
    measured = np.asarray(box.data.action).std((0, 1, 2))
    np.testing.assert_allclose(moved, np.tile(0.3 * measured, (1, N, 1)), rtol=0.1)  # two-hot and smoothing widen it


def test_an_absent_agent_changes_nobodys_action(player, params, graph):
    present = jnp.array([1.0, 1.0, 1.0, 0.0])
    alone = graph * present[:, None] * present[None, :]
    obs = observations()
    before = player.play(params, obs, alone)[0]
    after = player.play(params, obs.at[0, 3].set(100.0), alone)[0]
    np.testing.assert_array_equal(after[:3], before[:3])


def test_plans_start_at_the_present_and_stay_within_the_clip(box, params, graph):
    imagine = planning.diffusion_imagination(box.world_model, box.schedule, "line", PlannerConfig(latent_clip=1.5))
    z = box.world_model.encode(box.params, box.stats, "line", observations()[0])
    m = mean_field(z, graph)
    x = jax.jit(imagine)(params, jax.random.split(jax.random.key(0), N), z, m)
    np.testing.assert_array_equal(x[:, 0], jnp.concatenate([z, m], -1))
    assert np.abs(x[:, 1:]).max() <= 1.5
    unused = np.asarray(box.world_model.channel_mask("line")) == 0
    assert unused.sum() == 4 and not np.any(x[:, :, unused])


def test_the_planner_traces_once(player, params, graph):
    player.play(params, observations(4), graph)
    fresh = jax.tree.map(lambda x: x + 0, params)
    player.play(fresh, observations(2, seed=1), graph, seed=1)
    assert player.traces == 1


# ------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_messages_are_as_old_as_in_the_training_windows(delay):
    """What `exchange` delivers at step t is what `windows` calls the message of step t."""
    steps = 7
    obs = np.random.default_rng(0).normal(size=(1, steps + 1, N, 2)).astype(np.float32)
    shape = (1, steps, N)
    data = datasets.from_arrays(obs, np.zeros((*shape, 1)), np.zeros(shape), tiny.path_graph(N))
    window = windows(jax.tree.map(jnp.asarray, data), jnp.zeros((1, 2), jnp.int32), steps, delay)
    buffer = planning.init_messages(N, 2, delay)
    for t in range(steps):
        heard, buffer = planning.exchange(buffer, jnp.asarray(obs[0, t]))
        np.testing.assert_array_equal(heard, window.message_obs[0, :, t])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantiser(bits):
    z = jnp.asarray(np.arange(-2000, 2001) * np.float32(0.004))  # exactly symmetric, unlike linspace
    q = np.asarray(quantise(z, bits, 6.0))
    assert len(np.unique(q)) == 2**bits - 1
    inside = np.abs(z) <= 6
    half_step = 3.0 / (2 ** (bits - 1) - 1)
    assert np.abs(q - z)[inside].max() <= half_step * (1 + 1e-5)
    assert q.max() == 6.0 and q.min() == -6.0
    np.testing.assert_array_equal(q, -q[::-1])
    assert quantise(jnp.float32(0.0), bits, 6.0) == 0
    np.testing.assert_allclose(quantise(jnp.asarray(q), bits, 6.0), q, atol=1e-6)


def test_no_bits_is_no_quantisation():
    z = jnp.linspace(-8.0, 8.0, 11)
    np.testing.assert_array_equal(quantise(z, 0, 6.0), z)


def test_bytes_of_a_message_count_used_channels_only(box):
    assert planning.message_bytes(box.world_model, "line", 8) == 4  # four observations in a latent of six
    assert planning.message_bytes(box.world_model, "line", 0) == 16
    assert planning.message_bytes(box.world_model, "line", 3) == 2  # 12 bits


def test_lost_messages_leave_the_own_observation(box, linear_params, graph):
    """All messages lost equals no neighbours."""
    lossy = Player(tiny.with_linear_nets(box), dataclasses.replace(EXACT, message_loss=1.0))
    plain = Player(tiny.with_linear_nets(box), EXACT)
    obs = observations()
    np.testing.assert_array_equal(
        lossy.play(linear_params, obs, graph), plain.play(linear_params, obs, jnp.zeros_like(graph))
    )


# ------------------------------------------------------------------------------------------------ candidates


def test_the_highest_ranked_candidate_is_executed(box, linear_params, graph):
    """The ranking is a known function of the action: the winner is the largest of what it was shown."""
    linear = tiny.with_linear_nets(box)
    imagine = planning.random_imagination(linear.world_model, "line")
    rank = lambda params, z, m, action, x: action[:, 0]  # noqa: E731
    z = linear.world_model.encode(linear.params, linear.stats, "line", observations()[0])
    m, num = mean_field(z, graph), 5
    plan = planning.make_plan(linear.world_model, "line", imagine, num, rank)(linear_params, jax.random.key(1), z, m)
    best = []
    for i in range(N):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), num)
        x = imagine(linear_params, keys, jnp.tile(z[i][None], (num, 1)), jnp.tile(m[i][None], (num, 1)))
        best.append(planning.decode_plans(linear.world_model, "line", linear_params, x)[:, 0].max())
    np.testing.assert_allclose(plan.action[:, 0], np.stack(best), atol=1e-5)
    np.testing.assert_array_equal(plan.x[:, 0], jnp.concatenate([z, m], -1))


def test_the_decoded_plan_is_the_mean_of_its_samples(box, linear_params, graph):
    linear, num = tiny.with_linear_nets(box), 3

    def imagination(**changes):
        config = dataclasses.replace(EXACT, guide_scale=2.0, **changes)
        return planning.diffusion_imagination(linear.world_model, linear.schedule, "line", config)

    z = linear.world_model.encode(linear.params, linear.stats, "line", observations()[0])
    m, keys = mean_field(z, graph), lambda: jax.random.split(jax.random.key(4), N)
    x = imagination(num_averaged=num)(linear_params, keys(), z, m)
    for i in range(N):
        own = jax.random.split(keys()[i], num)
        samples = imagination()(linear_params, own, jnp.tile(z[i][None], (num, 1)), jnp.tile(m[i][None], (num, 1)))
        assert samples.std(0)[1:, 0].min() > 1e-3
        np.testing.assert_allclose(x[i], samples.mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="num_averaged"):
        PlannerConfig(num_averaged=0)


def test_rankings_by_return_and_by_action_value(box, linear_params, graph):
    linear = tiny.with_linear_nets(box)
    z = linear.world_model.encode(linear.params, linear.stats, "line", observations()[0])
    m, action = mean_field(z, graph), jnp.full((N, tiny.ACTIONS), 0.2)
    x = planning.repeat_present(linear.world_model)(None, None, z, m)
    by_return = planning.rank_by_return(linear.world_model, "line")(linear_params, z, m, action, x)
    np.testing.assert_allclose(by_return, x.reshape(N, -1) @ linear.params["classifier"]["weight"][:, 0], rtol=1e-5)
    by_value = planning.rank_by_action_value(linear.world_model, "line")(linear_params, z, m, action, x)
    expected = linear.world_model.action_value(linear.params, linear.stats, "line", z, m, action)
    np.testing.assert_array_equal(by_value, expected)


# ------------------------------------------------------------------------------------------------ guidance


def test_no_guidance_equals_the_unguided_sampler(box, linear_params, graph):
    linear = tiny.with_linear_nets(box)
    z = linear.world_model.encode(linear.params, linear.stats, "line", observations()[0])
    present = jnp.concatenate([z, mean_field(z, graph)], -1)
    config = dataclasses.replace(EXACT, guide_scale=0.0)
    imagine = planning.diffusion_imagination(linear.world_model, linear.schedule, "line", config)
    mask = linear.world_model.channel_mask("line")[None, None]

    def predict(x, k):
        return linear.world_model.predict(linear.params, jnp.zeros_like(k), x, k) * mask

    plain = sampling.sample_ddim(
        jax.random.split(jax.random.key(2), N),
        predict,
        linear.schedule,
        (tiny.HORIZON, 2 * D),
        condition_fn=lambda x: (x * mask).at[:, 0].set(present),
        num_steps=config.num_steps,
        initial_noise_scale=config.initial_noise_scale,
        clip=config.latent_clip,
    )
    keys = jax.random.split(jax.random.key(2), N)
    np.testing.assert_array_equal(imagine(linear_params, keys, z, present[:, D:]), plain)


def test_guidance_moves_the_plan_along_the_gradient(box, linear_params, graph):
    """Linear nets have a closed form: one DDIM step gives x0 + w sigma^2 grad J in every free row."""
    linear = tiny.with_linear_nets(box)
    z = linear.world_model.encode(linear.params, linear.stats, "line", observations()[0])
    m, last = mean_field(z, graph), box.schedule.num_steps - 1

    def plan(scale):
        config = PlannerConfig(guide_scale=scale, num_steps=1, latent_clip=1e6, message_bits=0)
        imagine = planning.diffusion_imagination(linear.world_model, linear.schedule, "line", config)
        return imagine(linear_params, jax.random.split(jax.random.key(2), N), z, m)

    weight = linear.params["classifier"]["weight"][:, 0].reshape(tiny.HORIZON, 2 * D)
    shift = 0.7 * box.schedule.sigma[last] ** 2 * weight * linear.world_model.channel_mask("line")[None]
    difference = plan(0.7) - plan(0.0)
    np.testing.assert_allclose(difference[:, 1:], jnp.tile(shift[None, 1:], (N, 1, 1)), atol=1e-5)
    assert not np.any(difference[:, 0])


@pytest.mark.slow
def test_guidance_raises_the_predicted_return_of_a_trained_model(graph):
    box, state = tiny.trained()
    params = planning.PolicyParams(state.ema_params, box.stats)
    obs = jnp.asarray(box.data.obs[:, 10:20].reshape(-1, tiny.OBS))
    z = box.world_model.encode(params.params, box.stats, "line", obs)
    m = mean_field(z.reshape(-1, N, D), graph[None]).reshape(-1, D)

    def predicted(scale):
        config = PlannerConfig(guide_scale=scale)
        imagine = planning.diffusion_imagination(box.world_model, box.schedule, "line", config)
        plan = jax.jit(planning.make_plan(box.world_model, "line", imagine))
        return np.asarray(plan(params, jax.random.key(0), z, m).predicted_return)

    unguided, guided = predicted(0.0), predicted(PlannerConfig().guide_scale)
    gain = guided - unguided
    # Paired over 240 agents: at least three standard errors.
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain)) > 0


# ------------------------------------------------------------------------------------------------ controls


def test_controls_leave_the_present_alone(box, graph):
    z = box.world_model.encode(box.params, box.stats, "line", observations()[0])
    m = mean_field(z, graph)
    keys = jax.random.split(jax.random.key(0), N)
    present = np.concatenate([z, m], -1)
    still = planning.repeat_present(box.world_model)(None, keys, z, m)
    np.testing.assert_array_equal(still, np.repeat(present[:, None], tiny.HORIZON, 1))
    random = planning.random_imagination(box.world_model, "line")(None, keys, z, m)
    np.testing.assert_array_equal(random[:, 0], present)
    used = np.asarray(box.world_model.channel_mask("line")) > 0
    assert not np.any(random[:, 1:, ~used])
    # 4 agents x 3 rows x 8 channels of N(0, 1): mean 0 +- 0.10, variance 1 +- 0.14; five of them.
    values = np.asarray(random)[:, 1:][:, :, used]
    assert abs(values.mean()) < 0.5 and abs(values.var() - 1) < 0.7


# ------------------------------------------------------------------------------------------------ warm start


def test_warm_levels_are_the_cleanest():
    assert planning.planning_levels(20, PlannerConfig(num_steps=3)).tolist() == [19, 9, 0, -1]
    assert planning.planning_levels(20, PlannerConfig(num_steps=3, warm_start=0.3)).tolist() == [5, 2, 0, -1]
    assert planning.planning_levels(20, PlannerConfig(num_steps=3, warm_start=0.05)).tolist() == [0, -1]
    with pytest.raises(ValueError, match="warm_start must lie in"):
        PlannerConfig(warm_start=1.5)


def test_a_planner_starts_from_its_shifted_last_plan(linear_params, box):
    """Carry and call by hand: the present repeated at first, then row h + 1 of the last plan as row h."""
    config = dataclasses.replace(EXACT, warm_start=0.4)
    seen = []

    def imagine(policy_params, keys, z, m, previous=None):
        seen.append(np.asarray(previous))
        rows = jnp.arange(float(tiny.HORIZON))[None, :, None] + previous[:, :1]
        return rows.at[:, 0].set(jnp.concatenate([z, m], -1))

    world_model = tiny.with_linear_nets(box).world_model
    policy = planning.make_planner(world_model, box.schedule, "line", config, imagine_fn=imagine)
    carry, graph = policy.init(jax.random.key(9), N), jnp.asarray(tiny.path_graph(N))
    obs = observations(2)
    for t in range(2):
        _, carry = policy.act(jax.random.fold_in(jax.random.key(0), t), linear_params, carry, obs[t], graph, None)
    z = world_model.encode(linear_params.params, linear_params.stats, "line", obs[0])
    present = np.concatenate([z, mean_field(z, graph)], -1)
    np.testing.assert_array_equal(seen[0], np.broadcast_to(present[:, None], seen[0].shape))
    rows = np.arange(1.0, tiny.HORIZON, dtype=np.float32)[None, :, None] + seen[0][:, :1]
    np.testing.assert_allclose(seen[1][:, 1:], rows, rtol=1e-6)
    np.testing.assert_array_equal(planning.shift_plan(jnp.arange(3.0)[:, None])[:, 0], [1, 2, 2])


def test_guidance_through_a_shared_trunk_is_the_gradient_of_the_return(box, graph):
    """One trunk, one forward pass: x0 + w sigma^2 grad J as from the two functions apart."""
    shared = tiny.build(dataclasses.replace(tiny.CONFIG, shared_trunk=True))
    model, params = shared.world_model, shared.params
    assert set(params["classifier"]) == {"head"}
    x = jax.random.normal(jax.random.key(0), (N, tiny.HORIZON, 2 * D))
    k, task = jnp.full(N, 5), jnp.zeros(N, jnp.int32)
    both = sampling.value_and_gradient(lambda x, k: model.predict_both(params, task, x, k))
    prediction, gradient = jax.jit(both)(x, k)
    np.testing.assert_allclose(prediction, model.predict(params, task, x, k), atol=1e-5)
    wanted = jax.grad(lambda x: model.predict_return(params, task, x, k).sum())(x)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    assert np.abs(wanted).max() > 1e-3


def test_guidance_moves_a_channel_as_far_as_a_step_leaves_it_open(box, params, graph):
    """With no surprise anywhere guidance in its units does nothing; with all of it, what it does in latent units."""
    config, obs = dataclasses.replace(EXACT, guide_scale=20.0), observations()
    in_surprise = Player(box, dataclasses.replace(config, guide_metric="surprise"))

    def with_surprise(value):
        return params.replace(stats=params.stats.replace(surprise=jnp.full(D, value)))

    guided = Player(box, config).play(params, obs, graph)
    unguided = Player(box, dataclasses.replace(config, guide_scale=0.0)).play(params, obs, graph)
    assert np.abs(guided - unguided).max() > 1e-3
    np.testing.assert_allclose(in_surprise.play(with_surprise(0.0), obs, graph), unguided, atol=1e-6)
    np.testing.assert_allclose(in_surprise.play(with_surprise(1.0), obs, graph), guided, atol=1e-6)
