"""`lmjax sweep`: its points mean what the flags of `lmjax train` mean, and its runs are those of `lmjax train`."""

import json
import pathlib
import shutil

import pytest

from lmjax import cli
from lmjax.commands.points import canonical, resolve_points
from lmjax.commands.sweep import load_sweep
from lmjax.commands.train import train_run
from lmjax.config import from_json
from lmjax.errors import ConfigMismatchError, DataError, FlagError
from lmjax.sweep.ledger import Ledger
from lmjax.training.metrics import read_metrics

TINY = (
    "--config.tokenizer.kind=char", "--config.tokenizer.byte_fallback=false", "--batch_size=8", "--length=32",
    "--config.model.embed_dim=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
    "--config.model.num_layers=1", "--config.model.max_length=64", "--config.evaluation.batches=1",
    "--config.logging.tensorboard=false", "--config.data.held_out=0.2", "--warmup_steps=1",
)  # fmt: skip


def answer(*argv: str) -> str:
    with pytest.raises(FlagError) as error:
        cli.run(["sweep", *argv])
    return str(error.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "give the runs: --sweep=FILE.py or --grid="),
        (("--grid=seed=0:2", "--sweep=a.py"), "both say which runs there are"),
        (("--grid=seed=0:2", "--run"), "--run: give --workdir=DIR"),
        (("--grid=seed=0:2", "--seed=1"), "seed is given to all runs too, as 1"),
        (("--grid=learning_rate=1e-3;optimizer.learning_rate=1e-4",), "are the same field; give it once"),
        (("--grid=optimizer.learning_rat=1e-3",), "did you mean --config.optimizer.learning_rate?"),
        (("--grid=learning_rate=fast",), "learning_rate=fast: --config.optimizer.learning_rate=fast: input should be"),
        (("--grid=workdir=a,b",), "no field workdir"),
        (("--grid=objective=mlm,nextt_token",), "did you mean next_token?"),
        (("--grid=objective=mlm,next_token;architecture=decoder",), "cannot train --objective=mlm"),
        (("--grid=learning_rate=1e-3,0.001",), "are the same run"),
        (("--grid=steps=5;minutes=1",), "give one; either ends the run"),
        (("--sweep=experiments/ablations/norm.py",), "there is no such Python file"),
        (("--grid=seed=0:2", "--control=shuffled_labels"), "next_token has no label of a whole record"),
        (("--grid=data.control=none", "--control=shuffled_tokens"), "the runs are given data.control too"),
        (("--grid=seed=0:2", "--processes=99"), "--processes=99: there are"),
        (("--worker",), "--worker: give --workdir=DIR"),
        (("--grid=seed=0:2", "--print=jobset"), "--print=jobset: give --workdir=DIR"),
        (("--grid=seed=0:2", "--rungs=2,x"), "'x' is not a number of steps"),
        (("--grid=seed=0:2", "--rungs=4,2"), "give steps from 1 on, in rising order"),
        (
            ("--grid=learning_rate=1e-4..1e-2",),
            "a range LOW..HIGH is for a search; give --search=tpe and",
        ),
        (("--grid=learning_rate=1e-2..1e-4", "--search=tpe"), "numbers with LOW below HIGH"),
        (("--grid=learning_rate=0..1:log", "--search=tpe"), "with :log both above 0"),
        (("--grid=learning_rate=1e-4..fast", "--search=tpe"), "'fast' is no number; a range is LOW..HIGH"),
        (("--grid=learning_rate=1e-4..1e-2", "--search=tpe"), "--search=tpe: give the number of runs, as --trials=20"),
        (("--grid=seed=0:2", "--trials=2"), "--trials=2: is for a search; give --search=tpe too"),
        (("--grid=seed=0:2", "--search=tpe", "--trials=2", "--match=flops"), "--match=flops: is not for a search"),
        (("--grid=seed=0:2", "--search=hyperband", "--trials=2"), "--search=hyperband: give --rungs"),
        (("--grid=seed=0:2", "--search=best", "--trials=2"), "choose one of tpe, random, hyperband"),
        (("--grid=learning_rate=-1.5..1e-2", "--search=tpe", "--trials=2"), "learning_rate"),
        (("--grid=seed=0:2", "--match=step"), "did you mean steps?"),
        (("--grid=steps=5,6", "--match=flops"), "--match=flops: steps differs between the runs, and matching sets it"),
        (("--grid=seed=0:2", "--match=seconds"), "--match=seconds: each run must end after the same time"),
        (("--grid=seed=0:2", "--match=flops", "--minutes=1"), "--match=flops: the runs end after --minutes"),
    ],
)
def test_a_wrong_sweep_is_an_error_before_anything_is_done(argv, words):
    assert words in answer(*argv)


def test_the_plan_lists_the_runs_and_writes_nothing(tmp_path, corpus, capsys):
    assert cli.run(["sweep", "--grid=seed=0:2", f"--data={corpus}", f"--workdir={tmp_path / 'x'}", *TINY]) is None
    assert "seed=1" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("metric", ["helout/loss", "eval/helout/loss", "loss"])
def test_a_metric_of_an_unknown_set_is_an_error_before_anything_is_trained(tmp_path, corpus, metric):
    folder = tmp_path / "x"
    said = answer("--grid=seed=0:2", f"--data={corpus}", f"--workdir={folder}", f"--metric={metric}", "--run", *TINY)
    assert f"--metric={metric}: the run seed=0 is evaluated on heldout" in said
    assert not folder.exists()


def test_a_file_of_a_sweep_must_return_one(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    pass\n")
    with pytest.raises(FlagError, match="defines no get_sweep"):
        load_sweep(str(path))
    path.write_text("def get_sweep():\n    return 3\n")
    with pytest.raises(FlagError, match="get_sweep returned int"):
        load_sweep(str(path))


ABLATIONS = sorted((pathlib.Path(__file__).parents[2] / "experiments" / "ablations").glob("*.py"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_ablation_resolves_and_says_its_command(path, tiny, tmp_path, monkeypatch):
    """The runs that an ablation begins with are there, if it names some."""
    sweep = load_sweep(str(path))
    monkeypatch.chdir(tmp_path)
    # An encoder may begin from a decoder, an encoder-decoder from another alone.
    objectives = {"encoder_decoder": "span_corruption"}
    begins = {
        point["init_from"]: objectives.get(point.get("architecture"), "next_token")
        for point in sweep.space
        if "init_from" in point
    }
    for objective in set(begins.values()):
        train_run(tiny(objective, steps=1, model__max_length=256), tmp_path / objective, progress=False)
    for place, objective in begins.items():
        shutil.copytree(tmp_path / objective, place)
    configs, _ = resolve_points([canonical(point, "") for point in sweep.space], canonical(sweep.base, ""))
    assert len(set(configs)) == len(sweep.space)
    command = f"lmjax sweep --sweep=experiments/ablations/{path.name} --workdir=sweeps/{path.stem} --run"
    assert command in path.read_text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory, corpus):
    """A sweep of two runs from a file, and the arguments that made it."""
    file = tmp_path_factory.mktemp("sweeps") / "rates.py"
    file.write_text(
        "from lmjax.sweep.space import Sweep, param\n"
        "def get_sweep():\n"
        f"    base = {{'data': {str(corpus)!r}, 'steps': 3}}\n"
        "    return Sweep(param('optimizer.learning_rate', [1e-3, 0.1]), base)\n"
    )
    argv = ["sweep", f"--sweep={file}", f"--workdir={file.parent / 'out'}", "--run", *TINY]
    return cli.run(argv), argv


def test_each_run_is_a_run_of_lmjax_train(swept, tmp_path):
    """Its recorded arguments, given to `lmjax train`, give the same config and the same losses."""
    folder, _ = swept
    run = json.loads((folder / "sweep.json").read_text())["runs"]["learning_rate=0.1"]
    cli.run(["train", *run["arguments"], f"--workdir={tmp_path / 'alone'}", "--noprogress"])
    there = folder / "runs" / "learning_rate=0.1"
    assert from_json(there / "config.json") == from_json(tmp_path / "alone" / "config.json")
    for name in ("train/loss", "eval/heldout/loss"):
        (steps, values), alone = read_metrics(there, name), read_metrics(tmp_path / "alone", name)
        # In a population a device computes more rows of a run, so that its sums are in another order.
        assert (steps, pytest.approx(values, rel=1e-5)) == alone


def test_results_hold_what_the_runs_measured(swept):
    folder, _ = swept
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(line["status"], line["fields"]) for line in lines] == [
        ("done", {"optimizer.learning_rate": rate}) for rate in (0.001, 0.1)
    ]
    for line in lines:
        steps, losses = read_metrics(folder / line["workdir"], "eval/heldout/loss")
        assert (line["steps"], line["metrics"]["eval/heldout/loss"]) == (steps[-1], losses[-1])
        assert 0 < line["tokens"] <= 3 * 8 * 32
        assert min(line["flops"], line["seconds"]) > 0


def test_a_sweep_ends_in_a_report_which_is_the_same_when_it_is_written_again(swept):
    folder, argv = swept
    files = [folder / f"report.{end}" for end in ("md", "html", "csv")]
    before = [path.read_bytes() for path in files]
    assert b"held-out documents, resampled in pairs" in before[0], "the documents of each run are scored"
    assert b"learning_rate=0.001 less learning_rate=0.1" in before[1]
    cli.run(argv)
    assert [path.read_bytes() for path in files] == before


def test_the_plan_of_a_sweep_that_has_ended_says_so_and_one_that_has_not_what_its_time_rests_on(swept, capsys):
    folder, argv = swept
    plan = [each for each in argv if each != "--run"]
    cli.run(plan)
    told = capsys.readouterr().out
    assert ("2 of them have ended" in told, "time, one run" in told) == (True, False)
    cli.run([each for each in plan if "--workdir" not in each])
    assert "an estimate by the speed of one of the model's matrix products" in capsys.readouterr().out
    with (folder / "results.jsonl").open() as file:
        flops = json.loads(file.readline())["flops"]
    assert f"{2 * flops:.3g}" in told, "the plan counts the FLOPs that the two runs count"


def test_a_control_adds_each_run_on_data_without_what_could_be_learned(corpus, capsys):
    cli.run(["sweep", "--grid=seed=0:2", "--control=shuffled_tokens", f"--data={corpus}", *TINY])
    told = capsys.readouterr().out
    assert "4 runs in 4 groups" in told
    assert all(f"seed={seed}-control=shuffled_tokens" in told for seed in (0, 1))


def test_matched_runs_spend_the_same(corpus, capsys):
    argv = ["sweep", "--grid=config.model.num_layers=1,4", "--steps=50", "--match=flops", f"--data={corpus}"]
    cli.run([*argv, *(each for each in TINY if "num_layers" not in each)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith(" MiB")]
    flops, steps = [float(row[6]) for row in rows], [int(row[4]) for row in rows]
    assert steps[0] == 50 > steps[1]
    assert flops[1] == pytest.approx(flops[0], rel=0.5 / steps[1] + 0.01)


def test_the_same_command_repeats_nothing_and_the_folder_alone_is_enough(swept):
    folder, argv = swept
    before = (folder / "results.jsonl").read_bytes()
    cli.run(argv)
    cli.run(["sweep", f"--workdir={folder}", "--run"])
    assert (folder / "results.jsonl").read_bytes() == before
    assert "says what its runs are given" in answer(f"--workdir={folder}", "--steps=4")
    for words in ([], ["--run"]):
        with pytest.raises(ConfigMismatchError, match="batch_size: 8, and now it is 16"):
            cli.run(
                [*(each for each in argv if "batch_size" not in each and each != "--run"), "--batch_size=16", *words]
            )


def test_a_run_whose_data_or_size_does_not_fit_is_named_before_anything_is_trained(tmp_path, corpus, every_device):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in corpus.read_text().split("\n\n")))
    with pytest.raises(DataError, match="the run text_field=absent: "):
        cli.run(["sweep", "--grid=data.text_field=text,absent", f"--data={tmp_path / 'a.jsonl'}", *TINY])
    argv = ["--grid=config.model.num_layers=1,9999999", *(each for each in TINY if "num_layers" not in each)]
    assert "the run num_layers=9999999: --config.model: " in answer(*argv)


def test_a_run_that_crashes_is_recorded_and_the_next_one_is_trained(tmp_path, corpus, monkeypatch):
    def crash(config, *args, **kwargs):
        if config.seed == 0:
            raise RuntimeError("the machine is on fire")
        return train_run(config, *args, **kwargs)

    monkeypatch.setattr("lmjax.commands.sweep.train_run", crash)
    argv = [
        "sweep",
        "--grid=seed=0:2",
        "--steps=2",
        f"--data={corpus}",
        f"--workdir={tmp_path / 'out'}",
        "--run",
        *TINY,
    ]
    with pytest.raises(Exception, match=r"1 of 2 runs crashed: seed=0: RuntimeError: the machine is on fire") as error:
        cli.run(argv)
    assert error.value.exit_code == 70
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["crashed", "done"]


def test_processes_train_what_one_command_trains(swept, tmp_path, corpus):
    folder, _ = swept
    argv = ["--grid=learning_rate=1e-3,0.1", f"--data={corpus}", "--steps=3", *TINY]
    cli.run(["sweep", *argv, f"--workdir={tmp_path / 'out'}", "--run", "--processes=2"])
    for name in ("learning_rate=0.001", "learning_rate=0.1"):
        one, other = (each / "runs" / name for each in (folder, tmp_path / "out"))
        assert read_metrics(one, "train/loss")[1] == pytest.approx(read_metrics(other, "train/loss")[1], rel=1e-5)


def test_what_is_printed_for_a_cluster_finds_the_sweep_in_its_folder(tmp_path, corpus, capsys):
    argv = ["--grid=seed=0:2", f"--data={corpus}", "--print=jobset", "--processes=64", *TINY]
    cli.run(["sweep", *argv, f"--workdir={tmp_path / 'out'}"])
    job = json.loads(capsys.readouterr().out)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == 64
    assert f"--workdir={tmp_path / 'out'}" in job["template"]["spec"]["containers"][0]["command"]
    assert len(Ledger(tmp_path / "out").read()[1]) == 2


def test_at_a_rung_the_worse_half_of_a_group_stops(tmp_path, corpus):
    argv = ["--grid=learning_rate=1e-2,1e-3,3e-3,1e-5", "--rungs=2", f"--data={corpus}", "--steps=4", *TINY]
    cli.run(["sweep", *argv, f"--workdir={tmp_path / 'out'}", "--run"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    ended = {line["fields"]["optimizer.learning_rate"]: (line["status"], line["steps"]) for line in lines}
    assert ended == {0.01: ("done", 4), 0.003: ("done", 4), 0.001: ("stopped", 2), 1e-5: ("stopped", 2)}
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    cli.run(["sweep", f"--workdir={tmp_path / 'out'}", "--run"])
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before, "what a rung has stopped stays so"


def test_a_run_that_diverges_is_recorded_as_such(tmp_path, corpus):
    argv = [
        "--grid=learning_rate=1e30,1e-3",
        "--config.max_skipped=2",
        "--steps=8",
        "--config.optimizer.clip_norm=none",
    ]
    cli.run(["sweep", *argv, f"--data={corpus}", *TINY, "--optimizer=sgd", f"--workdir={tmp_path / 'out'}", "--run"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {line["name"]: line["status"] for line in lines} == {
        "learning_rate=1e+30": "diverged", "learning_rate=0.001": "done",
    }  # fmt: skip
    assert "were not finite" in next(line["error"] for line in lines if line["status"] == "diverged")
