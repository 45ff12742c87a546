"""The beamforming task in vectorised float64 NumPy: what one would write without JAX, between the loop and the library.

Same inputs and results as `tests.reference.cbf_loop.LoopNetwork`, default face, prices from 1-hop neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def lg(x: np.ndarray) -> np.ndarray:
    return np.log10(x + 1e-3)


def canonical(vector: np.ndarray) -> np.ndarray:
    """Common phase such that antenna 0 is real and >= 0."""
    return vector * np.exp(-1j * np.angle(vector[..., :1]))


class ArrayNetwork:
    """One network; `params` as for the loop, fading [N, N, M], beams [N, K] in sqrt(mW)."""

    def __init__(self, params: Any, fading: np.ndarray, beams_mw: np.ndarray):
        self.params, self.fading, self.beams = params, np.array(fading), np.array(beams_mw)
        self.num = len(params.adjacency)
        self.eye = np.eye(self.num, dtype=bool)
        self.channel = self.form_channel()

    def form_channel(self) -> np.ndarray:
        return np.einsum("ijm,ijmk->ijk", self.fading, self.params.responses)

    def evaluate(self, channel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(received [N, N], noise + interference [N], rate [N])."""
        received = np.abs(np.einsum("ijk,ik->ij", channel, self.beams)) ** 2
        interference = self.params.noise_mw + np.where(self.eye, 0, received).sum(0)
        return received, interference, np.log2(1 + np.diagonal(received) / interference)

    def strongest(self, received: np.ndarray) -> np.ndarray:
        return np.argsort(-np.where(self.eye, -1, received), axis=1, kind="stable")[:, : self.params.num_neighbours]

    def step(self, action: np.ndarray, innovation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One slot: (rate [N], reward [N], obs [N, O])."""
        p = self.params
        beams = action[:, : action.shape[1] // 2] + 1j * action[:, action.shape[1] // 2 :]
        norm = np.linalg.norm(beams, axis=1, keepdims=True)
        self.beams = canonical(beams * np.minimum(1, np.sqrt(p.p_max_mw) / np.maximum(norm, 1e-300)))
        received, interference, rate = self.last = self.evaluate(self.channel)
        self.last_channel = self.channel
        without = interference[None, :] - np.where(self.eye, 0, received)
        loss = np.log2(1 + np.diagonal(received)[None, :] / without) - rate[None, :]
        reward = rate - np.take_along_axis(loss, self.strongest(received), 1).sum(1)
        self.fading = p.correlation * self.fading + np.sqrt(1 - p.correlation**2) * innovation
        self.channel = self.form_channel()
        return rate, reward, self.observe()

    def observe(self) -> np.ndarray:
        p, (received, interference, rate) = self.params, self.last
        _, interference_now, _ = self.evaluate(self.channel)
        own = self.channel[np.arange(self.num), np.arange(self.num)]
        power = np.sum(np.abs(self.beams) ** 2, 1) / p.p_max_mw
        scalars = [
            np.sqrt(power),
            rate / 5,
            lg(np.sum(np.abs(own) ** 2, 1) * p.p_max_mw / p.noise_mw),
            lg(np.abs(np.sum(own * self.beams, 1)) ** 2 / p.noise_mw),
            lg(interference_now / p.noise_mw),
            lg(np.diagonal(received) / p.noise_mw),
            lg(interference / p.noise_mw),
        ]
        index = self.strongest(received.T)
        heard = np.take_along_axis(p.adjacency > 0, index, 1)
        return np.concatenate(
            [
                np.stack(scalars, 1),
                direction_reals(self.beams),
                direction_reals(own),
                self.log_leakage(),
                lg(np.take_along_axis(received.T, index, 1) / p.noise_mw),
                np.where(heard, rate[index], 0) / 5,
            ],
            axis=1,
        )

    def log_leakage(self) -> np.ndarray:
        """Matrix logarithm of sum_k a_k h_nk^* h_nk^T, as reals."""
        p, (received, interference, _) = self.params, self.last
        wanted, spoilt = np.diagonal(received) / p.noise_mw, interference / p.noise_mw
        price = wanted / (spoilt * (spoilt + wanted)) * (p.adjacency > 0)
        h = self.last_channel * np.sqrt(p.p_max_mw / p.noise_mw)
        values, vectors = np.linalg.eigh(np.einsum("nk,nki,nkj->nij", price, h.conj(), h))
        log = np.einsum("nim,nm,njm->nij", vectors, lg(np.maximum(values, 0)), vectors.conj())
        rows, columns = np.triu_indices(log.shape[-1], 1)
        upper = log[:, rows, columns]
        return np.concatenate([np.diagonal(log, axis1=1, axis2=2).real, upper.real, upper.imag], axis=1)


def direction_reals(vector: np.ndarray) -> np.ndarray:
    """Unit vectors in canonical phase as 2 K - 1 reals; zero where the vector is."""
    norm = np.linalg.norm(vector, axis=1, keepdims=True)
    unit = canonical(vector / np.where(norm > 0, norm, 1))
    return np.concatenate([unit.real, unit.imag[:, 1:]], axis=1)
