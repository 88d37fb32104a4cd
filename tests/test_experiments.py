"""Every experiment file loads, has its command in the header, and trains for three steps at nano width."""

import ast
import collections
import pathlib
import re
import runpy
import sys

import jax
import numpy as np
import pytest

from lmjax.config import load_experiment, replace
from lmjax.data.pipeline import batches
from lmjax.objectives.registry import OBJECTIVES
from lmjax.parallel.mesh import ParallelConfig, make_mesh, to_device
from lmjax.runs.build import build
from lmjax.training.state import state_maker
from lmjax.training.step import make_train_step

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[1] / "experiments"
MINIMAL = ROOT / "minimal.py"
FILES = sorted(set(ROOT.glob("*.py")) - {MINIMAL})


def variants(path: pathlib.Path) -> list[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VARIANTS":
            return ast.literal_eval(node.value)
    return [""]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, corpus):
    """Returns a table of pairs, made from the sentences of the corpus."""
    sentences = [s.strip() for s in corpus.read_text().replace("\n", " ").split(".") if s.strip()]
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("\n".join(["source\ttarget", *(f"{s}\t{s[::-1]}" for s in sentences)]) + "\n")
    return path


def table(path, names):
    """Returns a table without a header that has columns of these names: texts, and numbers as scores and labels."""
    made = {"text": "A text {0}.", "text2": "Another {0}.", "score": "{1}", "label": "{2}"}
    path.write_text("".join(",".join(made[n] for n in names).format(i, i % 6, i % 2) + "\n" for i in range(40)))
    return path


def nano(config, data):
    """Returns the experiment with a small width and corpus, so that three steps take seconds."""
    length = min(config.task.length, 32)
    heads = {"num_heads": 2, "num_kv_heads": None, "head_dim": None}
    sizes = {"embed_dim": 16, "mlp_dim": 32, "num_layers": 1, "max_length": 64} | heads
    fields = {f"model.{name}": size for name, size in sizes.items()}
    return replace(
        config,
        fields
        | {
            "steps": 3,
            "minutes": None,
            "batch_size": 8,
            "accumulation": 1,
            "task.length": length,
            "task.target_length": 32,
            "stages.until": tuple(range(1, len(config.stages.until) + 1)),
            "stages.batch_size": (8,) * len(config.stages.batch_size),
            "stages.length": (16,) * len(config.stages.length),
            "data.train": str(data),
            "data.held_out": 0.2,
            "data.workers": 0,
            "tokenizer.kind": "char",
            "tokenizer.byte_fallback": False,
            "evaluation.batches": 1,
            "logging.every": 1,
            "logging.tensorboard": False,
        },
    )


@pytest.mark.parametrize(("path", "variant"), [(p, v) for p in FILES for v in variants(p)], ids=str)
def test_the_experiment_trains(path, variant, corpus, pairs, tmp_path):
    config = load_experiment(f"{path}:{variant}")
    objective = OBJECTIVES[config.task.objective[0]]
    data = pairs if objective.wants_pairs else corpus
    if objective.columns:
        data = table(tmp_path / "table.csv", config.data.column_names)
    run = build(nano(config, data), tmp_path / "run")
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    hparams = jax.device_get(run.hparams)
    make_state, _ = state_maker(run.model, run.config.optimizer, hparams, 0, mesh)
    state = make_state()
    step = jax.jit(make_train_step(run.model, run.task, run.config.optimizer, 1), donate_argnums=0)
    with batches(run.train_examples, len(run.train_examples), seed=0, batch_size=8) as stream:
        for _ in range(3):
            state, metrics = step(state, to_device(next(stream), mesh), hparams)
            assert 0 < float(metrics["loss"]) < 100
    assert int(state.step) == 3
    assert int(state.skipped) == 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_its_header_holds_the_command(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert f"lmjax train --config=experiments/{path.name}" in header


def test_the_minimal_run_learns_in_few_lines(corpus, monkeypatch, capsys):
    source = MINIMAL.read_text()
    code = [line for line in source[len(ast.get_docstring(ast.parse(source))) :].splitlines() if line.strip(' "')]
    assert len(code) <= 60, "it is to be read in one go"
    monkeypatch.setattr(sys, "argv", ["minimal.py", str(corpus), "30"])
    runpy.run_path(str(MINIMAL))
    last, held_out = (float(x) for x in re.findall(r"([0-9.]+) nats", capsys.readouterr().out))
    counts = np.array(list(collections.Counter(corpus.read_text()).values()))
    entropy = -np.sum(counts / counts.sum() * np.log(counts / counts.sum()))
    assert max(last, held_out) < 0.9 * entropy, "it knows more than how often each letter occurs"


def test_every_workload_of_the_benchmark_has_its_models_vocabulary(monkeypatch):
    """A preset in a run's config has none of its own, and random tokens need it."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import ours
    import workloads

    published = {"gpt2": 50_257, "bert_base": 30_522, "t5_small": 32_128, "llama_1b_1024": 128_256, "tiny": 2048}
    sizes = {name: ours.configured(each, "float32", {}).model.vocab_size for name, each in workloads.WORKLOADS.items()}
    assert all(sizes.values())
    assert published.items() <= sizes.items()


def test_the_benchmark_of_the_training_step_trains_our_model(monkeypatch):
    """Its workers run in processes of their own, next to libraries that the tests do not have."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import ours
    import workloads

    small = {"model.embed_dim": "16", "model.mlp_dim": "16", "model.num_layers": "1", "model.vocab_size": "64"}
    run, facts = ours.build(workloads.WORKLOADS["tiny"], "float32", small)
    first = run(1)
    assert run(3) < first < 5
    assert facts()["tokens_per_step"] == 64
