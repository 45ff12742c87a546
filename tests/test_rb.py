"""`rb` against the float64 loop of tests/reference, and what must hold in every frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs import rb_mac, rb_traffic
from networld_envs.rb import make_rb, observation_names
from networld_envs.rb_params import RBParams
from tests.reference import rb_loop

FRAMES = 40
NETWORKS = 6
# Name -> (overrides of the library, options of the loop). Together they reach every static switch of the MAC and the
# PHY.
VARIANTS = {
    "default": ({}, {}),
    "robust": (
        dict(mini_slots_per_rb=4, head_scope="two_hop", half_duplex=True, message_bytes=24, cluster_correlation=0.0),
        dict(mini_slots=4, two_hop_head=True, half_duplex=True, message_bytes=24, correlation=0.0),
    ),
    "rate2_sparse": (
        dict(mini_slots_per_rb=None, rate2_margin_db=14.0, alive_choices=(2, 3, 5, 9), num_slots=9, num_channels=5,
             cluster_spacing=0.9, max_request_rbs=12, rho=1.3, deadlines_frames=(3, 6)),
        dict(mini_slots=None, slots=9, channels=5, max_request=12, deadlines=(3, 6)),
    ),
}  # fmt: skip


def trajectory(overrides):
    """Recorded random play: (params, initial state, {state, draws, step} with leading axes [NETWORKS, FRAMES])."""
    env = make_rb(**overrides)
    params = env.default_params

    def one(key):
        reset_key, play_key = jax.random.split(key)
        state, obs = env.reset(reset_key, params)

        def frame(state, key):
            action_key, draw_key = jax.random.split(key)
            highest = jax.random.randint(action_key, (), 2, params.max_request_rbs + 2)
            shape = (params.max_agents, 1)
            action = jax.random.randint(jax.random.fold_in(draw_key, 1), shape, 0, highest).astype(jnp.float32)
            draws = env.draw(jax.random.fold_in(draw_key, 2), state, params)
            after, step = env.transition(state, action, draws, params)
            return after, dict(before=state, after=after, draws=draws, step=step, action=action)

        return state, obs, jax.lax.scan(frame, state, jax.random.split(play_key, FRAMES))[1]

    return params, jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), NETWORKS)))


SLOW = ("rate2_sparse", "robust")


@pytest.fixture(scope="module", params=[pytest.param(v, marks=pytest.mark.slow) if v in SLOW else v for v in VARIANTS])
def recorded(request):
    overrides, options = VARIANTS[request.param]
    return *trajectory(overrides), options


def test_every_field_equals_the_float64_loop(recorded):
    _, (initial, obs0, played), options = recorded
    for e in range(NETWORKS):
        net = jax.tree.map(lambda x, e=e: np.asarray(x[e], np.float64), initial.network)
        network = dict(
            position=net.position, mean_snr=net.mean_snr, receiver=net.receiver.astype(int), load=net.load,
            threshold=net.link_threshold, rate=net.link_rate.astype(int), num_alive=net.alive.sum(),
        )  # fmt: skip
        loop = rb_loop.RBLoop(network, initial.mode[e], **options)
        np.testing.assert_array_equal(obs0[e], loop.observe())
        for k in range(FRAMES):
            frame = jax.tree.map(lambda x, e=e, k=k: np.asarray(x[e, k]), played)
            draws = frame["draws"]
            out = loop.frame(
                frame["action"][:, 0],
                dict(fading=draws.fading, relay=draws.relay, arrivals=draws.arrivals, mode=draws.mode,
                     cluster=draws.cluster),
            )  # fmt: skip
            step, metrics = frame["step"], frame["step"].metrics
            np.testing.assert_array_equal(step.obs, out["obs"], err_msg=f"network {e} frame {k}")
            # float32 sums of about 20 terms up to 20: 20 * 20 * 6e-8
            np.testing.assert_allclose(step.reward, out["reward"], rtol=1e-6, atol=2.4e-5)
            np.testing.assert_array_equal(frame["after"].mode, loop.mode)
            np.testing.assert_array_equal(metrics["delivered"], out["delivered"])
            np.testing.assert_array_equal(metrics["delay_frames"], out["delay_frames"])
            for c, name in enumerate(("urgent", "data")):
                np.testing.assert_array_equal(metrics[f"late_{name}"], out["late"][:, c])
                np.testing.assert_array_equal(metrics[f"overflow_{name}"], out["overflow"][:, c])
                np.testing.assert_array_equal(metrics[f"arrived_{name}"], out["arrivals"][:, c])
                deadline = loop.cfg["deadlines"][c]
                np.testing.assert_array_equal(
                    frame["after"].queue[:, c, :deadline], [loop.queue[i][c] for i in range(loop.n)]
                )
                assert not frame["after"].queue[:, c, deadline:].any()
            np.testing.assert_array_equal(metrics["granted_rbs"], loop.granted)
            np.testing.assert_array_equal(metrics["denied_rbs"], np.array(loop.requests) - loop.granted)
            capacity = loop.cfg["slots"] * loop.cfg["channels"]
            heads = np.where(np.arange(loop.n) < loop.alive, np.minimum(out["head"], capacity), 0)
            np.testing.assert_array_equal(metrics["signalling_rbs"], heads)


def test_packets_are_conserved_and_bounded(recorded):
    params, (_, _, played), _ = recorded
    m = played["step"].metrics
    before = played["before"].queue.sum((-1, -2))
    gone = m["delivered"] + sum(m[f"{kind}_{c}"] for kind in ("late", "overflow") for c in ("urgent", "data"))
    np.testing.assert_array_equal(m["queue_packets"], before - gone + m["arrived_urgent"] + m["arrived_data"])
    after = played["after"].queue
    assert (after >= 0).all()
    assert (after.sum(-1) <= np.array(params.buffers_packets)).all()
    assert (m["granted_rbs"] <= m["requested_rbs"]).all()


def test_reservation_is_conflict_free_and_behind_the_head(recorded):
    """Spec invariants on the claims themselves, from the recorded requests."""
    params, (_, _, played), _ = recorded
    before = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), played["before"])
    requests = played["after"].requests.reshape(-1, params.max_agents)

    def claims_of(state, requests):
        net = state.network
        head = rb_mac.signalling_head(requests, net.two_hop, params)
        claims = rb_mac.reserve(requests, head, net.two_hop, net.receiver, net.alive, state.t, params)
        return rb_mac.unpack(claims, params.num_rbs), head

    claims, head = jax.device_get(jax.jit(jax.vmap(claims_of))(before, requests))
    two_hop, alive = before.network.two_hop, before.network.alive
    shared = np.einsum("eib,ejb->eij", claims.astype(int), claims.astype(int))
    assert not (shared * two_hop).any()
    assert not claims[~alive].any()
    assert not (claims & (np.arange(params.num_rbs) < head[..., None])).any()
    if params.half_duplex:
        slots = claims.reshape(claims.shape[:2] + (params.num_slots, params.num_channels)).any(-1)
        receiving = np.take_along_axis(slots, before.network.receiver[..., None], axis=1)
        assert not (slots & receiving).any()


def test_reuse_happens_beyond_two_hops():
    """Three nodes in a line out of each other's reach of two hops claim the same RBs."""
    params = RBParams(max_agents=3, mini_slots_per_rb=None)
    apart = jnp.zeros((3, 3), bool)
    requests = jnp.array([9, 4, 9], jnp.int32)
    head = rb_mac.signalling_head(requests, apart, params)
    claims = rb_mac.reserve(requests, head, apart, jnp.array([1, 0, 1]), jnp.ones(3, bool), jnp.int32(0), params)
    claimed = np.asarray(rb_mac.unpack(claims, params.num_rbs))
    np.testing.assert_array_equal(claimed, np.arange(40)[None, :] < np.asarray(requests)[:, None])


def test_over_asking_starves_the_late_turns():
    """Nine nodes in one another's range that all ask for 9: 27 RBs of signalling, 13 left: 9, 4, and nothing."""
    params = RBParams()
    everyone = ~jnp.eye(9, dtype=bool)
    requests = jnp.full(9, 9, jnp.int32)
    head = rb_mac.signalling_head(requests, everyone, params)
    np.testing.assert_array_equal(head, np.full(9, 27))
    receiver = jnp.zeros(9, jnp.int32)
    claims = rb_mac.reserve(requests, head, everyone, receiver, jnp.ones(9, bool), jnp.int32(5), params)
    np.testing.assert_array_equal(rb_mac.count_bits(claims), [0, 0, 0, 0, 0, 9, 4, 0, 0])


@pytest.mark.parametrize(
    ("message_bytes", "mini_slots", "expected"),
    # ceil(81 requests / M + 9 messages * bytes / 256): the messages fill what the requests leave of the last RB
    [(0, None, 0), (1, None, 1), (28, None, 1), (29, None, 2), (64, None, 3), (0, 4, 21), (21, 4, 21), (22, 4, 22)],
)
def test_messages_are_charged_at_the_head(message_bytes, mini_slots, expected):
    params = RBParams(message_bytes=message_bytes, mini_slots_per_rb=mini_slots)
    everyone = ~jnp.eye(9, dtype=bool)
    head = rb_mac.signalling_head(jnp.full(9, 9, jnp.int32), everyone, params)
    np.testing.assert_array_equal(head, np.full(9, expected))


@pytest.mark.parametrize("num_words", [1, 2, 3])
def test_first_bits_against_sets(num_words):
    rng = np.random.default_rng(0)
    members = rng.random((64, 32 * num_words)) < rng.random((64, 1))
    packed = np.zeros((64, num_words), np.uint32)
    for b in range(32 * num_words):
        packed[:, b // 32] |= members[:, b].astype(np.uint32) << np.uint32(b % 32)
    count = rng.integers(0, 32 * num_words + 2, 64)
    kept = rb_mac.first_bits(jnp.asarray(packed), jnp.asarray(count, jnp.int32))
    expected = members & (np.cumsum(members, 1) <= count[:, None])
    np.testing.assert_array_equal(rb_mac.unpack(kept, 32 * num_words), expected)
    np.testing.assert_array_equal(rb_mac.count_bits(kept), expected.sum(1))


def test_most_urgent_packets_leave_first():
    """Slack 1 of both classes: the urgent one first; then by slack, older first."""
    params = RBParams()
    queue = (
        jnp.zeros((1, 2, 12), jnp.int32).at[0, 0, 3].set(1).at[0, 1, 11].set(2).at[0, 0, 0].set(3).at[0, 1, 8].set(1)
    )
    order = [(0, 3), (1, 11), (1, 11), (0, 0), (0, 0), (0, 0), (1, 8)]  # (class, age); slack 4: urgent before data
    for count in range(8):
        left, served = rb_traffic.serve(queue, jnp.array([count]), params)
        expected = np.zeros((2, 12), int)
        for cell in order[:count]:
            expected[cell] += 1
        np.testing.assert_array_equal(served[0], expected)
        np.testing.assert_array_equal(left + served, queue)


def test_a_packet_served_in_its_first_frame_costs_nothing():
    """Delay 1 and no holding cost: the reward of a delivered fresh packet is scale * beta."""
    env = make_rb(alive_choices=(9,))
    params = env.default_params
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    state = state.replace(queue=state.queue.at[0, 0, 0].set(1))
    draws = jax.jit(env.draw)(jax.random.key(1), state, params)
    draws = draws.replace(fading=jnp.full_like(draws.fading, 1e6), arrivals=jnp.zeros_like(draws.arrivals))
    action = jnp.zeros((9, 1)).at[0].set(1.0)
    _, step = jax.jit(env.transition)(state, action, draws, params)
    assert step.metrics["delay_frames"][0] == 1
    np.testing.assert_allclose(step.reward, np.eye(9)[0] * 0.025, rtol=1e-6)


def test_load_may_be_vmapped_over():
    """Floats of the params are leaves: one compilation serves a sweep of loads, and queues grow with the load."""
    env = make_rb()
    rhos = jnp.array([0.5, 1.0, 2.0])

    def total_load(rho):
        params = env.default_params.replace(rho=rho)
        return jnp.sum(env.reset(jax.random.key(3), params)[0].network.load)

    loads = jax.jit(jax.vmap(total_load))(rhos)
    np.testing.assert_allclose(loads / loads[1], rhos, rtol=1e-6)


def test_traffic_does_not_depend_on_actions():
    """Common random numbers: two policies with one key see the same own arrivals and modes."""
    env = make_rb()
    params = env.default_params
    step = jax.jit(env.step)
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    idle, busy = state, state
    for k in range(15):
        idle, _ = step(jax.random.key(100 + k), idle, jnp.zeros((9, 1)), params)
        busy, _ = step(jax.random.key(100 + k), busy, jnp.full((9, 1), 3.0), params)
        np.testing.assert_array_equal(idle.mode, busy.mode)
        np.testing.assert_array_equal(idle.generated[:, 0, 0], busy.generated[:, 0, 0])
        own_data = [s.generated[:, 0, 1] - s.forwarded for s in (idle, busy)]
        np.testing.assert_array_equal(*own_data)
    assert not np.array_equal(idle.queue, busy.queue)


def test_optional_observations():
    env = make_rb(observation_request=True, observation_requests=True, alive_choices=(8,))
    params = env.default_params
    names = observation_names(params)
    assert (len(names), names[-2:]) == (16, ("requested_rbs", "heard_requests"))
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    action = jnp.arange(9.0)[:, None]
    state, step = jax.jit(env.step)(jax.random.key(1), state, action, params)
    asked = np.where(np.arange(9) < 8, np.arange(9), 0)
    np.testing.assert_array_equal(step.obs[:, -2], asked)
    np.testing.assert_array_equal(step.obs[:, -1], np.asarray(state.network.two_hop) @ asked)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(alive_choices=(10,)), "alive_choices must be numbers in 2..max_agents=9, got (10,)"),
        (dict(alive_choices=(1, 8)), "alive_choices"),
        (dict(mini_slots_per_rb=0), "mini_slots_per_rb must be >= 1, or None for free signalling, got 0"),
        (dict(head_scope="global"), "head_scope must be 'local' or 'two_hop', got 'global'"),
        (dict(rho=-1.0), "rho must be positive, got -1.0"),
        (dict(cluster_correlation=1.5), "cluster_correlation must be in"),
        (dict(num_slots=2.5), "num_slots must be a whole number >= 1, got 2.5"),
        (dict(cluster_spacing=1.2), "heads in range"),
        (dict(minislots=3), "unknown parameters ['minislots']"),
    ],
)
def test_bad_parameters_are_one_line_errors(overrides, message):
    with pytest.raises(ValueError) as error:
        make_rb(**overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
