"""Your own network as a fourth task, from logged data only.

Twelve small cells switch parts of their carriers off at night. Nobody has a simulator of them; there are logs. (Here
the logs come from a few lines of NumPy, which then also tell what the planner's actions would have done.)
"""

import jax
import numpy as np

import networld_jax as nw
from networld_jax.windows import sample_segments

# ------------------------------------------------------------------ the operator's side: a network and its logs
CELLS, STEPS, RUNS = 12, 150, 12
ring = np.roll(np.eye(CELLS), 1, 0) + np.roll(np.eye(CELLS), -1, 0)  # who is next to whom


def next_state(load, share, rng):
    """Offered load drifts; what a cell cannot carry with its share of carriers spills over to its neighbours."""
    demand = np.clip(0.9 * load + 0.05 + 0.1 * rng.normal(size=CELLS), 0, 1.5)
    spill = np.maximum(demand - share, 0)
    heard = demand + 0.4 * ring @ spill
    lost = np.maximum(heard - share, 0)
    return heard, -lost - 0.3 * share  # traffic lost, and the power of the carriers that are on


def play(policy, seed):
    """(obs [L+1, N, 2], action [L, N, 1], reward [L, N]) of one night."""
    rng = np.random.default_rng(seed)
    load, last = rng.uniform(0.2, 0.8, CELLS), np.full(CELLS, 0.5)
    obs, action, reward = [np.stack([load, last], -1)], [], []
    for t in range(STEPS):
        last = np.clip(policy(t, obs[-1], rng), 0, 1)
        load, r = next_state(load, last, rng)
        obs.append(np.stack([load, last], -1))
        action.append(last[:, None])
        reward.append(r)
    return np.stack(obs), np.stack(action), np.stack(reward)


def operator(t, obs, rng):
    """What runs today: carriers follow the load, with a margin that somebody changes now and then."""
    return obs[:, 0] + rng.choice([-0.1, 0.1, 0.3]) + 0.05 * rng.normal(size=CELLS)


obs, action, reward = (np.stack(x) for x in zip(*(play(operator, seed) for seed in range(RUNS)), strict=True))

# ------------------------------------------------------------------ from here on: logged arrays only
data = nw.from_arrays(obs, action, reward, ring)
spec = nw.spec_from_trajectories("small_cells", data)
print(f"logs {data.obs.shape} -> task {spec.name}: {spec.max_agents} agents, {spec.obs_dim} observations, actions in "
      f"[{spec.action_low[0]:.2f}, {spec.action_high[0]:.2f}]")  # fmt: skip

config = nw.WorldModelConfig(latent_dim=2, horizon=4, width=16, inverse_dynamics_hidden=(64, 64))
model = nw.make_world_model(config, [spec])
stats = {spec.name: nw.task_stats(data, spec, config)}
schedule = nw.cosine_schedule(config.diffusion_steps)
optimiser = nw.make_optimiser(2e-3)
update = nw.make_update(nw.world_model_loss(model, schedule, nw.LossConfig()), optimiser, ema_decay=0.99)
sample = lambda key, d: ({spec.name: sample_segments(key, d[0], 8, config.horizon)}, d[1])  # noqa: E731
epoch = jax.jit(nw.make_epoch(update, sample, num_updates=600), donate_argnums=0)
state = nw.init_train_state(jax.jit(model.init)(jax.random.key(0)), optimiser)
state, metrics = epoch(state, (jax.tree.map(jax.numpy.asarray, data), stats), jax.random.key(1))
print(f"600 updates: denoise {metrics['denoise']:.3f}, return {metrics['return']:.3f}")


def planned(guide_scale):
    """The planner as a function of the operator's own observations."""
    planner = nw.make_planner(model, schedule, spec.name, nw.PlannerConfig(guide_scale=guide_scale))
    weights = nw.PolicyParams(state.ema_params, stats[spec.name])
    act = jax.jit(lambda key, carry, obs: planner.act(key, weights, carry, obs, jax.numpy.asarray(ring), None))
    carry = [planner.init(jax.random.key(2), CELLS)]

    def policy(t, obs, rng):
        chosen, carry[0] = act(jax.random.key(t), carry[0], jax.numpy.asarray(obs, jax.numpy.float32))
        return np.asarray(chosen)[:, 0]

    return policy


# ------------------------------------------------------------------ back at the operator's: four new nights
print("mean reward per cell and step on four nights that are not in the logs:")
policies = {"operator": operator, "planner, no guidance": planned(0.0), "planner, guided": planned(10.0)}
for name, policy in policies.items():
    scores = [play(policy, 1000 + night)[2].mean() for night in range(4)]
    print(f"  {name:22s} {np.mean(scores):.3f} +- {np.std(scores, ddof=1) / 2:.3f}")
