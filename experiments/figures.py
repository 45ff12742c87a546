"""Figures out of stored results: learning curves, scores, latents, actions, the environments, a plan against what
happened.

    python -m experiments.figures --config=experiments/configs/small.py --workdir=runs/small

Reads the workdir of a finished experiment, writes <workdir>/figures/*.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import ml_collections
import numpy as np

from experiments import runtime, settings, train_loop
from experiments.adapt import adapt_dir
from experiments.episodes import play
from experiments.pretrain import pretrain_dir
from networld_envs.types import Environment
from networld_jax import checkpoints, planning
from networld_jax.mean_field import mean_field
from networld_jax.schedules import cosine_schedule

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLOURS = {"random": "0.6", "rule": "tab:olive", "learned": "tab:blue", "networld": "tab:red", "anchor": "0.3"}


def learning_curves(runs: Mapping[str, Path]) -> Figure:
    """Denoising, return and inverse-dynamics loss against updates for every run that left a metrics.jsonl."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    for name, directory in runs.items():
        rows = runtime.read_metrics(directory / "metrics.jsonl", train_loop.steps_done(directory))
        steps = [row["step"] for row in rows]
        for axis, metric in zip(axes, ("denoise", "return", "inverse_dynamics"), strict=True):
            keys = [k for k in rows[0] if k == metric or k.endswith("/" + metric)]
            keys = [k for k in keys if "/" in k] if metric == "inverse_dynamics" else [metric]
            for key in keys:
                axis.plot(
                    steps, [row[key] for row in rows], label=f"{name} {key.split('/')[0]}" if "/" in key else name
                )
    for axis, title in zip(axes, ("denoising loss", "return loss", "inverse-dynamics cross-entropy"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("update")
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def score_bars(task: str, rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Anchored score of every policy with the standard error and the single instances."""
    names = sorted(rows, key=lambda name: rows[name]["score"])
    figure, axis = plt.subplots(figsize=(8, 0.34 * len(names) + 1.4))
    for y, name in enumerate(names):
        row = rows[name]
        colour = COLOURS[kind(name)]
        axis.barh(y, row["score"], xerr=row["score_sem"], color=colour, alpha=0.8, height=0.7, error_kw={"lw": 1})
    axis.set_yticks(range(len(names)), [f"{name}  ({rows[name]['reward']:.3f})" for name in names])
    axis.axvline(0, color="0.7", lw=0.8)
    axis.axvline(1, color="0.7", lw=0.8, ls="--")
    first = rows[names[0]]
    axis.set_xlabel(
        "anchored score: 0 = random, 1 = best rule an agent could follow; bar = standard error over instances"
    )
    axis.set_title(f"{task}: {first['instances']} test instances x {first['steps']} steps (mean reward in brackets)")
    figure.tight_layout()
    return figure


def kind(name: str) -> str:
    """Colour group of a policy name."""
    if name.startswith("networld"):
        return "networld"
    if name.startswith(("ma_", "inverse_")):
        return "learned"
    return {"random": "random", "expert": "anchor", "warm_fp10": "anchor"}.get(name, "rule")


def imagined_against_realised(
    world_model, task: str, policy_params: planning.PolicyParams, imagine_fn, obs: jax.Array, adjacency: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """(imagined, realised) latents [T, N, H, D]: at every step t a plan, beside the latents of the H steps that
    followed."""
    delay = world_model.specs[task].message_delay_steps
    horizon, dim = world_model.config.horizon, world_model.config.latent_dim
    z = world_model.encode(policy_params.params, policy_params.stats, task, obs)  # [L+1, N, D]
    heard = z[jnp.maximum(jnp.arange(z.shape[0]) - delay, 0)]
    m = mean_field(heard, adjacency[None])
    starts = jnp.arange(z.shape[0] - horizon + 1)

    @jax.jit
    def imagine(t):
        agents = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), i))
        return imagine_fn(policy_params, agents(jnp.arange(z.shape[1])), z[t], m[t])[..., :dim]

    imagined = jax.lax.map(imagine, starts)
    realised = jax.vmap(lambda t: jax.lax.dynamic_slice_in_dim(z, t, horizon))(starts)  # [T, H, N, D]
    return np.asarray(imagined), np.asarray(jnp.swapaxes(realised, 1, 2))


def plan_picture(names: list[str], imagined: np.ndarray, realised: np.ndarray, agent: int = 0) -> Figure:
    """Four observation entries of one agent: what happened (line) and the plans made on the way (thin lines)."""
    variance = realised[:, agent, 0].std(0)[: len(names)]
    chosen = np.argsort(-variance)[:4]
    figure, axes = plt.subplots(4, 1, figsize=(9, 7.5), sharex=True)
    horizon = imagined.shape[2]
    shown = min(60, len(imagined))
    for axis, entry in zip(axes, chosen, strict=True):
        axis.plot(realised[:shown, agent, 0, entry], color="k", lw=1.6, label="what happened")
        for t in range(0, shown, 3):
            axis.plot(np.arange(t, t + horizon), imagined[t, agent, :, entry], color="tab:red", lw=0.8, alpha=0.6)
        axis.plot([], [], color="tab:red", lw=0.8, label="imagined at that step")
        axis.set_ylabel(names[entry], fontsize=8)
    axes[0].legend(fontsize=8, loc="upper right")
    axes[-1].set_xlabel("environment step")
    axes[0].set_title("plans against what then happened (standardised latents of one agent)")
    figure.tight_layout()
    return figure


def diagnostics(
    names: list[str],
    imagined: np.ndarray,
    realised: np.ndarray,
    mask: np.ndarray,
    data_action: np.ndarray,
    action: np.ndarray,
) -> Figure:
    """Latent std, correlation of imagined and realised z_1 per entry, and the action histograms of data and planner."""
    used, present = len(names), mask > 0
    figure, axes = plt.subplots(1, 3, figsize=(14, 0.16 * max(used, 12) + 2.2))
    flat = realised[:, present, 0, :used].reshape(-1, used)
    axes[0].barh(range(used), flat.std(0), color="tab:gray")
    axes[0].set_yticks(range(used), names, fontsize=6)
    axes[0].set_title("latent standard deviation in closed loop")
    dreamt, real = (x[:, present, 1, :used].reshape(-1, used) for x in (imagined, realised))
    axes[1].barh(range(used), [correlation(dreamt[:, i], real[:, i]) for i in range(used)], color="tab:red")
    axes[1].set_yticks(range(used), [])
    axes[1].set_title("correlation of imagined and realised $z_1$")
    for values, label in ((data_action, "data"), (action, "planner")):
        axes[2].hist(values.reshape(-1), bins=40, density=True, alpha=0.5, label=label)
    axes[2].set_title("executed actions, all components")
    axes[2].legend()
    figure.tight_layout()
    return figure


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 where one side is constant."""
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def save(figure: Figure, path: Path) -> Path:
    """Writes and closes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def environment_pictures(envs: Mapping[str, Environment], directory: Path) -> list[Path]:
    """One picture per environment under its expert."""
    from experiments.pictures import PICTURES

    paths = []
    for task, env in envs.items():
        if task in PICTURES:
            figure = PICTURES[task](env, settings.rule_policy(task, env, picture_policy(task)), {})
            paths.append(save(figure, directory / f"environment_{task}.png"))
    return paths


def picture_policy(task: str) -> str:
    """The policy whose behaviour the picture shows."""
    return {"cbf": "local_fp", "rb": "mf_rule", "ns": "expert"}[task]


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Path]:
    """All figures of a finished experiment; returns their paths."""
    task, out = config.held_out, Path(workdir) / "figures"
    envs = settings.environments(config)
    runs = {
        "pre-training": pretrain_dir(workdir, task),
        "few-shot": adapt_dir(workdir, task, from_scratch=False),
        "from scratch": adapt_dir(workdir, task, from_scratch=True),
    }
    runs = {name: directory for name, directory in runs.items() if (directory / "metrics.jsonl").exists()}
    paths = [save(learning_curves(runs), out / "learning_curves.png")] if runs else []
    evaluation = Path(workdir) / f"evaluation_{task}.json"
    if evaluation.exists():
        paths.append(save(score_bars(task, json.loads(evaluation.read_text())), out / f"scores_{task}.png"))
    model_dir = adapt_dir(workdir, task, from_scratch=False) / "model"
    if model_dir.exists():
        paths += model_figures(config, workdir, envs[task], model_dir, out)
    return paths + environment_pictures(envs, out)


def model_figures(
    config: ml_collections.ConfigDict, workdir: Path, env: Environment, model_dir: Path, out: Path
) -> list[Path]:
    """Plans against reality, latents and actions of the adapted model on one validation instance."""
    from experiments.adapt import few_shot_data

    task = env.spec.name
    world_model, params, stats, _ = checkpoints.load_model(model_dir)
    schedule = cosine_schedule(world_model.config.diffusion_steps)
    policy_params = planning.PolicyParams(params, stats[task])
    policy = settings.make_planner(config, world_model, task)
    played = play(env, policy, policy_params, num_steps=80)
    mask, action = played.agent_mask, played.steps.action
    imagine_fn = planning.diffusion_imagination(
        world_model, schedule, task, settings.planner_config(config), settings.sampler(config)
    )
    imagined, realised = imagined_against_realised(
        world_model, task, policy_params, imagine_fn, played.obs, played.adjacency
    )
    names = list(env.spec.obs_names) if world_model.config.encoder == "identity" else [
        f"latent {i}" for i in range(world_model.config.latent_dim)
    ]  # fmt: skip
    present = mask > 0
    data = few_shot_data(config, workdir)
    data_action = np.asarray(data.action)[np.broadcast_to(data.agent_mask[:, None] > 0, data.reward.shape)]
    return [
        save(plan_picture(names, imagined, realised), out / f"plan_{task}.png"),
        save(
            diagnostics(names, imagined, realised, mask, data_action, action[:, present]),
            out / f"diagnostics_{task}.png",
        ),
    ]


if __name__ == "__main__":
    runtime.main(run)
