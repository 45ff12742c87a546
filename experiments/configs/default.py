"""Every value of every stage, with its unit. The other files change a few of them.

python -m experiments.<stage> --config=experiments/configs/small.py --workdir=runs/small [--config.<field>=<value>]
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The `small` scale (2 CPU cores); `paper.py` holds the paper's sizes."""
    c = ConfigDict()
    c.seed = 0  # of networks and training; instances come from frozen ranges and do not depend on it
    c.tasks = ("cbf", "rb", "ns")  # order fixes the rows of the task embedding
    c.held_out = "rb"  # few-shot target; the others are the sources

    c.environment = ConfigDict()  # parameters changed per task, e.g. environment.ns.preset = "tiny"
    for task in c.tasks:
        c.environment[task] = ConfigDict()

    c.collect = ConfigDict()
    c.collect.tasks = ()  # which tasks to collect; empty = all of `tasks`
    c.collect.tier = "mixed"  # one of the tiers of networld_envs.experts
    c.collect.num_trajectories = ConfigDict({"cbf": 48, "rb": 96, "ns": 24})
    c.collect.num_steps = ConfigDict({"cbf": 100, "rb": 200, "ns": 100})  # environment steps per trajectory
    c.collect.num_parallel = 8  # trajectories simulated side by side; a shard is written when its group is done
    c.collect.steps_per_dispatch = 50  # progress is shown after each
    c.collect.float64 = ("cbf",)  # tasks whose experts need double precision (deep nulls of FP beams)
    c.collect.reference_instances = 4  # train_eval instances for the manifest's random and expert scores
    c.collect.reference_steps = 100

    c.model = ConfigDict()  # networld_jax.WorldModelConfig
    c.model.latent_dim = 40  # D
    c.model.encoder = "identity"  # or "mlp"
    c.model.encoder_hidden = (128, 128)
    c.model.horizon = 8  # H, steps
    c.model.layout = "networld"
    c.model.width = 32  # U-Net channels at full resolution
    c.model.width_mults = (1, 2)
    c.model.diffusion_steps = 20  # K
    c.model.prediction = "x0"
    c.model.inverse_dynamics_hidden = (256, 256)
    c.model.value_hidden = (128, 128)
    c.model.num_return_bins = 0  # 0 = scalar head
    c.model.return_range = 5.0  # standard deviations
    c.model.num_action_bins = 41  # M of box actions

    c.loss = ConfigDict()  # networld_jax.LossConfig
    c.loss.label = "neighbourhood"
    c.loss.centred = False
    c.loss.discount = 0.95
    c.loss.next_row_weight = 3.0
    c.loss.inverse_dynamics_noise = 0.5  # latent standard deviations
    c.loss.inverse_dynamics_weight = 1.0
    c.loss.classifier_weight = 1.0
    c.loss.value_weight = 1.0
    c.loss.reconstruction_weight = 0.0
    c.loss.encoder_diffusion_grad = 0.0
    c.loss.message_dropout = 0.0

    c.pretrain = ConfigDict()
    c.pretrain.num_updates = 2000
    c.pretrain.sequences_per_task = 128  # agent windows per task and update (rounded to whole networks)
    c.pretrain.learning_rate = 1e-3  # cosine to zero
    c.pretrain.warmup_updates = 100
    c.pretrain.ema_decay = 0.995
    c.pretrain.updates_per_dispatch = 100
    c.pretrain.dispatches_per_checkpoint = 5

    c.adapt = ConfigDict()
    c.adapt.num_trajectories = 10  # few-shot data of the held-out task: trajectories ...
    c.adapt.num_steps = 0  # ... or total environment steps (0 = whole trajectories)
    c.adapt.from_scratch = False  # ignore the pre-trained weights: the honest control
    c.adapt.num_updates = 1000
    c.adapt.sequences = 128
    c.adapt.learning_rate = 1e-3
    c.adapt.finetune_scale = 0.3  # learning rate of the shared nets relative to the new task's
    c.adapt.warmup_updates = 50
    c.adapt.ema_decay = 0.995
    c.adapt.updates_per_dispatch = 100
    c.adapt.dispatches_per_checkpoint = 5

    c.bc = ConfigDict()  # networld_jax.baselines.BCConfig
    c.bc.hidden = (256, 256)
    c.bc.learning_rate = 1e-3
    c.bc.ema_decay = 0.995
    c.bc.num_updates = 1000
    c.bc.batch_size = 1024  # agent transitions
    c.bc.updates_per_dispatch = 250
    c.bc.dispatches_per_checkpoint = 2

    c.planner = ConfigDict()  # networld_jax.PlannerConfig
    c.planner.guide_scale = 10.0  # w
    c.planner.num_steps = 3  # network evaluations (DDIM)
    c.planner.initial_noise_scale = 0.5
    c.planner.latent_clip = 6.0
    c.planner.num_candidates = 1
    c.planner.message_delay_steps = -1  # -1 = what the task declares
    c.planner.message_loss = 0.0
    c.planner.message_bits = 8

    c.evaluate = ConfigDict()
    c.evaluate.split = "test"
    c.evaluate.policies = ("networld",)  # plus any rule or expert of the task
    c.evaluate.num_instances = ConfigDict({"cbf": 32, "rb": 16, "ns": 16})
    c.evaluate.num_steps = ConfigDict({"cbf": 80, "rb": 200, "ns": 100})
    c.evaluate.burn_in_steps = ConfigDict({"cbf": 20, "rb": 100, "ns": 10})
    c.evaluate.num_parallel = 8  # instances simulated side by side
    return c
