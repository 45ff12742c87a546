"""Networks: temporal U-Net and return classifier, scenario encoder, inverse dynamics, decision transformer, the
dynamics of a whole network of agents.

The only package that knows flax.linen. Modules take arrays with any leading axes (`[B]`, `[B, N]`, ...).
"""

from networld_jax.networks.dense import (
    MLP,
    ActionDenoiser,
    InverseDynamics,
    ObservationDecoder,
    ScenarioEncoder,
    apply_twins,
    init_twins,
)
from networld_jax.networks.graph import GraphDynamics, within_two_hops
from networld_jax.networks.temporal import (
    NUM_GROUPS,
    ConditionMLP,
    Conv,
    ResidualBlock,
    ReturnClassifier,
    ReturnHead,
    TemporalUNet,
    TimeMLP,
    Upsample,
    check_horizon,
    get_layout,
    group_norm,
    mish,
)
from networld_jax.networks.transformer import DecisionTransformer

__all__ = [
    "MLP",
    "NUM_GROUPS",
    "ActionDenoiser",
    "ConditionMLP",
    "Conv",
    "DecisionTransformer",
    "GraphDynamics",
    "InverseDynamics",
    "ObservationDecoder",
    "ResidualBlock",
    "ReturnClassifier",
    "ReturnHead",
    "ScenarioEncoder",
    "TemporalUNet",
    "TimeMLP",
    "Upsample",
    "apply_twins",
    "check_horizon",
    "get_layout",
    "group_norm",
    "init_twins",
    "mish",
    "within_two_hops",
]
