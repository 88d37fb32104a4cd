"""Conversations with a model: `lmjax generate` keeps the template of its folder, and a run is exported with its own."""

import functools
import json
import warnings

import pytest

from lmjax.cli import run
from lmjax.commands import generate as command
from lmjax.commands.conversation import Conversation
from lmjax.commands.repl import Repl
from lmjax.data.chat import DEFAULT, ChatTemplate
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.messages import Message
from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.generate.requests import chatting
from lmjax.interop.export import choose_family, export
from lmjax.interop.tokenizer_export import export_tokenizer
from lmjax.runs.trained import load_model
from tests.inference.scoring import tiny, tokenizer

ASKED = [{"role": "system", "content": "king"}, {"role": "user", "content": "the old tree"}]
SHORT = GenerateConfig(max_new_tokens=3)


def exported(path, template, architecture="decoder"):
    loaded = tiny(architecture, max_length=64)
    given = tokenizer().with_template(template)
    export(
        choose_family(loaded.config, (), None, {}),
        loaded.config,
        loaded.params,
        path,
        extra={f"{role}_token_id": i for role, i in given.role_ids.items()},
        beside=lambda new: export_tokenizer(given, new, "gpt2", 64),
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face checkpoint with a chat template."""
    return exported(tmp_path_factory.mktemp("chat") / "hf", DEFAULT)


def asked(folder, messages):
    """The ids of a conversation that the model of a folder continues."""
    template = ChatTemplate.of(load_tokenizer(str(folder)))
    return template.prompt([Message(**message) for message in messages], "it")


def test_a_file_of_conversations_is_answered_in_the_template(folder, tmp_path, capsys):
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in (ASKED, ASKED[1:])))
    flags = [f"--model={folder}", "--max_new_tokens=3"]
    run(["generate", *flags, f"--prompts={path}", f"--output={output}"])
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["messages"] for each in found] == [ASKED, ASKED[1:]]
    loaded = load_model(folder)
    expected = generate(loaded, [asked(folder, ASKED), asked(folder, ASKED[1:])], SHORT)
    assert [each["ids"] for each in found] == [list(each[0].ids) for each in expected]
    run(["generate", *flags, f"--prompts={path}"])
    assert capsys.readouterr().out.count("== the old tree\n") == 2, "its last message is shown"


def test_a_prompt_is_a_message_on_demand(folder):
    flags = [f"--model={folder}", "--max_new_tokens=3", "--prompt=the old tree"]
    plain, message = run(["generate", *flags]), run(["generate", *flags, "--conversation"])
    loaded = load_model(folder)
    assert message[0][0].ids == generate(loaded, [asked(folder, ASKED[1:])], SHORT)[0][0].ids
    assert plain[0][0].ids == generate(loaded, [loaded.encode("the old tree")], SHORT)[0][0].ids


def test_a_conversation_at_a_terminal_remembers_what_was_said(folder, capsys, monkeypatch):
    """The second question is asked after the first answer; `:system` and `:new` begin anew."""
    lines = iter(["the king", "a queen", ":system old", "the king", ":new", "a tree", ":set temperature=many", ":quit"])
    given, streamed = [], command._streamed

    def recorded(loaded, draft, prompt, *rest):
        given.append(prompt)
        return streamed(loaded, draft, prompt, *rest)

    monkeypatch.setattr(command, "_streamed", recorded)
    loaded, said = chatting(load_model(folder)), Conversation()
    Repl({"max_new_tokens": "3"}, functools.partial(command._prepared, loaded, None, said, None), said).run(
        lambda shown: next(lines)
    )
    first = [{"role": "user", "content": "the king"}]
    answer = generate(loaded, [asked(folder, first)], SHORT)[0][0].text
    system = {"role": "system", "content": "old"}
    assert given == [
        first,
        [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "a queen"}],
        [system, *first],
        [system, {"role": "user", "content": "a tree"}],
    ]
    assert ":system TEXT" in capsys.readouterr().err


def test_an_interrupted_answer_is_not_remembered():
    said = Conversation()
    said.asked("a")
    assert said.messages == []


def test_what_cannot_chat_says_so(folder, tmp_path):
    bare = exported(tmp_path / "bare", "")
    with pytest.raises(FlagError, match="no chat template; train one with --objective=chat"):
        run(["generate", f"--model={bare}", "--conversation", "--prompt=a"])
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"messages": [*ASKED, {"role": "assistant", "content": "a"}]}))
    with pytest.raises(DataError, match=r"in.jsonl:1: the last message is the assistant's"):
        run(["generate", f"--model={folder}", f"--prompts={path}"])
    with pytest.raises(FlagError, match="'the king' is no conversation, and others are; give them apart"):
        generate(load_model(folder), [ASKED, "the king"], SHORT)


def test_the_stop_token_of_the_template_ends_an_answer(tmp_path):
    """[SEP] ends turns here: it may be generated, and ends an answer in addition to EOS."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}[SEP]{% endfor %}"
    loaded = load_model(exported(tmp_path / "hf", source))
    t = loaded.tokenizer
    biased = GenerateConfig(max_new_tokens=8, sampling={"temperature": 50.0}, seed=1)
    found = [each[0] for each in generate(loaded, [ASKED] * 24, biased)]
    ended = [each for each in found if t.sep_id in each.ids]
    assert ended, "no answer of 24 at random has the token"
    assert all(each.ids[-1] == t.sep_id and each.finished == "stop" for each in ended)


def test_a_run_is_exported_with_its_template(tmp_path):
    """The folder answers as the run does, and transformers renders the same ids."""
    pairs = [("abc?", "cba"), ("d", "d"), ("e f", "g.")] * 4
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    data, held, workdir, hf = (tmp_path / name for name in ("chat.jsonl", "held.jsonl", "run", "hf"))
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    held.write_text(json.dumps({"messages": messages[0]}) + "\n")
    sizes = {"embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "num_layers": 1, "max_length": 64}
    run(["train", "--objective=chat", f"--data={data}", f"--eval_data=dev={held}", f"--workdir={workdir}", "--steps=1",
         *(f"--config.model.{name}={size}" for name, size in sizes.items()), "--config.tokenizer.kind=char",
         "--config.tokenizer.byte_fallback=false", "--config.task.length=48", "--config.batch_size=8",
         "--config.logging.tensorboard=false"])  # fmt: skip
    run(["convert", f"--workdir={workdir}", f"--to={hf}"])
    assert (hf / "chat_template.jinja").read_text() == DEFAULT
    ours, question = load_model(workdir), messages[0][:1]
    assert generate(load_model(hf), [question], SHORT)[0][0].ids == generate(ours, [question], SHORT)[0][0].ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(hf)
        ids = theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == list(ours.ids(question, "it"))
