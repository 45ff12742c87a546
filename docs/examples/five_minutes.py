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
    """`count` networks, `steps` frames each; what agents tell each other takes air time."""
    charged = nw.charge_messages(env.default_params, policy)
    run = jax.jit(jax.vmap(lambda key, p: nw.rollout(key, env, charged, policy, p, steps), (0, None)))
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
    from networld_jax.windows import sample_segments

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
policies = {
    "planner, no guidance": (nw.make_planner(model, schedule, "rb", nw.PlannerConfig(guide_scale=0.0)), weights),
    "planner, guided": (nw.make_planner(model, schedule, "rb", nw.PlannerConfig(guide_scale=30.0)), weights),
    "rule queue": (rules["queue"], {}),
    "rule mf_rule": (rules["mf_rule"], {}),
}
for name, (policy, params) in policies.items():
    per_network = play(policy, params, "test", 8, 100).reward.mean((1, 2))
    print(f"  {name:21s} {per_network.mean():.3f} +- {jnp.std(per_network, ddof=1) / 8**0.5:.3f}")
