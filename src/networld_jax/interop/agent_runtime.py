"""Runs one exported NetWorld agent.

This file needs JAX and NumPy, nothing else of the project: `export_agent` puts a copy of it, named `agent.py`, beside
the artefacts. Every decision step of agent i:

    agent = Agent("export_rb")                       # checks the artefacts' checksums
    broadcast(agent.message(obs))                    # bytes for the 1-hop neighbours
    action = agent.act(obs, heard, key)              # heard: the neighbours' messages that did arrive, in any order

Messages may be late or missing: pass what there is, an empty list included. `key` is any raw JAX key that no other
agent and step uses; `agent_key(seed, t, i)` is the one that the batched planner would use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax import export

FORMAT = "networld-agent/1"


class Agent:
    """One agent of one task. Raises ValueError for files that are not what `agent.json` describes."""

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        self.facts = _read_signed(directory / "agent.json")
        if self.facts["format"] != FORMAT:
            raise ValueError(f"{directory} has format {self.facts['format']!r}, this file runs {FORMAT!r}")
        self._message, self._act = (_load(directory, self.facts[name]) for name in ("message", "action"))

    def message(self, obs: np.ndarray) -> bytes:
        """What to broadcast after observing obs [O], in the task's units."""
        return np.asarray(self._message(self._checked(obs))).tobytes()

    def act(self, obs: np.ndarray, heard: Iterable[bytes], key: np.ndarray) -> np.ndarray:
        """Action [A] in the task's units, of obs [O], the messages that arrived, and a key (uint32 [2])."""
        return np.asarray(self._act(self._checked(obs), self.mean_message(heard), np.asarray(key, np.uint32)))

    def mean_message(self, heard: Iterable[bytes]) -> np.ndarray:
        """Mean of the decoded messages, float32 [entries]; zeros when nothing was heard."""
        decoded = [self.decode(message) for message in heard]
        entries = self.facts["message"]["entries"]
        return (
            np.sum(decoded, axis=0, dtype=np.float32) / np.float32(len(decoded))
            if decoded
            else np.zeros(entries, np.float32)
        )

    def decode(self, message: bytes) -> np.ndarray:
        """The numbers in a message, float32 [entries]. Raises ValueError for one of another length."""
        facts = self.facts["message"]
        if len(message) != facts["bytes"]:
            raise ValueError(f"a message has {facts['bytes']} bytes, got {len(message)}")
        if not facts["bits"]:
            return np.frombuffer(message, "<f4").astype(np.float32)
        bits = np.unpackbits(np.frombuffer(message, np.uint8), bitorder="little")[: facts["entries"] * facts["bits"]]
        levels = bits.reshape(facts["entries"], facts["bits"]) @ (1 << np.arange(facts["bits"]))
        return (levels - facts["half_levels"]).astype(np.float32) * np.float32(facts["range"] / facts["half_levels"])

    def _checked(self, obs: np.ndarray) -> np.ndarray:
        obs, shape = np.asarray(obs, np.float32), tuple(self.facts["observation"]["shape"])
        if obs.shape != shape:
            raise ValueError(f"an observation has shape {shape}, got {obs.shape}")
        return obs


def agent_key(seed: int, t: int, agent: int) -> np.ndarray:
    """Raw key of an agent at step t of a planner that acts with fold_in(key(seed), t)."""
    _, plan_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), t))
    return np.asarray(jax.random.key_data(jax.random.fold_in(plan_key, agent)))


def _read_signed(path: Path) -> dict:
    """A JSON document that carries the checksum of the rest of itself."""
    document = json.loads(path.read_text())
    claimed = document.pop("sha256", None)
    if hashlib.sha256(json.dumps(document, indent=1, sort_keys=True).encode()).hexdigest() != claimed:
        raise ValueError(f"{path} does not match its checksum (altered)")
    return document


def _load(directory: Path, facts: dict):
    content = (directory / facts["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ValueError(f"{directory / facts['file']} does not match its checksum (truncated or altered)")
    return jax.jit(export.deserialize(bytearray(content)).call)
