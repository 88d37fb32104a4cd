"""What the endpoints answer: the texts and numbers of the same calls without a server, in the forms of OpenAI's API."""

import base64
import json
import threading
import types

import numpy as np
import pytest

from lmjax.inference.embed import embed
from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.fill_mask import fill_mask
from lmjax.inference.generate.generate import generate
from lmjax.inference.generate.requests import chatting
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.score.score import rolling
from lmjax.serving.app import ENDPOINTS
from tests.serving.http import ask, events

PROMPT = "The young king"
USER = [{"role": "user", "content": PROMPT}]


def offline(server, name, prompt, seed=0, new=12, chat=False, **settings):
    loaded = server.models[name].loaded
    config = GenerateConfig(max_new_tokens=new, **settings)
    return generate(chatting(loaded) if chat else loaded, [prompt], config, seeds=[seed])[0][0]


@pytest.mark.parametrize("name", ["decoder", "both"])
def test_completions_are_the_texts_of_generate(server, name):
    sampled = {"temperature": 1.3, "top_p": 0.9, "top_k": 40}
    body = {"model": name, "prompt": [PROMPT, "a queen"], "n": 2, "seed": 7, "max_tokens": 12} | sampled
    status, _, found = ask(server, "/v1/completions", body)
    assert status == 200
    for i, choice in enumerate(found["choices"]):
        wanted = offline(server, name, [PROMPT, "a queen"][i // 2], 7 + i, sampling=SamplingConfig(**sampled))
        assert (choice["index"], choice["text"]) == (i, wanted.text)
        assert choice["finish_reason"] == wanted.finished
    used = found["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]


def test_conversations_are_answered_and_streams_have_the_same_text(server):
    body = {"model": "decoder", "messages": USER, "max_tokens": 12, "temperature": 0, "logprobs": True}
    body["top_logprobs"] = 3
    _, _, whole = ask(server, "/v1/chat/completions", body)
    wanted = offline(server, "decoder", USER, chat=True)
    choice = whole["choices"][0]
    assert choice["message"]["content"] == wanted.text
    tokens = choice["logprobs"]["content"]
    assert sum(each["logprob"] for each in tokens) == pytest.approx(wanted.score, abs=1e-3)
    assert all(each["top_logprobs"][0]["logprob"] >= each["logprob"] - 1e-4 for each in tokens)
    parts = list(
        events(server, "/v1/chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    )
    deltas = [part["choices"][0] for part in parts if part["choices"]]
    assert deltas[0]["delta"]["role"] == "assistant"
    assert "".join(each["delta"].get("content", "") for each in deltas) == wanted.text
    assert deltas[-1]["finish_reason"] == choice["finish_reason"]
    assert parts[-1]["usage"] == whole["usage"]
    listed = [each for part in deltas if part["logprobs"] for each in part["logprobs"]["content"]]
    assert [each["token"] for each in listed] == [each["token"] for each in tokens]


def test_an_encoder_decoder_without_a_template_answers_a_conversation(server):
    _, _, found = ask(
        server, "/v1/chat/completions", {"model": "both", "messages": USER, "temperature": 0, "max_tokens": 9}
    )
    assert found["choices"][0]["message"]["content"] == offline(server, "both", PROMPT, new=9).text


def test_stop_strings_constraints_and_bias_change_the_text(server):
    pytest.importorskip("llguidance")
    greedy = {"model": "decoder", "prompt": PROMPT, "temperature": 0, "max_tokens": 20}
    text = ask(server, "/v1/completions", greedy)[2]["choices"][0]["text"]
    stopped = ask(server, "/v1/completions", greedy | {"stop": [text[1:3]]})[2]["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(text[1:3])], "stop")
    matched = ask(server, "/v1/completions", greedy | {"regex": "(king|queen)s?"})[2]["choices"][0]["text"]
    assert matched in ("king", "kings", "queen", "queens")
    loaded = server.models["decoder"].loaded
    (wanted,) = loaded.tokenizer.encode(" king")
    biased = ask(server, "/v1/completions", greedy | {"logit_bias": {str(wanted): 100}, "max_tokens": 3})[2]
    assert biased["choices"][0]["text"] == " king" * 3
    banned = ask(server, "/v1/completions", greedy | {"logit_bias": {str(wanted): 100}, "frequency_penalty": 2})[2]
    assert banned["choices"][0]["text"].count(" king") > 5, "a penalty of 2 a time does not outweigh 100 so soon"


def test_tools_reach_the_template_and_calls_are_parsed(server, monkeypatch):
    seen = []
    served = server.models["decoder"]
    monkeypatch.setattr(
        "lmjax.serving.served.ChatTemplate.prompt",
        lambda self, messages, name, tools=None: seen.append((messages, tools)) or self.tokenizer.encode(PROMPT),
    )
    call = 'x <tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'
    monkeypatch.setattr("lmjax.serving.answers.Generation.text", call, raising=False)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    talk = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "tool", "content": "3"},
    ]
    body = {"model": "decoder", "messages": talk, "tools": tools, "max_tokens": 2}
    assert ask(server, "/v1/chat/completions", body)[0] == 200
    assert seen[0][1] == tools
    assert [message["role"] for message in seen[0][0]] == ["user", "assistant", "tool"]
    from lmjax.serving.answers import tool_calls

    text, calls = tool_calls(call)
    assert text == "x"
    assert (calls[0]["function"]["name"], json.loads(calls[0]["function"]["arguments"])) == ("look", {"at": 1})
    assert tool_calls("<tool_call>{oops}</tool_call>") == ("<tool_call>{oops}</tool_call>", [])
    assert served.name == "decoder"


def test_vectors_scores_masks_and_tokens_are_those_of_the_library(server):
    loaded = server.models["encoder"].loaded
    body = {"model": "encoder", "input": [PROMPT, "a"]}
    wanted = embed(loaded, body["input"])
    plain = ask(server, "/v1/embeddings", body)[2]["data"]
    np.testing.assert_allclose([each["embedding"] for each in plain], wanted, atol=1e-5)
    packed = ask(server, "/v1/embeddings", body | {"encoding_format": "base64"})[2]["data"]
    assert np.frombuffer(base64.b64decode(packed[1]["embedding"]), "<f4").tolist() == plain[1]["embedding"]
    (score,) = rolling(server.models["decoder"].loaded, [PROMPT])
    found = ask(server, "/score", {"model": "decoder", "texts": [PROMPT]})[2]["scores"][0]
    assert found["log_likelihood"] == pytest.approx(score.log_likelihood, abs=1e-4)
    masked = ask(server, "/fill-mask", {"model": "encoder", "texts": ["The [MASK] king"], "top_k": 2})[2]
    (((first, _),),) = fill_mask(loaded, ["The [MASK] king"], 2)
    assert masked["fillings"][0][0][0]["text"] == first.text
    tokens = ask(server, "/tokenize", {"model": "encoder", "text": PROMPT})[2]
    assert "".join(tokens["pieces"]) == PROMPT
    assert ask(server, "/detokenize", {"model": "encoder", "tokens": tokens["tokens"]})[2]["text"] == PROMPT
    texts = ask(server, "/translate", {"model": "both", "texts": [PROMPT], "max_tokens": 9})[2]["translations"]
    assert texts[0]["text"] == offline(server, "both", PROMPT, new=9).text


@pytest.mark.parametrize("name", ["decoder", "both"])
def test_beams_are_those_of_generate_by_each_endpoint(server, name):
    config = GenerateConfig(max_new_tokens=6, beams=BeamConfig(beams=3, num_return=2, length_penalty=0.5))
    wanted = generate(server.models[name].loaded, [PROMPT], config)[0]
    body = {"model": name, "prompt": PROMPT, "max_tokens": 6, "beams": 3, "n": 2, "length_penalty": 0.5}
    tree = ask(server, "/beams", body)[2]
    assert [each["text"] for each in tree["texts"]] == [each.text for each in wanted]
    assert [each["score"] for each in tree["texts"]] == pytest.approx([each.score for each in wanted], abs=1e-4)
    assert tree["nodes"][tree["texts"][0]["node"]]["fate"] == "ended"
    assert ask(server, "/beams", body | {"n": 4})[0] == 400, "more texts than beams"
    usual = ask(server, "/beams", {"model": name, "prompt": PROMPT, "max_tokens": 6})[2]
    assert (usual["beams"], len(usual["texts"])) == (3, 3), "as many as the server has"
    # A list of prompts is a search for each; a stream brings each text at its end.
    found = ask(server, "/v1/completions", body | {"prompt": ["a", PROMPT]})[2]["choices"]
    assert [(each["index"], each["text"]) for each in found[2:]] == [(2 + i, x.text) for i, x in enumerate(wanted)]
    parts = [part["choices"][0] for part in events(server, "/v1/completions", body | {"stream": True})]
    assert {part["index"]: part["text"] for part in parts} == {i: each.text for i, each in enumerate(wanted)}
    if name == "both":
        texts = ask(server, "/translate", {"model": name, "texts": [PROMPT], "max_tokens": 6, "beams": 3})[2]
        best = generate(server.models[name].loaded, [PROMPT], GenerateConfig(max_new_tokens=6, beams={"beams": 3}))[0]
        assert texts["translations"][0]["text"] == best[0].text
        return
    talk = {"model": name, "messages": USER, "max_tokens": 6, "beams": 3}
    best = generate(chatting(server.models[name].loaded), [USER], GenerateConfig(max_new_tokens=6, beams={"beams": 3}))
    assert ask(server, "/v1/chat/completions", talk)[2]["choices"][0]["message"]["content"] == best[0][0].text


@pytest.mark.parametrize("name", ["plain", "encoder", "both"])
def test_attention_is_that_of_a_forward_pass(server, name):
    loaded = server.models[name].loaded
    found = ask(
        server, "/attention", {"model": name, "text": PROMPT, **({"target": "a queen"} if name == "both" else {})}
    )
    maps = {each["name"]: each for each in found[2]["maps"]}
    outputs = loaded([PROMPT], output_attentions=True, **({"targets": ["a queen"]} if name == "both" else {}))
    sides = {"self-attention": outputs.attentions}
    if name == "both":
        sides = {"encoder self-attention": outputs.encoder.attentions, "decoder self-attention": outputs.attentions}
        sides["cross-attention"] = outputs.cross_attentions
    assert list(maps) == list(sides)
    for kind, weights in sides.items():
        shown = np.asarray(maps[kind]["weights"])
        assert shown.shape[2:] == (len(maps[kind]["queries"]), len(maps[kind]["keys"]))
        wanted = np.stack([layer[0] for layer in weights])[..., : shown.shape[2], : shown.shape[3]]
        np.testing.assert_allclose(shown, wanted, atol=1e-4)
    if name == "both":
        read = maps["decoder self-attention"]["queries"]
        assert maps["cross-attention"]["queries"] == [*read[1:], "(next)"], (
            "a row is named by the token that it predicts"
        )
        # Without a target: what the model writes.
        written = ask(server, "/attention", {"model": name, "text": PROMPT})[2]["maps"][2]
        assert len(written["queries"]) > len(maps["cross-attention"]["queries"])


def test_an_attention_too_large_is_refused(server, monkeypatch):
    monkeypatch.setattr("lmjax.serving.views._MOST_WEIGHTS", 40)
    status, _, found = ask(server, "/attention", {"model": "plain", "text": PROMPT})
    assert (status, found["error"]["code"]) == (400, "context_length_exceeded")


def test_the_document_describes_every_route_and_body(server):
    document = ask(server, "/openapi.json")[2]
    for path, (body, _) in ENDPOINTS.items():
        told = document["paths"][path]["post"]
        reference = told["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert set(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]) == set(
            body.model_fields
        )
        status = ask(server, path, {"nothing": 1})[0]
        assert str(status) in told["responses"]
    for path in document["paths"].keys() - ENDPOINTS.keys():
        assert ask(server, path.replace("{name}", "plain"))[0] == 200


def test_lists_health_and_metrics(server):
    listed = ask(server, "/v1/models")[2]["data"]
    assert [each["id"] for each in listed] == ["decoder", "plain", "both", "encoder"]
    assert ask(server, "/v1/models/both")[2]["lmjax"]["family"] == "encoder_decoder"
    assert ask(server, "/health")[2]["status"] == "ok"
    ask(server, "/v1/completions", {"model": "plain", "prompt": PROMPT, "max_tokens": 3})
    text = ask(server, "/metrics")[2].decode()
    assert 'lmjax_tokens_total{model="plain"}' in text
    assert 'lmjax_compiled_total{model="plain"} 0.0' in text
    assert 'lmjax_requests_total{path="/v1/completions",status="200"}' in text


def test_other_work_compiles_for_few_shapes_and_says_so(server):
    """A program stays in memory, so that one for each length would be a leak that any client can make larger."""
    words = ("the king of the river sees an old house under a young tree " * 2).split()

    def compiled():
        lines = ask(server, "/metrics")[2].decode().splitlines()
        return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith("lmjax_work_compiled_total"))

    def send(counts):
        for count in counts:
            texts = [" ".join(words[:count])] * (1 + count % 3)
            assert ask(server, "/v1/embeddings", {"model": "encoder", "input": texts})[0] == 200
            assert ask(server, "/attention", {"model": "plain", "text": texts[0]})[0] == 200

    before = compiled()
    send(range(1, len(words), 2))
    first = compiled()
    assert 0 < first - before < 8
    send(range(2, len(words), 2))
    assert compiled() == first


def test_health_tells_of_a_step_that_does_not_end(server, monkeypatch):
    engine = server.models["plain"].engine
    monkeypatch.setattr(engine, "config", engine.config.with_fields({"stuck_after": 0.05}))
    held = threading.Event()
    future = engine.call(held.wait)
    deadline = threading.Event()
    status = 200
    for _ in range(100):
        status, _, said = ask(server, "/health")
        if status == 503:
            break
        deadline.wait(0.02)
    held.set()
    future.result()
    assert (status, list(said["why"])) == (503, ["plain"])
    assert ask(server, "/health")[0] == 200


def test_the_log_has_no_prompts(server, capfd):
    secret = "a secret river"
    ask(server, "/v1/completions", {"model": "plain", "prompt": secret, "max_tokens": 3})
    ask(server, "/v1/completions", {"model": "plain", "prompt": secret, "max_tokens": -3})
    for _ in range(100):
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        if lines:
            break
    assert secret not in json.dumps(lines)
    assert lines[0]["path"] == "/v1/completions"


def test_a_log_that_cannot_be_written_costs_no_answer(server, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        flush = write

    monkeypatch.setattr("lmjax.serving.app.sys", types.SimpleNamespace(stderr=Full()))
    for _ in range(2):
        assert ask(server, "/v1/completions", {"model": "plain", "prompt": PROMPT, "max_tokens": 3})[0] == 200
