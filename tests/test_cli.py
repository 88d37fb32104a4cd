"""The command line: help, the printed config, and the exit code and message of every error."""

import gc
import json
import subprocess
import sys

import pytest

from lmjax import cli
from lmjax.errors import FlagError

pytestmark = pytest.mark.usefixtures("all_devices")

TINY = ("--config.tokenizer.kind=char", "--config.tokenizer.byte_fallback=false", "--config.data.held_out=0.2")


@pytest.fixture
def lmjax(monkeypatch, capsys, tmp_path):
    """Returns a function that runs the script in an empty folder and returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmjax", *argv])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


def test_help_lists_commands_and_flags(lmjax):
    assert "tokenizer" in lmjax("--help")[1]
    code, out, _ = lmjax("train", "--help")
    assert code == 0
    for word in ("--objective", "span_corruption", "--architecture=encoder|decoder", "--eval_data", "bert_base"):
        assert word in out
    for word in ("--optimizer=adafactor|adam|", "--schedule=constant|", "--parallel=mesh|pmap", "--minutes"):
        assert word in out
    assert lmjax("tokenizer", "--help")[0] == 0


@pytest.mark.parametrize(("before", "after"), [(700, 10_000), (50_000, 50_000)])
def test_a_command_collects_garbage_less_often_than_python_does(lmjax, before, after):
    ours = gc.get_threshold()
    try:
        gc.set_threshold(before, *ours[1:])
        lmjax("train", "--help")
        assert gc.get_threshold()[0] == after
    finally:
        gc.set_threshold(*ours)


def test_print_config_shows_json_and_parameters_and_makes_nothing(lmjax, tmp_path):
    code, out, _ = lmjax("train", "--objective=mlm,nsp", "--print_config", "--config.model.num_layers=3")
    assert code == 0
    config, end = json.JSONDecoder().raw_decode(out)
    assert config["model"]["num_layers"] == 3
    assert "vocab embed" in out[end:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ((), 64, ()),
        (("trian",), 64, ("no command 'trian'", "train")),
        (("train", "--steps=many"), 64, ("--steps=many", "integer")),
        (("train", "--stpes=3"), 64, ("stpes", "steps")),
        (("train", "--objective=mlm,foo"), 64, ("--objective", "no objective 'foo'", "span_corruption")),
        (("train", "--architecture=both"), 64, ("--architecture", "encoder_decoder")),
        (("train", "more"), 64, ("'more' is no flag",)),
        (("train", "--config.model.num_layer=3"), 64, ("did you mean --config.model.num_layers?",)),
        (("train", "--config.model.num_layers"), 64, ("--config.model.num_layers=VALUE",)),
        (("train", "--config.parallel.fsdp=3"), 64, ("fsdp=3", "8 device(s)")),
        (("train", "--config.batch_size=12"), 64, ("--config.batch_size=12", "multiple of 8")),
        (
            ("train", "--config.parallel.tensor=8", "--config.parallel.data=1"),
            64,
            ("--config.parallel.tensor=8", "heads dimension of 4"),
        ),
        (("train", "--config=missing.py"), 64, ("missing.py",)),
        (("train", "--config.tokenizer.path=no.model"), 64, ("no.model",)),
        (("train", "--data=absent/*.txt"), 65, ("absent/*.txt",)),
        (("train", "--data=empty.txt"), 65, ("empty.txt",)),
        (("train", "--data=binary.txt"), 65, ("binary.txt:1",)),
        (("train", "--data=latin1.txt"), 65, ("latin1.txt:2", "UTF-8")),
        (("train", "--data=cut.txt.gz"), 65, ("cut.txt.gz",)),
        (("train", "--data=bad.jsonl"), 65, ("bad.jsonl:2",)),
        (("train", "--data=folder"), 65, ("folder",)),
        (("train", "--eval_data=a=empty.txt", "--eval_data=a=empty.txt"), 64, ("'a'",)),
        (("train", "--num_processes=2"), 64, ("--coordinator_address",)),
        (("train", "--optimizer=adamx"), 64, ("--optimizer", "adamw", "muon")),
        (("train", "--steps=5", "--minutes=1"), 64, ("--steps=5 and --minutes=1.0", "give one")),
        (("train", "--optimizer=schedule_free"), 64, ("--config.optimizer", "schedule=constant")),
        (("train", "--parallel=pmap", "--config.parallel.fsdp=2"), 64, ("--parallel=pmap", "fsdp=2")),
        (
            (
                "train",
                "--print_config",
                "--config.optimizer.group_patterns=embeding",
                "--config.optimizer.group_factors=0",
            ),
            64,
            ("'embeding' matches no parameter", "embedding/table"),
        ),
        (("train", "--workdir=full"), 64, ("--workdir=full", "no run of lmjax")),
        (("tokenizer", "--data=empty.txt"), 65, ("empty.txt",)),
        (("tokenizer", "--output=empty.txt"), 64, ("--output=empty.txt exists",)),
    ],
)
def test_mistakes_end_in_one_message(lmjax, tmp_path, argv, code, words):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2\3")
    (tmp_path / "latin1.txt").write_bytes(b"fine\ncaf\xe9\n")
    (tmp_path / "cut.txt.gz").write_bytes(bytes.fromhex("1f8b08000000000000034bcbcf07"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    status, out, err = lmjax(*argv)
    assert status == code, err
    assert all(word in err for word in words), err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2, err
    assert {p: p.read_bytes() for p in before} == before, "a user's file was overwritten"
    assert not out or not argv


def test_tokenizer_writes_a_model_and_says_how_well_it_compresses(lmjax, corpus, tmp_path):
    code, out, _ = lmjax("tokenizer", f"--data={corpus}", "--output=my.model", "--kind=char", *TINY[1:])
    assert code == 0
    assert "tokens per byte" in out
    assert (tmp_path / "my.model").stat().st_size > 0


def test_a_notebook_gets_the_error_itself():
    with pytest.raises(FlagError, match="no command"):
        cli.run(["trian"])


def test_a_reader_that_has_enough_ends_the_command_in_silence():
    """As in `lmjax train --help | head -1`, which must not show a traceback about the pipe."""
    done = subprocess.Popen(
        [sys.executable, "-m", "lmjax", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    done.stdout.close()
    assert done.stderr.read() == b""
    done.stderr.close()
    assert done.wait() == 141
