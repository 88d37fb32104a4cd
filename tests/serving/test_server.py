"""The command as a process: it answers, ends by SIGTERM with code 0 after its answers, and guards its address."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from lmjax.errors import FlagError
from lmjax.serving.server import checked_token, listen
from tests.serving.http import ask


def test_an_address_of_others_needs_a_token(monkeypatch):
    monkeypatch.delenv("LMJAX_TOKEN", raising=False)
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        assert checked_token(host, None) == ""
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(FlagError, match="--token"):
            checked_token(host, None)
    assert checked_token("0.0.0.0", "a-long-secret") == "a-long-secret"
    monkeypatch.setenv("LMJAX_TOKEN", "another-secret")
    assert checked_token("0.0.0.0", None) == "another-secret"
    for token in ("short", "with a space", "caf\xe9-secret"):
        with pytest.raises(FlagError, match="printable"):
            checked_token("127.0.0.1", token)


def test_two_servers_on_one_port():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(FlagError, match=f"--port={port}: another process"):
            listen("127.0.0.1", port)


@pytest.fixture(scope="module")
def process(tmp_path_factory, corpus):
    """A server of a run of two steps, with a token, as a process of its own."""
    from lmjax import cli

    folder = tmp_path_factory.mktemp("served")
    flags = ["--steps=2", "--noprogress", "--batch_size=8", "--length=32", "--config.model.embed_dim=16",
             "--config.model.num_heads=2", "--config.model.mlp_dim=32", "--config.model.num_layers=1",
             "--config.tokenizer.kind=char", "--config.logging.tensorboard=false"]  # fmt: skip
    cli.run(["train", f"--data={corpus}", f"--workdir={folder / 'run'}", *flags])
    command = [sys.executable, "-m", "lmjax", "serve", f"--model=mine={folder / 'run'}", "--port=0", "--rows=2",
               "--max_length=64", "--prefill_chunk=16", "--beams=0"]  # fmt: skip
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LMJAX_TOKEN": "a-long-secret"}
    )
    lines = []
    for line in started.stderr:
        lines.append(line)
        if "ready at" in line:
            break
    assert "ready at" in lines[-1], "".join(lines)
    port = int(lines[-1].rpartition(":")[2])
    threading.Thread(target=lambda: lines.extend(started.stderr), daemon=True).start()
    yield types.SimpleNamespace(port=port, process=started, lines=lines)
    if started.poll() is None:
        started.kill()
    started.wait()
    started.stderr.close()


def test_the_process_answers_drains_and_exits_0(process):
    secret = {"Authorization": "Bearer a-long-secret"}
    body = {"model": "mine", "prompt": "the king", "max_tokens": 5}
    assert ask(process, "/v1/completions", body)[0] == 401
    assert ask(process, "/v1/completions", body, headers={"Authorization": "Bearer a-long-secres"})[0] == 401
    assert ask(process, "/metrics")[0] == 401
    assert ask(process, "/health")[0] == 200
    assert ask(process, "/")[0] == 200
    status, _, found = ask(process, "/v1/completions", body, headers=secret)
    assert (status, len(found["choices"])) == (200, 1)
    answers = []
    long = {**body, "max_tokens": 56, "n": 4}
    asking = threading.Thread(target=lambda: answers.append(ask(process, "/v1/completions", long, headers=secret)))
    asking.start()
    deadline = time.monotonic() + 30
    while not ask(process, "/health")[2]["models"]["mine"]["active"] and time.monotonic() < deadline:
        if answers:
            break
    process.process.send_signal(signal.SIGTERM)
    asking.join(60)
    assert process.process.wait(60) == 0
    status, _, found = answers[0]
    assert (status, len(found["choices"])) == (200, 4), "what was asked before is answered"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", process.port), timeout=5)
    logged = [json.loads(line) for line in process.lines if line.startswith("{")]
    assert [line["status"] for line in logged].count(401) == 2
    assert "the king" not in "".join(process.lines)
