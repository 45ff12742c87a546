"""What `experiments.benchmark` measures; every suite but `memory`, which runs whole stages, ends within four minutes
on 2 CPU cores.

for suite in sampler env train closed_loop scaling memory; do
    python -m experiments.benchmark --suite=$suite --config=experiments/configs/benchmark.py --workdir=runs/benchmark
done
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(held_out: str = "rb") -> ConfigDict:
    """The small scale with a `benchmark` section."""
    c = default.get_config(held_out)
    b = c.benchmark = ConfigDict()

    s = b.sampler = ConfigDict()  # sizes of the published planner (Janner et al. 2022)
    s.layout, s.horizon, s.channels, s.width, s.mults = "diffuser", 32, 64, 32, (1, 2, 4, 8)
    s.levels = 20  # K
    s.num_guide_steps = 2  # gradient steps per denoising step
    s.ddim_steps = 6  # network evaluations of DDIM: five jumps and the last one to clean data
    s.batches = (1, 19, 256)  # plans per call: one agent, one network, many
    s.full_comparison = (19,)  # batches at which the slower and the half-precision variants are timed too
    s.large_batch, s.levels_of_large_batches = 128, 4  # batches from here on sample this many levels only
    s.seconds_per_comparison = 15.0
    s.convolution_batch = 64

    t = b.train = ConfigDict()  # nets of `sampler`; the joint update of the configured model on the held-out task
    t.batches = (32,)  # windows per update
    t.seconds_per_comparison = 15.0
    t.trajectories, t.trajectory_steps = 8, 100  # data for the input pipeline, by the random policy
    t.updates_per_dispatch = 20

    e = b.env = ConfigDict()
    e.tasks = ("cbf", "rb", "ns")
    e.num_envs = ConfigDict({"cbf": (1, 8, 64, 256), "rb": (1, 16, 256, 1024), "ns": (1, 4)})
    e.steps_per_call = ConfigDict({"cbf": 20, "rb": 20, "ns": 2})
    e.seconds_per_comparison = 15.0

    l = b.closed_loop = ConfigDict()
    l.tasks = ("rb", "cbf", "ns")
    l.num_envs = ConfigDict({"cbf": 8, "rb": 16, "ns": 4})
    l.num_steps = ConfigDict({"cbf": 10, "rb": 10, "ns": 3})
    l.num_neighbours = 6  # messages an agent receives before one decision
    l.variants = ("ddpm", "six_evaluations", "two_evaluations", "dpmpp_2m", "mean_of_4")  # of `distill.variants`
    l.seconds_per_comparison = 8.0

    m = b.memory = ConfigDict()  # stages of the demo, one process each
    m.stages = ("collect", "pretrain", "adapt", "baselines", "evaluate", "distill")
    m.num_updates = 200  # in two dispatches
    m.num_steps = 20  # of every scored episode
    return c
