"""Parameters of the resource-block network and what is allowed."""

from __future__ import annotations

from flax import struct

from networld_envs.units import db_to_linear

NUM_CLASSES = 2  # 0 urgent, 1 data


@struct.dataclass
class RBParams:
    """Everything that defines the network. Static fields set shapes and modes; the rest may be traced and vmapped over.

    A frame has T x F resource blocks (RBs): RB b lies in slot b // F on channel b % F. One environment step is one
    frame.
    """

    max_agents: int = struct.field(pytree_node=False, default=9)  # N, alive or not
    alive_choices: tuple[int, ...] = struct.field(
        pytree_node=False, default=(8, 9)
    )  # nodes of an episode, drawn uniformly
    num_clusters: int = struct.field(pytree_node=False, default=3)  # node i is in cluster i % num_clusters
    num_slots: int = struct.field(pytree_node=False, default=10)  # T
    num_channels: int = struct.field(pytree_node=False, default=4)  # F
    max_request_rbs: int = struct.field(pytree_node=False, default=9)  # largest action
    mini_slots_per_rb: int | None = struct.field(pytree_node=False, default=3)  # M; None = signalling is free
    head_scope: str = struct.field(pytree_node=False, default="local")  # "local" | "two_hop" (maximum over two hops)
    half_duplex: bool = struct.field(pytree_node=False, default=False)  # a node never sends and receives in one slot
    message_bytes: int = struct.field(pytree_node=False, default=0)  # mean-field message of a node and frame; 0 = free
    rb_payload_bytes: int = struct.field(pytree_node=False, default=256)  # of messages; 10 ms x 205 kHz, QPSK 1/2
    rate2_margin_db: float | None = struct.field(pytree_node=False, default=None)  # None = every link is single-rate
    deadlines_frames: tuple[int, int] = struct.field(pytree_node=False, default=(4, 12))  # D_c of (urgent, data)
    buffers_packets: tuple[int, int] = struct.field(pytree_node=False, default=(9, 24))
    max_arrivals: int = struct.field(
        pytree_node=False, default=9
    )  # a class generates at most this many packets a frame
    history_frames: int = struct.field(pytree_node=False, default=3)  # generation history in the observation
    observation_request: bool = struct.field(pytree_node=False, default=False)  # adds the own last request
    observation_requests: bool = struct.field(pytree_node=False, default=False)  # adds the sum heard over two hops
    episode_steps: int = struct.field(pytree_node=False, default=1000)  # frames; truncation, never termination

    rho: float = 1.0  # load of the busiest two-hop neighbourhood over what the frame can carry
    load_std: float = 0.2  # standard deviation of log m_i
    urgent_rate: float = 0.8  # packets per frame, times m_i
    data_rate_on: float = 6.0  # packets per frame, times m_i
    data_rate_off: float = 1.0
    turn_off_probability: float = 1.0 / 15.0  # per frame
    turn_on_probability: float = 1.0 / 30.0
    cluster_correlation: float = 0.8  # share of turn-on triggers that hit the whole cluster at once
    relay_probability: float = 0.2  # a packet delivered by a member is forwarded by its head

    cluster_spacing: float = 0.9  # unit length = communication range
    cluster_radius: float = 0.45
    snr_at_range_db: float = 12.0
    path_loss_exponent: float = 3.5
    shadowing_db: float = 3.0
    threshold_db: float = 2.0  # SINR that decodes one packet per RB
    rate2_threshold_db: float = 9.0  # SINR that decodes two packets per RB

    class_weights: tuple[float, float] = (2.0, 1.0)  # w_c
    loss_weight: float = 2.0  # omega: a late or overflowing packet against a full deadline of holding
    waste_cost: float = 0.05  # epsilon, per granted RB without a success
    reward_beta: float = 0.05  # per delivered packet
    reward_scale: float = 0.5

    @property
    def num_rbs(self) -> int:
        return self.num_slots * self.num_channels

    @property
    def max_age_frames(self) -> int:
        return max(self.deadlines_frames)

    @property
    def max_rate(self) -> int:
        """Largest number of packets in an RB."""
        return 1 if self.rate2_margin_db is None else 2

    @property
    def pool_rbs(self) -> float:
        """RBs left for data when all of them are requested once: R M / (M + 1)."""
        m = self.mini_slots_per_rb
        return float(self.num_rbs) if m is None else self.num_rbs * m / (m + 1)

    @property
    def threshold(self) -> float:
        return db_to_linear(self.threshold_db)

    @property
    def rate2_threshold(self) -> float:
        return db_to_linear(self.rate2_threshold_db)

    @property
    def turn_on_own(self) -> float:
        """Probability per frame that a node's own trigger fires."""
        return self.turn_on_probability * (1.0 - self.cluster_correlation)

    @property
    def turn_on_cluster(self) -> float:
        """Probability per frame that its cluster's trigger fires."""
        return self.turn_on_probability * self.cluster_correlation

    @property
    def turn_on_any(self) -> float:
        """Probability per frame that an OFF node turns ON."""
        return 1.0 - (1.0 - self.turn_on_own) * (1.0 - self.turn_on_cluster)

    @property
    def on_share(self) -> float:
        """Nominal ON probability: initial law, and the mean data rate behind the load equation."""
        return self.turn_on_probability / (self.turn_on_probability + self.turn_off_probability)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"rb: {message}")


def _is_count(value, low: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_params(p: RBParams) -> None:
    """Raises ValueError with one line (what, got, allowed) for the first parameter out of its range."""
    for name in ("num_slots", "num_channels", "max_request_rbs", "rb_payload_bytes", "max_arrivals", "history_frames",
                 "episode_steps"):  # fmt: skip
        _require(_is_count(getattr(p, name)), f"{name} must be a whole number >= 1, got {getattr(p, name)!r}")
    for name in ("max_agents", "num_clusters"):
        _require(_is_count(getattr(p, name), 2), f"{name} must be a whole number >= 2, got {getattr(p, name)!r}")
    _require(_is_count(p.message_bytes, 0), f"message_bytes must be a whole number >= 0, got {p.message_bytes!r}")
    _require(
        p.mini_slots_per_rb is None or _is_count(p.mini_slots_per_rb),
        f"mini_slots_per_rb must be >= 1, or None for free signalling, got {p.mini_slots_per_rb!r}",
    )
    _require(p.head_scope in ("local", "two_hop"), f"head_scope must be 'local' or 'two_hop', got {p.head_scope!r}")
    _require(
        len(p.alive_choices) > 0 and all(_is_count(n, 2) and n <= p.max_agents for n in p.alive_choices),
        f"alive_choices must be numbers in 2..max_agents={p.max_agents}, got {p.alive_choices!r}",
    )
    for name in ("deadlines_frames", "buffers_packets"):
        value = getattr(p, name)
        _require(
            len(value) == NUM_CLASSES and all(_is_count(v) for v in value),
            f"{name} must hold a whole number >= 1 for (urgent, data), got {value!r}",
        )
    _require(len(p.class_weights) == NUM_CLASSES, f"class_weights must be (urgent, data), got {p.class_weights!r}")
    for name in ("turn_off_probability", "turn_on_probability"):
        _require(0.0 < getattr(p, name) <= 1.0, f"{name} must be in (0, 1], got {getattr(p, name)!r}")
    for name in ("cluster_correlation", "relay_probability"):
        _require(0.0 <= getattr(p, name) <= 1.0, f"{name} must be in [0, 1], got {getattr(p, name)!r}")
    for name in ("rho", "urgent_rate", "data_rate_on", "data_rate_off", "path_loss_exponent", "cluster_radius",
                 "cluster_spacing"):  # fmt: skip
        _require(getattr(p, name) > 0.0, f"{name} must be positive, got {getattr(p, name)!r}")
    for name in ("load_std", "shadowing_db", "waste_cost", "reward_beta", "loss_weight"):
        _require(getattr(p, name) >= 0.0, f"{name} must not be negative, got {getattr(p, name)!r}")
    reach = p.cluster_spacing + 0.2 * p.cluster_radius
    _require(reach <= 1.0, f"cluster_spacing + 0.2 cluster_radius must be <= 1 (heads in range), got {reach:.3g}")
    _require(
        p.cluster_radius <= 1.0 / 1.1, f"cluster_radius must be <= 0.909 (members reach heads), got {p.cluster_radius}"
    )
