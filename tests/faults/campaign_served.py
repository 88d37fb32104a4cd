"""A server with tiny models under 32 clients: whole answers, streams, clients that go away, and hostile bodies.

Every whole answer is compared with what the library writes without a server. The server's memory, open files and
threads are measured; its models take a few MB, so what is seen is what a request leaves behind.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import random
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from tests.faults.campaign_soak import measure, slope_of
from tests.serving.http import ask
from tests.serving.models import loaded_models
from tests.serving.test_hostile import BODIES, ENDPOINTS, RIGHT, odd

_CLIENTS, _EVERY, _TOKENS = 32, 5.0, 10
_WORDS = ("the king", "a queen", "under the old tree", "the river", "houses and kings", "young")
_SETTINGS = ({"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 9}, {"beams": 3})
_KINDS = ("whole", "whole", "whole", "stream", "cut", "gone", "hostile", "odd")
_HUGE = json.dumps({"model": "plain", "prompt": "a " * 5_000_000, "max_tokens": 4}).encode()


@contextlib.contextmanager
def serving() -> Iterator[types.SimpleNamespace]:
    """Gives the port and the process of a server with the models of the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.serving.models", str(port)], stderr=subprocess.PIPE, text=True
    ) as process:
        next(line for line in process.stderr if "ready at" in line)
        # What it says must be read, or it waits for the pipe.
        failures: list[str] = []
        reader = threading.Thread(target=lambda: failures.extend(x for x in process.stderr if '"status": 5' in x))
        reader.start()
        try:
            yield types.SimpleNamespace(port=port, process=process, failures=failures)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join(10)


def _wanted() -> dict[tuple[str, str, int], str]:
    """Returns the text for each model, prompt and setting, whose number is its seed."""
    found = {}
    loaded = {name: model for name, model in loaded_models().items() if name in ("plain", "both")}
    for number, given in enumerate(_SETTINGS):
        beams = {"beams": {"beams": given["beams"]}} if "beams" in given else {"sampling": given}
        config = GenerateConfig(max_new_tokens=_TOKENS, **beams)
        for name, model in loaded.items():
            texts = generate(model, _WORDS, config, seeds=[number] * len(_WORDS))
            found |= {(name, word, number): text[0].text for word, text in zip(_WORDS, texts, strict=True)}
    return found


class _Client:
    """Sends requests until a time, one after the other."""

    def __init__(self, port: int, number: int, wanted: dict[tuple[str, str, int], str], end: float):
        self.server, self.counts, self.wrong = types.SimpleNamespace(port=port), Counter(), []
        self._rng, self._wanted, self._end = random.Random(number), wanted, end

    def run(self) -> None:
        while time.monotonic() < self._end:
            kind = self._rng.choice(_KINDS)
            try:
                getattr(self, kind)() if kind in ("hostile", "odd") else self._written(kind)
                self.counts[kind] += 1
            except Exception as e:
                self.wrong.append(f"{kind}: {e!r}")
            # Otherwise 32 clients are mostly a test of the queue.
            time.sleep(self._rng.uniform(0, 1.5))

    def _written(self, kind: str) -> None:
        name, word, number = self._rng.choice(list(self._wanted))
        body = {"model": name, "prompt": word, "max_tokens": _TOKENS, "seed": number, **_SETTINGS[number]}
        body["stream"] = kind in ("stream", "cut")
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)) as connection:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            if kind == "gone":
                time.sleep(self._rng.uniform(0, 0.05))
                return
            with connection.getresponse() as answer:
                if kind == "cut":
                    answer.readline()
                    return
                content = answer.read().decode()
                if answer.status == 429:
                    self.counts["refused"] += 1
                    return
        parts = [json.loads(x[6:]) for x in content.split("\n\n") if x.startswith("data: {")]
        text = "".join(x["choices"][0]["text"] for x in (parts or [json.loads(content)]))
        self.counts["compared"] += 1
        if text != self._wanted[name, word, number]:
            self.wrong.append(f"{name}, {word!r}, {_SETTINGS[number]}: {text!r}")

    def hostile(self) -> None:
        body = self._rng.choice([*BODIES.values(), _HUGE])
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._check(ask(self.server, "/v1/completions", raw=raw), least=400)

    def odd(self) -> None:
        path = self._rng.choice(list(ENDPOINTS))
        fields = list(ENDPOINTS[path][0].model_fields)
        changed: dict[str, Any] = {self._rng.choice(fields): odd(self._rng)}
        self._check(ask(self.server, path, RIGHT[path] | changed), least=200)

    def _check(self, answer: tuple[int, Any, Any], least: int) -> None:
        if not least <= answer[0] < 500:
            self.wrong.append(f"status {answer[0]}: {str(answer[2])[:200]}")


def _counted(server: types.SimpleNamespace, name: str) -> float:
    """Returns one of the server's counts, of all its models together."""
    metrics = ask(server, "/metrics")[2].decode().splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in metrics if x.startswith(f"lmjax_{name}_total"))


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign; `number`: minutes."""
    wanted, measured = _wanted(), []
    with serving() as server:
        begin = time.monotonic()
        clients = [_Client(server.port, i, wanted, begin + 60 * number) for i in range(_CLIENTS)]
        threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and time.monotonic() - begin < 60 * number + 180:
            measured.append((time.monotonic() - begin, *measure(server.process.pid), _counted(server, "work_compiled")))
            if len(measured) % 12 == 1:
                # What is known so far, should the campaign be interrupted.
                done = sum((client.counts.copy() for client in clients), Counter())
                wrong = sum(len(client.wrong) for client in clients)
                resident = f"{measured[-1][1] / 2**20:.1f} MiB after {measured[-1][0] / 60:.1f} minutes"
                print(f"{resident}; {dict(done)}, {wrong} wrong", file=sys.stderr, flush=True)
            time.sleep(_EVERY)
        hung = sum(thread.is_alive() for thread in threads)
        deadline = time.monotonic() + 30
        while (health := ask(server, "/health")[2])["models"] and time.monotonic() < deadline:
            if not any(sum(load.values()) for load in health["models"].values()):
                break
            time.sleep(0.2)
        compiled = _counted(server, "compiled")
    counts = sum((client.counts for client in clients), Counter())
    wrong = [each for client in clients for each in client.wrong]
    print("\n".join(wrong[:20] + server.failures[:20]), file=sys.stderr)
    times, resident, files, workers, programs = np.array(measured).T
    # A program that other work needs for a shape stays in memory, and all shapes are met only after some time.
    settled = times[programs == programs[-1]][0]
    late = times > max(0.25 * times[-1], min(settled, 0.75 * times[-1]))
    slope, error = slope_of(times[late] / 3600, resident[late] / 2**20)
    mib = resident / 2**20
    sent = sum(counts[kind] for kind in set(_KINDS))
    kinds = (
        f"{counts['compared']} whole answers compared with the library's, {counts['cut'] + counts['gone']} cut off by"
    )
    kinds += (
        f" the client, {counts['hostile'] + counts['odd']} hostile or odd bodies, {counts['refused']} refused with 429"
    )
    found = f"{len(wrong)} wrong, {len(server.failures)} of status 5xx, {hung} hung, {compiled:.0f} programs compiled, "
    found += f"{sum(sum(x.values()) for x in health['models'].values())} texts left over"
    memory = f"{mib[0]:.0f} MiB at the start, {mib[-1]:.0f} at the end, {mib.max():.0f} at most, slope {slope:+.1f} ± "
    memory += f"{error:.1f} MiB an hour after minute {times[late][0] / 60:.0f}; {programs[-1]:.0f} programs for scores"
    memory += f" and the like, the last one compiled by minute {settled / 60:.0f}"
    yield (
        f"| {number} minutes of {_CLIENTS} clients of a server of four tiny models | {sent} requests: {kinds} | {found}"
        f"; resident memory {memory}; open files {files.min():.0f} to {files.max():.0f}, threads {workers.min():.0f} "
        f"to {workers.max():.0f} |"
    )
