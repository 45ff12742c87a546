"""The three planning gates of ns on validation instances, simulated (an hour of one CPU core) or on the model (20 min).

python -m experiments.gates --config=experiments/configs/ns_gates.py --workdir=runs/ns_gates --publish
python -m experiments.gates_on_model --config=experiments/configs/ns_gates.py --workdir=runs/ns_gates_on_model --publish
"""

from ml_collections import ConfigDict

from experiments.configs import default

VARIANTS = {  # what each choice of the default does to the gates
    "preset roaming": {"preset": "roaming"},
    "traffic x 48, 3, 24": {"traffic_load": (48.0, 3.0, 24.0)},
    "10 MHz, twice the traffic": {
        "bandwidth_hz": 10e6, "max_change_hz": 0.4e6, "traffic_load": (144.0, 2.5, 48.0)
    },
    "two RBs per window": {"max_change_hz": 0.36e6},
    "crowds that stay 10 windows": {"hotspot_dwell_windows": 10.0},
    "crowds that walk": {"hotspot_speed_mps": 0.75},
    "3 crowds per slice": {"hotspots_per_slice": 3},
    "half the sessions roam": {"hotspot_fraction": 0.5},
    "no drift of the slice mix": {"mix_drift": 0.0},
    "shadowing of 4 dB": {"shadow_std_db": 4.0},
    "wider crowds, nobody roams, less traffic": {
        "hotspot_std_m": 26.0, "hotspot_fraction": 1.0, "mix_drift": 0.3, "traffic_load": (72.0, 1.0, 16.0)
    },
}  # fmt: skip


def get_config() -> ConfigDict:
    """16 validation instances x 1000 windows: the test instances judge policies, not the task."""
    c = default.get_config()
    c.evaluate.split = "validation"
    c.evaluate.num_instances.ns = 16
    c.evaluate.num_steps.ns = 1000
    c.evaluate.burn_in_steps.ns = 20
    c.evaluate.num_parallel = 4
    c.gates = ConfigDict()
    c.gates.variants = ConfigDict(VARIANTS)
    return c
