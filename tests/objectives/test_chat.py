"""Chat: loss on what the assistant writes alone, in packed rows too, and models that learn 32 conversations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.data.chat import ChatEncoder, ChatTemplate
from lmjax.data.documents import Document
from lmjax.data.messages import Message
from lmjax.data.pipeline import example_stream
from lmjax.data.store import build_store
from lmjax.errors import ConfigMismatchError, DataError
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.runs.build import build
from lmjax.training.metrics import read_lines

RNG = None  # the objective uses no random numbers
SOUNDS = {"cow": "moo", "owl": "hoot", "cat": "mew", "dog": "woof"}


def conversation(*said, system=""):
    """Messages of the user and of the assistant in turn."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(said))]


RECORDS = [
    conversation(f"{name}{n}?", SOUNDS[name], "so", "ok", system="be" * (n % 2)) for name in SOUNDS for n in range(8)
]


def written(path, conversations=RECORDS):
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in conversations))
    return path


@pytest.fixture
def chatting(tiny, tmp_path):
    """A function from conversations, those to evaluate on, and fields to a config."""

    def make(conversations=RECORDS, held=RECORDS[:4], architecture="decoder", **fields):
        paths = [written(tmp_path / f"{name}.jsonl", each) for name, each in (("train", conversations), ("dev", held))]
        values = {"data__train": paths[0], "data__eval": f"dev={paths[1]}", "model__architecture": architecture}
        values |= {"task__length": 64, "task__target_length": 24, "model__max_length": 128}
        return tiny("chat", **values | fields)

    return make


@pytest.fixture(scope="session")
def chats(tokenizer, tmp_path_factory):
    """A function from conversations to their store."""
    folder = tmp_path_factory.mktemp("chats")
    encoder = ChatEncoder(ChatTemplate.of(tokenizer))

    def make(conversations):
        def read():
            for each in conversations:
                contents, roles = tuple(m["content"] for m in each), [m["role"] for m in each]
                yield Document(contents, "", counts=(len(each),), values=(("d.jsonl:1", *roles),))

        parts = {"documents": json.dumps(conversations)}
        return build_store(read, tokenizer, fingerprint_parts=parts, cache_dir=str(folder), encoder=encoder)

    return make


def row_of(examples, i=0):
    return examples(i, RNG)


def of_segments(row, tokenizer, side=""):
    """Returns, by segment id, the tokens, targets and weights of a row's pieces."""
    ids = row[f"{side}segment_ids"]
    return [
        tuple(row[name][ids == s].tolist() for name in (f"{side}tokens", "targets", "weights"))
        for s in range(1, ids.max() + 1)
    ]


def test_a_decoder_predicts_the_answers_and_their_ends_alone(chats, make_task, tokenizer, ids):
    """The row is the conversation up to its last answer; nothing of the user, the roles or line ends has a weight."""
    asked = conversation("a b", "c.", "d", "ee", system="s")
    row = row_of(make_task("chat", "decoder", length=128).examples(chats([asked]), 0))
    (spoken,) = ChatTemplate.of(tokenizer).encode([[Message(**m) for m in asked]])
    end = spoken.spans[-1, 1]
    ((tokens, targets, weights),) = of_segments(row, tokenizer)
    assert (tokens, targets) == (spoken.ids[: end - 1].tolist(), spoken.ids[1:end].tolist())
    assert row["positions"][: len(tokens)].tolist() == list(range(len(tokens)))
    assert not row["weights"][len(tokens) :].any()
    assert [t for t, w in zip(targets, weights, strict=True) if w] == ids("c.", "EOS", "ee", "EOS")
    assert tokens[0] == tokenizer.bos_id


def test_an_encoder_decoder_reads_what_was_said_and_predicts_each_answer(chats, make_task, tokenizer, ids):
    asked = conversation("a b", "c.", "d", "ee", system="s")
    task = make_task("chat", "encoder_decoder", length=128, target_length=8)
    examples = task.examples(chats([asked]), 0)
    template, found = ChatTemplate.of(tokenizer), {}
    for i in range(len(examples)):
        row = row_of(examples, i)
        for s in range(1, row["decoder_segment_ids"].max() + 1):
            at = row["decoder_segment_ids"] == s
            source = row["encoder_tokens"][row["encoder_segment_ids"] == s].tolist()
            assert row["decoder_tokens"][at].tolist() == [tokenizer.pad_id, *row["targets"][at][:-1]]
            assert row["weights"][at].all()
            found[tuple(source)] = row["targets"][at].tolist()
    prompts = [template.prompt([Message(**m) for m in asked[:n]], "it") for n in (2, 4)]
    assert found == {
        (*prompts[0], tokenizer.eos_id): ids("c.", "EOS"),
        (*prompts[1], tokenizer.eos_id): ids("ee", "EOS"),
    }


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_packing_changes_neither_the_predictions_nor_their_weights(
    architecture, chats, make_task, tokenizer, toy_forward
):
    """Each turn is once in a row, with its own source; the loss sum is that of rows with one conversation each."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 9))) for _ in range(32)]
    conversations = [conversation(*words[i : i + 4]) for i in range(0, 32, 4)]
    sizes = {"length": 256, "target_length": 64}
    task = make_task("chat", architecture, **sizes)

    def total(examples):
        batch = {k: jnp.stack([row_of(examples, i)[k] for i in range(len(examples))]) for k in row_of(examples)}
        return len(examples), task.losses(toy_forward(batch), batch)["chat"]

    rows, packed = total(task.examples(chats(conversations), 0))
    alone = [total(task.examples(chats([each]), 0)) for each in conversations]
    assert rows < len(conversations) / 1.5, "short conversations do not share rows"
    assert packed.weight == sum(len(w) + 1 for w in words[1::2])
    assert packed.weight == sum(each.weight for _, each in alone)
    np.testing.assert_allclose(packed.loss, sum(each.loss for _, each in alone), rtol=1e-5)


def test_no_gradient_comes_from_what_the_user_says(chats, make_task, tokenizer, forward_of):
    """The gradient with respect to the logits is zero at every position but those that predict the assistant."""
    task = make_task("chat", "decoder", length=128)
    row = row_of(task.examples(chats([conversation("ab", "cd", "e", "f")] * 2), 0))
    batch = {name: jnp.asarray(x)[None] for name, x in row.items()}
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 128, tokenizer.vocab_size)), jnp.float32)

    def loss(logits):
        return task.losses(forward_of(batch, states=batch["tokens"], logits=lambda h: logits), batch)["chat"].loss

    gradient = np.abs(jax.grad(loss)(logits)[0]).sum(-1)
    spoken = next(ChatTemplate.of(tokenizer).encode([[Message(**m) for m in conversation("ab", "cd", "e", "f")]]))
    mask = spoken.mask[1 : spoken.spans[-1, 1]]
    assert mask.sum() == 5
    np.testing.assert_array_equal(gradient[: 2 * len(mask)] > 0, [*mask, *mask])
    assert not gradient[2 * len(mask) :].any()


def test_long_conversations_are_cut_counted_and_left_out_where_no_answer_fits(chats, make_task, tokenizer, caplog):
    answers = "a" * 30
    long, late = conversation("q", answers), conversation("q" * 60, "a")
    store = chats([long, late, conversation("b", "c")])
    task = make_task("chat", "decoder", length=48)
    caplog.clear()
    examples = task.examples(store, 0)
    template = ChatTemplate.of(tokenizer)
    start = len(template.prompt([Message("user", "q")], "it"))
    lost = start + 31 - 49
    assert f"2 conversations do not fit rows of 48 tokens: {lost + 2} of the assistant's tokens" in caplog.text
    assert "1 of 3 conversations have no turn that fits" in caplog.text
    kept = [of_segments(row_of(examples, i), tokenizer) for i in range(len(examples))]
    counts = sorted(int(sum(weights)) for row in kept for _, _, weights in row)
    assert counts == [2, 31 - lost]
    caplog.clear()
    task = make_task("chat", "encoder_decoder", length=32, target_length=16)
    rows = [row_of(task.examples(store, 0), i) for i in range(len(task.examples(store, 0)))]
    assert "2 turns do not fit rows of 32 tokens" in caplog.text
    ends = {tuple(r["encoder_tokens"][r["encoder_segment_ids"] == s].tolist()) for r in rows for s in (1, 2)} - {()}
    assert all(each[-2:] == (tokenizer.encode("\n")[-1], tokenizer.eos_id) for each in ends), "beginnings are cut"
    assert max(map(len, ends)) == 32


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "dev.jsonl:2: 'messages' is empty"),
        (None, "dev.jsonl:2: 'messages' is 'None'"),
        ([{"role": "tool", "content": "a"}], r"dev.jsonl:2: messages\[0\]: the role 'tool'"),
        ([{"role": "user"}], r"dev.jsonl:2: messages\[0\]: no 'content'"),
        (conversation("a"), "dev.jsonl:2: no message of the assistant"),
    ],
)
def test_what_is_no_conversation_is_refused_with_file_and_line(chatting, tmp_path, messages, said):
    with pytest.raises(DataError, match=said):
        build(chatting(held=[RECORDS[0], messages]), tmp_path / "run")


def test_a_record_without_messages_is_refused_and_skipped_on_demand(chatting, tmp_path):
    config = chatting()
    with open(config.data.train, "a") as file:
        file.write('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"train.jsonl:33: no 'messages' among the fields text"):
        build(config, tmp_path / "run")
    skipping = config.with_fields({"data": config.data.with_fields({"bad_records": "skip"})})
    assert build(skipping, tmp_path / "run").train_examples.rows.store.num_documents == 32


def test_a_template_of_a_file_is_kept_and_what_it_refuses_has_file_and_line(chatting, tmp_path):
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (tmp_path / "mine.jinja").write_text(source)
    named = {"task__chat__template": tmp_path / "mine.jinja", "tokenizer__byte_fallback": True}
    with pytest.raises(DataError, match=r"train.jsonl:2: the chat template refuses the conversation \(no system\)"):
        build(chatting(**named), tmp_path / "run")
    config = chatting(RECORDS[::2], RECORDS[:3:2], **named)
    run = build(config, tmp_path / "run")
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == source
    row = run.train_examples(0, example_stream(0, 0, 0))
    t = run.tokenizer
    first = row["targets"][row["segment_ids"] == 1]
    assert "<user>so<assistant>" in t.decode(row["tokens"])
    assert "assistant" not in t.decode(first[row["weights"][row["segment_ids"] == 1] > 0])
    # The run goes on with its own template, and refuses another one.
    plain = config.with_fields({"task": config.task.with_fields({"chat": {"template": ""}})})
    assert build(plain, tmp_path / "run").tokenizer.chat_template == source
    (tmp_path / "mine.jinja").write_text(source.replace("<assistant>", "<model>"))
    with pytest.raises(ConfigMismatchError, match="other data: chat_template changed"):
        build(config, tmp_path / "run")


@pytest.mark.parametrize("architecture", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)])
def test_a_tiny_model_learns_32_conversations_whatever_the_padding(chatting, tmp_path, architecture, evaluated_in_rows):
    """To near-zero loss; it then answers, and stops; and rows twice as long give the same loss."""
    fields = {"steps": 160, "optimizer__learning_rate": 0.01, "optimizer__warmup_steps": 10, "evaluation__batches": 8,
              "model__dropout__residual": 0.0, "model__dropout__attention": 0.0, "evaluation__every": 160,
              "model__embed_dim": 32, "model__num_layers": 2}  # fmt: skip
    config = chatting(held=RECORDS, architecture=architecture, **fields)
    workdir = lmjax.train(config, tmp_path / "run", progress=False)
    last = read_lines(workdir)[-1]
    assert last["eval/dev/chat/loss"] < 0.02
    loaded = lmjax.load_model(workdir)
    prompts = [conversation("cow3?", "moo", "so"), conversation("owl4?", "hoot", "so")]
    prompts[0].insert(0, {"role": "system", "content": "be"})
    found = generate(loaded, prompts, GenerateConfig(max_new_tokens=12))
    assert [(each[0].text, each[0].finished) for each in found] == [("ok", "stop"), ("ok", "stop")]
    assert generate(loaded, ["cat2?"], GenerateConfig(max_new_tokens=12))[0][0].text == "mew", "a text is a message"
    again = evaluated_in_rows(workdir, config, 128)
    np.testing.assert_allclose(again["eval/dev/chat/loss"], last["eval/dev/chat/loss"], rtol=1e-3)
