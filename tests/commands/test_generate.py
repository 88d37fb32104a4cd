"""`lmjax generate`: every flag sets its field, errors appear before anything is compiled, and texts are written."""

import io
import json
import sys

import jax
import pytest

from lmjax import cli
from lmjax.cli import run
from lmjax.commands.generate import configure
from lmjax.commands.prompts import read_prompts
from lmjax.commands.repl import Repl, history
from lmjax.errors import DataError, FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.model.presets import PRESETS
from lmjax.runs.trained import load_model
from tests.inference.scoring import tiny

FLAGS = {
    "max_new_tokens": ("5", "max_new_tokens", 5),
    "temperature": ("0.5", "sampling.temperature", 0.5),
    "top_k": ("3", "sampling.top_k", 3),
    "top_p": ("0.9", "sampling.top_p", 0.9),
    "min_p": ("0.1", "sampling.min_p", 0.1),
    "typical_p": ("0.8", "sampling.typical_p", 0.8),
    "repetition_penalty": ("1.2", "processors.repetition_penalty", 1.2),
    "no_repeat_ngram": ("3", "processors.no_repeat_ngram", 3),
    "min_new_tokens": ("2", "processors.min_new_tokens", 2),
    "seed": ("7", "seed", 7),
    "batch_size": ("2", "batch_size", 2),
    "prefill_chunk": ("32", "prefill_chunk", 32),
    "cache_dtype": ("int8", "cache", "int8"),
    "lookup": ("2", "lookup", 2),
    "draft_tokens": ("6", "draft_tokens", 6),
    "stop": (["\n", "Q:"], "stop", ("\n", "Q:")),
    "stop_id": (["4", "5"], "stop_ids", (4, 5)),
    "regex": ("a+", "regex", "a+"),
    "json_schema": ('{"type": "null"}', "json_schema", '{"type": "null"}'),
    "beams": ("4", "beams.beams", 4),
    "length_penalty": ("0.6", "beams.length_penalty", 0.6),
    "early_stopping": ("never", "beams.early_stopping", "never"),
    "beam_groups": ("2", "beams.groups", 2),
    "diversity": ("0.5", "beams.diversity", 0.5),
    "num_return": ("3", "beams.num_return", 3),
    "unmask_steps": ("8", "unmask.steps", 8),
    "unmask_order": ("random", "unmask.order", "random"),
    "unmask_block": ("4", "unmask.block", 4),
}
# Flags that a flag needs beside it.
NEEDED = {
    "top_k": ("temperature",),
    "top_p": ("temperature",),
    "min_p": ("temperature",),
    "typical_p": ("temperature",),
}
NEEDED |= dict.fromkeys(("length_penalty", "early_stopping", "num_return"), ("beams",))
NEEDED |= {"beam_groups": ("beams", "diversity"), "diversity": ("beams", "beam_groups")}


@pytest.fixture(scope="module")
def workdir(folder):
    path = folder.parent / "run"
    run(["convert", f"--from={folder}", f"--workdir={path}"])
    return path


@pytest.fixture
def no_compilation(monkeypatch):
    """Makes the test fail if a program of a model is compiled."""

    def compiled(*args, **kwargs):
        raise AssertionError("a program was compiled before the error")

    for name in ("prefill", "extend", "begin", "run"):
        monkeypatch.setattr(f"lmjax.inference.generate.decode.{name}", compiled)
    # pytest's own stdin is not a terminal.
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


def field(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_reaches_its_field_and_changes_no_other(name):
    text, path, value = FLAGS[name]
    others = {other: FLAGS[other][0] for other in NEEDED.get(name, ())}
    config = configure({name: text, **others})
    assert field(config, path) == value
    assert field(GenerateConfig(beams={}), path) != value or name == "beams"
    for other, (_, where, wrong) in FLAGS.items():
        if other not in (name, *others) and (config.beams or not where.startswith("beams.")):
            assert field(config, where) != wrong or where == "beams.beams"


def test_without_flags_the_config_is_the_default():
    assert configure({}) == GenerateConfig()
    assert configure({"temperature": "0.7"}).sampling.temperature == 0.7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature=nan"], "--temperature=nan: .*finite"),
        (["--temperature=-1"], "--temperature=-1: .*greater than or equal to 0"),
        (["--temperature=0.5", "--top_p=2"], "--top_p=2: .*less than or equal to 1"),
        (["--top_k=5"], "--top_k=5 .*temperature"),
        (["--max_new_tokens=many"], "--max_new_tokens=many: .*valid integer"),
        (["--beams=4", "--temperature=0.7"], "--beams=4 and temperature=0.7"),
        (["--beams=4", "--draft=x"], "--beams=4 and --draft=x"),
        (["--num_return=2"], "--num_return=2: .*--beams=N"),
        (["--beams=2", "--num_return=4"], "--num_return=4 is more than beams=2"),
        (["--early_stopping=soon", "--beams=2"], "--early_stopping=soon"),
        (["--stop="], "--stop=''"),
        (["--stop_id=many"], "--stop_id=many"),
        (["--stop_id=192"], "--stop_id=192: is not in the vocabulary; ids go from 0 to 191"),
        (["--regex=a", "--json_schema={}"], "--regex and json_schema are both given"),
        (["--regex=("], r"--regex=\(: .*unclosed group"),
        (["--regex=[a-z]+~"], "--regex=.*no text matches it"),
        (["--json_schema=none.json"], "--json_schema=none.json: cannot be read .*No such file"),
        (["--json_schema={1"], "--json_schema={1: is not JSON"),
        (["--cache_dtype=int4"], "--cache_dtype=int4: .*'compute' or 'int8'"),
        (["--prompt="], "--prompt='': an empty prompt"),
        (["--prompt=a", "--prompt= "], "--prompt=' ': an empty prompt"),
        (["--max_new_tokens=20"], r"--prompt.* has 3 tokens and --max_new_tokens=20, and the model's rows have 16"),
        (["--prompt=" + "The old king " * 9], r"--prompt=.* has 37 tokens.*, and the model's rows have 16; shorten it"),
        (["--prompts=none.txt", "--prompt"], "--prompt and --prompts=none.txt: .*give one"),
        (["--output={here}"], "--output=.*exists, and is never overwritten"),
        (["--output=no/such/file"], "--output=no/such/file: is in a folder that does not exist"),
        (["--preset=gpt2"], "needs one of --model.*--model, --preset given"),
        (["--tokenizer=x.model"], "--tokenizer=x.model: .* has its own"),
        (["--step=3"], "--step=3: .*no steps"),
        (["--tensor=3"], "--tensor=3 does not divide"),
        (["--config.seed=3"], "--config.seed: generate has no config"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_compiles(every_device, folder, no_compilation, flags, message):
    here = str(folder / "config.json")
    flags = [flag.replace("{here}", here) for flag in flags]
    if flags[-1] == "--prompt" or not any(flag.startswith("--prompt=") for flag in flags):
        flags = [*(flag for flag in flags if flag != "--prompt"), "--prompt=The king"]
    if not any(flag.startswith("--max_new_tokens") for flag in flags):
        flags = ["--max_new_tokens=4", *flags]
    with pytest.raises((FlagError, DataError), match=message) as error:
        run(["generate", f"--model={folder}", *flags])
    assert "\n" not in str(error.value)


def test_a_place_that_is_none_and_a_preset_without_a_tokenizer(no_compilation):
    for flags, message in (
        (["--model=no/such/place"], "no/such/place: there is no such folder"),
        (["--preset=gpt2"], "--preset=gpt2: needs --tokenizer=PATH"),
        ([], "needs one of --model=PLACE"),
    ):
        with pytest.raises(FlagError, match=message):
            run(["generate", "--prompt=a", *flags])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: there is no such file"),
        ("empty.txt", b"", "empty.txt: the file is empty"),
        ("empty.jsonl", b"", "empty.jsonl: the file is empty"),
        ("a.txt", b"fine\n\nfine\n", r"a\.txt:2: an empty prompt"),
        ("a.txt", b"fine\n\xff\n", r"a\.txt:2: not UTF-8"),
        ("a.txt", b"fine\na\x00b\n", r"a\.txt:2: a NUL"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', r"a\.jsonl:2: 'prompt' is '3', not a string"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "a"}\n', r"a\.jsonl:2: no 'prompt'"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"prompt": "\\ud800"}\n', r"a\.jsonl:1: .*surrogate"),
    ],
)
def test_a_bad_file_of_prompts_is_told_by_file_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts([], str(path))


def test_prompts_come_from_flags_a_file_or_a_pipe_and_else_a_conversation_begins(tmp_path, monkeypatch):
    assert read_prompts(["a", "b"], None).texts == ["a", "b"]
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa \r\n b\n".encode())
    assert read_prompts([], str(path)) == ([f"{path}:1", f"{path}:2"], ["a ", " b"])
    records = tmp_path / "prompts.jsonl"
    records.write_text('{"prompt": "a\\nb", "more": 1}\n')
    assert read_prompts([], str(records)).texts == ["a\nb"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert read_prompts([], None).texts == ["two\nlines"], "a pipe must be one prompt"
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert read_prompts([], None) is None


def converse(lines, prepare, settings=()):
    """Returns the settings after a conversation; an exception among the lines is raised as by `input`."""
    lines = iter(lines)

    def read(shown):
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    repl = Repl(dict(settings), prepare)
    repl.run(read)
    return repl.settings


def test_a_conversation_changes_settings_and_survives_mistakes_and_interrupts(capsys):
    seen = []

    def prepare(settings):
        config = configure(settings)

        def write(prompt, number):
            seen.append((prompt, number, config.sampling.temperature, config.max_new_tokens))
            if prompt == "long":
                raise KeyboardInterrupt

        return write

    lines = ["a", ":set temperature=0.8", "b", ":set temperature=-1", ":set temprature=1", KeyboardInterrupt(), "long"]
    lines += ["", "\x00", ":show", ":nonsense", ":set temperature=none", "c", ":quit", "never"]
    assert converse(lines, prepare, {"max_new_tokens": "3"}) == {"max_new_tokens": "3"}
    assert seen == [("a", 0, 0.0, 3), ("b", 1, 0.8, 3), ("long", 2, 0.8, 3), ("c", 3, 0.0, 3)]
    out, err = capsys.readouterr()
    assert "max_new_tokens=3\ntemperature=0.8\n" in out
    assert "--temperature=-1: " in err
    assert "temprature: no such setting; did you mean temperature?" in err
    assert "a NUL character" in err


def test_history_is_kept_in_the_users_state_folder(tmp_path, monkeypatch):
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for line in ("one", "two"):
        readline.clear_history()
        with history():
            readline.add_history(line)
    path = tmp_path / "state" / "lmjax" / "history"
    assert [line for line in path.read_text().splitlines() if line in ("one", "two")] == ["one", "two"]
    assert path.stat().st_mode & 0o077 == 0, "other users can read the history"
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/no")
    with history():
        pass


def test_a_streamed_text_is_that_of_the_library_and_its_speed_is_told(workdir, capsys, monkeypatch):
    flags = ["--prompt=The old", "--max_new_tokens=8"]
    ((told,),) = run(["generate", f"--workdir={workdir}", *flags])
    out, err = capsys.readouterr()
    loaded = load_model(str(workdir))
    ((expected,),) = generate(loaded, ["The old"], GenerateConfig(max_new_tokens=8))
    assert told.ids == expected.ids
    assert told.text == expected.text
    assert out == expected.text + "\n"
    assert f"{len(expected.ids)} tokens in" in err
    assert "the first after" in err
    # The same through the entry point of the script.
    monkeypatch.setattr(sys, "argv", ["lmjax", "generate", f"--workdir={workdir}", *flags])
    cli.main()
    assert capsys.readouterr().out == out


def test_several_prompts_are_written_in_their_order_and_saved(workdir, tmp_path, capsys):
    prompts, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = ["The old king", "A", "The queen sees"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    flags = [f"--model={workdir}", f"--prompts={prompts}", "--max_new_tokens=4", "--temperature=0.9", "--seed=3"]
    found = run(["generate", *flags, f"--output={output}"])
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["prompt"] for r in records] == texts
    assert [tuple(r["ids"]) for r in records] == [each[0].ids for each in found]
    assert set(records[0]) == {"prompt", "text", "ids", "score", "finished"}
    capsys.readouterr()
    again = run(["generate", *flags])
    assert again == found
    out = capsys.readouterr().out
    assert [line[3:] for line in out.splitlines() if line.startswith("== ")] == texts
    prompts.write_text('{"prompt": "A"}\n' + json.dumps({"prompt": "The king " * 10}))
    with pytest.raises(FlagError, match=r"in\.jsonl:2 has \d+ tokens"):
        run(["generate", *flags])


def test_a_text_matches_the_regular_expression_that_was_given(workdir):
    ((told,),) = run(
        ["generate", f"--model={workdir}", "--prompt=The old", "--max_new_tokens=8", "--regex= (king|queen)s"]
    )
    assert told.text in (" kings", " queens")


def test_a_preset_gets_random_weights_and_says_so(workdir, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "nano_decoder", load_model(str(workdir)).config)
    seen = []
    monkeypatch.setattr("lmjax.commands.generate._write", lambda loaded, *others: seen.append(loaded))
    flags = ["--preset=nano_decoder", f"--tokenizer={workdir}", "--prompt=The old"]
    run(["generate", *flags, "--seed=1"])
    assert "nano_decoder: the weights are random (--seed=1)" in capsys.readouterr().err
    (loaded,) = seen
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.mesh), loaded.params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.mesh), load_model(str(workdir)).params)
    tokens, prompts = loaded.tokenizer, loaded.prompts
    assert (prompts.before, prompts.stop) == ((tokens.bos_id,), (tokens.eos_id,))
    unknown = range(tokens.vocab_size, loaded.config.vocab_size)
    assert set(prompts.never) == tokens.special_ids - {tokens.eos_id} | set(unknown)
    monkeypatch.setitem(PRESETS, "nano_decoder", loaded.config.model_copy(update={"vocab_size": 128}))
    with pytest.raises(FlagError, match="--tokenizer: it has 180 ids and the model 128 rows"):
        run(["generate", *flags])


def test_an_encoder_fills_masks_and_takes_no_flag_of_writing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lmjax.commands.generate._place", lambda values: ("x", True, GenerationDefaults()))
    monkeypatch.setattr("lmjax.commands.generate.opened", lambda values, place, **_: tiny("encoder"))
    output = tmp_path / "out.jsonl"
    found = run(["generate", "--prompt=The [MASK] sees [MASK]", "--top_k=2", f"--output={output}"])
    assert [len(mask) for mask in found[0]] == [2, 2]
    record = json.loads(output.read_text())
    assert record["masks"][0][0]["id"] == found[0][0][0].id
    run(["generate", "--prompt=The [MASK] sees", "--top_k=2"])
    assert capsys.readouterr().out.startswith("The [MASK] sees\n  1: ")
    with pytest.raises(FlagError, match="--max_new_tokens: x is an encoder"):
        run(["generate", "--prompt=The [MASK]", "--max_new_tokens=3"])
