"""Training: updates per second against the PyTorch reference of the same step, and what the input pipeline costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments import measure, settings, train_loop
from experiments.benchmark import Row, row
from experiments.pretrain import segments_per_update
from experiments.suites import sampler as sampler_suite
from experiments.suites.sampler import Nets, TorchSampler
from networld_envs.instances import instance_keys
from networld_jax import diffusion, normalisation, training
from networld_jax.costs import matmul_flops
from networld_jax.rollout import rollout
from networld_jax.schedules import NoiseSchedule, cosine_schedule
from networld_jax.types import Trajectories

LEARNING_RATE = 1e-4


def loss_fn(nets: Nets, schedule: NoiseSchedule) -> Callable[..., jax.Array]:
    """(params, x0, k, noise, label) -> denoising loss plus squared error of the return, both means."""

    def loss(params, x0, k, noise, label):
        x = diffusion.q_sample(x0, k, noise, schedule).at[:, 0].set(x0[:, 0])
        error = (nets.predict(params, x, k) - x0)[:, 1:]
        return jnp.mean(error**2) + jnp.mean((nets.score(params, x, k) - label) ** 2)

    return loss


def random_batch(c: ml_collections.ConfigDict, num_levels: int, batch: int) -> tuple[jax.Array, ...]:
    """(x0 [B, H, C], k [B], noise like x0, label [B])."""
    rng = np.random.default_rng(2)
    x0, noise = (jnp.asarray(rng.normal(size=(batch, c.horizon, c.channels)), jnp.float32) for _ in range(2))
    k = jnp.asarray(rng.integers(0, num_levels, batch), jnp.int32)
    return x0, k, noise, jnp.asarray(rng.normal(size=batch), jnp.float32)


def as_tensors(reference: TorchSampler, batch: tuple[jax.Array, ...]) -> list[Any]:
    """The batch for PyTorch; its indices are int64."""
    x0, k, noise, label = reference.tensors(*batch)
    return [x0, k.long(), noise, label]


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Row]:
    """All rows of the suite."""
    del workdir
    rows = []
    for batch in config.benchmark.train.batches:
        rows += step_rows(config.benchmark.sampler, config.benchmark.train, batch)
    return rows + pipeline_rows(config)


def step_rows(s: ml_collections.ConfigDict, c: ml_collections.ConfigDict, batch: int) -> list[Row]:
    """One Adam step on denoiser and classifier, here and in PyTorch, from the same weights on the same batch."""
    nets = sampler_suite.make_nets(s)
    schedule = cosine_schedule(s.levels)
    arrays = random_batch(s, s.levels, batch)
    optimiser = optax.adam(LEARNING_RATE)

    def step(state, *batch):
        params, opt_state = state
        loss, gradients = jax.value_and_grad(loss_fn(nets, schedule))(params, *batch)
        updates, opt_state = optimiser.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    fresh = lambda: jax.tree.map(jnp.array, (nets.params, optimiser.init(nets.params)))  # noqa: E731
    program = measure.compiled(step, fresh(), *arrays, donate_argnums=0)
    state = [fresh()]
    losses = {"jax": [], "torch": []}

    def jax_step():
        state[0], loss = program.call(state[0], *arrays)
        losses["jax"].append(loss)
        return loss

    calls: dict[str, Callable[[], Any]] = {"step": jax_step}
    reference = sampler_suite.torch_sampler(nets, s)
    if reference is not None:
        weights = [*reference.unet.parameters(), *reference.value.parameters()]
        adam = reference.torch.optim.Adam(weights, lr=LEARNING_RATE)
        torch_schedule = reference.reference.Schedule(schedule, reference.device)
        tensors = as_tensors(reference, arrays)

        def torch_step():
            loss = reference.reference.training_step(reference.unet, reference.value, adam, torch_schedule, *tensors)
            losses["torch"].append(loss)
            return loss.cpu()

        calls["torch step"] = torch_step
        for _ in range(3):  # three updates apart the losses would show another gradient, optimiser or noise
            jax_step(), torch_step()
        sampler_suite.assert_equal("training losses", losses["jax"], [v.item() for v in losses["torch"]], 1e-3)
    peak_call, peak_flops = measure.peak_calls()["matmul"]
    times = measure.interleaved(calls | {"matmul": peak_call}, c.seconds_per_comparison)
    peak = peak_flops / times["matmul"].seconds.min()
    flops = matmul_flops(step, fresh(), *arrays)
    best = "torch step" if "torch step" in calls else "step"
    return [
        row(
            f"{name}, batch {batch}",
            1 / times[name].median,
            "updates/s",
            baseline=None if name == best else f"{best}, batch {batch}",
            ratio=None if name == best else times[best].median / times[name].median,
            share_of_peak=flops / times[name].median / peak if name == "step" else None,
            sizes=dict(batch=batch, horizon=s.horizon, channels=s.channels, width=s.width, layout=s.layout),
            ms_per_update=1e3 * times[name].median,
            p95_ms_per_update=1e3 * times[name].p95,
            trace_s=program.trace_s if name == "step" else None,
            compile_s=program.compile_s if name == "step" else None,
            memory_bytes=program.memory_bytes if name == "step" else None,
        )
        for name in calls
    ]


def logged_data(config: ml_collections.ConfigDict, task: str, num: int, num_steps: int) -> Trajectories:
    """Trajectories [R] of the task's random policy, on the host."""
    env = settings.environment(config, task)
    policy = settings.rule_policy(task, env, "random")
    one = lambda key: rollout(key, env, env.default_params, policy, {}, num_steps)  # noqa: E731
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(instance_keys(task, "data", num)))


def pipeline_rows(config: ml_collections.ConfigDict) -> list[Row]:
    """The joint update of the configured model on its task: drawing windows in the scan, streamed from the host, or
    with the input pipeline taken out (the same batch again and again)."""
    c, task = config.benchmark.train, config.held_out
    env = settings.environment(config, task)
    model, loss = settings.world_model(config, {task: env}), settings.loss_config(config)
    data = logged_data(config, task, c.trajectories, c.trajectory_steps)
    stats = {task: normalisation.task_stats(data, env.spec, model.config, loss.discount)}
    optimiser = training.make_optimiser(1e-4)
    schedule = cosine_schedule(model.config.diffusion_steps)
    update = training.make_update(training.world_model_loss(model, schedule, loss), optimiser, 0.99)
    counts = segments_per_update({task: env.spec}, config.adapt.sequences)
    sample = training.multi_task_sampler(counts, model.config.horizon, {task: env.spec.message_delay_steps})
    params = train_loop.make_init(model)(jax.random.key(0))
    key, updates = jax.random.key(1), c.updates_per_dispatch
    on_device = ({task: jax.tree.map(jnp.asarray, data)}, stats)
    fixed = jax.jit(sample)(jax.random.key(2), on_device)

    def program(sample_fn, data):
        epoch = jax.jit(training.make_epoch(update, sample_fn, updates), donate_argnums=0)
        state = [training.init_train_state(jax.tree.map(jnp.array, params), optimiser)]

        def call():
            state[0], metrics = epoch(state[0], data, key)
            return metrics

        return call

    stream = jax.jit(training.make_streaming_epoch(update), donate_argnums=0)
    streamed = [training.init_train_state(jax.tree.map(jnp.array, params), optimiser)]
    delays = {task: env.spec.message_delay_steps}
    batches = training.stream_windows(key, {task: data}, counts, model.config.horizon, delays, updates)

    def stream_call():
        streamed[0], metrics = stream(streamed[0], (next(batches), stats), key)
        return metrics

    calls: Mapping[str, Callable[[], Any]] = {
        "input pipeline taken out": program(lambda key, batch: batch, fixed),
        "windows drawn on the device": program(sample, on_device),
        "windows streamed from the host": stream_call,
    }
    times = measure.interleaved(calls, c.seconds_per_comparison)
    baseline = "input pipeline taken out"
    sizes = dict(task=task, preset=config.preset, sequences=config.adapt.sequences, updates_per_dispatch=updates)
    return [
        row(
            f"{name}, {task}",
            updates / timing.median,
            "updates/s",
            baseline=None if name == baseline else f"{baseline}, {task}",
            ratio=None if name == baseline else times[baseline].median / timing.median,
            sizes=sizes,
            ms_per_update=1e3 * timing.median / updates,
            p95_ms_per_update=1e3 * timing.p95 / updates,
        )
        for name, timing in times.items()
    ]
