"""The `rb` frame as plain Python loops in float64, written from the equations, sharing no code with the library.

A network is a dict of arrays (position, mean_snr, receiver, load, threshold, rate per link, num_alive); graphs are
derived here from the positions. Draws are those of the library, as NumPy arrays.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

DEFAULTS = dict(
    slots=10, channels=4, clusters=3, max_request=9, mini_slots=3, two_hop_head=False, half_duplex=False,
    message_bytes=0, payload_bytes=256, deadlines=(4, 12), buffers=(9, 24), max_arrivals=9, history=3, lam_urgent=0.8,
    lam_on=6.0, lam_off=1.0, p_off=1 / 15, p_on=1 / 30, correlation=0.8, relay=0.2, weights=(2.0, 1.0), omega=2.0,
    eps=0.05, beta=0.05, scale=0.5, theta_db=2.0,
)  # fmt: skip


def graphs(position, num_alive):
    """One-hop and two-hop neighbour sets out of positions in communication ranges."""
    n = len(position)
    one = [set() for _ in range(n)]
    for i in range(num_alive):
        for j in range(num_alive):
            if i != j and math.dist(position[i], position[j]) <= 1.0:
                one[i].add(j)
    two = [set(one[i]) for i in range(n)]
    for i in range(n):
        for j in one[i]:
            two[i] |= one[j]
        two[i].discard(i)
    return one, two


def heads(requests, two, cfg):
    """RBs of signalling in front of each node's claims."""
    result = []
    for i, mine in enumerate(requests):
        head = Fraction((1 + len(two[i])) * cfg["message_bytes"], cfg["payload_bytes"])
        if cfg["mini_slots"] is not None:
            head += Fraction(mine + sum(requests[j] for j in two[i]), cfg["mini_slots"])
        result.append(math.ceil(head))
    if cfg["two_hop_head"]:
        result = [max([result[i]] + [result[j] for j in two[i]]) for i in range(len(requests))]
    return result


def claims_of(requests, head, two, receiver, num_alive, t, cfg):
    """List of claimed RBs per node, in time order."""
    claims = [[] for _ in requests]
    for turn in range(num_alive):
        i = (t + turn) % num_alive
        for rb in range(head[i], cfg["slots"] * cfg["channels"]):
            if len(claims[i]) == requests[i]:
                break
            if any(rb in claims[j] for j in two[i]):
                continue
            if cfg["half_duplex"]:
                ends = [j for j in range(num_alive) if j == receiver[i] or receiver[j] == i]
                slot = rb // cfg["channels"]
                if any(other // cfg["channels"] == slot for j in ends for other in claims[j]):
                    continue
            claims[i].append(rb)
    return claims


def poisson_clipped(u, rate, maximum):
    """Smallest k with u < P(Poisson <= k), at most `maximum`."""
    total = 0.0
    for k in range(maximum):
        total += math.exp(-rate) * rate**k / math.factorial(k)
        if u < total:
            return k
    return maximum


class RBLoop:
    """Mutable state of one network; `frame(requests, draws)` returns everything that the library's TimeStep reports."""

    def __init__(self, network, mode, **options):
        self.cfg = {**DEFAULTS, **options}
        self.net = network
        self.n = len(network["position"])
        self.alive = int(network["num_alive"])
        self.one, self.two = graphs(network["position"], self.alive)
        self.queue = [[[0] * d for d in self.cfg["deadlines"]] for _ in range(self.n)]
        self.mode = [bool(m) for m in mode]
        self.generated = [[(0, 0)] * self.cfg["history"] for _ in range(self.n)]
        self.granted, self.lost, self.requests = [0] * self.n, [0] * self.n, [0] * self.n
        self.t = 0

    def backlog(self, i):
        return sum(sum(ages) for ages in self.queue[i])

    def decode(self, used, fading):
        """Number of RBs of each link that meet their SINR threshold."""
        snr, rx = self.net["mean_snr"], self.net["receiver"]
        good = [0] * self.n
        for i in range(self.n):
            for rb in used[i]:
                f = rb % self.cfg["channels"]
                signal = snr[rx[i], i] * fading[rx[i], i, f]
                others = sum(snr[rx[i], j] * fading[rx[i], j, f] for j in range(self.n) if j != i and rb in used[j])
                good[i] += signal >= self.net["threshold"][i] * (1.0 + others)
        return good

    def pop_most_urgent(self, i):
        """Removes one packet: least slack, then urgent class; returns its delay in frames."""
        cells = [
            (deadline - age, c, age)
            for c, deadline in enumerate(self.cfg["deadlines"])
            for age in range(deadline)
            if self.queue[i][c][age] > 0
        ]
        _, c, age = min(cells)
        self.queue[i][c][age] -= 1
        return age + 1

    def frame(self, requests, draws):
        cfg, n = self.cfg, self.n
        requests = [int(r) if i < self.alive else 0 for i, r in enumerate(requests)]
        head = heads(requests, self.two, cfg)
        claims = claims_of(requests, head, self.two, self.net["receiver"], self.alive, self.t, cfg)
        used = [c[: math.ceil(self.backlog(i) / self.net["rate"][i])] for i, c in enumerate(claims)]
        good = self.decode(used, draws["fading"])
        out = {name: np.zeros(n) for name in ("delivered", "delay_frames", "holding")}
        lost = np.zeros((n, 2))  # overflow is added below
        late = np.zeros((n, 2))
        forwarded = [0] * n
        for i in range(n):
            delivered = min(good[i] * int(self.net["rate"][i]), self.backlog(i))
            out["delivered"][i] = delivered
            out["delay_frames"][i] = sum(self.pop_most_urgent(i) for _ in range(delivered))
            if i >= cfg["clusters"]:
                forwarded[i % cfg["clusters"]] += sum(draws["relay"][i, k] < cfg["relay"] for k in range(delivered))
            for c, deadline in enumerate(cfg["deadlines"]):
                late[i, c] = self.queue[i][c][deadline - 1]
                self.queue[i][c] = [0] + self.queue[i][c][: deadline - 1]
                out["holding"][i] += cfg["weights"][c] * sum(
                    age / deadline * count for age, count in enumerate(self.queue[i][c])
                )
        arrivals = np.zeros((n, 2), int)
        for i in range(self.alive):
            self.mode[i] = self.next_mode(i, draws)
            rates = (cfg["lam_urgent"], cfg["lam_on"] if self.mode[i] else cfg["lam_off"])
            for c in range(2):
                u = draws["arrivals"][i, c]
                arrivals[i, c] = poisson_clipped(u, self.net["load"][i] * rates[c], cfg["max_arrivals"])
            arrivals[i, 1] += forwarded[i]
            for c in range(2):
                entering = min(arrivals[i, c], cfg["buffers"][c] - sum(self.queue[i][c]))
                self.queue[i][c][0] += entering
                lost[i, c] = arrivals[i, c] - entering
            self.generated[i] = [tuple(arrivals[i]), *self.generated[i][:-1]]
        grants = [len(c) for c in claims]
        self.granted, self.requests = grants, requests
        self.lost = [len(used[i]) - good[i] for i in range(n)]
        self.t += 1
        dropped = (late + lost) @ np.array(cfg["weights"])
        waste = np.array(grants) - np.array(good)
        out["reward"] = cfg["scale"] * (
            cfg["beta"] * out["delivered"] - out["holding"] - cfg["omega"] * dropped - cfg["eps"] * waste
        )
        out |= dict(late=late, overflow=lost, arrivals=arrivals, head=np.array(head), claims=claims, obs=self.observe())
        return out

    def next_mode(self, i, draws):
        cfg = self.cfg
        if self.mode[i]:
            return not draws["mode"][i] < cfg["p_off"]
        cluster = draws["cluster"][i % cfg["clusters"]] < cfg["p_on"] * cfg["correlation"]
        return bool(draws["mode"][i] < cfg["p_on"] * (1 - cfg["correlation"]) or cluster)

    def observe(self):
        rows = np.zeros((self.n, 2 * self.cfg["history"] + 8))
        for i in range(self.alive):
            row = [count for pair in self.generated[i] for count in pair]
            row += [sum(ages) for ages in self.queue[i]]
            row += [max([age + 1 for age, count in enumerate(ages) if count], default=0) for ages in self.queue[i]]
            snr_db = 10 * math.log10(self.net["mean_snr"][self.net["receiver"][i], i])
            row += [self.granted[i], self.lost[i], min(max(round(snr_db / 5), 0), 9), len(self.two[i])]
            rows[i] = row
        return rows
