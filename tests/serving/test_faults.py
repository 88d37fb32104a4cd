"""The folder of a model changes under the server, before it is read and after; and a server is killed in a stream."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import types

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from safetensors.numpy import load_file, save_file

from lmjax import cli
from lmjax.errors import UserError
from tests.serving.http import ask

RECORDED = pathlib.Path(__file__).parent.parent / "inference/generate/recorded/gpt2_trained"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def copied(folder):
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(RECORDED / name, folder / name)
    return folder


@contextlib.contextmanager
def serving(folder):
    command = [sys.executable, "-m", "lmjax", "serve", f"--model=mine={folder}", "--port=0", "--rows=2",
               "--max_length=32", "--prefill_chunk=16", "--beams=0", "--queue=200"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "ready at" in line:
                break
        assert "ready at" in lines[-1], "".join(lines)
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        try:
            yield types.SimpleNamespace(port=int(lines[-1].rpartition(":")[2]), process=process, lines=lines)
        finally:
            process.kill()
            reader.join(10)


def test_a_model_folder_that_changes_or_goes_changes_no_answer_and_a_killed_server_ends_its_streams(tmp_path):
    folder = copied(tmp_path / "model")
    requests = {
        "/v1/completions": {"prompt": [3, 4, 5, 3], "max_tokens": 8, "temperature": 0, "logprobs": 3},
        "/score": {"texts": ["a"], "contexts": ["b"]},
        "/tokenize": {"text": "a"},
        "/attention": {"text": "a"},
    }

    def answers(server):
        found = {path: ask(server, path, body) for path, body in requests.items()}
        assert {status for status, _, _ in found.values()} == {200}, found
        return {
            path: {k: v for k, v in body.items() if k not in ("id", "created")} for path, (_, _, body) in found.items()
        }

    with serving(folder) as server:
        before = answers(server)
        # Truncated and overwritten in place: what was mapped into memory would be lost, or end the process.
        (folder / "model.safetensors").write_bytes(b"\0" * 100)
        (folder / "config.json").write_text("{")
        assert answers(server) == before
        # Replaced by another model.
        shutil.rmtree(folder)
        copied(folder)
        tensors = load_file(RECORDED / "model.safetensors")
        save_file({name: -x for name, x in tensors.items()}, folder / "model.safetensors")
        assert answers(server) == before
        shutil.rmtree(folder)
        assert answers(server) == before
        assert ask(server, "/health")[2]["status"] == "ok"
        body = {"prompt": [[3, 4, 5]] * 12, "max_tokens": 20, "temperature": 0, "stream": True, "n": 16}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as stream:
                assert stream.readline().startswith(b"data: ")
                os.kill(server.process.pid, signal.SIGKILL)
                # A client must not take half a stream for a whole one: it has no end, neither OpenAI's nor HTTP's.
                with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as error:
                    stream.read()
                assert b"[DONE]" not in getattr(error.value, "partial", b"")


def _truncated(file):
    file.write_bytes(file.read_bytes()[:5000])


def _without(file):
    tensors = load_file(file)
    save_file({name: x for name, x in tensors.items() if "wte" not in name}, file)


def _reshaped(file):
    save_file({name: x[..., :3] for name, x in load_file(file).items()}, file)


@pytest.mark.parametrize("change", [_truncated, _without, _reshaped, pathlib.Path.unlink])
def test_a_folder_that_changes_while_it_is_opened_is_one_message(tmp_path, monkeypatch, change):
    folder = copied(tmp_path / "model")
    # The headers are checked before the address is taken; the parameters are read after it.
    monkeypatch.setattr("lmjax.commands.serve.load_model", _after(change, folder / "model.safetensors"))
    with pytest.raises(UserError, match=r"model\.safetensors|neither") as error:
        cli.run(["serve", f"--model={folder}", "--port=0", "--max_length=32"])
    assert "\n" not in str(error.value)


def _after(change, file):
    """`load_model`, before which a file changes between its headers and its tensors."""
    from lmjax.runs import trained

    def load(place, **given):
        opened = trained.open_pretrained(place, None, given["accept_fields"])
        change(file)
        return trained.loaded_model(opened, given["dtype"], given["tensor"], place)

    return load
