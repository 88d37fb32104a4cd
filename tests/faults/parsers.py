"""Every reader of files that others wrote, with sound files for it and what must hold of what it accepts."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xxhash
from hypothesis import strategies as st
from safetensors.numpy import save

from lmjax.cli import run
from lmjax.commands.prompts import read_prompts
from lmjax.config import from_json, replace
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.files import Faults
from lmjax.data.records import read_records
from lmjax.data.sources import corpus_fingerprint
from lmjax.errors import UserError
from lmjax.evaluation.records import minimal_pair, question, read_task
from lmjax.inference.defaults import merged
from lmjax.inference.generate.config import GenerateConfig
from lmjax.interop.export import choose_family, export
from lmjax.interop.shards import INDEX, SINGLE, Shards, write_shards
from lmjax.interop.tokenizer_export import export_tokenizer
from lmjax.runs.doctor import examine
from lmjax.runs.pretrained import open_pretrained
from lmjax.strict_json import write_json
from lmjax.training import manifest
from lmjax.training.budget import Budget
from lmjax.training.metrics import Timers, peak_host_memory, read_lines
from lmjax.training.rollback import Rollbacks
from tests.faults import hostile_tokenizers as tokenizers
from tests.faults import record_parsers
from tests.faults.fuzzing import changed_bytes, changed_json, changed_safetensors
from tests.faults.hostile_tokenizers import is_finite
from tests.inference.scoring import tiny, tokenizer

RECORDED = pathlib.Path(__file__).parents[1] / "interop" / "recorded"
TENSORS = {f"t{i}": np.arange(6, dtype=np.float32).reshape(2, 3) for i in range(4)}


@dataclasses.dataclass(frozen=True)
class Parser:
    """A reader.

    Attributes:
        name: what the table calls it.
        make: writes sound files into a folder; returns those that are changed, one at a time.
        change: from the name and the bytes of a sound file to the changed ones.
        read: reads the changed file; raises AssertionError if it accepted what it must refuse.
        examples: how many changed files the tests try; the campaign tries as many as there is time for.
    """

    name: str
    make: Callable[[pathlib.Path], list[pathlib.Path]]
    change: Callable[[str, bytes], st.SearchStrategy[bytes]]
    read: Callable[[pathlib.Path], Any]
    examples: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one changed file: whether it was accepted, the seconds, and the growth of memory in bytes."""

    accepted: bool
    seconds: float
    grown: int


def attempt(parser: Parser, path: pathlib.Path, content: bytes) -> Outcome:
    """Returns what a reader makes of changed content; any error but a UserError goes on to the caller."""
    sound = path.read_bytes()
    before, start = peak_host_memory(), time.perf_counter()
    try:
        path.write_bytes(content)
        parser.read(path)
        accepted = True
    except UserError as e:
        if not str(e):
            raise AssertionError("an error without a message") from e
        accepted = False
    finally:
        path.write_bytes(sound)
    return Outcome(accepted, time.perf_counter() - start, peak_host_memory() - before)


def _text(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    return changed_bytes(content)


def _json(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    return changed_json(json.loads(content))


def _lines(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Lines of JSON, some of whose values change, or bytes of any format."""
    if not name.endswith(".jsonl"):
        return changed_bytes(content)
    values = [json.loads(line) for line in content.splitlines()]
    lines = lambda tree: b"\n".join(json.dumps(v).encode() for v in (tree if isinstance(tree, list) else [tree]))  # noqa: E731
    return st.one_of(changed_json(values, lines), changed_bytes(content))


def _safetensors(folder: pathlib.Path) -> list[pathlib.Path]:
    (folder / SINGLE).write_bytes(save(TENSORS))
    return [folder / SINGLE]


def _index(folder: pathlib.Path) -> list[pathlib.Path]:
    write_shards(folder, TENSORS.items(), 30)
    return [folder / INDEX]


def _read_shards(path: pathlib.Path) -> None:
    shards = Shards(path.parent)
    for name in (n for n, header in shards.headers.items() if header.dtype is not None):
        assert np.isfinite(shards.read(name)).all()


def _families(folder: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for each in sorted(path for path in RECORDED.iterdir() if (path / SINGLE).exists()):
        shutil.copytree(each, folder / each.name)
        found.append(folder / each.name / "config.json")
    span = folder / "bert_span" / "config.json"
    own = {"tasks": {"question_answering": {"no_answer": True, "threshold": 1.5}}, "length": 64}
    span.write_text(json.dumps(json.loads(span.read_text()) | {"lmjax": own}))
    return found


def _read_checkpoint(path: pathlib.Path) -> None:
    assert is_finite(open_pretrained(path.parent).config.model_dump()), "a number of the config is not finite"


def _writing(folder: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for name, values in {
        "gpt2": {"do_sample": True, "top_k": 20, "temperature": 0.7, "max_new_tokens": 9, "stop_strings": ["a"]},
        "t5": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "bad_words_ids": [[3], [4, 5]]},
        "bart": {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "max_length": 20},
    }.items():
        shutil.copytree(RECORDED / name, folder / name)
        path = folder / name / "generation_config.json"
        path.write_text(json.dumps(values | {"eos_token_id": [1, 2], "suppress_tokens": [7], "min_length": 1}))
        found.append(path)
    return found


def _read_writing(path: pathlib.Path) -> None:
    opened = open_pretrained(path.parent)
    opened.prompts(tokenizer())
    values = GenerateConfig.model_validate(merged({}, opened.defaults)).model_dump()
    assert is_finite(values), "a number of the config is not finite"


def _records(folder: pathlib.Path) -> list[pathlib.Path]:
    texts = [{"text": "The king.\nA queen, \u00e9"}, {"text": 'He said "no", and went.', "n": 1}, {"text": "x"}] * 3
    pairs = [{"source": "a b", "target": "c, d"}, {"source": 'e "f"', "target": "g"}] * 3
    table = io.StringIO()
    table.write("source,target\n" + "".join('"{}",{}\n'.format(p["source"].replace('"', '""'), "t") for p in pairs))
    for name, content in {
        "a.jsonl": "".join(json.dumps(each) + "\n" for each in texts),
        "a.json": json.dumps(pairs, indent=1),
        "one.json": json.dumps(texts),
        "a.csv": table.getvalue(),
        "a.tsv": "text\tn\n" + 'The "king\tx\n' * 4,
        "a.txt": "One.\nTwo.\n\nThree, \u00e9.\n\n" * 3,
    }.items():
        (folder / name).write_text(content)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    return sorted(folder.iterdir())


def _read_records(path: pathlib.Path) -> None:
    def read(action: str, pairs: bool, documents: str) -> None:
        faults = Faults(action)
        for record in read_records(str(path), faults, pairs=pairs, documents=documents, max_bytes=3000):
            assert "\0" not in record.source
            assert record.source.encode()

    for documents in ("files", "lines"):
        with contextlib.suppress(UserError):
            read("skip", False, documents)
        with contextlib.suppress(UserError):
            read("skip", True, documents)
    read("error", False, "paragraphs")


def _tasks(folder: pathlib.Path) -> list[pathlib.Path]:
    questions = [
        {"context": "a", "choices": ["b", "c"], "answer": 1},
        {"context": "", "choices": ["d", "e"], "answer": 0},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    (folder / "pairs.csv").write_text('good,bad\n"a, b",c\nd,"e ""f"""\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (folder / "prompts.txt").write_text("The king\nA queen\n")
    return sorted(folder.iterdir())


def _read_task(path: pathlib.Path) -> None:
    if path.name.startswith("prompts"):
        read_prompts((), str(path))
    else:
        read_task(str(path), question if path.name.startswith("questions") else minimal_pair)


def _workdir(folder: pathlib.Path) -> list[pathlib.Path]:
    loaded = tiny("decoder")
    ids = {f"{role}_token_id": i for role, i in tokenizer().role_ids.items()}
    beside = lambda new: export_tokenizer(tokenizer(), new, "gpt2", 16)  # noqa: E731
    family = choose_family(loaded.config, (), None, {})
    export(family, loaded.config, loaded.params, folder / "hf", extra=ids, beside=beside)
    run(["convert", f"--from={folder / 'hf'}", f"--workdir={folder / 'run'}"])
    workdir = folder / "run"
    (folder / "a.txt").write_text("One text.\n")
    write_json(
        workdir / "config.json",
        replace(from_json(workdir / "config.json"), {"data.train": str(folder / "a.txt")}).to_json(),
    )
    write_json(workdir / "data.json", {"train": corpus_fingerprint(str(folder / "a.txt"))})
    lines = [{"step": step, "train/loss": 1.5, "eval/loss": None} for step in range(1, 6)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = {"step": 4, "seconds": 1.5, "total": 50, "step_seconds": 0.1, "evaluation_seconds": 0.2}
    (workdir / "plan.jsonl").write_text((json.dumps(plan) + "\n") * 2)
    (workdir / "rollbacks.jsonl").write_text('{"to": 2, "at": 5}\n{"to": 4, "at": 9}\n')
    return sorted(path for path in workdir.iterdir() if path.suffix in (".json", ".jsonl"))


def _read_workdir(path: pathlib.Path) -> None:
    workdir = path.parent
    opened = open_pretrained(workdir)
    assert is_finite(opened.config.model_dump()), "a number of the config is not finite"
    if path.name == "special_tokens.json":
        opened.prompts(load_tokenizer(str(workdir)))
    read_lines(workdir)
    Rollbacks(workdir).skipped(5)
    Budget(10.0, workdir / "plan.jsonl", 0, 0, Timers()).open(5)
    if wrong := [finding.text for finding in examine(workdir) if not finding.sound]:
        raise UserError(wrong[0])


def _sealed(text: bytes) -> bytes:
    """Returns a manifest with a last line that is right, as an attacker writes it."""
    body = text.rpartition(b"end ")[0]
    return body + f"end {xxhash.xxh3_64_hexdigest(body)}\n".encode()


def _manifest(folder: pathlib.Path) -> list[pathlib.Path]:
    (folder / "d").mkdir()
    (folder / "d" / "a").write_bytes(b"numbers" * 50)
    (folder / "_CHECKPOINT_METADATA").write_text('{"custom_metadata": {"lmjax": {"good": true}}}')
    manifest.write(folder)
    manifest.merge(folder)
    return [folder / manifest.NAME, folder / "_CHECKPOINT_METADATA"]


def _changed_manifest(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    if name != manifest.NAME:
        return _json(name, content)
    return st.one_of(changed_bytes(content).map(_sealed), changed_bytes(content))


def _read_manifest(path: pathlib.Path) -> None:
    found = manifest.problems(path.parent)
    assert all(isinstance(problem, str) for problem in found)
    manifest.noted(path.parent)
    if found:
        raise UserError(found[0])


PARSERS = (
    Parser("safetensors", _safetensors, lambda name, content: changed_safetensors(content), _read_shards, 200),
    Parser("safetensors index", _index, _json, _read_shards, 60),
    Parser("config.json of Hugging Face", _families, _json, _read_checkpoint, 80),
    Parser("generation_config.json", _writing, _json, _read_writing, 80),
    Parser("tokenizer.json", tokenizers.fast, _json, tokenizers.read, 15),
    Parser("older tokenizers", tokenizers.older, tokenizers.changed, tokenizers.read, 15),
    Parser(
        "SentencePiece models",
        tokenizers.sentencepiece,
        tokenizers.changed,
        tokenizers.read,
        15,
    ),
    Parser("JSONL, JSON, CSV, TSV and text", _records, _lines, _read_records, 120),
    Parser("tasks and prompts", _tasks, _lines, _read_task, 80),
    Parser(
        "records of tasks", record_parsers.records, record_parsers.changed_records, record_parsers.read_records, 500
    ),
    Parser("chat templates", record_parsers.templates, _text, record_parsers.read_template, 8),
    Parser("files of a workdir", _workdir, _lines, _read_workdir, 60),
    Parser("manifest of a checkpoint", _manifest, _changed_manifest, _read_manifest, 100),
)


def made(parser: Parser, folder: pathlib.Path) -> Mapping[pathlib.Path, bytes]:
    """Returns the sound files of a parser, each with its content."""
    folder.mkdir()
    return {path: path.read_bytes() for path in parser.make(folder)}


def changes(parser: Parser, files: Mapping[pathlib.Path, bytes]) -> st.SearchStrategy[tuple[pathlib.Path, bytes]]:
    """Returns one of the files of a parser, and changed content for it."""
    each = [st.tuples(st.just(path), parser.change(path.name, content)) for path, content in files.items()]
    return st.one_of(each)
