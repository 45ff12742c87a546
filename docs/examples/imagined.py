"""What the world model imagines against what happened.

A world model is trained on logs of the resource-block network, then it plays, and at every frame its plan is kept. The
animation shows the network (node size = packets waiting, arrow width = resource blocks granted) beside the queue of one
node: what happened, and what was imagined for the next three frames. The correlations below compare the plans with the
simplest forecast there is: that nothing changes.
"""

import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

import networld_envs
import networld_jax as nw
from experiments.episodes import play
from experiments.figures import imagined_against_realised
from networld_envs import experts
from networld_jax import planning
from networld_jax.windows import sample_segments

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HORIZON, FRAMES = 4, 40
env = networld_envs.make("rb")
mixed = experts.tiers("rb", env.default_params)["mixed"]
collect = jax.jit(jax.vmap(lambda key: nw.rollout(key, env, env.default_params, mixed, {}, 100)))
logs = collect(networld_envs.instance_keys("rb", "data", 16))

config = nw.WorldModelConfig(horizon=HORIZON, width=16, inverse_dynamics_hidden=(128, 128))
model = nw.make_world_model(config, [env.spec])
stats = {"rb": nw.task_stats(logs, env.spec, config)}
schedule = nw.cosine_schedule(config.diffusion_steps)
optimiser = nw.make_optimiser(2e-3)
update = nw.make_update(nw.world_model_loss(model, schedule, nw.LossConfig()), optimiser, ema_decay=0.99)
sample = lambda key, d: ({"rb": sample_segments(key, d[0], 8, HORIZON)}, d[1])  # noqa: E731
epoch = jax.jit(nw.make_epoch(update, sample, num_updates=800), donate_argnums=0)
state = nw.init_train_state(jax.jit(model.init)(jax.random.key(0)), optimiser)
state, metrics = epoch(state, (logs, stats), jax.random.key(1))
print(f"800 updates: denoise {metrics['denoise']:.3f}, return {metrics['return']:.3f}")

planner_config = nw.PlannerConfig(guide_scale=10.0)
weights = nw.PolicyParams(state.ema_params, stats["rb"])
episode = play(env, nw.make_planner(model, schedule, "rb", planner_config), weights, FRAMES + HORIZON)
imagine_fn = planning.diffusion_imagination(model, schedule, "rb", planner_config)
imagined, realised = imagined_against_realised(model, "rb", weights, imagine_fn, episode.obs, episode.adjacency)

# Latents are standardised symlog observations here, so the queue is an entry of them.
entry = env.spec.obs_names.index("queue_data")
mean, std = float(stats["rb"].obs_mean[entry]), float(stats["rb"].obs_std[entry])
packets = lambda z: np.expm1(np.clip(z * std + mean, 0, None))  # noqa: E731
present = episode.agent_mask > 0
node = int(np.argmax(np.where(present, episode.obs[:, :, entry].std(0), -1)))
for ahead in range(1, HORIZON):
    a, b = imagined[:, present, ahead, entry].ravel(), realised[:, present, ahead, entry].ravel()
    still = realised[:, present, 0, entry].ravel()
    print(f"queue {ahead} frames ahead: correlation of plan and outcome {np.corrcoef(a, b)[0, 1]:.2f}, "
          f"of present and outcome {np.corrcoef(still, b)[0, 1]:.2f}")  # fmt: skip

# ------------------------------------------------------------------ the animation
network = episode.last_state.network
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1, 1), layout="constrained")
position, alive = network.position, np.flatnonzero(network.alive)


def draw(t):
    left.clear()
    queue = episode.states.queue[t].sum((1, 2))
    for i in alive:
        to = position[network.receiver[i]]
        width = 0.4 + 0.5 * float(episode.steps.metrics["granted_rbs"][t, i])
        left.annotate("", to, position[i], arrowprops={"arrowstyle": "->", "color": "tab:green", "lw": width})
    left.scatter(*position[alive].T, s=30 + 25 * queue[alive], c="tab:blue", alpha=0.7, zorder=3)
    left.plot(*position[node], "r+", markersize=10, zorder=4)
    left.set(title=f"frame {t}: queues and grants", xticks=[], yticks=[])
    left.margins(0.2)
    right.clear()
    right.plot(packets(realised[: t + 1, node, 0, entry]), color="k", lw=1.8, label="what happened")
    for s in range(max(0, t - 8), t + 1):
        alpha = 1.0 if s == t else 0.25
        right.plot(np.arange(s, s + HORIZON), packets(imagined[s, node, :, entry]), color="tab:red", alpha=alpha)
    right.plot([], [], color="tab:red", label="imagined")
    right.set(title=f"data packets waiting at node {node}", xlim=(0, FRAMES), xlabel="frame")
    right.set_ylim(0, 1.1 * packets(realised[:, node, 0, entry]).max() + 1)
    right.legend(loc="upper right", fontsize=8)


target = Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "imagined.gif"
FuncAnimation(figure, draw, frames=FRAMES).save(target, writer=PillowWriter(fps=5), dpi=70)
print(f"animation: {target.name}, {target.stat().st_size // 1024} KiB")
