"""Tokens a second and the time to the first token of lmjax serve, beside `transformers serve`, on one model and load.

    python experiments/bench/serve.py --model=FOLDER [--at_once=16] [--requests=64] [--turns=3] [--plot=latencies.png]

Both servers run on this machine, one at a time, in turns: A, B, A, B ... The load is the same streams of
/v1/chat/completions with prompts of several lengths and 128 greedy tokens, `--at_once` of them at any time. FOLDER is a
checkpoint of Hugging Face with a chat template; where there is none yet, one of 110 M random parameters is written.
`transformers serve` needs `pip install 'transformers[serving]'`; where it does not start, only lmjax is measured, and
the first line says so. Programs are compiled before the measured part: `lmjax serve` compiles them at its start, and
each server answers `--at_once` requests first that do not count.

Give the machine nothing else to do, and pin nothing: both servers take the threads that they want.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

WORDS = ("king", "queen", "river", "house", "tree", "old", "young", "under", "never", "goes", "sees", "sleeps", "the")


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@contextlib.contextmanager
def served(command: list[str], port: int, seconds: float) -> Iterator[None]:
    """Runs a server; raises RuntimeError, with the end of what it said, if it does not answer in time."""
    log = pathlib.Path(f"serve-{port}.log")
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status < 500:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.unlink(missing_ok=True)


def bodies(model: str, count: int, tokens: int) -> list[bytes]:
    """Returns the bodies of the load, the same for both servers."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.choice([8, 32, 64, 200])))
        body = {"model": model, "messages": [{"role": "user", "content": f"{number} {text}"}], "max_tokens": tokens}
        found.append(json.dumps(body | {"temperature": 0.0, "stream": True}).encode())
    return found


def make(folder: pathlib.Path) -> None:
    """Writes a decoder of random parameters that never ends a text by itself, and a tokenizer of the Python library."""
    import sysconfig

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<s>", "</s>", "<|user|>", "<|assistant|>"], pre_tokenizers.ByteLevel.alphabet()
    files = sorted(map(str, pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))[:120]
    tokenizer.train(files, trainers.BpeTrainer(vocab_size=16384, special_tokens=special, initial_alphabet=alphabet))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=len(fast), max_position_embeddings=2048, tie_word_embeddings=False, **sizes, **ids)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
        # Special tokens and single bytes are never the likeliest, so each token is text that can be sent.
        model.lm_head.weight[: len(special) + len(alphabet)] = 0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


async def one(port: int, body: bytes) -> tuple[float, float, int]:
    """Returns the seconds to the first text of a stream and to its end, and its parts with text."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    first, parts, status = None, 0, (await reader.readline()).split()[1]
    async for line in reader:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices") or [{}]
            if choices[0].get("delta", {}).get("content"):
                first = first or time.perf_counter() - start
                parts += 1
    writer.close()
    if status != b"200" or first is None:
        raise RuntimeError(f"status {status.decode()} and {parts} parts")
    return first, time.perf_counter() - start, parts


async def load(port: int, given: list[bytes], at_once: int) -> tuple[float, list[tuple[float, float, int]]]:
    """Returns the seconds of a load, and what `one` returns for each request."""
    gate = asyncio.Semaphore(at_once)

    async def gated(body: bytes) -> tuple[float, float, int]:
        async with gate:
            return await one(port, body)

    start = time.perf_counter()
    found = await asyncio.gather(*map(gated, given))
    return time.perf_counter() - start, found


def main() -> None:
    """Measures both servers in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--at_once", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--start", type=float, default=600, help="seconds for a server to start")
    parser.add_argument("--plot", help="a new picture of the latencies")
    args = parser.parse_args()
    if not pathlib.Path(args.model).exists():
        make(pathlib.Path(args.model))
    args.model = str(pathlib.Path(args.model).resolve())
    rows: dict[str, list[tuple[float, list[tuple[float, float, int]]]]] = {"lmjax": [], "transformers": []}
    for _ in range(args.turns):
        for name, results in list(rows.items()):
            port = free_port()
            command = {
                "lmjax": [sys.executable, "-m", "lmjax", "serve", f"--model=measured={args.model}", f"--port={port}",
                          f"--rows={args.at_once}", "--max_length=1024"],
                "transformers": ["transformers", "serve", "--continuous-batching", "--host=127.0.0.1",
                                 f"--port={port}", "--device=cpu"],
            }[name]  # fmt: skip
            model = "measured" if name == "lmjax" else args.model
            try:
                with served(command, port, args.start):
                    asyncio.run(load(port, bodies(model, args.at_once, 8), args.at_once))
                    results.append(asyncio.run(load(port, bodies(model, args.requests, args.tokens), args.at_once)))
            except (RuntimeError, OSError) as error:
                print(f"{name} is not measured: {error}", file=sys.stderr)
                del rows[name]
    print(f"| server | parts of text/s at {args.at_once} at once | first token, median and 95 % (s) | whole (s) |")
    print("|---|---|---|---|")
    for name, results in rows.items():
        speeds = [sum(parts for _, _, parts in each) / seconds for seconds, each in results]
        firsts, wholes = (sorted(x[i] for _, each in results for x in each) for i in (0, 1))
        shown = [f"{statistics.median(x):.2f}, {x[int(0.95 * len(x))]:.2f}" for x in (firsts, wholes)]
        print(f"| {name} | {statistics.median(speeds):.1f} ({', '.join(f'{x:.1f}' for x in speeds)}) | {shown[0]} |"
              f" {shown[1]} |")  # fmt: skip
    if args.plot:
        plot(args.plot, rows)


def plot(path: str, rows: dict[str, list[tuple[float, list[tuple[float, float, int]]]]]) -> None:
    """Draws the shares of requests whose first token, and whose whole text, had come after so many seconds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for axis, number, title in zip(axes, (0, 1), ("first token", "whole text"), strict=True):
        for name, results in rows.items():
            values = sorted(x[number] for _, each in results for x in each)
            axis.step(values, [(i + 1) / len(values) for i in range(len(values))], where="post", label=name)
        axis.set_xlabel(f"seconds to the {title}")
    axes[0].set_ylabel("share of requests")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
