"""The contract of `Environment`, held by everything in ENVIRONMENTS (being in that dict is being tested) and by an
environment learned from data."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs import ENVIRONMENTS, make
from networld_envs.types import Environment
from networld_jax import graph_dynamics, normalisation
from networld_jax.learned_environment import make_learned_environment
from tests import tiny

COPIES, STEPS, EPISODE_STEPS = 3, 6, 4
# Smaller versions of the same task, for speed. Nothing is required here.
SMALL = {"cbf": dict(num_cells=7), "ns": dict(preset="tiny")}
WHOSE = ("own", "one_hop", "two_hop", "global")


class Case(NamedTuple):
    env: Environment
    params: object
    play: Callable  # compiled: key data [COPIES, ...] -> (states, actions, obs0, steps)
    step: Callable  # compiled, shared by the tests: (key, state, action, params) -> (state, TimeStep)
    traces: list  # one entry per trace of that step
    states: object  # [COPIES, STEPS + 1] state before each step, and after the last
    actions: jax.Array  # [COPIES, STEPS, N, A] as passed to step
    obs0: jax.Array  # [COPIES, N, O]
    steps: object  # TimeStep [COPIES, STEPS]

    def key(self, copy, step):
        """What step `step` of network `copy` was given."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(12), copy), step)

    def again(self, copy, step, action=None):
        """That step once more, alone, optionally with another action."""
        action = self.actions[copy, step] if action is None else action
        return self.step(self.key(copy, step), at(self.states, copy, step), action, self.params)


def random_actions(key, spec):
    """[N, A] uniform over the action box, integer tasks off the grid by up to half."""
    low, high = jnp.array(spec.action_low), jnp.array(spec.action_high)
    uniform = jax.random.uniform(key, (spec.max_agents, spec.action_dim))
    return low[None] + (high - low)[None] * uniform


def make_play(env, params):
    """Random play of COPIES networks under jit, vmap and scan."""

    def one(copy):
        reset_key, action_key = jax.random.split(jax.random.fold_in(jax.random.key(11), copy))
        state, obs = env.reset(reset_key, params)

        def frame(state, k):
            action = random_actions(jax.random.fold_in(action_key, k), env.spec)
            step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(12), copy), k)
            after, step = env.step(step_key, state, action, params)
            return after, (state, action, step)

        last, (states, actions, steps) = jax.lax.scan(frame, state, jnp.arange(STEPS))
        states = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), states, last)
        return states, actions, obs, steps

    return jax.jit(jax.vmap(one))


def made(name):
    """A small environment; "learned" is one of two random simulators and data in which the last agent is absent."""
    if name != "learned":
        return make(name, **SMALL.get(name, {}), episode_steps=EPISODE_STEPS)
    whole = tiny.linear_task(num_agents=6)  # not as many as there are observation entries
    present = np.arange(6) < 5
    data = whole.replace(
        obs=whole.obs * present[:, None],
        adjacency=whole.adjacency * present[:, None] * present,
        agent_mask=whole.agent_mask * present,
    )
    spec = tiny.build(data=data, name="learned").spec
    stats = graph_dynamics.with_observation_bins(data, normalisation.task_stats(data, spec, tiny.CONFIG), 8)
    simulator = graph_dynamics.make_simulator(spec, 8, hidden=8)
    shapes, rng = jax.eval_shape(simulator.init, jax.random.key(0)), np.random.default_rng(0)
    members = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, (2, *leaf.shape)), leaf.dtype), shapes)
    return make_learned_environment(spec, simulator, members, stats, data, EPISODE_STEPS)


@pytest.fixture(scope="module", params=[*sorted(ENVIRONMENTS), "learned"])
def case(request):
    env = made(request.param)
    play, traces = make_play(env, env.default_params), []

    def step(key, state, action, params):
        traces.append(1)
        return env.step(key, state, action, params)

    with jax.debug_key_reuse(True):  # as in every test; another setting would compile everything twice
        played = play(jnp.arange(COPIES))
    return Case(env, env.default_params, play, jax.jit(step), traces, *played)


def at(tree, copy, step):
    return jax.tree.map(lambda x: x[copy, step], tree)


def over(fn, states, params):
    """fn(state, params) of every recorded state, [COPIES, STEPS + 1, ...]."""
    return np.asarray(jax.jit(jax.vmap(jax.vmap(lambda state: fn(state, params))))(states))


def assert_trees_close(actual, expected, rtol=2e-5, atol=1e-5):
    """Integers and booleans exactly; floats to a few hundred roundings (fusion reorders float32 sums)."""

    def compare(path, a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        message = jax.tree_util.keystr(path)
        if np.issubdtype(a.dtype, np.inexact):
            scale = np.max(np.abs(b), initial=0.0)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * max(scale, 1e-6), err_msg=message)
        else:
            np.testing.assert_array_equal(a, b, err_msg=message)

    jax.tree_util.tree_map_with_path(compare, actual, expected)


def test_shapes_and_dtypes(case):
    spec, steps = case.env.spec, case.steps
    lead, n = (COPIES, STEPS), spec.max_agents
    expected = {
        "obs": (lead + (n, spec.obs_dim), jnp.float32),
        "reward": (lead + (n,), jnp.float32),
        "action": (lead + (n, spec.action_dim), jnp.float32),
        "terminated": (lead, jnp.bool_),
        "truncated": (lead, jnp.bool_),
    }
    for name, (shape, dtype) in expected.items():
        value = getattr(steps, name)
        assert (value.shape, value.dtype) == (shape, dtype), name
    assert (case.obs0.shape, case.obs0.dtype) == ((COPIES, n, spec.obs_dim), jnp.float32)
    assert steps.metrics, "an environment reports metrics"
    for name, value in steps.metrics.items():
        assert value.shape in (lead, lead + (n,)), name


def test_everything_is_finite(case):
    for path, value in jax.tree_util.tree_leaves_with_path((case.obs0, case.steps)):
        assert np.isfinite(np.asarray(value)).all(), jax.tree_util.keystr(path)


def test_agents_act_and_matter(case):
    """Rewards and observations vary: a constant environment passes every other test."""
    mask = over(case.env.agent_mask, case.states, case.params)[:, 1:] > 0
    assert np.std(np.asarray(case.steps.reward)[mask]) > 0
    assert np.std(np.asarray(case.steps.obs)[mask], axis=0).max() > 0
    lowest = jnp.broadcast_to(jnp.array(case.env.spec.action_low), case.actions.shape[2:])
    state, _ = case.again(0, 1, lowest)
    assert not np.array_equal(case.env.observe(state, case.params), case.steps.obs[0, 1]), (
        "the action changes nothing that anybody observes"
    )


def test_observe_is_what_reset_and_step_return(case):
    obs = over(case.env.observe, case.states, case.params)
    assert_trees_close(obs[:, 0], np.asarray(case.obs0))
    assert_trees_close(obs[:, 1:], np.asarray(case.steps.obs))


def test_truncated_at_the_end_and_never_terminated(case):
    assert not np.asarray(case.steps.terminated).any()
    expected = np.arange(1, STEPS + 1) >= EPISODE_STEPS
    np.testing.assert_array_equal(case.steps.truncated, np.broadcast_to(expected, (COPIES, STEPS)))


def test_step_is_transition_after_draw(case):
    env = case.env

    @jax.jit
    def drawn(key, state, action, params):
        return env.transition(state, action, env.draw(key, state, params), params)

    for copy in range(COPIES):
        result = drawn(case.key(copy, 2), at(case.states, copy, 2), case.actions[copy, 2], case.params)
        assert_trees_close(result, case.again(copy, 2))


def test_single_equals_vmapped(case):
    """One network alone does what it did inside vmap and scan."""
    for copy, k in ((0, 0), (1, 3), (COPIES - 1, STEPS - 1)):
        assert_trees_close(case.again(copy, k), (at(case.states, copy, k + 1), at(case.steps, copy, k)))


def test_jit_equals_eager(case):
    eager = case.env.step(case.key(0, 1), at(case.states, 0, 1), case.actions[0, 1], case.params)
    assert_trees_close(eager, case.again(0, 1))


def test_deterministic_by_key(case):
    _, _, obs0, steps = case.play(jnp.arange(COPIES))
    assert_trees_close((obs0, steps), (case.obs0, case.steps), rtol=0, atol=0)
    assert not np.array_equal(steps.obs[0], steps.obs[1]), "different keys, same network"


def test_adjacency(case):
    graph = over(case.env.adjacency, case.states, case.params)
    mask = over(case.env.agent_mask, case.states, case.params)
    assert graph.dtype == mask.dtype == np.float32
    assert graph.shape[2:] == (case.env.spec.max_agents,) * 2
    assert set(np.unique(graph)) <= {0.0, 1.0} and set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(graph, np.swapaxes(graph, -1, -2))
    assert not np.diagonal(graph, axis1=-2, axis2=-1).any()
    assert not (graph * (1.0 - mask[..., None])).any()
    assert (mask.sum(-1) >= 1).all()


def test_absent_agents_are_zero(case):
    absent = over(case.env.agent_mask, case.states, case.params) == 0
    absent_after = absent[:, 1:]
    for name in ("obs", "reward", "action"):
        assert not np.asarray(getattr(case.steps, name))[absent_after].any(), name
    assert not np.asarray(case.obs0)[absent[:, 0]].any()
    for name, value in case.steps.metrics.items():
        if value.ndim == 3:
            assert not np.asarray(value)[absent_after].any(), name


def test_absent_agents_cannot_act(case):
    """What is passed for an absent agent changes nothing."""
    present = np.asarray(over(case.env.agent_mask, case.states, case.params))[:, 1, :, None] > 0
    for copy in range(COPIES):
        wild = jnp.where(present[copy], case.actions[copy, 1], 1e3)
        assert_trees_close(case.again(copy, 1, wild), case.again(copy, 1), rtol=0, atol=0)


def test_project_action(case):
    """Idempotent, inside the box, whole numbers for integer tasks; and it is the map that step applies."""
    env, spec, params = case.env, case.env.spec, case.params
    project = jax.jit(env.project_action)
    wild = 3.0 * case.actions[0] - 1.0
    for action in (*case.actions[0], *wild):
        once = project(action, params)
        assert_trees_close(project(once, params), once)
        assert (once >= jnp.array(spec.action_low)[None] - 1e-5).all()
        assert (once <= jnp.array(spec.action_high)[None] + 1e-5).all()
        if spec.action_kind == "integer":
            np.testing.assert_array_equal(once, jnp.round(once))
    executed = np.asarray(case.steps.action)
    projected = np.asarray(jax.jit(jax.vmap(jax.vmap(lambda a: env.project_action(a, params))))(case.actions))
    present = over(env.agent_mask, case.states, params)[:, :-1] > 0
    assert_trees_close(executed[present], projected[present])


def test_wrong_action_shape_is_an_error(case):
    action = case.actions[0, 0]
    for wrong in (action[:, 0], action[:-1], jnp.concatenate([action, action], axis=1)):
        with pytest.raises(ValueError, match="action must have shape"):
            case.env.step(case.key(0, 0), at(case.states, 0, 0), wrong, case.params)


def test_step_traces_once(case):
    """Shapes, dtypes and weak types of the state do not drift from reset over steps, so nothing compiles twice."""
    state, _ = jax.jit(case.env.reset)(jax.random.key(0), case.params)
    before = len(case.traces)
    for k in range(3):
        state, _ = case.step(jax.random.key(k), state, case.actions[0, k], case.params)
    assert len(case.traces) - before == (0 if before else 1)
    case.again(0, 1)
    assert len(case.traces) <= 1


def test_task_spec_is_static(case):
    spec = case.env.spec
    assert hash(spec) == hash(made(spec.name).spec)

    @functools.partial(jax.jit, static_argnums=0)
    def zeros(spec):
        return jnp.zeros((spec.max_agents, spec.obs_dim))

    assert zeros(spec).shape == (spec.max_agents, spec.obs_dim)
    assert {block.whose for block in spec.information} <= set(WHOSE)
    assert all(block.lag_steps >= 0 and block.num_bytes >= 0 for block in spec.information)


def replace_agent(state, donor, j, num_agents):
    """The state with agent j's part taken from `donor`: row j of every leaf [N, ...], and where users [U] are served by
    agents (`state.cell`), the rows of j's users.

    Leaves [N, N, ...] belong to pairs (geometry, channels): see `replace_pairs`.
    """
    cell = getattr(state, "cell", None)
    num_users = None if cell is None else cell.shape[0]

    def swap(x, y):
        if x.ndim and x.shape[0] == num_users:
            return jnp.where(jnp.expand_dims(cell == j, tuple(range(1, x.ndim))), y, x)
        is_pairwise = x.ndim >= 2 and x.shape[1] == num_agents
        return x.at[j].set(y[j]) if x.ndim and x.shape[0] == num_agents and not is_pairwise else x

    return jax.tree.map(swap, state, donor)


def replace_pairs(state, donor, may, num_agents):
    """The state with every pairwise entry (a, b) that involves none of the agents `may` [N] taken from `donor`.

    An agent measures its own links, and hears of those of the agents it may hear; of all other links it knows nothing.
    """
    foreign = ~(may[:, None] | may[None, :])

    def swap(x, y):
        is_pairwise = x.ndim >= 2 and x.shape[:2] == (num_agents, num_agents)
        return jnp.where(jnp.expand_dims(foreign, tuple(range(2, x.ndim))), y, x) if is_pairwise else x

    return jax.tree.map(swap, state, donor)


def reachable(adjacency, whose):
    """[N, N] bool: obs_i may depend on agent j's part of the state."""
    closed = adjacency + np.eye(len(adjacency))
    return {
        "own": np.eye(len(adjacency)) > 0,
        "one_hop": closed > 0,
        "two_hop": closed @ closed > 0,
        "global": np.ones_like(closed) > 0,
    }[whose]


def test_observations_depend_on_declared_information_only(case):
    """Perturb agent j's part of the state: obs_i moves only where TaskSpec.information says that it may."""
    env, params, spec = case.env, case.params, case.env.spec
    state, donor = at(case.states, 0, STEPS), at(case.states, 0, STEPS - 3)
    graph = np.asarray(env.adjacency(state, params))
    # Nobody's part replaced comes last: one compiled function, so that rounding does not pass for information.
    swapped = jax.vmap(lambda j: replace_agent(state, donor, j, spec.max_agents))(jnp.arange(spec.max_agents))
    every = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), swapped, state)
    obs = np.asarray(jax.jit(jax.vmap(lambda s: env.observe(s, params)))(every))
    after, before = obs[:-1], obs[-1]  # [j, i, O], [i, O]
    moved = np.abs(after - before[None]) > 1e-5 * (1.0 + np.abs(before))[None]
    for block in spec.information:
        columns = [spec.obs_names.index(entry) for entry in block.entries]
        may = reachable(graph, block.whose).T  # [j, i]
        leaks = moved[:, :, columns].any(-1) & ~may
        assert not leaks.any(), f"{block.entries} declared {block.whose!r}, leaks (j, i) = {np.argwhere(leaks)[:5]}"
    assert moved[np.arange(spec.max_agents), np.arange(spec.max_agents)].any(), "the perturbation reaches nobody"


def test_observations_do_not_depend_on_foreign_links(case):
    """Take the links between agents that i may not hear of from another network: obs_i does not move."""
    env, params, spec = case.env, case.params, case.env.spec
    state, donor = at(case.states, 0, STEPS), at(case.states, 1, STEPS)
    graph = np.asarray(env.adjacency(state, params))
    observe = jax.jit(jax.vmap(lambda may: env.observe(replace_pairs(state, donor, may, spec.max_agents), params)))
    unchanged = np.asarray(observe(jnp.ones((1, spec.max_agents), bool)))[0]
    for block in spec.information:
        columns = [spec.obs_names.index(entry) for entry in block.entries]
        obs = np.asarray(observe(jnp.asarray(reachable(graph, block.whose))))  # [i, N, O], row i = what i may know of
        for i in range(spec.max_agents):
            moved = np.abs(obs[i, i] - unchanged[i]) > 1e-5 * (1.0 + np.abs(unchanged[i]))
            assert not moved[columns].any(), f"agent {i}: {block.entries} declared {block.whose!r} see foreign links"


def test_unknown_parameter_is_an_error():
    for name in ENVIRONMENTS:
        with pytest.raises((ValueError, TypeError), match="no_such_parameter"):
            make(name, no_such_parameter=1)


def test_unknown_environment_lists_the_choices():
    with pytest.raises(ValueError, match="choose one of"):
        make("no_such_environment")
