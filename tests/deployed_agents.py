"""Agents of an exported task, alone in a process without this project: run by tests/test_deployment.py.

python deployed_agents.py <export folder> <case.npz> <result.npz>

Every agent has its own loop; between agents only bytes travel, `delay` steps late, and only over links that are up.
"""

import sys

FORBIDDEN = ("networld_jax", "networld_envs", "experiments", "flax")


class Forbid:
    """An import of the project is an error here."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} must not be needed by a deployed agent")


sys.meta_path.insert(0, Forbid())
folder, case_path, result_path = sys.argv[1:]
sys.path.insert(0, folder)

import numpy as np  # noqa: E402
from agent import Agent, agent_key  # noqa: E402

agent, case = Agent(folder), np.load(case_path)
obs, links, delay, seed = case["obs"], case["links"], int(case["delay"]), int(case["seed"])  # [T,N,O], [T,N,N]
num_steps, num_agents = obs.shape[:2]
sent: list[list[bytes]] = []
actions = []
for t in range(num_steps):
    sent.append([agent.message(obs[t, i]) for i in range(num_agents)])
    air = sent[max(0, t - delay)]
    heard = [[air[j] for j in range(num_agents) if links[t, i, j]] for i in range(num_agents)]
    actions.append([agent.act(obs[t, i], heard[i], agent_key(seed, t, i)) for i in range(num_agents)])
assert not [name for name in sys.modules if name.split(".")[0] in FORBIDDEN]
np.savez(result_path, actions=np.array(actions), num_bytes=len(sent[0][0]))
