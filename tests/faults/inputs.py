"""Commands with bad input, made from all flags, all fields of the config, and all files that commands read."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from absl import flags

BYTES = bytes(range(256)) * 8
# What a flag or a field of each type is given.
_NUMBERS = ("", "abc", "nan", "inf", "-1", "0", "1e309", "99999999999999999999", "1.5")
_NAMES = ("", "nonsense", "NEXT_TOKEN", "a\0b", "a,,b", "x" * 5000)
_FIELD_VALUES = ("", "abc", "nan", "-1", "1e309", "[1,", "{}", "0")
# What stands in place of a file, by name.
DAMAGES: dict[str, Callable[[pathlib.Path, bytes], object]] = {
    "missing": lambda path, _: None,
    "empty": lambda path, _: path.touch(),
    "binary": lambda path, _: path.write_bytes(BYTES),
    "not UTF-8": lambda path, _: path.write_bytes(b'{"text": "\xff\xfe"}\n' * 3),
    "a folder": lambda path, _: path.mkdir(),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a list": lambda path, _: path.write_text("[1, 2]\n[3]\n"),
    "nested": lambda path, _: path.write_text("[" * 100_000),
    "cut in half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "a link to itself": lambda path, _: path.symlink_to(path.name),
}
# Files of data, by name: what they hold.
DATA: dict[str, bytes] = {
    "blank.txt": b" \n\n\t\n",
    "binary.txt": BYTES,
    "nul.txt": b"a king\0goes\n" * 40,
    "latin.txt": b"\xe9t\xe9 \xff\n" * 40,
    "cut.txt.gz": gzip.compress(b"the king goes\n\n" * 500)[:60],
    "no.txt.gz": b"the king goes\n\n" * 20,
    "bad.jsonl": b'{"text": "a"}\n{"text": \n',
    "list.jsonl": b"[1]\n[2]\n",
    "other.jsonl": b'{"other": "a"}\n' * 4,
    "number.jsonl": b'{"text": 5}\n' * 4,
    "null.jsonl": b'{"text": null}\n' * 4,
    "nested.jsonl": b"[" * 100_000,
    "ragged.csv": b"text,label\na,b\nc\nd,e,f\n",
    "quote.csv": b'text,label\n"a,b\nc,d\n',
    "header.csv": b"text,label\n",
    "twice.csv": b"text,text\na,b\n",
    "empty.csv": b"",
    "odd.tsv": b"label\na\nb\n",
    "one.json": b'{"text": "a"',
    "x.parquet": BYTES,
}
# Flags of the runs that the cases read.
RUN = (
    "--steps=2", "--noprogress", "--batch_size=8", "--length=32", "--config.model.embed_dim=16",
    "--config.model.num_heads=2", "--config.model.mlp_dim=32", "--config.model.num_layers=2",
    "--config.model.max_length=64", "--config.evaluation.every=1", "--config.evaluation.batches=1",
    "--config.checkpoint.every=1", "--config.logging.tensorboard=false",
)  # fmt: skip
SMALL = ("--config.tokenizer.kind=char", "--config.tokenizer.byte_fallback=false", "--config.data.held_out=0.2")
PAIRS: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (
        ("--steps=2", "--minutes=1"),
        ("--steps=2", "--epochs=1"),
        ("--init_from={run}", "--preset=bert_tiny"),
        ("--accept_fields=a",),
        ("--steps=2", "--config.steps=3"),
        ("--objective=mlm", "--architecture=decoder"),
        ("--objective=next_token", "--architecture=encoder"),
        ("--objective=classification",),
        ("--data=a=x", "--data=y"),
        ("--eval_data=a={text}", "--eval_data=a={text}"),
        ("--num_processes=2",),
        ("--process_id=1",),
        ("--coordinator_address=a",),
        ("--batch_size=3", "--config.accumulation=2"),
        ("--length=100000",),
        ("--config.model.num_heads=3",),
        ("--config.parallel.tensor=7",),
        ("--config.fresh=nothing", "--init_from={run}", "--length=32"),
        ("--warmup_steps=5", "--config.optimizer.warmup_share=0.1"),
        ("--config.data.held_out=2",),
        ("--config=nothing.py",),
        ("--config.data.weights=1,2",),
        ("--config.tokenizer.kind=bpe", "--config.tokenizer.path={run}"),
        ("text.txt",),
    ),
    "generate": (
        ("--prompt=a", "--prompts={text}"),
        ("--beams=4", "--temperature=1"),
        ("--num_return=5", "--beams=2"),
        ("--regex=(", "--prompt=a"),
        ("--json_schema={{", "--prompt=a"),
        ("--regex=a", "--json_schema={{}}"),
        ("--draft={run}", "--beams=2"),
        ("--lookup=2", "--draft={run}"),
        ("--model={run}", "--preset=gpt2"),
        ("--preset=gpt2",),
        ("--step=99",),
        ("--beam_groups=3", "--beams=4"),
        ("--stop_id=99999",),
        ("--tensor=9",),
    ),
    "evaluate": (
        ("--harness=lambada_openai", "--task=pairs"),
        ("--task=pairs",),
        ("--task=minimal_pairs",),
        ("--task=labels",),
        ("--limit=2",),
        ("--include_path={folder}",),
        ("--stride=99", "--max_length=2"),
        ("--text_field=nothing",),
    ),
    "embed": (
        ("--of=tokens",),
        ("--analogy=a,b",),
        ("--analogy=a,b,c",),
        ("--odd=a,b",),
        ("--data={folder}",),
        ("--output={text}",),
        ("--text_field=nothing",),
    ),
    "explain": (
        ("--method=patching",),
        ("--corrupted=the",),
        ("--label=oak",),
        ("--question=who",),
        ("--text2=a king", "--target=goes"),
        ("--against=a", "--max_new_tokens=2"),
        ("--corrupted=a king", "--target=goes"),
        ("--output={text}",),
    ),
    "data": (
        ("--text_field=nothing",),
        ("--against={folder}",),
        ("--threshold=2",),
        ("--documents=words",),
        ("--output={text}",),
    ),
    "audit": (
        ("--crows_pairs={text}",),
        ("--winobias={folder}",),
        ("--stereoset={text}",),
        ("--bbq={rows}",),
        ("--weat={text}",),
        ("--templates={rows}",),
        ("--prompts={prompts}",),
        ("--words={text}",),
        ("--prompts={prompts}", "--memorised", "--span=1"),
        ("--rater_label=oak",),
        ("--against={folder}",),
        ("--output={text}",),
    ),
    "predict": (("--text_field=nothing",), ("--step=99",), ("--output={text}",), ("--model={run}",)),
    "convert": (
        ("--from={run}",),
        ("--family=bert",),
        ("--dtype=float16",),
        ("--to={run}",),
        ("--to={text}",),
        ("--step=99",),
        ("--from={hf}", "--workdir={run}"),
        ("--from={hf}", "--to={hf}"),
        ("--shard_gb=0.0000001",),
    ),
    "serve": (
        ("--model=x={run}", "--model=x={run}"),
        ("--model={run}", "--adapter={run}"),
        ("--model={run}", "--adapter=a={text}"),
        ("--model={folder}",),
        ("--host=0.0.0.0",),
        ("--host=nowhere.invalid",),
        ("--token=a",),
        ("--rows=0",),
        ("--rows=100000000",),
        ("--max_length=1",),
        ("--queue=many",),
        ("--timeout=nan",),
        ("--cache_dtype=int4",),
    ),
    "chat": (
        ("--temperature=-1",),
        ("--top_p=2",),
        ("--seed=nan",),
        ("--max_tokens=0",),
        ("--load={text}",),
        ("--load={folder}",),
        ("--load={folder}/no",),
        ("--model={run}",),
    ),
    "tokenizer": (("--output={text}",), ("--vocab_size=5",), ("--vocab_size=900000000",), ("--output={folder}/no/x",)),
    "plan": (
        ("--topology=v5e:4x4x4",),
        ("--topology=cpu:0",),
        ("--topology=nothing:2x2",),
        ("--mesh=fsdp=2,fsdp=3", "--topology=cpu:1"),
        ("--mesh=auto", "--topology=cpu:1"),
        ("--tokens=0",),
    ),
    "doctor": (("--workdir={folder}",), ("--workdir={text}",), ("--repair",)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A command with bad input.

    Attributes:
        argv: the command and its flags; `{case}` stands for the folder of the case.
        named: texts of which a message must have one: the flag, the field or the file.
        damage: the file below `{case}` that is damaged, and how; None: none is.
    """

    argv: tuple[str, ...]
    named: tuple[str, ...]
    damage: tuple[str, str] | None = None

    def __str__(self) -> str:
        argv = " ".join(each if len(each) < 60 else f"{each[:50]}..." for each in self.argv)
        return repr(argv) + (f" with {self.damage[0]} {self.damage[1]}" if self.damage else "")


def base(command: str) -> tuple[str, ...]:
    """Returns flags with which a command does its work."""
    return {
        "train": ("--data={text}", "--workdir={case}/new", "--noprogress", "--steps=2", *SMALL),
        "generate": ("--workdir={run}", "--prompt=the king", "--max_new_tokens=2"),
        "evaluate": ("--workdir={run}", "--data={text}"),
        "predict": ("--workdir={classifier}", "--data={rows}"),
        "embed": ("--workdir={run}", "--data={text}", "--near=the king"),
        "explain": ("--workdir={run}", "--text=the king", "--method=occlusion", "--output={case}/new.html"),
        "audit": ("--workdir={run}", "--templates={templates}", "--output={case}/new.html"),
        "data": ("--data={text}", "--output={case}/new.html"),
        "convert": ("--workdir={run}", "--to={case}/out"),
        "tokenizer": ("--data={text}", "--vocab_size=400", "--output={case}/new.model"),
        "serve": ("--model={run}", "--port=0"),
        "chat": ("--workdir={run}",),
        "doctor": ("--workdir={run}",),
        "sweep": ("--grid=seed=0:2", "--data={text}", "--steps=2", *SMALL),
        "compare": ("--runs={run}",),
        "scaling": ("--sweep={run}",),
        "average": ("--models={run},{run}", "--to={case}/averaged"),
        "compress": ("--model={run}", "--method=int8", "--to={case}/compressed"),
        "plan": ("--topology=cpu:1", *RUN[2:], "--config.model.vocab_size=256"),
        "selfcheck": ("--rows=8", "--only=remat dots", *RUN[2:], "--config.model.vocab_size=256"),
        "rate": ("--workdir={run}", "--prompts={prompts}", "--answers={case}/answers.jsonl", "--max_new_tokens=2"),
        "teach": ("--model={run}", "--data={text}", "--to={case}/taught.safetensors", "--length=32"),
    }[command]


def _given(command: str, *more: str) -> tuple[str, ...]:
    """Returns a command with its usual flags, except those that are given here."""
    names = {each.split("=")[0] for each in more}
    return (command, *(each for each in base(command) if each.split("=")[0] not in names), *more)


def _values(flag: flags.Flag) -> tuple[str, ...]:
    if flag.boolean:
        return ("maybe", "2")
    if flag.flag_type() in ("int", "float"):
        return _NUMBERS
    if getattr(flag.parser, "enum_values", None) or flag.flag_type() in ("objective",):
        return _NAMES
    places = (
        "{bad}/no/such/file",
        "{folder}",
        "{text}/below",
        "{bad}/empty",
        "{bad}/binary",
        "{bad}/a pipe",
        "{bad}/not UTF-8",
    )
    return (*_NAMES, "-1", "nan", *places)


def of_flags(commands: dict[str, flags.FlagValues], same: dict[str, dict[str, str]]) -> Iterator[Case]:
    """Yields each flag of each command with each bad value of its type; `same`: the fields that flags set."""
    for command, values in commands.items():
        for name in values:
            flag = values[name]
            if flag.name != name or name in ("help", "help_config", "print_config"):
                continue
            for value in _values(flag):
                path = () if "=" in value or len(value) < 2 else (value,)
                field = [f"--config.{same[command][name]}"] if name in same[command] else []
                # A run is no sweep and has no chat template, so these may refuse their usual flags first.
                usual = ("{run}",) if command in ("scaling", "chat") else ()
                yield Case(_given(command, f"--{name}={value}"), (f"--{name}", *field, *path, *usual))
            yield Case((*_given(command), f"--{name}x=1"), (f"--{name}x",))


def of_fields(paths: list[str]) -> Iterator[Case]:
    """Yields each field of the config with values that few of them take."""
    for path in paths:
        group, _, name = path.rpartition(".")
        for value in _FIELD_VALUES:
            yield Case(
                _given("train", f"--config.{path}={value}"), (path, name, *([f"--config.{group}"] if group else []))
            )


def of_pairs() -> Iterator[Case]:
    """Yields flags that contradict each other or the model."""
    for command, pairs in PAIRS.items():
        for pair in pairs:
            names = [each.split("=")[0] for each in pair]
            values = [each.partition("=")[2] for each in pair]
            yield Case(_given(command, *pair), (*names, *(n.rpartition(".")[2] for n in names), *values, "{text}"))


def of_data(names: list[str]) -> Iterator[Case]:
    """Yields each bad file of data for each command that reads data."""
    for name in names:
        path = f"{{bad}}/{name}"
        yield Case(_given("train", f"--data={path}"), (path,))
        yield Case(_given("train", f"--eval_data={path}"), (path,))
        yield Case(_given("tokenizer", f"--data={path}"), (path,))
        yield Case(_given("evaluate", f"--data={path}"), (path,))
        yield Case(_given("evaluate", "--task=pairs", f"--data={path}"), (path,))
        yield Case(_given("predict", f"--data={path}"), (path,))
        yield Case(_given("embed", f"--data={path}"), (path,))
        yield Case(_given("data", f"--data={path}"), (path,))
        yield Case(_given("data", f"--against={path}"), (path,))
        for flag in ("crows_pairs", "winobias", "stereoset", "bbq", "weat", "templates"):
            yield Case(_given("audit", f"--{flag}={path}"), (path,))
        yield Case(("generate", "--workdir={run}", "--max_new_tokens=2", f"--prompts={path}"), (path,))
        yield Case(_given("train", "--objective=classification", f"--data={path}"), (path,))


def of_files(places: dict[str, pathlib.Path]) -> Iterator[Case]:
    """Yields each damage of each file of a workdir and of a folder of Hugging Face, for each command that reads it."""
    commands = {
        "run": (
            ("train", "--data={text}", "--workdir={case}/run", *RUN[1:], *SMALL, "--steps=3"),
            (
                "train",
                "--data={text}",
                "--workdir={case}/new",
                "--init_from={case}/run",
                "--noprogress",
                "--steps=1",
                "--length=32",
            ),
            ("generate", "--workdir={case}/run", "--prompt=the king", "--max_new_tokens=2"),
            ("evaluate", "--workdir={case}/run", "--data={text}"),
            ("convert", "--workdir={case}/run", "--to={case}/out"),
            ("doctor", "--workdir={case}/run"),
        ),
        "classifier": (
            ("predict", "--workdir={case}/classifier", "--data={rows}"),
            ("explain", "--workdir={case}/classifier", "--text=the fox", "--method=gradient", "--output=-"),
        ),
        "hf": (
            ("generate", "--model={case}/hf", "--prompt=the king", "--max_new_tokens=2"),
            ("convert", "--from={case}/hf", "--workdir={case}/new"),
            (
                "train",
                "--data={text}",
                "--workdir={case}/new",
                "--init_from={case}/hf",
                "--noprogress",
                "--steps=1",
                "--length=32",
            ),
        ),
    }
    for place, each in commands.items():
        for path in sorted(places[place].rglob("*")):
            name = path.relative_to(places[place]).as_posix()
            if not path.is_file() or "tensorboard" in name or "/array_metadatas/" in name:
                continue
            for how in DAMAGES:
                for argv in each:
                    step = name.split("/")[1:2] if name.startswith("checkpoints/") else []
                    yield Case(argv, (path.name, name, *step), (f"{place}/{name}", how))


def damage(case: Case, folder: pathlib.Path, places: dict[str, pathlib.Path]) -> None:
    """Copies what a case reads to its folder, and damages one file of it."""
    if case.damage is None:
        return
    name, how = case.damage
    place = name.split("/")[0]
    shutil.copytree(places[place], folder / place)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    DAMAGES[how](folder / name, content)
