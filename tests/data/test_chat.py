"""Chat templates: texts, ids and masks are those of transformers, and a hostile template does no harm."""

import json
import os
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import tokenizers

from lmjax.data import chat, chat_render
from lmjax.data.chat import ChatEncoder, ChatTemplate
from lmjax.data.documents import Document
from lmjax.data.fast_tokenizer import FastTokenizer, load_tokenizer
from lmjax.data.messages import Message, read_messages
from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import DataError, FlagError

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = TURNS + PROMPT
BLOCKS = """{{- bos_token }}{% for m in messages %}
    {%- if m['role'] == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ m['content'] | trim }}<|im_end|>{% endgeneration %}

    {% else %}
<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
    {% endif %}
{%- endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ODDITIES = """{% set ns = namespace(n=0, last='') %}{% if tools is not none %}tools{% endif %}
{%- if messages[0].role == 'system' %}{% set d = dict(a=messages[0].content) %}{{ d | tojson }}{{ strftime_now('%Y') }}
{%- else %}{{ messages | length }}{% endif %}
{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}
[{{ ns.n }}] {{ m.role | upper }}: {% generation %}{{ '-' * 3 ~ m.content.strip() }}{% endgeneration %}{{ eos_token }}
{% endfor %}"""

SYSTEM, ASK, SAY = (
    Message("system", "be <brief> & kind"),
    Message("user", " naïve\ncafé? 🙂"),
    Message("assistant", "Yes"),
)
LONG = Message("assistant", "\n no, 快速的 <|im_end|> and more\n")
CONVERSATIONS = (
    (ASK, SAY),
    (SYSTEM, ASK, LONG, ASK, SAY),
    (SYSTEM, ASK, SAY, Message("user", ""), Message("assistant", "")),
    (Message("user", "<s> a </s>"), SAY, ASK, LONG, ASK),
)


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """The folder of a byte-level tokenizer with the special tokens of ChatML."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    texts = [m.content for c in CONVERSATIONS for m in c] * 3 + ["assistant\n\n", "user\n no", "\n\n no"] * 5
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    folder = tmp_path_factory.mktemp("fast")
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": BLOCKS}))
    return folder


@pytest.fixture(scope="module")
def theirs(fast):
    """The same tokenizer in transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        return transformers.AutoTokenizer.from_pretrained(fast)


def dicts(conversation):
    return [message._asdict() for message in conversation]


@pytest.mark.parametrize("source", [BLOCKS, ODDITIES, CHATML, chat.DEFAULT], ids=["blocks", "oddities", "ml", "ours"])
def test_texts_ids_and_masks_are_those_of_transformers(fast, theirs, source):
    ours = ChatTemplate.of(load_tokenizer(str(fast)), source)
    texts, spoken = ours.render(CONVERSATIONS), list(ours.encode(CONVERSATIONS))
    for conversation, text, found in zip(CONVERSATIONS, texts, spoken, strict=True):
        asked = {"conversation": dicts(conversation), "chat_template": source}
        assert text.text == theirs.apply_chat_template(**asked, tokenize=False)
        expected = theirs.apply_chat_template(
            **asked, return_dict=True, return_assistant_tokens_mask="endgeneration" in source
        )
        assert found.ids.tolist() == expected["input_ids"]
        if "endgeneration" in source:
            assert found.mask.astype(int).tolist() == expected["assistant_masks"]
        ended = conversation[:-1]
        prompt = theirs.apply_chat_template(dicts(ended), chat_template=source, add_generation_prompt=True)
        assert ours.prompt(ended, "it") == prompt["input_ids"]


def test_without_generation_blocks_the_assistant_writes_its_text_and_the_stop_token(fast):
    """No white space after the stop token, and nothing of the next message."""
    ours = ChatTemplate.of(load_tokenizer(str(fast)), CHATML)
    assert ours.stop == (ours.tokenizer.token_id("<|im_end|>"),)
    for conversation, found in zip(CONVERSATIONS, ours.render(CONVERSATIONS), strict=True):
        said = [f"{m.content}<|im_end|>" for m in conversation if m.role == "assistant"]
        assert [found.text[a:b] for a, b in found.spans] == said


def test_a_template_that_changes_earlier_turns_needs_generation_blocks(fast):
    source = TURNS.replace("m.content", "'' if m.role == 'assistant' and not loop.last else m.content") + PROMPT
    ours = ChatTemplate.of(load_tokenizer(str(fast)), source)
    with pytest.raises(DataError, match=r"d\.jsonl:7: the chat template refuses .*otherwise once others follow"):
        ours.render([CONVERSATIONS[1]], ["d.jsonl:7"])


def pieces(tokenizer: Tokenizer, ids) -> list[str]:
    return [tokenizer._model.id_to_piece(int(i)) for i in ids]


def test_the_default_template_ends_answers_with_eos_and_no_content_spells_a_special_token(tokenizer):
    ours = ChatTemplate.of(tokenizer)
    asked = (
        Message("system", "a[MASK]b"),
        Message("user", "</s> <s>Assistant:"),
        Message("assistant", "<extra_id_3>!"),
    )
    (found,) = ours.encode([asked])
    special = [piece for i, piece in zip(found.ids, pieces(tokenizer, found.ids), strict=True) if i in
               tokenizer.special_ids]  # fmt: skip
    assert special == ["<s>", "</s>"]
    assert tokenizer.decode(found.ids) == ("System:\na[MASK]b\nUser:\n</s> <s>Assistant:\nAssistant:\n<extra_id_3>!\n")
    assert tokenizer.decode(found.ids[found.mask]) == "<extra_id_3>!"
    assert found.ids[found.mask][-1] == tokenizer.eos_id
    assert ours.stop == (tokenizer.eos_id,)
    # What is generated after a prompt is what training predicts.
    assert ours.prompt(asked[:2], "it") == found.ids[: found.spans[0, 0]].tolist()


def test_the_template_is_saved_with_the_tokenizer(tokenizer, fast, tmp_path):
    for number, original in enumerate((tokenizer, load_tokenizer(str(fast)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        changed = original.with_template(CHATML)
        changed.save_in(folder)
        again = load_tokenizer(str(folder))
        assert (again.chat_template, again.fingerprint) == (CHATML, original.fingerprint)
        assert pickle.loads(pickle.dumps(again)).chat_template == CHATML
    (tmp_path / "1" / "chat_template.jinja").unlink()
    assert load_tokenizer(str(tmp_path / "1")).chat_template == BLOCKS, "that of tokenizer_config.json"


def test_one_of_several_named_templates_is_the_default_one(fast):
    files = load_tokenizer(str(fast)).files
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": CHATML}]
    for given, expected in ((named, CHATML), (None, ""), (CHATML, CHATML)):
        config = json.dumps({"chat_template": given}).encode()
        found = FastTokenizer(files | {"tokenizer_config.json": config}, load_tokenizer(str(fast)).names)
        assert found.chat_template == expected
    with pytest.raises(FlagError, match="chat_template is '7'"):
        FastTokenizer(files | {"tokenizer_config.json": b'{"chat_template": 7}'}, load_tokenizer(str(fast)).names)


def test_stored_spans_are_those_of_the_tokens(tokenizer):
    documents = [
        Document(tuple(m.content for m in c), "", counts=(len(c),), values=((f"d:{i}", *(m.role for m in c)),))
        for i, c in enumerate(CONVERSATIONS)
    ]
    encoder = ChatEncoder(ChatTemplate.of(tokenizer))
    spoken = ChatTemplate.of(tokenizer).encode(CONVERSATIONS)
    for (document, ids, ends), found in zip(encoder(documents), spoken, strict=True):
        np.testing.assert_array_equal(ids, found.ids)
        assert (ends.tolist(), document.values) == ([len(ids)], (tuple(found.spans.ravel().tolist()),))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{{ raise_exception.__globals__.sys }}", "SecurityError"),
        ("{% set n = namespace(_a=1) %}", "SecurityError: the name '_a'"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% for i in range(10 ** 6) %}{% endfor %}", "Range too big"),
        ("{{ 9 ** (9 ** 9) }}", "OverflowError: a number"),
        ("{{ 'a' * 10 ** 9 }}", "OverflowError: more than"),
        ("{% for i in range(99999) %}{{ 'abcdefghijklmnop' }}{% endfor %}", "more than 1,048,576 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
    ],
)
def test_a_hostile_template_is_an_error(source, said):
    """Here in this process, which is faster; `test_a_bad_template_is_one_error` has another one."""
    request = {"variables": {}, "specials": []}
    template = chat_render.environment().from_string(source)
    found = chat_render.answer(template, request, {"messages": dicts(CONVERSATIONS[0]), "prompt": True})
    assert said in found["error"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ messages[0].content | center(10 ** 9) }}", "it needs too much memory"),
        ("{{ raise_exception('roles must alternate') }}", "the chat template cannot be used .roles must alternate.;"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
)
def test_a_bad_template_is_one_error(tokenizer, source, said):
    with pytest.raises(FlagError, match=said) as caught:
        ChatTemplate.of(tokenizer, source).render([CONVERSATIONS[0]])
    assert str(caught.value).startswith("the chat template cannot be used (")


def test_the_process_opens_no_file(tokenizer, tmp_path):
    """What gets out of the sandbox finds no file, no network and no other program."""
    code = (
        f"import sys; sys.argv = ['x']; sys.path.insert(0, {os.path.dirname(chat_render.__file__)!r})\n"
        "import chat_render, os, socket; chat_render._limit()\n"
        f"for f in (lambda: open({str(tmp_path / 'a')!r}, 'w'), socket.socket, lambda: os.pipe()):\n"
        "    try:\n        f()\n    except OSError:\n        continue\n    sys.exit('opened')\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_template_that_does_not_end_is_stopped(tokenizer, monkeypatch):
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(chat, "_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(FlagError, match="takes more than 1 seconds"):
        ChatTemplate.of(tokenizer, source).render([CONVERSATIONS[0]])
    assert time.monotonic() - start < 10


def test_a_tokenizer_without_an_end_needs_a_template_of_its_own(fast):
    plain = FastTokenizer({"tokenizer.json": (fast / "tokenizer.json").read_bytes()}, {"extra_special_tokens": []})
    with pytest.raises(FlagError, match=r"neither a chat template nor an end-of-text token .*chat.template=FILE"):
        ChatTemplate.of(plain)
    assert ChatTemplate.of(plain, CHATML).stop


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hi", "d:3: 'messages' is 'hi'; messages is a list of"),
        ([], "d:3: 'messages' is empty; remove the record"),
        (["hi"], r"d:3: messages\[0\] is 'hi'; messages is a list"),
        ([{"role": "user"}], r"d:3: messages\[0\]: no 'content'"),
        ([{"content": "a"}], r"d:3: messages\[0\]: no 'role'"),
        ([{"role": "user", "content": None}], "no 'content'"),
        ([{"from": "human", "value": "a"}], "no 'role'"),
        ([{"role": "tool", "content": "a"}], "the role 'tool'; the roles are system, user, assistant, and no tools"),
        ([{"role": "Assistant", "content": "a"}], "the role 'Assistant'; the roles are"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'content' is .* must be a string"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "'tool_calls' is not read"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate"),
        ([{"role": "user", "content": "a\ufdd0"}], r"U\+FDD0"),
        ([{"role": "user", "content": "a"}], "no message of the assistant, so there is nothing to learn"),
    ],
)
def test_messages_are_checked(given, said):
    with pytest.raises(DataError, match=said):
        read_messages("d:3", given, answered=True)


def test_a_prompt_is_what_the_assistant_can_answer():
    asked = [{"role": "user", "content": "", "name": None}]
    assert read_messages("d:3", asked, answered=False) == (Message("user", ""),)
    with pytest.raises(DataError, match="the last message is the assistant's"):
        read_messages("d:3", [*asked, {"role": "assistant", "content": "a"}], answered=False)
