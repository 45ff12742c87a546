"""Guided sampling: this library against the PyTorch reference, then against itself.

The same weights and noise go to every variant that computes the same thing, and their outputs are compared before any
of them is timed. Sizes are those of Janner et al. 2022 (`config.benchmark.sampler`); one plan is one agent's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import distill, measure, runtime
from experiments.benchmark import Row, row
from networld_jax import convolutions, networks, sampling
from networld_jax.costs import matmul_flops
from networld_jax.schedules import cosine_schedule

GUIDE_SCALE = 0.1  # of Janner et al. 2022
STOP_BELOW = 2  # their cleanest levels go without guidance
STUDENT = "one evaluation (chain student)"
POLICY_OF = {"ddim": "six_evaluations", STUDENT: "chain, 1 step"}
"""Variant -> the planner of `experiments.distill` whose return belongs to it."""


class Nets(NamedTuple):
    """Denoiser and classifier as functions, with their weights."""

    params: dict[str, Any]
    predict: Callable[..., jax.Array]  # (params, x, k) -> x0
    score: Callable[..., jax.Array]  # (params, x, k) -> [B]


def random_weights(module: Any, *inputs: jax.Array) -> Any:
    """Weights of a module at the scale of a trained one, drawn by NumPy (its `init` leaves last layers at zero)."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]

    def draw(path, leaf):
        if path[-1].key == "gn_scale":
            return jnp.ones(leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_nets(c: ml_collections.ConfigDict, compute_dtype: Any = None) -> Nets:
    """The configured U-Net and classifier, without a task index."""
    options = dict(width=c.width, mults=tuple(c.mults), layout=c.layout, compute_dtype=compute_dtype)
    unet, classifier = networks.TemporalUNet(c.channels, **options), networks.ReturnClassifier(**options)
    x, k = jnp.zeros((1, c.horizon, c.channels)), jnp.zeros(1, jnp.int32)
    params = {"denoiser": random_weights(unet, x, k), "classifier": random_weights(classifier, x, k)}
    return Nets(
        params,
        lambda params, x, k: unet.apply({"params": params["denoiser"]}, x, k),
        lambda params, x, k: classifier.apply({"params": params["classifier"]}, x, k)[..., 0],
    )


def ddpm_sampler(nets: Nets, c: ml_collections.ConfigDict, num_levels: int) -> Callable[..., jax.Array]:
    """(params, noise [1 + K, B, H, C], present [B, C]) -> x: Diffuser's guided sampler, `num_guide_steps` per step."""
    schedule = cosine_schedule(num_levels)

    def sample(params, noise, present):
        condition = sampling.clamp_first_row(present)
        shift = sampling.gradient_shift(
            jax.grad(lambda x, k: nets.score(params, x, k).sum()),
            schedule,
            guide_scale=GUIDE_SCALE,
            num_guide_steps=c.num_guide_steps,
            stop_below=STOP_BELOW,
            condition_fn=condition,
        )
        predict = lambda x, k: nets.predict(params, x, k)  # noqa: E731
        return sampling.sample_ddpm(
            None, predict, schedule, noise.shape[2:], condition_fn=condition, pre_step_fn=shift, noise=noise
        )

    return sample


def ddim_sampler(
    both: Callable[..., tuple[jax.Array, jax.Array]], num_levels: int, num_steps: int
) -> Callable[..., jax.Array]:
    """(params, noise [1, B, H, C], present) -> x: DDIM, one gradient per evaluation at the x the denoiser sees."""
    schedule = cosine_schedule(num_levels)

    def sample(params, noise, present):
        guided = sampling.guided_jointly(
            sampling.value_and_gradient(lambda x, k: both(params, x, k)), sampling.sigma_squared(schedule, GUIDE_SCALE)
        )
        condition = sampling.clamp_first_row(present)
        return sampling.sample_ddim(
            None, guided, schedule, noise.shape[2:], condition_fn=condition, noise=noise, num_steps=num_steps
        )

    return sample


def one_evaluation(nets: Nets, num_levels: int) -> Callable[..., jax.Array]:
    """(params, noise [1, B, H, C], present) -> x: what a distilled chain student does, the denoiser once."""
    schedule = cosine_schedule(num_levels)

    def sample(params, noise, present):
        condition, predict = sampling.clamp_first_row(present), lambda x, k: nets.predict(params, x, k)
        return sampling.sample_ddim(
            None, predict, schedule, noise.shape[2:], condition_fn=condition, noise=noise, num_steps=1
        )

    return sample


def shared_nets(c: ml_collections.ConfigDict) -> tuple[Any, Callable[..., tuple[jax.Array, jax.Array]]]:
    """(weights, (params, x, k) -> (x0, score)) with the classifier as a head on the denoiser's trunk."""
    unet = networks.TemporalUNet(c.channels, c.width, tuple(c.mults), c.layout)
    head = networks.ReturnHead()
    x, k = jnp.zeros((1, c.horizon, c.channels)), jnp.zeros(1, jnp.int32)
    denoiser = random_weights(unet, x, k)
    features = jax.eval_shape(
        lambda p: unet.apply({"params": p}, x, k, return_features=True)[1],
        denoiser,
    )
    weights = {"denoiser": denoiser, "head": random_weights(head, *features)}

    def both(params, x, k):
        x0, features = unet.apply({"params": params["denoiser"]}, x, k, return_features=True)
        return x0, head.apply({"params": params["head"]}, *features)[..., 0]

    return weights, both


def inputs(c: ml_collections.ConfigDict, num_levels: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Recorded noise [1 + K, B, H, C] and the present [B, C]."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(1 + num_levels, batch, c.horizon, c.channels))
    return jnp.asarray(noise, jnp.float32), jnp.asarray(rng.normal(size=(batch, c.channels)), jnp.float32)


def guided_flops(nets: Nets, c: ml_collections.ConfigDict, batch: int, num_levels: int) -> float:
    """Matrix FLOPs of Diffuser's guided sampler as this library runs it (the unguided levels counted as such)."""
    x = jax.ShapeDtypeStruct((batch, c.horizon, c.channels), jnp.float32)
    k = jax.ShapeDtypeStruct((batch,), jnp.int32)
    forward = matmul_flops(nets.predict, nets.params, x, k)
    gradient = matmul_flops(jax.grad(lambda x, p, k: nets.score(p, x, k).sum()), x, nets.params, k)
    return num_levels * forward + (num_levels - STOP_BELOW) * c.num_guide_steps * gradient


class TorchSampler:
    """The PyTorch reference on the same weights and noise. Raises ImportError without PyTorch."""

    def __init__(self, nets: Nets, c: ml_collections.ConfigDict):
        import torch

        from benchmarks import torch_reference

        self.reference, self.torch, self.c = torch_reference, torch, c
        on_gpu = jax.default_backend() != "cpu" and torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        sizes = dict(width=c.width, mults=tuple(c.mults), layout=c.layout)
        unet = torch_reference.TemporalUNet(c.channels, **sizes)
        value = torch_reference.ReturnClassifier(c.channels, c.horizon, **sizes)
        self.unet = torch_reference.load_params(unet, nets.params["denoiser"]).to(self.device).eval()
        self.value = torch_reference.load_params(value, nets.params["classifier"]).to(self.device).eval()

    def tensors(self, *arrays: jax.Array) -> list[Any]:
        return [self.torch.tensor(np.asarray(a), device=self.device) for a in arrays]

    def ddpm(self, num_levels: int, noise: jax.Array, present: jax.Array) -> Callable[[], np.ndarray]:
        """A call that samples and waits."""
        schedule = self.reference.Schedule(cosine_schedule(num_levels), self.device)
        noise, present = self.tensors(noise, present)
        return lambda: self.reference.guided_ddpm(
            self.unet, self.value, schedule, noise, present, GUIDE_SCALE, self.c.num_guide_steps, STOP_BELOW
        ).cpu()

    def ddim(self, num_levels: int, num_steps: int, noise: jax.Array, present: jax.Array) -> Callable[[], np.ndarray]:
        schedule = self.reference.Schedule(cosine_schedule(num_levels), self.device)
        levels = sampling.sampling_levels(num_levels, num_steps)
        noise, present = self.tensors(noise[0], present)
        return lambda: self.reference.guided_ddim(
            self.unet, self.value, schedule, noise, present, GUIDE_SCALE, levels
        ).cpu()


def torch_sampler(nets: Nets, c: ml_collections.ConfigDict) -> TorchSampler | None:
    """The reference, or None (with a line that says so) where PyTorch or the repository's benchmarks/ are missing."""
    try:
        return TorchSampler(nets, c)
    except ImportError as error:
        hint = "pip install -e '.[torch]' in the repository"
        runtime.console.print(f"no PyTorch reference ({error}); {hint}", markup=False, highlight=False)
        return None


def assert_equal(name: str, got: Any, want: Any, tolerance: float) -> float:
    """Largest difference relative to the largest entry. Raises ValueError above the tolerance."""
    got, want = np.asarray(got), np.asarray(want)
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error <= tolerance:
        raise ValueError(f"{name}: outputs differ by {error:.2e} of the largest entry, allowed {tolerance:.0e}")
    return error


def with_convolution(choice: Callable[..., Any], fn: Callable[..., Any], *args: Any) -> measure.Program:
    """`fn` compiled with every convolution done one way (`choice` replaces `convolutions.fastest`)."""
    original = convolutions.fastest
    convolutions.fastest = choice
    try:
        return measure.compiled(fn, *args)
    finally:
        convolutions.fastest = original


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Row]:
    """All rows of the suite."""
    c = config.benchmark.sampler
    found = distill.return_deltas(workdir, config.held_out, "ddpm")
    deltas = {name: found.get(policy) for name, policy in POLICY_OF.items()}
    nets = make_nets(c)
    reference = torch_sampler(nets, c)
    peaks = measure.measure_peaks()
    rows = [
        row("matmul peak", peaks.matmul_flops_per_s / 1e9, "GFLOP/s"),
        row("memory bandwidth", peaks.memory_bytes_per_s / 1e9, "GB/s"),
    ]
    for batch in c.batches:
        rows += compare(c, nets, reference, batch, deltas)
    return rows + convolution_rows(c)


def compare(
    c: ml_collections.ConfigDict,
    nets: Nets,
    reference: TorchSampler | None,
    batch: int,
    deltas: dict[str, float | None],
) -> list[Row]:
    """One batch size: PyTorch, this library with the same algorithm, then with cheaper ones.

    `deltas`: what a cheaper one was found to lose in return against "ddpm" (at the preset and task of that result).
    """
    levels = c.levels if batch < c.large_batch else c.levels_of_large_batches
    noise, present = inputs(c, levels, batch)
    trunk_weights, trunk = shared_nets(c)
    separate = lambda p, x, k: (nets.predict(p, x, k), nets.score(p, x, k))  # noqa: E731
    sample = ddpm_sampler(nets, c, levels)
    ddim = ddim_sampler(separate, levels, min(c.ddim_steps, levels))
    shared = ddim_sampler(trunk, levels, min(c.ddim_steps, levels))
    half_nets = make_nets(c, jnp.bfloat16)
    programs: dict[str, tuple[measure.Program, tuple]] = {
        "ddpm": (measure.compiled(sample, nets.params, noise, present), (nets.params, noise, present)),
        "ddim": (measure.compiled(ddim, nets.params, noise[:1], present), (nets.params, noise[:1], present)),
    }
    once, student = one_evaluation(nets, levels), STUDENT
    programs[student] = (measure.compiled(once, nets.params, noise[:1], present), (nets.params, noise[:1], present))
    if batch in c.full_comparison:
        im2col = with_convolution(lambda *_: convolutions.conv1d_im2col, sample, nets.params, noise, present)
        half = measure.compiled(ddpm_sampler(half_nets, c, levels), nets.params, noise, present)
        joint = measure.compiled(shared, trunk_weights, noise[:1], present)
        programs |= {
            "ddpm, im2col everywhere": (im2col, (nets.params, noise, present)),
            "ddpm, bfloat16": (half, (nets.params, noise, present)),
            "ddim, shared trunk": (joint, (trunk_weights, noise[:1], present)),
        }
    calls: dict[str, Callable[[], Any]] = {
        name: (lambda program=program, args=args: program.call(*args)) for name, (program, args) in programs.items()
    }
    errors = {}
    if "ddpm, im2col everywhere" in calls:
        assert_equal("im2col", calls["ddpm, im2col everywhere"](), calls["ddpm"](), 1e-4)
    if reference is not None:
        torch_calls = {
            "torch ddpm": reference.ddpm(levels, noise, present),
            "torch ddim": reference.ddim(levels, min(c.ddim_steps, levels), noise, present),
        }
        # Twenty denoisings of float32 rounding; another algorithm differs in the first digit.
        errors = {name: assert_equal(name, calls[name[6:]](), call(), 1e-3) for name, call in torch_calls.items()}
        calls |= torch_calls
    peak_calls = measure.peak_calls()
    calls["matmul"] = peak_calls["matmul"][0]
    times = measure.interleaved(calls, c.seconds_per_comparison, min_rounds=4)
    peak = peak_calls["matmul"][1] / times["matmul"].seconds.min()
    flops = {"ddpm": guided_flops(nets, c, batch, levels)}
    flops["ddim"] = matmul_flops(ddim, nets.params, noise[:1], present)
    flops[student] = matmul_flops(once, nets.params, noise[:1], present)
    flops["ddim, shared trunk"] = matmul_flops(shared, trunk_weights, noise[:1], present)
    sizes = dict(
        batch=batch, horizon=c.horizon, channels=c.channels, width=c.width, mults=list(c.mults), layout=c.layout
    )
    sizes |= dict(levels=levels, guide_steps=c.num_guide_steps, ddim_evaluations=min(c.ddim_steps, levels))
    rows = []
    for name, timing in times.items():
        if name == "matmul":
            continue
        best = "torch ddpm" if reference is not None else "ddpm"
        work = flops.get(name, flops["ddpm"] if name.startswith("ddpm") and "im2col" not in name else None)
        program = programs[name][0] if name in programs else None
        rows.append(
            row(
                f"{name}, batch {batch}",
                1e3 * timing.median / batch,
                "ms/plan",
                baseline=None if name == best else f"{best}, batch {batch}",
                ratio=None if name == best else times[best].median / timing.median,
                share_of_peak=None if work is None else work / timing.median / peak,
                dtype="bfloat16" if "bfloat16" in name else "float32",
                sizes=sizes,
                return_delta=deltas.get(name),
                ms_per_call=1e3 * timing.median,
                p95_ms_per_call=1e3 * timing.p95,
                gflops_per_plan=None if work is None else work / batch / 1e9,
                trace_s=program and program.trace_s,
                compile_s=program and program.compile_s,
                memory_bytes=program and program.memory_bytes,
                relative_error_to_this_library=errors.get(name),
            )
        )
    return rows


def forward_and_back(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """(x, kernel) -> the convolution and its input gradient, as one level of a guided sampler needs them."""

    def both(x, kernel):
        out, pull = jax.vjp(lambda x: form(x, kernel, 1, (2, 2)), x)
        return pull(out)[0]

    return both


def convolution_rows(c: ml_collections.ConfigDict) -> list[Row]:
    """One convolution of every level and its input gradient, each form: what `convolutions.fastest` is based on."""
    rows = []
    for i, mult in enumerate(c.mults):
        length, channels = c.horizon // 2**i, c.width * mult
        x, kernel = jnp.ones((c.convolution_batch, length, channels)), jnp.ones((5, channels, channels))
        forms = {
            "lax": convolutions.conv1d_lax,
            "im2col": convolutions.conv1d_im2col,
            "trimmed": convolutions.conv1d_trimmed,
            "lax, im2col gradient": convolutions.conv1d_lax_with_im2col_gradient,
        }
        calls = {name: functools.partial(jax.jit(forward_and_back(form)), x, kernel) for name, form in forms.items()}
        times = measure.interleaved(calls, 0.5, min_rounds=3, max_rounds=50)
        useful = matmul_flops(forward_and_back(convolutions.conv1d_trimmed), x, kernel)
        chosen = convolutions.fastest(jax.default_backend(), c.convolution_batch, length, 5, 1)
        for name, timing in times.items():
            rows.append(
                row(
                    f"convolution {name}, length {length}",
                    useful / timing.median / 1e9,
                    "useful GFLOP/s",
                    baseline=None if name == "lax" else f"convolution lax, length {length}",
                    ratio=None if name == "lax" else times["lax"].median / timing.median,
                    sizes=dict(batch=c.convolution_batch, length=length, channels=channels, width=5),
                    chosen=forms[name] is chosen,
                )
            )
    return rows
