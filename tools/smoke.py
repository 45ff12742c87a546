"""Proves an installed wheel: every package imports, every environment steps, a world model plans. Run outside the
repository."""

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

import networld_envs
import networld_jax
from networld_envs import experts

assert "site-packages" in networld_jax.__file__, f"not the installed package: {networld_jax.__file__}"
STAGES = "collect pretrain adapt evaluate baselines calibrate figures demo distill benchmark queue"
for name in STAGES.split():
    importlib.import_module(f"experiments.{name}")
assert (Path(networld_jax.__file__).parent / "py.typed").exists()

for task in networld_envs.ENVIRONMENTS:
    env = networld_envs.make(task, **({"preset": "tiny"} if task == "ns" else {}))
    policy = experts.policies(task, env.default_params)["random"]
    data = networld_jax.rollout(jax.random.key(0), env, env.default_params, policy, {}, 8)
    data = jax.tree.map(lambda x: x[None], data)
    model = networld_jax.make_world_model(networld_jax.WorldModelConfig(width=8), [env.spec])
    params = networld_jax.PolicyParams(
        model.init(jax.random.key(1)), networld_jax.task_stats(data, env.spec, model.config)
    )
    planner = networld_jax.make_planner(model, networld_jax.cosine_schedule(20), task)
    planned = networld_jax.rollout(jax.random.key(2), env, env.default_params, planner, params, 2)
    assert bool(jax.numpy.isfinite(planned.reward).all()), task
    print(f"{task}: ok, mean reward of an untrained planner {float(planned.reward.mean()):.3f}")

command = str(Path(sys.executable).parent / "networld")
shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
assert "networld demo" in shown, shown
with tempfile.TemporaryDirectory() as empty:  # a configuration of the wheel is found, and a mistake is one line
    asked = [command, "evaluate", "--config=small:rb", f"--workdir={empty}"]
    refused = subprocess.run(asked, capture_output=True, text=True, cwd=empty)
assert refused.returncode == 2 and "model.json is missing" in refused.stderr, refused.stderr
assert refused.stderr.count("\n") == 1, refused.stderr
print("networld: ok")
