"""Five minutes to a guided plan.

A network, logged behaviour, a world model trained on it, a plan, and what guidance changes about it.
"""

import jax
import jax.numpy as jnp

import networld_envs
import networld_jax as nw
from networld_envs import experts

# A network of eight or nine radios that share the resource blocks of a frame, and the rule that logged it.
env = networld_envs.make("rb")
rules = experts.policies("rb", env.default_params)


def play(policy, params, split, count, steps):
    """`count` networks, `steps` frames each."""
    run = jax.jit(jax.vmap(lambda key, p: nw.rollout(key, env, env.default_params, policy, p, steps), (0, None)))
    return run(networld_envs.instance_keys("rb", split, count), params)


logs = play(experts.tiers("rb", env.default_params)["mixed"], {}, "data", 16, 100)
print(f"logged: {logs.reward.shape[0]} networks x {logs.reward.shape[1]} frames, mean reward {logs.reward.mean():.3f}")

# A small world model: what an agent sees and hears, imagined four frames ahead.
config = nw.WorldModelConfig(horizon=4, width=16, inverse_dynamics_hidden=(128, 128))
model = nw.make_world_model(config, [env.spec])
stats = {"rb": nw.task_stats(logs, env.spec, config)}
schedule = nw.cosine_schedule(config.diffusion_steps)
optimiser = nw.make_optimiser(2e-3)
update = nw.make_update(nw.world_model_loss(model, schedule, nw.LossConfig()), optimiser, ema_decay=0.99)


def sample(key, data_and_stats):
    """Eight networks' windows of the horizon, as the loss wants them."""
    from networld_jax.datasets import sample_segments

    data, stats = data_and_stats
    return {"rb": sample_segments(key, data["rb"], 8, config.horizon)}, stats


epoch = jax.jit(nw.make_epoch(update, sample, num_updates=200), donate_argnums=0)
state = nw.init_train_state(jax.jit(model.init)(jax.random.key(0)), optimiser)
for _ in range(4):
    state, metrics = epoch(state, ({"rb": logs}, stats), jax.random.key(1))
    print(f"update {int(state.step):4d}: denoise {metrics['denoise']:.3f}, return {metrics['return']:.3f}")

# The planner is a policy like any other. Its guidance is one number.
weights = nw.PolicyParams(state.ema_params, stats["rb"])
print("on 8 networks that nobody trained on, 100 frames each:")
for scale in (0.0, 30.0):
    planner = nw.make_planner(model, schedule, "rb", nw.PlannerConfig(guide_scale=scale))
    played = play(planner, weights, "test", 8, 100)
    error = jnp.std(played.reward.mean((1, 2)), ddof=1) / 8**0.5
    print(f"  planner, guidance {scale:4.1f}: {played.reward.mean():.3f} +- {error:.3f}")
for name in ("random", "queue", "mf_rule"):
    print(f"  rule {name}: {play(rules[name], {}, 'test', 8, 100).reward.mean():.3f}")
