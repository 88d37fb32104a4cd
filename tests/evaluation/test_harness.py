"""lm-evaluation-harness on local tasks, offline: its scores equal lmjax's, for all three families."""

import dataclasses
import json
import math

import pytest

from lmjax.errors import FlagError
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.score.score import rolling, score
from lmjax.inference.score.texts import Item, ScoreConfig
from lmjax.objectives.masked_diffusion import MaskedDiffusionConfig
from tests.inference.scoring import tiny

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"text": "The young king goes", "choices": ["under the tree", "the"], "answer": 0},
    {"text": "A queen sees", "choices": ["a river", "the houses, never the old house"], "answer": 1},
    {"text": "The old tree", "choices": ["king", "goes"], "answer": 1},
    # Longer than the model's rows.
    {"text": "The house " * 12, "choices": ["king", "goes"], "answer": 0},
]
CONFIG = ScoreConfig(row_length=16, batch_tokens=64)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with three tasks over one JSONL file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    shared = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {folder / "cache"}
test_split: test
"""
    bodies = {
        "choose": "output_type: multiple_choice\ndoc_to_text: text\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "metric_list: [{metric: acc}]\n",
        "roll": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: text\n'
        "metric_list: [{metric: word_perplexity}]\n",
        "write": "output_type: generate_until\ndoc_to_text: text\ndoc_to_target: text\n"
        'metric_list: [{metric: exact_match}]\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 3}\n',
    }
    for name, body in bodies.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{shared}{body}")
    return folder


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_the_harness_reports_our_scores(architecture, tasks):
    from lmjax.evaluation.harness import run_tasks

    loaded = tiny(architecture)
    found = run_tasks(loaded, ["choose", "roll"], CONFIG, str(tasks))
    cut = CONFIG.model_copy(update={"truncate": True})
    right = 0
    for question in QUESTIONS:
        items = [Item(question["text"], f" {choice}") for choice in question["choices"]]
        nats = [s.log_likelihood for s in score(loaded, items, cut)]
        right += nats.index(max(nats)) == question["answer"]
    assert found["choose"]["acc"] == right / len(QUESTIONS)
    nats = sum(s.log_likelihood for s in rolling(loaded, [q["text"] for q in QUESTIONS], CONFIG))
    words = sum(len(q["text"].split(" ")) for q in QUESTIONS)
    assert found["roll"]["word_perplexity"] == pytest.approx(math.exp(-nats / words), rel=1e-5)


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder", "encoder"])
def test_the_harness_gets_what_is_generated(architecture, tasks):
    from lmjax.evaluation.harness import HarnessModel, generate_config, run_tasks

    loaded = tiny(architecture)
    if architecture == "encoder":
        loaded = dataclasses.replace(loaded, tasks={"masked_diffusion": MaskedDiffusionConfig()})
    settings = {"until": ["\n"], "max_gen_toks": 3, "do_sample": False, "temperature": 0.7}
    config = generate_config(settings)
    assert config == GenerateConfig(max_new_tokens=3, stop=("\n",))
    drawn = generate_config({"do_sample": True, "top_p": 0.9, "until": "."})
    assert (drawn.sampling.temperature, drawn.sampling.top_p, drawn.stop) == (1.0, 0.9, (".",))
    requests = [type("Request", (), {"args": (q["text"], settings)}) for q in QUESTIONS[:2]]
    written = HarnessModel(loaded, CONFIG).generate_until(requests)
    assert written == [found[0].text for found in generate(loaded, [q["text"] for q in QUESTIONS[:2]], config)]
    assert run_tasks(loaded, ["write"], CONFIG, str(tasks), limit=2)["write"]["exact_match"] == 0


def test_mistakes_are_named(tasks):
    from lmjax.evaluation.harness import HarnessModel, generate_config, run_tasks

    with pytest.raises(FlagError, match="an encoder writes no text"):
        HarnessModel(tiny("encoder"), CONFIG).generate_until([])
    with pytest.raises(FlagError, match=r"no task 'cho'; did you mean choose"):
        run_tasks(tiny("encoder"), ["cho"], CONFIG, str(tasks))
    with pytest.raises(FlagError, match=r"--include_path=nowhere: there is no such folder"):
        run_tasks(tiny("encoder"), ["choose"], CONFIG, "nowhere")
    with pytest.raises(FlagError, match=r"generation_kwargs: mirostat: no counterpart here; there are until"):
        generate_config({"mirostat": 2})
    with pytest.raises(FlagError, match=r"generation_kwargs: num_beams=4: a beam search takes no stop strings"):
        generate_config({"num_beams": 4})
    with pytest.raises(FlagError, match=r"generation_kwargs: top_p=2"):
        generate_config({"do_sample": True, "top_p": 2})
