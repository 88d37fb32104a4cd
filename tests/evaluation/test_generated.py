"""Generated targets are measured by sacrebleu and rouge-score, in training and after it, and give the same numbers."""

import json

import pytest

import lmjax
from lmjax.cli import run
from lmjax.errors import FlagError
from lmjax.evaluation.generated import targets
from lmjax.evaluation.tasks import evaluate
from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.config import GenerateConfig
from lmjax.runs.trained import load_model
from lmjax.training.metrics import read_lines

sacrebleu = pytest.importorskip("sacrebleu")

WORDS = ("one", "two", "six", "ten")
PAIRS = [(f"{a} {b}", f"the end of {b}") for a in WORDS for b in WORDS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRS))
    path.with_name("dev.tsv").write_text(path.read_text())
    return path.with_name("dev.tsv")


@pytest.fixture(scope="module", params=[1, 3])
def beams(request):
    return request.param


@pytest.fixture(scope="module")
def workdir(request, tiny, tmp_path_factory, data, beams):
    """A short run that generates at each evaluation; it predicts a few words right."""
    config = tiny(
        "seq2seq", data__train=data.with_name("pairs.tsv"), data__eval=f"dev={data}",
        model__architecture="encoder_decoder", steps=120,
        task__target_length=32, optimizer__learning_rate=0.02, optimizer__warmup_steps=5, evaluation__every=60,
        evaluation__generate=6, evaluation__beams=beams, evaluation__max_new_tokens=20,
        evaluation__metric="seq2seq/chrf",
        model__dropout__residual=0.0, model__dropout__attention=0.0,
    )  # fmt: skip
    return lmjax.train(config, tmp_path_factory.mktemp("run") / "run", progress=False)


def test_a_run_generates_at_each_evaluation(workdir, beams):
    """The numbers of the last evaluation are sacrebleu's, for what the saved model generates for the same pairs."""
    lines = [line for line in read_lines(workdir) if "eval/dev/seq2seq/bleu" in line]
    assert [line["step"] for line in lines] == [0, 60, 120]
    config = GenerateConfig(max_new_tokens=20, **({"beams": BeamConfig(beams=beams)} if beams > 1 else {}))
    found = targets(load_model(workdir), [source for source, _ in PAIRS[:6]], config)
    references = [[target for _, target in PAIRS[:6]]]
    assert lines[-1]["eval/dev/seq2seq/bleu"] == pytest.approx(sacrebleu.corpus_bleu(found, references).score, abs=1e-4)
    assert lines[-1]["eval/dev/seq2seq/chrf"] == pytest.approx(sacrebleu.corpus_chrf(found, references).score, abs=1e-4)
    assert lines[-1]["eval/dev/seq2seq/chrf"] > lines[0]["eval/dev/seq2seq/chrf"], "the model learned nothing"
    assert (
        lines[-1]["eval/dev/seq2seq/exact_match"] == sum(a == b for a, b in zip(found, references[0], strict=True)) / 6
    )


def test_evaluate_generates_and_writes_the_targets(workdir, data, beams, tmp_path, capsys):
    output = tmp_path / "targets.jsonl"
    found = run(["evaluate", f"--workdir={workdir}", "--task=generation", f"--data=dev={data}", f"--beams={beams}",
                 "--max_new_tokens=20", f"--predictions={output}"])["dev"]  # fmt: skip
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(r["source"], r["gold"]) for r in records] == PAIRS
    expected = sacrebleu.corpus_bleu([r["text"] for r in records], [[target for _, target in PAIRS]])
    assert found["bleu"] == pytest.approx(expected.score)
    assert found["bleu"].low <= found["bleu"] <= found["bleu"].high
    shown = capsys.readouterr().out
    assert "tok:13a" in shown, "the signature belongs to the number"
    settings = GenerateConfig(max_new_tokens=20, **({"beams": BeamConfig(beams=beams)} if beams > 1 else {}))
    again = evaluate(load_model(workdir), PAIRS, task="generation", generation=settings)
    assert again["bleu"] == found["bleu"]
    both = run(["evaluate", f"--workdir={workdir},{workdir}", "--task=generation", f"--data=dev={data}",
                f"--beams={beams}", "--max_new_tokens=20"])["dev"]  # fmt: skip
    assert both["bleu"] == found["bleu"], "an ensemble of a model with itself is this model"


def test_settings_of_generation_without_it_are_refused(workdir, data, tiny):
    place = [f"--workdir={workdir}", f"--data={data}"]
    with pytest.raises(FlagError, match="--beams=5: is for --task=generation; give that too"):
        run(["evaluate", *place, "--task=pairs", "--beams=5"])
    with pytest.raises(FlagError, match=r"--length_penalty=0.5: is for beams; give --beams too"):
        run(["evaluate", *place, "--task=generation", "--length_penalty=0.5"])
    with pytest.raises(FlagError, match="is for task='generation', and not for 'pairs'"):
        evaluate(load_model(workdir), PAIRS, task="pairs", generation=GenerateConfig())
    with pytest.raises(FlagError, match=r"evaluation.generate=3: needs an objective of pairs; set it to 0"):
        lmjax.train(tiny("next_token", evaluation__generate=3), workdir.parent / "other", progress=False)
