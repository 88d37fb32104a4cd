"""Pipelines give what transformers' pipelines give on the same weights, in the same shapes, and compile once."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import lmjax
from lmjax.errors import FlagError
from lmjax.inference import predict as engine
from lmjax.pipelines import PIPELINES, pipeline

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]

TEXTS = ["an owl sees the old river", "never a house under trees", "the king goes", "x"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def named(*labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {x: i for i, x in enumerate(labels)}}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A function from a class of transformers and fields of its config to a folder with random weights."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=SPECIAL))
    vocab = made.get_vocab()
    tokenizer = transformers.BertTokenizer(vocab=vocab)

    def make(kind, **fields):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(vocab), max_position_embeddings=64, initializer_range=0.5, **SIZES, **fields
        )
        folder = tmp_path_factory.mktemp(kind)
        getattr(transformers, kind)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def theirs(task, folder):
    return transformers.pipeline(task, model=str(folder), tokenizer=str(folder), device="cpu")


def assert_equal(ours, other, path="result"):
    """Results with the same structure, texts and numbers up to 1e-5."""
    if isinstance(other, dict):
        assert set(ours) == set(other), path
        for key in other:
            assert_equal(ours[key], other[key], f"{path}[{key!r}]")
    elif isinstance(other, list | tuple):
        assert len(ours) == len(other), path
        for i, (a, b) in enumerate(zip(ours, other, strict=True)):
            assert_equal(a, b, f"{path}[{i}]")
    elif isinstance(other, str | int) or other is None:
        assert ours == other, path
    else:
        np.testing.assert_allclose(ours, float(other), atol=1e-5, err_msg=path)


def test_text_classification(bert):
    folder = bert("BertForSequenceClassification", **named("no", "maybe", "yes"))
    ours, other = pipeline("text-classification", folder, batch_size=2), theirs("text-classification", folder)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    for given, options in (
        (TEXTS[0], {}),
        (TEXTS, {}),
        (TEXTS[1], {"top_k": None}),
        (TEXTS, {"top_k": 2}),
        ([pair], {}),
    ):
        assert_equal(ours(given, **options), other(given, **options))
    assert pipeline("sentiment-analysis", folder)(TEXTS[0]) == ours(TEXTS[0])
    with pytest.raises(FlagError, match=r"inputs\[1\]: 7 is a int; give a text|is a int; give a text or"):
        ours([TEXTS[0], 7])


def test_labels_without_names(bert):
    """Transformers shows LABEL_0; files of data name them 0 and 1, and so does the evaluation."""
    folder = bert("BertForSequenceClassification")
    ours = pipeline("text-classification", folder)
    assert_equal(ours(TEXTS, top_k=2), theirs("text-classification", folder)(TEXTS, top_k=2))
    assert {each["label"] for each in ours(TEXTS[0], top_k=2)} == {"LABEL_0", "LABEL_1"}
    best = [each["label"] for each in ours(TEXTS)]
    records = [{"text": text, "label": int(label[-1])} for text, label in zip(TEXTS, best, strict=True)]
    assert lmjax.evaluate(ours.loaded, records, task="own")["accuracy"] == 1
    tagger = bert("BertForTokenClassification")
    mine, other = (make("token-classification", tagger)(TEXTS[0]) for make in (pipeline, theirs))
    assert [each["entity"] for each in mine] == [each["entity"] for each in other]
    assert all(each["entity"].startswith("LABEL_") for each in mine)


def test_a_second_call_compiles_nothing(bert):
    ours = pipeline("text-classification", bert("BertForSequenceClassification", **named("a", "b", "c")))
    _ = ours(TEXTS)
    before = engine._outputs._cache_size()
    _ = ours(list(reversed(TEXTS)))
    assert engine._outputs._cache_size() == before


@pytest.mark.parametrize(
    "labels", [("contradiction", "neutral", "entailment"), ("entailment", "neutral", "contradiction")]
)
def test_zero_shot_classification(bert, labels):
    folder = bert("BertForSequenceClassification", **named(*labels))
    ours, other = pipeline("zero-shot-classification", folder), theirs("zero-shot-classification", folder)
    options = {"candidate_labels": ["river", "king", "trees"], "hypothesis_template": "the {} goes"}
    for multi in (False, True):
        assert_equal(ours(TEXTS[0], **options, multi_label=multi), other(TEXTS[0], **options, multi_label=multi))
    assert_equal(ours(TEXTS[:2], candidate_labels="owl, x"), other(TEXTS[:2], candidate_labels="owl, x"))
    with pytest.raises(FlagError, match="give one label at least"):
        ours(TEXTS[0], candidate_labels=[])
    plain = bert("BertForSequenceClassification", **named("a", "b", "c"))
    with pytest.raises(FlagError, match="needs a classifier with a label 'entailment', and this one has a, b, c"):
        pipeline("zero-shot-classification", plain)


def test_token_classification(bert):
    folder = bert("BertForTokenClassification", **named("O", "B-A", "I-A", "B-B"))
    ours, other = pipeline("token-classification", folder), theirs("token-classification", folder)

    def without_word(found):
        return [[{k: x for k, x in each.items() if k != "word"} for each in entities] for entities in found]

    for options in ({}, {"aggregation_strategy": "simple"}, {"ignore_labels": ["B-A"]}):
        # The word of a token is its text here, and transformers marks what continues a word.
        assert_equal(without_word(ours(TEXTS, **options)), without_word(other(TEXTS, **options)))
    for text, entities in zip(TEXTS, ours(TEXTS, aggregation_strategy="simple"), strict=True):
        assert all(each["word"] == text[each["start"] : each["end"]] for each in entities)
    with pytest.raises(FlagError, match="aggregation_strategy='max': choose none or simple"):
        ours(TEXTS, aggregation_strategy="max")


def test_fill_mask(bert):
    folder = bert("BertForMaskedLM")
    ours, other = pipeline("fill-mask", folder), theirs("fill-mask", folder)
    for given in ("the [MASK] goes", ["an owl [MASK] the old river", "[MASK] king"], "the [MASK] [MASK]"):
        mine, reference = ours(given), other(given)
        if given == "the [MASK] [MASK]":
            # Sequences of several masks keep special tokens in transformers.
            mine, reference = ([[{**x, "sequence": ""} for x in mask] for mask in found] for found in (mine, reference))
        assert_equal(mine, reference)


def test_feature_extraction(bert):
    folder = bert("BertModel")
    ours, other = pipeline("feature-extraction", folder), theirs("feature-extraction", folder)
    assert_equal(ours(TEXTS[0]), other(TEXTS[0]))
    assert_equal(ours(TEXTS), other(TEXTS))
    assert ours(TEXTS[0], return_tensors=True).shape == (1, len(ours.loaded.encode(TEXTS[0])), 16)


def test_sentence_similarity(bert):
    """The cosine of the vectors of two texts, from -1 to 1."""
    ours = pipeline("sentence-similarity", bert("BertModel"))
    found = ours({"source_sentence": TEXTS[0], "sentences": [TEXTS[0], TEXTS[1]]})
    assert found[0] == pytest.approx(1)
    assert -1 <= found[1] < 1
    assert ours([{"source_sentence": TEXTS[0], "sentences": [TEXTS[1]]}]) == [[pytest.approx(found[1], abs=1e-5)]]
    with pytest.raises(FlagError, match=r"give .'source_sentence', 'sentences'"):
        ours(TEXTS[0])


def test_question_answering(bert):
    """The answer is the text of the context between its characters."""
    ours = pipeline("question-answering", bert("BertForQuestionAnswering"))
    found = ours([{"question": "the king goes", "context": text} for text in TEXTS])
    for text, each in zip(TEXTS, found, strict=True):
        assert each["answer"] == text[each["start"] : each["end"]]
        assert 0 < each["score"] <= 1
    assert_equal(ours(question="the king goes", context=TEXTS[0]), found[0])


def test_generation(tmp_path):
    torch.manual_seed(0)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    made.save(str(tmp_path / "made.json"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "made.json"), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=310, initializer_range=0.5, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = pipeline("text-generation", tmp_path)
    greedy = ours(TEXTS[:2], max_new_tokens=5)
    assert [
        [each["generated_text"].startswith(text) for each in found] for text, found in zip(TEXTS, greedy, strict=False)
    ] == [[True], [True]]
    rest = ours(TEXTS[:2], max_new_tokens=5, return_full_text=False)
    assert [[text + each["generated_text"] for each in found] for text, found in zip(TEXTS, rest, strict=False)] == [
        [each["generated_text"] for each in found] for found in greedy
    ]
    assert set(pipeline("translation", tmp_path)(TEXTS[0], max_new_tokens=3)) == {"translation_text"}
    assert set(pipeline("summarization", tmp_path)([TEXTS[0]], prefix="the ", max_new_tokens=3)[0]) == {"summary_text"}
    with pytest.raises(FlagError, match="max_new_token="):
        ours(TEXTS[0], max_new_token=5)


def test_a_model_for_something_else_is_refused(bert):
    folder = bert("BertForMaskedLM")
    for task in ("text-classification", "token-classification", "question-answering", "text-generation", "translation"):
        with pytest.raises(FlagError):
            pipeline(task, folder)
    with pytest.raises(FlagError, match=r"pipeline: no task 'text-clasification'; did you mean text-classification\?"):
        pipeline("text-clasification", folder)
    assert len(PIPELINES) == 10
