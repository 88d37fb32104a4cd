"""A member of a population is the run that `lmjax train` makes of its config, whatever happens to the others."""

import functools
import json
import math
import shutil
import types

import jax
import pytest

from lmjax.commands.train import train
from lmjax.config import replace
from lmjax.errors import FlagError, PreemptedError
from lmjax.parallel.mesh import population_mesh
from lmjax.sweep.loop import Rung
from lmjax.sweep.population import train_population
from lmjax.training.metrics import read_lines
from lmjax.training.preemption import StopRequest
from lmjax.training.stages import Steps
from tests.workdirs import bits, resumed_from, untimed_lines

pytestmark = pytest.mark.long

STEPS, EVERY = 12, 4
MEMBERS = (
    {"optimizer__learning_rate": 1e-3},
    {"optimizer__learning_rate": 3e-3, "seeds__init": 1, "optimizer__weight_decay": 0.3, "optimizer__clip_norm": 0.1},
    {
        "model__dropout__residual": 0.3,
        "seeds__dropout": 5,
        "optimizer__adamw__beta2": 0.9,
        "model__init_std": 0.1,
        "task__mlm__loss_weight": 0.9,
    },
    {"optimizer__learning_rate": 1e30},
)


def configs(tiny, objective="mlm", members=MEMBERS, **common):
    common = {
        "steps": STEPS,
        "checkpoint__every": EVERY,
        "checkpoint__keep": 10,
        "evaluation__every": EVERY,
        "max_skipped": 3,
        "optimizer__warmup_steps": 2,
        **common,
    }
    return [tiny(objective, **(common | member)) for member in members]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Makes the devices of a population one, which compiles faster; the test of eight devices undoes it."""
    with pytest.MonkeyPatch.context() as patched:
        one = functools.partial(population_mesh, devices=jax.devices()[:1])
        patched.setattr("lmjax.sweep.population.population_mesh", one)
        yield


@pytest.fixture(scope="module")
def population(tiny, tmp_path_factory, one_device):
    """Returns the configs of a population whose last member diverges, its outcomes, and its folder."""
    folder, made = tmp_path_factory.mktemp("population"), configs(tiny)
    return made, train_population(made, [folder / str(i) for i in range(len(made))], progress=False), folder


def assert_same_curves(workdir, alone, *, rel=1e-5):
    ours, theirs = untimed_lines(workdir), untimed_lines(alone)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs], "a member has other metrics"
    for own, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            assert own[name] == pytest.approx(value, rel=rel, abs=1e-6), f"{name} of step {other['step']}"


@pytest.mark.parametrize("member", [1, 2])
def test_a_member_has_the_curve_of_the_run_alone(population, tmp_path, member):
    made, outcomes, folder = population
    alone = train(made[member], tmp_path / "alone", progress=False)
    assert_same_curves(folder / str(member), alone)
    assert (outcomes[member].status, outcomes[member].step) == ("done", STEPS)
    last = [line for line in untimed_lines(alone) if "eval/heldout/loss" in line][-1]
    assert outcomes[member].metrics["eval/heldout/loss"] == pytest.approx(last["eval/heldout/loss"], rel=1e-5)
    assert json.loads((folder / str(member) / "state.json").read_text())["stage"] == "done"
    assert (folder / str(member) / "config.json").read_text() == (alone / "config.json").read_text()
    files = {path.name for path in alone.iterdir()}
    assert {path.name for path in (folder / str(member)).iterdir()} == files, "a member's workdir has other files"


def test_members_differ(population):
    _, outcomes, _ = population
    assert len({outcome.metrics["eval/heldout/loss"] for outcome in outcomes[:3]}) == 3


def test_a_member_that_diverges_stays_alone_with_it(population, tiny, tmp_path):
    made, outcomes, folder = population
    assert [outcome.status for outcome in outcomes] == ["done", "done", "done", "diverged"]
    assert outcomes[3].step < STEPS
    assert json.loads((folder / "3" / "state.json").read_text())["stage"] == "training"
    without = train_population(made[:3], [tmp_path / str(i) for i in range(3)], progress=False)
    for own, other in zip(without, outcomes, strict=False):
        assert own.metrics == pytest.approx(other.metrics, rel=1e-5)


def test_a_population_that_is_killed_resumes_bit_for_bit(population, tmp_path):
    made, _, folder = population
    # A kill during a save leaves members at different steps.
    places = [resumed_from(folder / str(i), step, tmp_path / str(i)) for i, step in ((0, 4), (1, 8), (2, 12), (3, 4))]
    for workdir in places:
        state = json.loads((workdir / "state.json").read_text())
        (workdir / "state.json").write_text(json.dumps(state | {"stage": "training", "saved": None}))
    outcomes = train_population(made, places, progress=False)
    assert [outcome.status for outcome in outcomes] == ["done", "done", "done", "diverged"]
    for i, workdir in enumerate(places[:3]):
        assert bits(workdir, STEPS) == bits(folder / str(i), STEPS)
        assert untimed_lines(workdir) == untimed_lines(folder / str(i))


def test_a_population_that_is_done_trains_nothing(population, tmp_path, monkeypatch):
    made, outcomes, folder = population
    monkeypatch.setattr("lmjax.sweep.population._opened", lambda *_: pytest.fail("a finished run was opened"))
    again = train_population(made[:3], [folder / str(i) for i in range(3)], progress=False)
    assert [(o.status, o.step, o.metrics, o.tokens) for o in again] == [
        (o.status, o.step, o.metrics, o.tokens) for o in outcomes[:3]
    ]


def test_a_population_that_is_asked_to_stop_saves_all_members(population, tmp_path, monkeypatch):
    made, _, folder = population
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "stop_at", lambda self, step: step == 6)
        with pytest.raises(PreemptedError, match="step 6 of 12"):
            train_population(made[:3], [tmp_path / str(i) for i in range(3)], progress=False)
    assert all((tmp_path / str(i) / "checkpoints" / "6").is_dir() for i in range(3))
    train_population(made[:3], [tmp_path / str(i) for i in range(3)], progress=False)
    for i in range(3):
        assert_same_curves(tmp_path / str(i), folder / str(i))


def test_the_worse_half_stops_at_a_rung(population, tmp_path):
    made, _, folder = population
    rungs = (Rung(EVERY, 0.5), Rung(2 * EVERY, 0.5))
    places = [tmp_path / str(i) for i in range(3)]
    found = train_population(made[:3], places, rungs=rungs, progress=False)
    costs = {
        step: [next(x["eval/heldout/loss"] for x in untimed_lines(folder / str(i)) if x["step"] == step
                    and "eval/heldout/loss" in x) for i in range(3)]
        for step in (4, 8)
    }  # fmt: skip
    first = sorted(range(3), key=lambda i: costs[4][i])
    second = sorted(first[:2], key=lambda i: costs[8][i])
    expected = dict.fromkeys(range(3), STEPS) | {first[2]: 4, second[1]: 8}
    assert {i: outcome.step for i, outcome in enumerate(found)} == expected
    assert [outcome.status for outcome in found] == ["done" if expected[i] == STEPS else "stopped" for i in range(3)]
    best = second[0]
    assert_same_curves(places[best], folder / str(best))
    # A kill between the ends of two members at one rung: the second one still ends there.
    torn = resumed_from(places[second[1]], 4, tmp_path / "torn")
    state = json.loads((torn / "state.json").read_text())
    (torn / "state.json").write_text(json.dumps(state | {"stage": "training", "saved": 4}))
    shutil.rmtree(places[second[1]])
    torn.rename(places[second[1]])
    again = train_population(made[:3], places, rungs=rungs, progress=False)
    assert {i: outcome.step for i, outcome in enumerate(again)} == expected


def test_early_stopping_is_each_members_own(tiny, tmp_path):
    members = ({"optimizer__learning_rate": 1e-3}, {"optimizer__learning_rate": 0.3, "seeds__init": 3})
    made = configs(tiny, members=members, evaluation__patience=2, steps=24, evaluation__every=2)
    found = train_population(made, [tmp_path / "a", tmp_path / "b"], progress=False)
    for config, outcome in zip(made, found, strict=True):
        alone = train(config, tmp_path / f"{outcome.workdir.name}-alone", progress=False)
        assert_same_curves(outcome.workdir, alone, rel=1e-3)
    assert {outcome.status for outcome in found} == {"done", "stopped"}


@pytest.mark.parametrize(
    ("objective", "common"),
    [
        pytest.param(
            "span_corruption",
            {"accumulation": 2, "batch_size": 16, "optimizer__ema_decay": 0.9},
            marks=pytest.mark.slow,
        ),
        ("next_token", {"stages__until": 6, "stages__length": 16, "model__embed_dim": 8}),
    ],
)
def test_other_families_accumulation_averages_and_stages(tiny, tmp_path, objective, common):
    made = configs(tiny, objective, members=MEMBERS[:2], **common)
    train_population(made, [tmp_path / "a", tmp_path / "b"], progress=False)
    assert_same_curves(tmp_path / "b", train(made[1], tmp_path / "alone", progress=False))


@pytest.mark.usefixtures("every_device")
def test_members_on_devices_of_their_own_are_the_same(population, tmp_path, monkeypatch):
    made, _, folder = population
    monkeypatch.setattr("lmjax.sweep.population.population_mesh", population_mesh)
    # Three members on eight devices: two groups of four devices, and a slot that holds a copy.
    found = train_population(made[:3], [tmp_path / str(i) for i in range(3)], progress=False)
    for outcome in found:
        assert_same_curves(outcome.workdir, folder / outcome.workdir.name)


def test_members_as_one_computation_are_the_same(population, tmp_path):
    made, _, folder = population
    train_population(made[:2], [tmp_path / "0", tmp_path / "1"], progress=False, form="vmap")
    for i in range(2):
        assert_same_curves(tmp_path / str(i), folder / str(i))


def test_runs_that_share_no_program_are_refused(tiny, tmp_path):
    made = configs(tiny, members=({}, {"model__num_layers": 2}))
    with pytest.raises(FlagError, match="no population"):
        train_population(made, [tmp_path / "a", tmp_path / "b"])
    assert not any(tmp_path.iterdir())


def test_losses_of_members_are_finite(population):
    assert all(math.isfinite(x) for outcome in population[1] for x in outcome.metrics.values())


def test_the_metrics_of_a_task_and_its_labels_are_each_members_own(tiny, tmp_path):
    """Accuracy, correlation and the figures of a classification, which are no sums over batches."""
    for name in ("train", "dev"):
        rows = [f"the {noun} {i}\t{kind}" for i in range(4) for noun, kind in (("fox", "animal"), ("oak", "plant"))]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    data = {"data__train": tmp_path / "train.tsv", "data__eval": f"dev={tmp_path / 'dev.tsv'}"}
    members = ({"optimizer__learning_rate": 1e-2}, {"optimizer__learning_rate": 1e-4, "seeds__init": 2})
    made = configs(tiny, "classification", members=members, **data)
    found = train_population(made, [tmp_path / "a", tmp_path / "b"], progress=False)
    alone = train(made[1], tmp_path / "alone", progress=False)
    assert_same_curves(tmp_path / "b", alone)
    assert "eval/dev/classification/matthews" in found[0].metrics
    assert found[0].metrics != found[1].metrics
    figures = {path.name for path in (alone / "figures").iterdir()}
    for name in ("a", "b"):
        assert {path.name for path in (tmp_path / name / "figures").iterdir()} == figures
        assert (tmp_path / name / "labels.json").read_text() == (alone / "labels.json").read_text()


def test_members_with_adapters_share_their_base(tiny, tmp_path):
    """Each workdir names the base, so that it can be opened alone, and is the one that a run alone leaves."""
    base = train(tiny(steps=1), tmp_path / "base", progress=False)
    fields = {"init_from": str(base), "tokenizer.path": str(base), "adapter.kind": "lora", "adapter.rank": 2}
    members = [replace(tiny(steps=2), {**fields, "optimizer.learning_rate": rate}) for rate in (1e-2, 1e-1)]
    train_population(members, [tmp_path / "0", tmp_path / "1"], progress=False)
    alone = train(members[1], tmp_path / "alone", progress=False)
    assert (tmp_path / "1" / "base.json").read_text() == (alone / "base.json").read_text()
    losses = [[line for line in untimed_lines(place) if "train/loss" in line][-1] for place in (tmp_path / "1", alone)]
    assert losses[0]["train/loss"] == pytest.approx(losses[1]["train/loss"], rel=1e-5)


def test_the_speed_of_a_line_is_that_of_its_own_steps(tiny, tmp_path, monkeypatch):
    """Every step takes 1,000 seconds, and has ended when its call returns, as on a CPU."""
    seconds, step = [0], Steps.__call__

    def slow(self, *arguments):
        seconds[0] += 1000
        return jax.block_until_ready(step(self, *arguments))

    monkeypatch.setattr(Steps, "__call__", slow)
    monkeypatch.setattr("lmjax.training.loop.time", types.SimpleNamespace(perf_counter=lambda: seconds[0]))
    made = configs(tiny, members=MEMBERS[:2], steps=4, evaluation__every=0, checkpoint__every=0, logging__every=2)
    train_population(made, [tmp_path / "0", tmp_path / "1"], progress=False)
    rates = [line["train/steps_per_second"] for line in read_lines(tmp_path / "0") if "train/loss" in line]
    assert rates == pytest.approx([0.001, 0.001], rel=0.05)
