"""The queue: killed and resumed it writes the same rows; a row's command repeats the row; mistakes show before work."""

import json
import shlex

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import networld_envs
from experiments import (
    adapt,
    dataset_cards,
    methods,
    publish_pretrained,
    queue,
    rows,
    runs,
    runtime,
    settings,
    train_loop,
    validation,
)
from experiments.configs import default, demo, evidence, paper, paper_reading
from networld_jax import checkpoints, evaluate, pretrained, statistics
from networld_jax.evaluation import Protocol
from tests import tiny, toy_queue, toy_run
from tools import chaos
from tools.bad_input import parse

TIMES = ("seconds", "command", "metrics")


@pytest.fixture(scope="module", autouse=True)
def toy_tasks():
    """Toy environments, and linear maps in place of the shared nets."""
    make = settings.make_world_model
    with pytest.MonkeyPatch.context() as patch:
        for module in (settings, checkpoints):
            patch.setattr(module, "make_world_model", lambda *args: tiny.linear_nets(make(*args)))
        patch.setattr(adapt, "start_embedding", lambda net, index, sources: net)  # linear maps know no tasks
        for name, factory in toy_run.TASKS.items():
            patch.setitem(networld_envs.ENVIRONMENTS, name, factory)
        yield


def config(**fields) -> ConfigDict:
    c = toy_queue.get_config()
    c.queue.groups = ("toy",)
    c.queue.update(fields)
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of the whole toy group."""
    workdir = tmp_path_factory.mktemp("whole")
    with jax.debug_key_reuse(True):
        return workdir, queue.run(config(), workdir)


def comparable(found):
    return {rows.identity(row): {k: v for k, v in row.items() if k not in TIMES} for row in found}


def test_every_run_leaves_one_whole_row(finished):
    _, found = finished
    assert [(row["method"], row["seed"]) for row in found] == [
        ("random", 0), ("expert", 0), ("behaviour", 0), ("best_behaviour", 0), ("ma_bc", 0), ("ma_bc", 1),
        ("networld_scratch", 0), ("networld_scratch", 1), ("scratch_w0", 0), ("scratch_w0", 1),
    ]  # fmt: skip
    for row in found:
        assert set(rows.FIELDS) <= row.keys()
        assert row["reward"] == pytest.approx(np.mean(row["instance_rewards"]), rel=1e-5)
        assert len(row["instance_rewards"]) == (1 if row["method"] == "best_behaviour" else 6)
    by_name = {row["method"]: row for row in found}
    assert by_name["random"]["score"] == 0 and by_name["expert"]["score"] == 1
    assert by_name["behaviour"]["reward"] == by_name["expert"]["reward"]  # the expert collected this tier
    assert by_name["ma_bc"]["label"] == "none" and by_name["networld_scratch"]["label"] == "neighbourhood"
    assert by_name["networld_scratch"]["pretrain"] is None
    for name in ("ma_bc", "networld_scratch"):
        assert by_name[name]["target_transitions"] == 30 and by_name[name]["target_topologies"] == 3
        assert by_name[name]["updates"] == 2 and by_name[name]["obs_set"] == "own+mf"
    assert by_name["scratch_w0"]["settings"]["planner.guide_scale"] == 0
    assert by_name["scratch_w0"]["instance_rewards"] != by_name["networld_scratch"]["instance_rewards"]


def test_columns_are_known_beforehand(finished):
    """What the results page counts as done is what the queue writes."""
    _, found = finished
    c = config()
    known = methods.table(c)
    expected = [runs.columns(c, known, run) for run in runs.list_runs(c)]
    assert [tuple(row[name] for name in runs.COLUMNS) for row in found] == expected


def test_variants_that_differ_in_planning_share_their_weights(finished):
    workdir, _ = finished
    assert len(list((workdir / "models").glob("*/model/model.json"))) == 2  # one per seed
    assert not list((workdir / "models").glob("*/checkpoints"))


@pytest.mark.parametrize(("name", "single"), [("scratch_ensemble", "networld_scratch"), ("ma_bc_ensemble", "ma_bc")])
def test_an_ensemble_has_four_members_of_its_own(finished, tmp_path, monkeypatch, name, single):
    """The first has the run's own seed; all share one message."""
    seeds, train = [], train_loop.train
    monkeypatch.setattr(train_loop, "train", lambda *args: seeds.append(args[6]) or train(*args))
    row = queue.run(config(methods=(name,), seeds=(1,)), tmp_path)[-1]
    assert seeds == [1, 1_000_004, 2_000_007, 3_000_010]
    assert row["settings"]["ensemble.num_members"] == 4
    alone = next(row for row in finished[1] if (row["method"], row["seed"]) == (single, 1))
    assert row["message_bytes"] == alone["message_bytes"]
    assert row["instance_rewards"] != alone["instance_rewards"]


def test_an_ensemble_of_equal_members_acts_as_one_of_them(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "member_seed", lambda seed, number: seed)
    row = queue.run(config(methods=("ma_bc_ensemble",), seeds=(1,)), tmp_path)[-1]
    alone = next(row for row in finished[1] if (row["method"], row["seed"]) == ("ma_bc", 1))
    np.testing.assert_allclose(row["instance_rewards"], alone["instance_rewards"], rtol=1e-5)


@pytest.mark.slow
def test_the_multi_task_clone_says_what_it_was_pre_trained_on(finished, tmp_path):
    workdir, _ = finished
    (tmp_path / "data").symlink_to(workdir / "data")
    wanted = config(methods=("multi_task_bc",), cells=(("own", "own"),), seeds=(0,))
    wanted.pretrain.num_updates = 2
    row = next(row for row in queue.run(wanted, tmp_path) if row["method"] == "multi_task_bc")
    assert row["pretrain"]["sources"] == ["queues", "slow_queues"] and row["pretrain"]["updates"] == 2
    assert (tmp_path / "pretrained").is_dir()


class Killed(BaseException):
    """Like a kill: nothing catches it."""


@pytest.mark.parametrize("calls", [3])
def test_a_killed_queue_ends_in_the_same_rows(finished, tmp_path, monkeypatch, calls):
    workdir, wanted = finished
    (tmp_path / "data").symlink_to(workdir / "data")
    original, count = queue.Queue.score, []

    def limited(self, *args):
        count.append(1)
        if len(count) > calls:
            raise Killed
        return original(self, *args)

    few = config(methods=("rules", "ma_bc"))
    with monkeypatch.context() as patch:
        patch.setattr(queue.Queue, "score", limited)
        with pytest.raises(Killed):
            queue.run(few, tmp_path)
    assert len(rows.read(tmp_path / "runs.jsonl")) == calls
    with open(tmp_path / "runs.jsonl", "a") as file:
        file.write('{"task": "busy_queues", "met')  # a line that a kill cut
    found = comparable(queue.run(few, tmp_path))
    reference = comparable(wanted)
    assert len(found) == 4
    assert all(found[name] == reference[name] for name in found)
    assert all(json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines())


def test_one_bad_run_does_not_stop_the_others(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    (tmp_path / "data").symlink_to(workdir / "data")
    original = queue.Queue.score

    def fails_once(self, run, *args):
        if run.method == "ma_bc" and run.seed == 0:
            raise train_loop.TrainingError("loss is nan before update 1 (seed 0)")
        return original(self, run, *args)

    monkeypatch.setattr(queue.Queue, "score", fails_once)
    with pytest.raises(runtime.UserError, match=r"1 of 4 runs failed.*loss is nan"):
        queue.run(config(methods=("rules", "ma_bc")), tmp_path)
    assert [row["seed"] for row in rows.read(tmp_path / "runs.jsonl") if row["method"] == "ma_bc"] == [1]


def test_finished_runs_are_not_run_again(finished, monkeypatch):
    workdir, wanted = finished

    def never(*args):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(queue.Queue, "score", never)
    assert queue.run(config(), workdir) == wanted


def test_a_units_lock_keeps_a_second_queue_away(finished, monkeypatch):
    workdir, _ = finished
    waiting = config(methods=("scratch_w0",), seeds=(7,))
    (run,) = runs.list_runs(waiting)
    with rows.claimed(workdir / "locks" / queue._digest(str(run.unit))) as mine:
        assert mine
        assert queue.run(waiting, workdir) == []


def test_the_printed_command_repeats_its_row(finished, tmp_path):
    workdir, wanted = finished
    (tmp_path / "data").symlink_to(workdir / "data")
    rows_of = [row for row in wanted if row["method"] == "ma_bc"]
    words = shlex.split(rows_of[0]["command"])
    assert words[:3] == ["python", "-m", "experiments.queue"]
    (only,) = [w.split("=", 1)[1] for w in words if w.startswith("--config.queue.only=")]
    (again,) = queue.run(config(only=only), tmp_path)
    interval = statistics.mean_interval(np.array([row["instance_rewards"] for row in rows_of]))
    assert interval.low <= again["reward"] <= interval.high
    assert again["instance_rewards"] == rows_of[0]["instance_rewards"]  # on one machine to the bit


def test_other_settings_are_other_runs(finished):
    workdir, _ = finished
    changed = config(methods=("networld_scratch",))
    assert not queue.Queue(changed, workdir).pending(runs.list_runs(changed))
    changed.queue.settings.expert.busy_queues.planner.guide_scale = 3.0
    assert len(queue.Queue(changed, workdir).pending(runs.list_runs(changed))) == 2
    untouched = config(methods=("networld_scratch",))
    untouched.pretrain.num_updates = 99  # from scratch does not care
    assert not queue.Queue(untouched, workdir).pending(runs.list_runs(untouched))


def test_selections_replace_a_groups_own_list():
    chosen = runs.list_runs(config(methods=("networld",), seeds=(4,), sizes=(10, 20), tasks=("queues",)))
    assert [(r.task, r.method, r.num_steps, r.seed) for r in chosen] == [
        ("queues", "networld", 10, 4), ("queues", "networld", 20, 4)
    ]  # fmt: skip
    assert all(runs.parse_run(run.name) == run for run in runs.list_runs(config()))


def test_the_best_cell_is_chosen_on_validation():
    def row(split, obs_set, label, reward):
        keys = dict(task="busy_queues", tier="expert", method="networld_scratch")
        return keys | dict(split=split, obs_set=obs_set, label=label, reward=reward)

    seen = [row("validation", "own", "own", 1.0), row("validation", "own+mf", "own", 2.0)]
    seen.append(row("test", "own", "own", 9.0))
    chosen = runs.list_runs(config(methods=("networld_scratch",), cells=(("best", "best"),)), seen)
    assert {(run.obs_set, run.label) for run in chosen} == {("own+mf", "own")}


def test_every_task_has_its_return_label():
    c = evidence.get_config()
    c.queue.methods = ("filtered_bc", "networld")
    labels = {run.task: set() for run in runs.list_runs(c)}
    for run in runs.list_runs(c):
        labels[run.task].add(run.label)
        assert runs.resolve(c, run).loss.label == (run.label if run.method == "networld" else default.LABEL["rb"])
    assert labels == {"cbf": {"neighbourhood"}, "rb": {"neighbourhood"}, "ns": {"own"}}
    assert demo.get_config("ns").loss.label == paper.get_config("ns").loss.label == "own"
    assert paper_reading.get_config("rb").loss.label == "own"  # a preset that is about another label keeps it


def test_data_have_their_noise_unless_the_method_is_about_it():
    c = evidence.get_config()
    wanted = c.queue.settings.expert.rb.loss.inverse_dynamics_noise

    def noise(task, tier, method="networld"):
        return runs.resolve(c, runs.Run(task, tier, method)).loss.inverse_dynamics_noise

    assert noise("rb", "expert") == wanted != noise("rb", "mixed")
    assert noise("rb", "mixed") == noise("cbf", "expert") == c.loss.inverse_dynamics_noise
    assert noise("rb", "expert", "scratch_idm_clean") == 0.0
    scale = lambda tier: runs.resolve(c, runs.Run("cbf", tier, "networld")).planner.guide_scale  # noqa: E731
    by_tier = c.queue.settings
    assert scale("mixed") == by_tier.mixed.cbf.planner.guide_scale == scale("noisy_expert")  # a tier without its own
    assert scale("mixed") != scale("expert") == by_tier.expert.cbf.planner.guide_scale
    assert runs.resolve(c, runs.Run("cbf", "expert", "scratch_w0")).planner.guide_scale == 0.0
    assert runs.resolve(c, runs.Run("rb", "expert", "ma_dd")).baselines.ma_dd.inverse_dynamics_noise == wanted


def test_world_models_of_a_trusted_tier_are_noise_aware():
    c = evidence.get_config()
    assert c.queue.settings.expert.rb.planner.inverse_dynamics_noise == 5.0
    resolved = {tier: runs.resolve(c, runs.Run("rb", tier, "networld")) for tier in ("expert", "mixed")}
    assert [r.model.noise_aware_inverse_dynamics for r in resolved.values()] == [True, False]
    assert resolved["expert"].planner.inverse_dynamics_noise == 5.0
    rivals = [runs.resolve(c, runs.Run("rb", "expert", m)).baselines.ma_dd for m in ("ma_dd", "ma_dd_aware")]
    assert [(r.noise_aware, r.inverse_dynamics_noise) for r in rivals] == [(False, 2.0), (True, 5.0)]
    ancestor = runs.resolve(c, runs.Run("rb", "expert", "ma_cdmp"))
    assert not ancestor.model.noise_aware_inverse_dynamics and ancestor.adapt.weight_decay == 0
    own = runs.resolve(c, runs.Run("rb", "expert", "scratch_trust_0.3"))  # a method that is about it keeps its own
    assert own.planner.inverse_dynamics_noise == 0.3


def test_own_observations_send_no_messages(finished):
    workdir, found = finished
    (row,) = queue.run(config(methods=("ma_bc",), cells=(("own", "own"),), seeds=(0,)), workdir)
    assert row["message_bytes"] == 0 and row["obs_set"] == "own" and row["label"] == "none"
    assert next(r for r in found if r["method"] == "ma_bc")["message_bytes"] == 1  # two entries of four bits
    planner = runs.resolve(config(), runs.Run("busy_queues", "expert", "scratch_w0", "own", "own"))
    assert planner.planner.message_loss == planner.loss.message_dropout == 1


@pytest.mark.slow
def test_pretraining_is_shared_and_recorded(finished, tmp_path):
    workdir, _ = finished
    (tmp_path / "data").symlink_to(workdir / "data")
    methods_ = ("networld", "networld_shuffled", "networld_joint", "networld_from_busy_queues", "idm_only")
    found = queue.run(config(methods=methods_, seeds=(0,), sizes=(10,)), tmp_path)
    by_name = {row["method"]: row for row in found}
    assert by_name["networld"]["pretrain"]["sources"] == ["queues", "slow_queues"]
    assert by_name["networld_from_busy_queues"]["pretrain"]["sources"] == ["busy_queues"]
    assert by_name["networld_joint"]["updates"] == 0
    assert by_name["networld_shuffled"]["pretrain"]["data"] == "shuffled"
    assert all(row["target_transitions"] == 10 for row in found)
    assert len(list((tmp_path / "pretrained").glob("*/model/model.json"))) == 4  # idm_only shares networld's
    assert len({str(row["instance_rewards"]) for row in found}) == len(found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(groups=("nonsense",)), "groups must be among"),
        (dict(methods=("nonsense",)), "methods must be among"),
        (dict(tasks=("wifi",)), "tasks must be among"),
        (dict(only="busy_queues/expert/networld"), "only must be task/tier/method/obs_set"),
    ],
)
def test_mistakes_show_before_any_work(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        queue.run(config(**fields), tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_method_resolves():
    c = config()
    for name, method in methods.table(c).items():
        if method.kind != "ceiling":
            runs.resolve(c, runs.Run("busy_queues", "expert", name, "own+mf", "neighbourhood"))
    with pytest.raises(ValueError, match=r"unknown configuration field 'planner\.nonsense'"):
        methods.set_field(c, "planner.nonsense", 1)


# ------------------------------------------------------------------------------------------------ what is published


def test_a_published_model_reaches_its_expected_score(finished, tmp_path):
    workdir, found = finished
    name = runs.Run("busy_queues", "expert", "networld_scratch", "own+mf", "neighbourhood").name
    folder = publish_pretrained.run(config(only=name), workdir, tmp_path)
    assert [path.name for path in sorted(folder.iterdir())] == ["model.json", "weights.npz"]
    planner = pretrained.load_pretrained("networld_scratch_busy_queues_expert", tmp_path)
    expected = planner.facts["expected"]
    assert expected["reward"] == next(r for r in found if r["method"] == "networld_scratch")["reward"]
    env = networld_envs.make(planner.task)
    scores = evaluate(env, planner.policy, planner.policy_params, Protocol(**expected["protocol"]))
    np.testing.assert_allclose(scores.reward, expected["instance_rewards"], rtol=1e-5)
    with pytest.raises(ValueError, match="unknown pretrained model 'nonsense'"):
        pretrained.load_pretrained("nonsense")
    for method, message in (("ma_bc", "only world models"), ("networld", "has no row of")):
        other = runs.Run("busy_queues", "expert", method, "own+mf", "none" if method == "ma_bc" else "neighbourhood")
        with pytest.raises(runtime.UserError, match=message):
            publish_pretrained.run(config(only=other.name), workdir, tmp_path)


def test_a_card_says_how_its_dataset_is_repeated(finished):
    workdir, _ = finished
    card = next(c for c in dataset_cards.cards(workdir) if (c["task"], c["tier"]) == ("busy_queues", "expert"))
    assert (card["task"], card["tier"], card["trajectories"], card["steps"]) == ("busy_queues", "expert", 5, 10)
    assert card["agent_transitions"] == 5 * 10 * 5 and card["bytes"] > 0 and len(card["sha256"]) == 64
    assert "--config.collect.tier=expert" in card["command"]
    page = dataset_cards.page([card])
    for shown in (card["sha256"], "Apache-2.0", "`queue`, `arrivals`", "key range 'data'"):
        assert shown in page


# ------------------------------------------------------------------------------------------------ the file


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(ValueError, match=r"runs\.jsonl:2 is no JSON object"):
        rows.read(path)


def test_published_rows_replace_their_predecessors(tmp_path, finished):
    _, found = finished
    path = tmp_path / "runs.jsonl"
    assert rows.merge(path, found) == len(found)
    changed = found[0] | {"reward": 5.0}
    assert rows.merge(path, [changed]) == len(found)
    assert rows.read(path)[0]["reward"] == 5.0


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_the_published_configurations_are_valid(preset):
    c = evidence.get_config(preset)
    c.queue.groups = tuple(c.groups)
    assert len(runs.list_runs(c)) > 500
    validation.validate(c)


@pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")
def test_chaos_starts_a_queue_of_every_kind():
    """Its command line passes validation, and asks for rows with and without training and pre-training."""
    started, workdir = parse([*chaos.CONFIGURATIONS["queue"], *chaos.OPTIONS, "--workdir=nowhere"])
    kind = queue.Queue(started, workdir).kind
    kinds = {run.method: kind(run) for run in runs.list_runs(started)}
    trained = {"ma_bc": "baseline", "networld": "world model", "scratch_w0": "world model"}
    assert kinds == {"behaviour": "behaviour"} | trained
