"""Hostile bodies, clients that go away, and many at once: each bad body is a 4xx, and every good answer is right."""

import http.client
import json
import random
import socket
import threading

import pytest

from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.serving.app import ENDPOINTS
from tests.serving.http import ask

GOOD = {"model": "plain", "prompt": "The young king", "max_tokens": 4}
TALK = {"model": "decoder", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
DEEP = '{"a":' * 5000 + "1" + "}" * 5000
BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff"}',
    "half a surrogate pair": b'{"model": "plain", "prompt": "\\ud800"}',
    "deep": DEEP.encode(),
    "a deep schema": json.dumps(GOOD)[:-1].encode() + b', "json_schema": ' + DEEP.encode() + b"}",
    "NUL": {**GOOD, "prompt": "a\x00b"},
    "empty prompt": {**GOOD, "prompt": ""},
    "empty list": {**GOOD, "prompt": []},
    "mixed list": {**GOOD, "prompt": ["a", 3]},
    "an id too large": {**GOOD, "prompt": [5, 10**9]},
    "an id far too large": {**GOOD, "prompt": [10**30]},
    "a negative id": {**GOOD, "prompt": [-1]},
    "a prompt too long": {**GOOD, "prompt": "a " * 500},
    "too many tokens": {**GOOD, "max_tokens": 500},
    "no tokens": {**GOOD, "max_tokens": 0},
    "a count of no array": {**GOOD, "min_tokens": 10**30},
    "tokens of another type": {**GOOD, "max_tokens": "4"},
    "NaN": json.dumps({**GOOD, "temperature": float("nan")}).encode(),
    "infinity": json.dumps({**GOOD, "temperature": float("inf")}).encode(),
    "a negative temperature": {**GOOD, "temperature": -1},
    "a temperature too small": {**GOOD, "temperature": 1e-30},
    "top_p": {**GOOD, "top_p": 2},
    "too many choices": {**GOOD, "n": 1000},
    "an empty stop": {**GOOD, "stop": ""},
    "seed": {**GOOD, "seed": -1},
    "a bias of no id": {**GOOD, "logit_bias": {"king": 1}},
    "a bias of an id too large": {**GOOD, "logit_bias": {"9" * 400: 1}},
    "a bias too large": {**GOOD, "logit_bias": {"3": 1e9}},
    "a regex that cannot be parsed": {**GOOD, "regex": "("},
    "a schema that is none": {**GOOD, "json_schema": {"type": "nothing"}},
    "a schema of elsewhere": {**GOOD, "json_schema": {"$ref": "http://127.0.0.1/secret"}},
    "too many beams": {**GOOD, "beams": 50},
    "more texts than beams": {**GOOD, "beams": 2, "n": 3},
    "beams and a temperature": {**GOOD, "beams": 2, "temperature": 1.0},
    "beams and probabilities": {**GOOD, "beams": 2, "logprobs": 0},
    "a length penalty without beams": {**GOOD, "length_penalty": 1.0},
    "both constraints": {**GOOD, "regex": "a", "json_schema": {}},
    "an unknown field": {**GOOD, "temprature": 1},
    "an unknown model": {**GOOD, "model": "../../etc/passwd"},
    "no model": {k: v for k, v in GOOD.items() if k != "model"},
}
TALKS = {
    "no messages": {**TALK, "messages": []},
    "an unknown role": {**TALK, "messages": [{"role": "root", "content": "a"}]},
    "an image": {**TALK, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    "no template": {**TALK, "model": "plain"},
    "a mark": {**TALK, "messages": [{"role": "user", "content": "\ufdd1"}]},
    "an unknown form": {**TALK, "response_format": {"type": "xml"}},
    "a form without a schema": {**TALK, "response_format": {"type": "json_schema"}},
}


# A right body of each endpoint, and values that some fields take.
RIGHT = {
    "/v1/completions": GOOD,
    "/v1/chat/completions": TALK,
    "/v1/embeddings": {"model": "encoder", "input": "a"},
    "/tokenize": {"model": "encoder", "text": "a"},
    "/detokenize": {"model": "encoder", "tokens": [120]},
    "/score": {"model": "plain", "texts": ["the king"]},
    "/fill-mask": {"model": "encoder", "texts": ["a [MASK]"]},
    "/classify": {"model": "encoder", "texts": ["a"]},
    "/translate": {"model": "both", "texts": ["a"], "max_tokens": 3},
    "/beams": {"model": "plain", "prompt": "a", "beams": 2, "max_tokens": 3},
    "/attention": {"model": "encoder", "text": "a"},
}
_VALUES = ["decoder", "plain", "both", "encoder", "a", "the king", "[a-z]*", 0, 1, 2, 0.5, 1e300, -1e-300, True,
           [], ["a"], [[120]], [120, 3], {"120": -100}, {"type": "object"}]  # fmt: skip


def check_error(answer, low=400):
    status, _, found = answer
    assert low <= status < 500, answer
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert found["error"]["message"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_bad_body_is_told_in_openais_form(server, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    check_error(ask(server, "/v1/completions", raw=raw))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"stop": [""]}, "stop"),
        ({"stream": 3}, "stream"),
        ({"temprature": 3}, "temprature"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
    ],
)
def test_an_error_names_the_field(server, change, param):
    assert ask(server, "/v1/completions", GOOD | change)[2]["error"]["param"] == param


@pytest.mark.parametrize("body", TALKS.values(), ids=TALKS)
def test_a_bad_conversation_is_told(server, body):
    check_error(ask(server, "/v1/chat/completions", body))


@pytest.mark.parametrize("path", [path for path in ENDPOINTS if not path.startswith("/v1/c")])
def test_other_endpoints_tell_of_bad_bodies(server, path):
    for body in ({}, [], {"model": "encoder"}, {"model": "encoder", "texts": [], "input": []}, {"texts": [3]}):
        check_error(ask(server, path, body))
    texts = {"model": "encoder", "texts": ["a\x00"], "text": "a\x00", "tokens": [10**12], "input": "a\x00"}
    names = {"/tokenize": "text", "/attention": "text", "/detokenize": "tokens", "/v1/embeddings": "input"}
    name = names.get(path, "texts")
    check_error(ask(server, path, {"model": "encoder", name: texts[name]}))


def test_bodies_that_are_large_slow_or_of_another_kind(server):
    check_error(ask(server, "/v1/completions", {**GOOD, "prompt": "a" * 300_000}), 413)
    check_error(ask(server, "/v1/completions", GOOD, headers={"Content-Type": "text/plain"}), 415)
    check_error(ask(server, "/v1/completions"), 405)
    check_error(ask(server, "/nowhere", GOOD), 404)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        head = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
        slow.sendall("\r\n".join((*head, "Content-Length: 100", "", "{")).encode())
        assert b" 408 " in slow.recv(4096).splitlines()[0]


def test_pages_of_other_sites_are_refused(server):
    check_error(ask(server, "/v1/models", headers={"Host": "evil.example"}), 403)
    check_error(ask(server, "/v1/completions", GOOD, headers={"Origin": "https://evil.example"}), 403)
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, "/v1/completions", GOOD, headers={"Origin": own})[0] == 200


def test_32_clients_some_of_whom_go_away_get_the_texts_of_generate(server):
    """Whole answers, streams, streams cut after a part, connections cut at once, and bad bodies, all mixed."""
    loaded = server.models["plain"].loaded
    words = ["the king", "a queen", "under the old tree", "the river", "houses and kings", "young"]
    wanted = {}
    sampled = ({"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 9})
    for word in words:
        for seed, setting in enumerate(sampled):
            config = GenerateConfig(max_new_tokens=10, sampling=SamplingConfig(**setting))
            wanted[word, seed] = generate(loaded, [word], config, seeds=[seed])[0][0].text
    wrong, right = [], []

    def client(number):
        rng = random.Random(number)
        for _ in range(6):
            word, seed = rng.choice(words), rng.randrange(3)
            body = {"model": "plain", "prompt": word, "max_tokens": 10, "seed": seed, **sampled[seed]}
            kind = rng.choice(["whole", "whole", "stream", "cut", "gone", "bad"])
            try:
                if kind == "bad":
                    check_error(ask(server, "/v1/completions", {**body, "max_tokens": "x"}))
                    continue
                body["stream"] = kind in ("stream", "cut")
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                if kind == "gone":
                    connection.close()
                    continue
                answer = connection.getresponse()
                if kind == "cut":
                    answer.readline()
                    connection.close()
                    continue
                content = answer.read().decode()
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) >= 1
                    continue
                if kind == "whole":
                    text = json.loads(content)["choices"][0]["text"]
                else:
                    parts = [json.loads(x[6:]) for x in content.split("\n\n") if x.startswith("data: {")]
                    text = "".join(part["choices"][0]["text"] for part in parts)
                (right if text == wanted[word, seed] else wrong).append((word, seed, text))
                connection.close()
            except Exception as e:
                wrong.append((kind, repr(e)))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a request hangs"
    assert not wrong, wrong[:3]
    assert len(right) > 32


def odd(rng, depth=0):
    """Returns any JSON value: often one that some field takes."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind < 3:
        return rng.choice(_VALUES)
    if kind < 6:
        text = "".join(chr(rng.choice([9, 32, 97, 0xE9, 0x3A9, 0x1F600, 0xFFFF])) for _ in range(rng.randrange(6)))
        return rng.choice([None, False, -1, 10**30, float("nan"), float("-inf"), -0.0, text])
    inner = [odd(rng, depth + 1) for _ in range(rng.randrange(3))]
    return inner if kind == 6 else {f"{rng.choice(['type', 'text', 'role', 'a', '3'])}": each for each in inner}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_no_body_makes_the_server_fail(server, path):
    """Right bodies, in which one or two fields have any value."""
    fields, rng = list(ENDPOINTS[path][0].model_fields), random.Random(path)
    assert ask(server, path, RIGHT[path])[0] == (400 if path == "/classify" else 200)
    for _ in range(20):
        body = RIGHT[path] | {rng.choice(fields): odd(rng) for _ in range(rng.randrange(1, 3))}
        status, _, found = ask(server, path, body)
        assert status < 500, (body, found)
        if status >= 400:
            check_error((status, {}, found))
