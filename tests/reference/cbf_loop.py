"""The beamforming task written agent by agent in NumPy float64, in physical units (mW, linear gains).

Independent of the JAX code: other units, other linear algebra (LAPACK), loops where that has arrays. It has the
structure of the published simulator (one entry per link, sorted lists per agent), so it is also the baseline of speed
comparisons.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class LoopParams:
    adjacency: np.ndarray  # [N, N]
    responses: np.ndarray  # [N, N, M, K] linear amplitude
    noise_mw: float
    p_max_mw: float
    correlation: float
    num_neighbours: int
    price_scope: str = "one_hop"


class LoopNetwork:
    """Default face: `step` takes beams as reals and recorded innovations, `observe` gives `local_csi`."""

    def __init__(self, params, fading, beams_mw):
        self.params = params
        self.num = len(params.adjacency)
        self.fading = np.array(fading)  # [N, N, M]
        self.beams = [np.array(w) for w in beams_mw]  # sqrt(mW)
        self.channel = self.form_channel()

    def form_channel(self):
        channel = {}
        for i in range(self.num):
            for j in range(self.num):
                h = 0
                for m in range(self.fading.shape[2]):
                    h = h + self.fading[i, j, m] * self.params.responses[i, j, m]
                channel[i, j] = h
        return channel

    def evaluate(self, channel, beams):
        """Received powers r[i, j], noise + interference IN[n], rates C[n], mW and bit/s/Hz."""
        received = {}
        for i in range(self.num):
            for j in range(self.num):
                received[i, j] = abs(np.dot(channel[i, j], beams[i])) ** 2
        interference, rate = [], []
        for n in range(self.num):
            total = self.params.noise_mw
            for i in range(self.num):
                if i != n:
                    total += received[i, n]
            interference.append(total)
            rate.append(np.log2(1 + received[n, n] / total))
        return received, interference, rate

    def project(self, reals):
        """Power ball and canonical phase of one beam."""
        num_antennas = len(reals) // 2
        beam = reals[:num_antennas] + 1j * reals[num_antennas:]
        norm = np.linalg.norm(beam)
        if norm > np.sqrt(self.params.p_max_mw):
            beam = beam * np.sqrt(self.params.p_max_mw) / norm
        if abs(beam[0]) > 0:
            beam = beam * np.exp(-1j * np.angle(beam[0]))
            beam[0] = beam[0].real
        return beam

    def strongest_interferers(self, received, n):
        others = [i for i in range(self.num) if i != n]
        return sorted(others, key=lambda i: -received[i, n])[: self.params.num_neighbours]

    def most_interfered(self, received, n):
        others = [k for k in range(self.num) if k != n]
        return sorted(others, key=lambda k: -received[n, k])[: self.params.num_neighbours]

    def reward(self, received, interference, rate, n):
        value = rate[n]
        for k in self.most_interfered(received, n):
            value -= np.log2(1 + received[k, k] / (interference[k] - received[n, k])) - rate[k]
        return value

    def step(self, action, innovation):
        """One slot: (rate [N], reward [N], obs [N, O], executed beams [N, 2K])."""
        self.beams = [self.project(action[n]) for n in range(self.num)]
        self.last = self.evaluate(self.channel, self.beams)
        self.last_channel = self.channel
        rewards = [self.reward(*self.last, n) for n in range(self.num)]
        rho = self.params.correlation
        for i in range(self.num):
            for j in range(self.num):
                self.fading[i, j] = rho * self.fading[i, j] + np.sqrt(1 - rho**2) * innovation[i, j]
        self.channel = self.form_channel()
        executed = np.array([np.concatenate([w.real, w.imag]) for w in self.beams])
        return np.array(self.last[2]), np.array(rewards), self.observe(), executed

    def observe(self):
        _, interference_now, _ = self.evaluate(self.channel, self.beams)
        return np.array([self.observe_one(n, interference_now) for n in range(self.num)])

    def hears(self, n, k):
        return n != k and (self.params.price_scope == "global" or self.params.adjacency[n, k] > 0)

    def observe_one(self, n, interference_now):
        received, interference, rate = self.last
        noise, p_max = self.params.noise_mw, self.params.p_max_mw
        beam, h = self.beams[n], self.channel[n, n]
        power = np.linalg.norm(beam) ** 2 / p_max
        obs = [
            np.sqrt(power),
            rate[n] / 5,
            lg(np.linalg.norm(h) ** 2 * p_max / noise),
            lg(abs(np.dot(h, beam)) ** 2 / noise),
            lg(interference_now[n] / noise),
            lg(received[n, n] / noise),
            lg(interference[n] / noise),
        ]
        obs += direction_reals(beam) + direction_reals(h)
        obs += log_matrix_reals(self.leakage(n))
        nearest = self.strongest_interferers(received, n)
        obs += [lg(received[i, n] / noise) for i in nearest]
        obs += [rate[i] / 5 if self.hears(n, i) else 0.0 for i in nearest]
        return np.array(obs)

    def leakage(self, n):
        """sum_k a_k h_nk^* h_nk^T in normalised units: full power 1, noise 1."""
        received, interference, _ = self.last
        noise, p_max = self.params.noise_mw, self.params.p_max_mw
        num_antennas = len(self.beams[n])
        total = np.zeros((num_antennas, num_antennas), complex)
        for k in range(self.num):
            if self.hears(n, k):
                wanted, spoilt = received[k, k] / noise, interference[k] / noise
                h = self.last_channel[n, k] * np.sqrt(p_max / noise)
                total += wanted / (spoilt * (spoilt + wanted)) * np.outer(h.conj(), h)
        return total


def lg(x):
    return np.log10(x + 1e-3)


def direction_reals(vector):
    norm = np.linalg.norm(vector)
    if norm == 0:
        return [0.0] * (2 * len(vector) - 1)
    unit = vector / norm * np.exp(-1j * np.angle(vector[0]))
    return [*unit.real, *unit.imag[1:]]


def log_matrix_reals(matrix):
    values, vectors = np.linalg.eigh(matrix)
    log = vectors @ np.diag(lg(np.maximum(values, 0))) @ vectors.conj().T
    upper = np.triu_indices(len(log), 1)
    return [*np.diagonal(log).real, *log[upper].real, *log[upper].imag]


# --- reference face --------------------------------------------------------------------------------------------------


class LoopReference(LoopNetwork):
    """Codebook actions and the published observation; starts with an empty memory (the first two slots fill it)."""

    def __init__(self, params, fading, codebook, levels_mw):
        self.codebook, self.levels_mw = codebook, levels_mw  # [C, K], [Q]
        num = len(params.adjacency)
        super().__init__(params, fading, [np.zeros(codebook.shape[1])] * num)
        self.codes = [np.zeros(codebook.shape[1])] * num
        self.code_index, self.power_mw = [0] * num, [0.0] * num
        self.last = self.evaluate(self.channel, self.beams)
        self.last_index = self.code_index

    def step(self, action, innovation):
        """One slot with flat indices [N]: (rate, reward, obs)."""
        before = self.evaluate(self.channel, self.beams)
        self.own_gain_before = [abs(np.dot(self.channel[n, n], self.codes[n])) ** 2 for n in range(self.num)]
        self.interference_before = before[1]
        self.older, self.older_index = self.last, self.code_index
        self.code_index = [int(a) // len(self.levels_mw) for a in action]
        self.power_mw = [self.levels_mw[int(a) % len(self.levels_mw)] for a in action]
        self.codes = [self.codebook[c] for c in self.code_index]
        self.beams = [np.sqrt(p) * c for p, c in zip(self.power_mw, self.codes, strict=True)]
        self.last = self.evaluate(self.channel, self.beams)
        self.last_channel = self.channel
        rewards = [self.reward(*self.last, n) for n in range(self.num)]
        rho = self.params.correlation
        for i in range(self.num):
            for j in range(self.num):
                self.fading[i, j] = rho * self.fading[i, j] + np.sqrt(1 - rho**2) * innovation[i, j]
        self.channel = self.form_channel()
        return np.array(self.last[2]), np.array(rewards), self.observe()

    def observe_one(self, n, interference_now):
        received, interference, rate = self.last
        own_gain = abs(np.dot(self.channel[n, n], self.codes[n])) ** 2
        obs = [self.power_mw[n] / self.params.p_max_mw, self.code_index[n], rate[n] / 5]
        obs += [own_gain / 1e-9, self.own_gain_before[n] / 1e-9]
        obs += [interference_now[n] / 1e-7, self.interference_before[n] / 1e-7]
        for (power, _, rates), index in ((self.last, self.code_index), (self.older, self.older_index)):
            for i in self.strongest_interferers(power, n):
                obs += [i / (self.num - 1), power[i, n] / 1e-9, index[i], rates[i] / 5]
        for k in self.most_interfered(received, n):
            gain = abs(np.dot(self.last_channel[n, k], self.codes[n])) ** 2
            obs += [gain / 1e-9, rate[k] / 5, received[n, k] / interference[k]]
        return np.array(obs)
