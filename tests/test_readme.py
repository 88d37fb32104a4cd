"""README.md and the guide: each of their commands is accepted, common ones run, and what they link to is there."""

import gzip
import json
import pathlib
import re
import shlex
import shutil

import pytest

from lmjax import cli

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[1]
RECORDED = ROOT / "tests/inference/generate/recorded"
PAGES = [ROOT / "README.md", *sorted((ROOT / "colab/guide").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in page.read_text().split("```")[1::2]]
COMMANDS = list(dict.fromkeys(line for block in BLOCKS for line in block.splitlines() if line.startswith("lmjax ")))
ARGUMENTS = [shlex.split(command, comments=True)[1:] for command in COMMANDS]
# Flags of a model and a run that take a second; flags of the command itself have priority.
TINY = {
    "--config.model.embed_dim": "16", "--config.model.num_heads": "2", "--config.model.mlp_dim": "16",
    "--config.model.num_layers": "1", "--config.tokenizer.kind": "bpe", "--config.tokenizer.vocab_size": "420",
    "--config.data.held_out": "0.3", "--steps": "2", "--batch_size": "8", "--length": "32",
    "--config.evaluation.batches": "1", "--config.logging.tensorboard": "false",
}  # fmt: skip
SENTENCES = [f"The {a} {b} sees the {c}. It goes to the {a} house. Then it sleeps." for a in ("old", "young", "tall")
             for b in ("king", "queen", "cat") for c in ("river", "tree", "road")]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Returns a folder with the files of the commands: texts, pairs, and small checkpoints with the README's names."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "texts").mkdir()
    for i, sentence in enumerate(SENTENCES):
        (folder / "texts" / f"{i}.txt").write_text(sentence)
    for name in ("input.txt", "text.txt"):
        (folder / name).write_text("\n\n".join(SENTENCES))
    (folder / "in.txt").write_text("the old\nthe young\n")
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"source": s, "target": s[:12]}) + "\n" for s in SENTENCES)
    for name in ("train.csv", "dev.csv", "test.csv"):
        (folder / name).write_text("text\n" + "".join(f'"{s}"\n' for s in SENTENCES))
    (folder / "experiments").symlink_to(ROOT / "experiments")
    shutil.copytree(RECORDED / "t5", folder / "t5")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def tiny(arguments: list[str]) -> list[str]:
    """Returns the arguments of a training command, with those of TINY added that it does not have."""
    given = {a.partition("=")[0] for a in arguments}
    # A checkpoint has its own model and tokenizer.
    from_elsewhere = ("model", "tokenizer") if "--init_from" in given else ()
    rest = {k: v for k, v in TINY.items() if k not in given and k.split(".")[1:2] not in [[n] for n in from_elsewhere]}
    return [*arguments, "--noprogress", *(f"{name}={value}" for name, value in rest.items())]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Files exist, and so do the headings that a link names."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page.name} links to {link}"


def test_readme_has_the_commands():
    assert len(COMMANDS) > 25
    assert {arguments[0] for arguments in ARGUMENTS} == set(cli.COMMANDS)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=COMMANDS)
def test_every_command_is_accepted(arguments, here, capsys):
    """Its flags exist, and the fields of a run fit together."""
    if arguments[0] == "train" and "--init_from" not in " ".join(arguments):
        cli.run([*arguments, *(["--print_config"] if "--print_config" not in arguments else [])])
        assert '"objective"' in capsys.readouterr().out
    else:
        cli.run([*arguments, "--help"])


def test_the_usual_path_runs(here, capsys):
    """In the order in which the commands need the results of others."""

    def of(*words: str) -> list[str]:
        (found,) = [a for c, a in zip(COMMANDS, ARGUMENTS, strict=True) if all(word in c for word in words)]
        return found

    cli.run([*tiny(of("train", "--data='texts/*.txt'", "a document per file")), "--workdir=runs/mine"])
    cli.run(tiny(of("train", "pairs.jsonl.gz")))
    cli.run(tiny(of("train", "dev=dev.csv")))
    capsys.readouterr()
    cli.run([*of("generate", "--workdir=runs/mine"), "--max_new_tokens=4"])
    assert "Return the" in capsys.readouterr().err
    cli.run(of("evaluate", "--workdir=runs/mine"))
    assert "bits_per_byte" in capsys.readouterr().out.replace(" ", "_")
    cli.run(of("convert", "--workdir=runs/mine"))
    assert pathlib.Path("mine/config.json").is_file()
    # The export is used as a published checkpoint.
    shutil.copytree("mine", "gpt2")
    cli.run(of("convert", "--from=gpt2/"))
    cli.run(tiny(of("train", "--init_from=runs/gpt2")))
    cli.run([*of("generate", "--model=t5/"), "--max_new_tokens=4"])
    assert len(pathlib.Path("out.jsonl").read_text().splitlines()) == 2
    cli.run([a.replace("8192", "420") for a in of("tokenizer", "8192")])
