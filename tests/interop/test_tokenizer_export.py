"""Exported tokenizers give the ids that the model was trained on, here and in transformers."""

import json
import pathlib
import warnings

import numpy as np
import pytest
import tokenizers

from lmjax.data.fast_tokenizer import FastTokenizer, load_tokenizer
from lmjax.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import encode_masked, fill_mask
from lmjax.interop.export import choose_family, export
from lmjax.interop.tokenizer_export import export_tokenizer, sentencepiece_json
from tests.inference.scoring import tiny
from tests.texts import SAMPLES, library_lines, sentencepiece_model, training_lines

KINDS = [(kind, fallback) for kind in ("bpe", "unigram", "char") for fallback in (True, False)]
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return library_lines(10_000)


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: f"{k[0]}{'_bytes' if k[1] else ''}")
def trained(request) -> Tokenizer:
    """Returns a tokenizer that lmjax trained; for most kinds, some characters of the samples are unknown."""
    kind, fallback = request.param
    return train_tokenizer(
        ["\n".join(library_lines(3000))], TokenizerConfig(kind=kind, vocab_size=900, byte_fallback=fallback)
    )


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Returns the export as the library reads it; text that spells a special token is encoded as text."""
    fast = tokenizers.Tokenizer.from_str(sentencepiece_json(tokenizer, "llama").decode())
    fast.encode_special_tokens = True
    return fast


def ids(fast: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]


def test_a_trained_tokenizer_has_the_same_ids_as_a_tokenizer_json(trained, lines):
    fast = library(trained)
    documents = ["\n".join(lines[i : i + 500]) for i in range(0, 5000, 500)]
    for texts in (list(SAMPLES), lines, documents):
        ours, theirs = trained.encode_batch(texts), ids(fast, texts)
        different = [(t, a, b) for t, a, b in zip(texts, ours, theirs, strict=True) if a != b]
        assert not different, "the export would give the model other tokens than in training"
    assert fast.get_vocab_size() == trained.vocab_size


def test_the_text_comes_back_from_an_exported_tokenizer(trained):
    fast = library(trained)
    for text in SAMPLES:
        tokens = trained.encode(text)
        if trained.unk_id not in tokens:
            assert fast.decode(tokens) == trained.decode(tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 400, "hard_vocab_limit": False, "user_defined_symbols": ["(", "port"]},
        {"model_type": "bpe", "vocab_size": 400},
        {
            "model_type": "bpe",
            "vocab_size": 600,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
        },
    ],
    ids=["unigram_nmt_nfkc", "bpe_nmt_nfkc", "bpe_llama"],
)
def test_a_loaded_model_is_exported_with_its_normaliser(options, tmp_path, lines):
    path = tmp_path / "theirs.model"
    path.write_bytes(sentencepiece_model(**options))
    tokenizer = Tokenizer.load(str(path))
    # For a unigram model trained elsewhere, equally good segmentations of a repeated character may differ.
    texts = [*SAMPLES, *(line for line in lines[:2000] if not any(4 * c in line for c in "=-*#_ "))]
    assert ids(library(tokenizer), texts) == tokenizer.encode_batch(texts)


def test_a_model_of_words_is_refused(tmp_path):
    path = tmp_path / "words.model"
    path.write_bytes(sentencepiece_model(model_type="word", vocab_size=200))
    with pytest.raises(FlagError, match=r"--to: .* whole words"):
        export_tokenizer(Tokenizer.load(str(path)), tmp_path, "llama", 512)


def test_a_type_for_which_transformers_ignores_the_files_is_refused(tmp_path):
    tokenizer = train_tokenizer(["to be, or not"], TokenizerConfig(kind="char"))
    with pytest.raises(FlagError, match="--to: AutoTokenizer reads the tokenizer of a qwen2"):
        export_tokenizer(tokenizer, tmp_path, "qwen2", 512)


def fast_folder(folder: pathlib.Path) -> pathlib.Path:
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "<mask>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    fast.train_from_iterator(training_lines(), trainer)
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    return folder


def test_a_loaded_fast_tokenizer_is_written_back_byte_for_byte(tmp_path):
    source, target = fast_folder(tmp_path / "source"), tmp_path / "target"
    files = {
        "tokenizer_config.json": '{"bos_token":"<|endoftext|>" , "tokenizer_class": "GPT2Tokenizer"}',
        "special_tokens_map.json": '{ "eos_token": "<|endoftext|>"}',
        "chat_template.jinja": "{{ messages }}\n",
    }
    for name, content in files.items():
        (source / name).write_text(content)
    target.mkdir()
    export_tokenizer(load_tokenizer(str(source)), target, "gpt2", 512)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}


def test_a_fast_tokenizer_in_a_model_of_another_type_keeps_its_class(tmp_path):
    source, target = fast_folder(tmp_path / "source"), tmp_path / "target"
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    (source / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    target.mkdir()
    export_tokenizer(load_tokenizer(str(source)), target, "llama", 512)
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "GPT2Tokenizer", "AutoTokenizer would build a Llama tokenizer"
    assert config["eos_token"] == "<|endoftext|>"
    assert config["model_max_length"] == 1024


@pytest.fixture(scope="module")
def auto():
    """Returns the function that loads the `AutoTokenizer` of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained


def plain(tokenizer: object, texts: list[str], **settings: object) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, **settings)["input_ids"]


@pytest.mark.filterwarnings("ignore")
def test_transformers_gives_an_exported_tokenizers_ids(auto, trained, lines, tmp_path):
    for model_type in ("llama", "bert", "t5", "gpt2"):
        folder = tmp_path / model_type
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        export_tokenizer(trained, folder, model_type, 512)
        theirs = auto(folder)
        texts = [*SAMPLES, *lines] if model_type == "llama" else list(SAMPLES)
        assert plain(theirs, texts, split_special_tokens=True) == trained.encode_batch(texts)
        assert {r: getattr(theirs, f"{r}_token_id") for r in ROLES} == {r: getattr(trained, f"{r}_id") for r in ROLES}
        assert len(theirs) == trained.vocab_size, "transformers added a token without a row in the model's table"
        assert theirs.model_max_length == 512
        around = {"llama": (["bos"], []), "gpt2": (["bos"], []), "bert": (["cls"], ["sep"]), "t5": ([], ["eos"])}
        before, after = ([getattr(trained, f"{r}_id") for r in roles] for roles in around[model_type])
        assert theirs("a b")["input_ids"] == [*before, *trained.encode("a b"), *after]
        texts = ["The [MASK] sees the[MASK]", "[MASK]", "[MASK] [MASK]."]
        assert plain(theirs, texts) == [encode_masked(trained, text) for text in texts]
        assert load_tokenizer(str(folder)).encode_batch(texts) == plain(theirs, texts)


def test_the_written_files_know_the_special_tokens(trained, tmp_path):
    """Without transformers: with the tokenizers library on which its fast tokenizers are built."""
    export_tokenizer(trained, tmp_path, "bert", 512)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["mask_token"] == "[MASK]"
    assert not settings.get("split_special_tokens")
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("The [MASK] sees the[MASK]", "[MASK]", "a [MASK] [MASK]."):
        assert fast.encode(text).ids == [trained.cls_id, *encode_masked(trained, text), trained.sep_id]


@pytest.mark.filterwarnings("ignore")
def test_the_fill_mask_pipeline_takes_an_exported_bert(auto, tmp_path):
    """Its likeliest tokens are those that lmjax fills in."""
    pipeline = pytest.importorskip("transformers").pipeline
    pytest.importorskip("torch")
    post = {"norm_position": "post", "norm_epsilon": 1e-12, "embedding.norm": True, "embedding.types": 2}
    loaded = tiny("encoder", **{"head.bias": True, "head.transform": True}, **post)
    description = choose_family(loaded.config, ("masked_lm",), "bert", {})

    def beside(folder: pathlib.Path) -> None:
        export_tokenizer(loaded.tokenizer, folder, "bert", loaded.config.max_length)

    extra = {f"{role}_token_id": i for role, i in loaded.tokenizer.role_ids.items()}
    export(description, loaded.config, loaded.params, tmp_path / "out", extra=extra, beside=beside)
    fill = pipeline("fill-mask", model=str(tmp_path / "out"))
    for text in ("The king [MASK] the castle", "[MASK] king", "The[MASK]"):
        theirs = {each["token"]: each["score"] for each in fill(text, top_k=192)}
        ((ours,),) = fill_mask(loaded, [text], 5)
        np.testing.assert_allclose([theirs[each.id] for each in ours], [each.probability for each in ours], rtol=1e-3)


def byte_level(folder: pathlib.Path) -> None:
    fast = tokenizers.Tokenizer.from_file(str(fast_folder(folder / "made") / "tokenizer.json"))
    fast.model.save(str(folder))


def word_pieces(folder: pathlib.Path) -> None:
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    fast.train_from_iterator(training_lines(), trainer)
    fast.model.save(str(folder))


def unigram(name: str, **options: object):
    def write(folder: pathlib.Path) -> None:
        content = sentencepiece_model(model_type="unigram", vocab_size=400, hard_vocab_limit=False, **options)
        (folder / name).write_bytes(content)

    return write


def llama(folder: pathlib.Path) -> None:
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(model_type="bpe", vocab_size=600, **options))


def alone(folder: pathlib.Path) -> None:
    (folder / "tokenizer.json").write_bytes((fast_folder(folder / "made") / "tokenizer.json").read_bytes())


T5 = unigram("spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
ALBERT = unigram(
    "spiece.model",
    pad_id=0,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    user_defined_symbols=["(", ")"],
)
FOLDERS = {
    "alone": (alone, "gpt_bigcode", {"eos_token": "</s>"}),
    "more_special": (alone, "gpt_bigcode", {"eos_token": "se", "extra_special_tokens": ["de"]}),
    "gpt2": (byte_level, "gpt2", {}),
    "gpt2_prefix": (byte_level, "gpt2", {"add_prefix_space": True}),
    "roberta": (byte_level, "roberta", {}),
    "qwen2": (byte_level, "qwen2", {}),
    "bert": (word_pieces, "bert", {}),
    "bert_cased": (word_pieces, "bert", {"do_lower_case": False}),
    "bert_accents": (word_pieces, "bert", {"strip_accents": False, "tokenize_chinese_chars": False}),
    "t5": (T5, "t5", {}),
    "mt5": (T5, "mt5", {"extra_ids": 7}),
    "albert": (ALBERT, "albert", {}),
    "albert_cased": (ALBERT, "albert", {"do_lower_case": False, "keep_accents": True}),
    "llama": (llama, "llama", {"tokenizer_class": "LlamaTokenizer"}),
    "llama_legacy": (llama, "llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    "llama_no_prefix": (llama, "llama", {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False}),
}


def same(theirs: object, ours: FastTokenizer, texts: list[str]) -> None:
    assert ours.encode_batch(texts) == plain(theirs, texts)
    assert ours.vocab_size == len(theirs)
    for role in ROLES:
        token = getattr(theirs, f"{role}_token_id")
        if token is not None:
            assert getattr(ours, f"{role}_id") == token, role
        elif role != "pad":
            with pytest.raises(FlagError):
                getattr(ours, f"{role}_id")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDERS)
def test_the_ids_of_a_loaded_folder_are_those_of_transformers(auto, name, lines, tmp_path):
    write, model_type, settings = FOLDERS[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    write(tmp_path)
    texts = [*SAMPLES, *lines[:1000], "\n".join(lines[:500])]
    theirs = auto(tmp_path)
    special = [t for t in (theirs.mask_token, theirs.eos_token) if t]
    texts += [text.replace("_", t) for t in special for text in ("a _ b", "_", " _a", "a_ b _", "a  _  _\n_")]
    same(theirs, load_tokenizer(str(tmp_path)), texts)
    saved = tmp_path / "saved"
    theirs.save_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({"model_type": model_type}))
    exported = tmp_path / "exported"
    exported.mkdir()
    export_tokenizer(load_tokenizer(str(saved)), exported, model_type, 512)
    (exported / "config.json").write_text(json.dumps({"model_type": model_type}))
    if name == "llama_legacy":
        # transformers does not save `legacy`, and then builds another pipeline than that of tokenizer.json; ours is the
        # one in tokenizer.json.
        assert load_tokenizer(str(saved)).encode_batch(texts) == plain(theirs, texts)
    else:
        same(auto(exported), load_tokenizer(str(saved)), texts)
