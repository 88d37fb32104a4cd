"""Documents: the same from every format, faults named by file and line, nothing held out is trained on."""

import gzip
import json
import tracemalloc

import pydantic
import pytest

from lmjax.data import files
from lmjax.data.sources import DataConfig, NamedSet, corpus_fingerprint, open_splits, read_documents
from lmjax.errors import DataError, FlagError


def one_training_set(config, *, pairs):
    train, evals = open_splits(config, pairs=pairs)
    assert [*train] == ["train"]
    return train["train"], evals


PAIRS = [("a b", "x y"), ("c, d", 'z "q"'), ("ä", "ö")]


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


def texts(spec, **options):
    return [document.text for document in read_documents(spec, **options)]


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_one_file_of_text_is_split_at_blank_lines_or_kept_whole(write):
    path = write("a.txt", "One. Two.\nline\n\n \n\nThree.\n")
    assert texts(path) == ["One. Two.\nline", "Three."]
    assert texts(path, whole=True) == ["One. Two.\nline\n\n \n\nThree.\n"]
    assert next(read_documents(path)).segments == ("One.", " Two.", "\nline")


def test_several_files_are_a_document_each_in_the_order_of_their_names(write, tmp_path):
    for name in ("b/z.py", "a.py", "b/y.py"):
        write(name, f"# {name}\n\nx = 1\n")
    write("b/__init__.py", "")
    assert texts(f"{tmp_path}/**/*.py") == [f"# {name}\n\nx = 1\n" for name in ("a.py", "b/y.py", "b/z.py")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_all_formats_give_the_same_pairs(write, suffix):
    rows = [{"source": source, "target": target, "other": 1} for source, target in PAIRS]
    specs = [
        write(f"a.jsonl{suffix}", json_lines(rows) + "\n"),
        write(f"a.json{suffix}", "\ufeff" + json_lines(rows)),
        write(f"a.csv{suffix}", 'target,n,source\nx y,1,a b\n"z ""q""",2,"c, d"\nö,3,ä\n'),
        write(f"a.tsv{suffix}", 'source\ttarget\r\na b\tx y\r\nc, d\tz "q"\r\nä\tö\r\n'),
    ]
    for spec in specs:
        documents = list(read_documents(spec, pairs=True))
        assert [document.segments for document in documents] == PAIRS
        assert all(document.pair for document in documents)
        assert texts(spec) == ["\n".join(pair) for pair in PAIRS]


def test_texts_in_fields_keep_their_lines(write):
    expected = ["a\n\nb", "c"]
    assert texts(write("a.jsonl", json_lines({"text": text} for text in [*expected, "  "]))) == expected
    assert texts(write("a.csv", 'id,text\n1,"a\n\nb"\n2,c\n3,\n')) == expected


def test_crlf_and_byte_order_marks_leave_no_trace(write):
    assert texts(write("a.txt", "\ufeffone\r\ntwo\r\n\r\nthree\r\n")) == ["one\ntwo", "three"]


FAULTS = [
    ("a.txt", "", r"a\.txt: the file is empty"),
    ("a.txt", " \n\n", r"holds no documents"),
    ("a.txt", b"fine\n\x00\x01\n", r"a\.txt:2: a NUL byte.*UTF-16"),
    ("a.txt", b"fine\nfine\nbad \xff here\n", r"a\.txt:3: not UTF-8 \(byte 0xff, the line's byte 5\)"),
    ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
    ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not JSON"),
    ("a.jsonl", '{"text": "a"}\n["b"]\n', r"a\.jsonl:2: a JSON list, not an object"),
    ("a.jsonl", '{"txt": "a"}\n', r"a\.jsonl:1: no 'text'; a record needs text, or source and target"),
    ("a.jsonl", '{"text": 3}\n', r"a\.jsonl:1: 'text' is no string but '3'"),
    ("a.jsonl", '{"source": "a"}\n', r"a\.jsonl:1: no 'target'"),
    ("a.jsonl", '{"source": "a", "target": " "}\n', r"a\.jsonl:1: 'target' is empty"),
    ("a.jsonl", '{"text": "\\ud800"}\n', r"a\.jsonl:1: 'text' holds a NUL or half a surrogate"),
    ("a.csv", "id,body\n1,x\n", r"a\.csv:1: the header \['id', 'body'\] has no 'text'"),
    ("a.tsv", "text\tid\na\n", r"a\.tsv:2: 1 fields, and the header has 2"),
    ("a.csv", 'text\n"a\nb\n', r"a\.csv:2: unexpected end of data"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_faults_are_named_by_file_and_line(write, name, content, message):
    with pytest.raises(DataError, match=message):
        texts(write(name, content))


def test_a_truncated_gzip_file_is_named(write, tmp_path):
    path = write("a.txt.gz", "\n\n".join(f"paragraph {i}" for i in range(2000)))
    data = (tmp_path / "a.txt.gz").read_bytes()
    for cut in (data[:-20], data[: len(data) // 2], b"not gzip", data[:15] + b"\xff\xff" + data[17:]):
        (tmp_path / "a.txt.gz").write_bytes(cut)
        with pytest.raises(DataError, match=r"a\.txt\.gz: the gzip file is truncated or damaged"):
            texts(path)


def test_paths_that_name_no_file_say_what_to_write(tmp_path):
    with pytest.raises(DataError, match=r"no file matches.*quoted glob"):
        texts(str(tmp_path / "*.txt"))
    with pytest.raises(DataError, match=r"is a directory; name its files, as in .*\*\*/\*\.txt"):
        texts(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "text"), ("a.jsonl", '{"text": "a"}\n'), ("a.tsv", "text\na\n")]
)
def test_texts_where_pairs_are_needed_are_refused(write, name, content):
    with pytest.raises(DataError, match=r"a\.\w+(:1)?: .*source and target"):
        texts(write(name, content), pairs=True)


def test_bad_records_are_left_out_and_counted_when_asked(write, caplog):
    path = write("a.jsonl", b'{"text": "a"}\n{"text"\n{"text": "\xff"}\n{"text": "b"}\n')
    assert texts(path, bad_records="skip") == ["a", "b"]
    assert "2 bad records left out; the first: " in caplog.text
    assert "a.jsonl:2" in caplog.text


def test_a_corpus_of_bad_records_alone_is_an_error_even_when_they_are_left_out(write):
    with pytest.raises(DataError, match=r"holds no documents \(.*a\.jsonl:1: not JSON"):
        texts(write("a.jsonl", "nonsense\n"), bad_records="skip")


def test_a_line_past_the_bound_is_refused_without_being_read(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    path = write("a.jsonl.gz", b'{"text": "' + b"a" * 20_000_000 + b'"}\n')
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:1: a line of more than 100000 bytes"):
        texts(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000, "the line was held in memory whole"
    with pytest.raises(DataError, match=r"a\.txt:\d+: a text of more than 100000 characters"):
        texts(write("a.txt", "line\n" * 30_000), whole=True)


def test_a_file_that_changes_while_it_is_read_is_noticed(write, tmp_path):
    path = write("a.txt", "one\n\ntwo\n\nthree")
    documents = read_documents(path)
    next(documents)
    (tmp_path / "a.txt").write_text("another text altogether")
    with pytest.raises(DataError, match=r"a\.txt: the file changed while it was read"):
        list(documents)


def test_the_fingerprint_follows_contents_and_formats_and_not_names(write, tmp_path):
    first = corpus_fingerprint(write("one/a.txt", "text"))
    assert corpus_fingerprint(write("two/b.txt", "text")) == first
    assert corpus_fingerprint(write("a.txt", "Text")) != first
    assert corpus_fingerprint(write("a.jsonl", "text")) != first
    write("two/c.txt", "")
    assert corpus_fingerprint(f"{tmp_path}/two/*.txt") != first


@pytest.fixture
def corpus(write):
    # Every text comes twice: the two must be on one side.
    return write("corpus.jsonl", json_lines({"text": f"This is text {i % 1000}."} for i in range(2000)))


def test_held_out_texts_are_never_trained_on(corpus):
    train, evals = one_training_set(DataConfig(train=corpus, held_out=0.1), pairs=False)
    training, held_out = [d.text for d in train()], [d.text for d in evals["heldout"]()]
    assert len(training) + len(held_out) == 2000
    assert not set(training) & set(held_out), "the evaluation would reward memory"
    assert 0.06 < len(held_out) / 2000 < 0.14
    assert [d.text for d in train()] == training, "a second reading differs"


def test_the_split_is_the_same_on_every_machine(corpus):
    _, evals = open_splits(DataConfig(train=corpus, held_out=0.01), pairs=False)
    numbers = sorted({int(d.text[13:-1]) for d in evals["heldout"]()})
    golden = [99, 134, 231, 426, 492, 529, 675, 728, 763, 788, 896]
    assert numbers == golden, "the split moved: every recorded held-out loss is of other text"


def test_white_space_around_a_text_does_not_part_it_from_its_duplicate(write):
    path = write("a.jsonl", json_lines({"text": text} for i in range(300) for text in (f"text {i}", f" text {i}\n")))
    train, evals = one_training_set(DataConfig(train=path, held_out=0.3), pairs=False)
    assert not {d.text.strip() for d in train()} & {d.text.strip() for d in evals["heldout"]()}


def test_a_source_with_two_targets_is_on_one_side(write):
    rows = [{"source": f"source {i}", "target": f"target {i} {j}"} for i in range(300) for j in range(2)]
    train, evals = one_training_set(DataConfig(train=write("a.jsonl", json_lines(rows)), held_out=0.3), pairs=True)
    assert not {d.segments[0] for d in train()} & {d.segments[0] for d in evals["heldout"]()}


def test_the_tail_split_cuts_one_long_text_as_nanogpt_does(write):
    text = "".join(f"Line {i}.\n\n" for i in range(999)) + "ä" * 7
    train, evals = one_training_set(DataConfig(train=write("a.txt", text), held_out=0.1, split="tail"), pairs=False)
    (training,), (held_out,) = list(train()), list(evals["heldout"]())
    assert training.text == text[: int(len(text) * 0.9)]
    assert held_out.text == text[int(len(text) * 0.9) :]


def test_named_sets_leave_the_training_data_whole(write, corpus):
    sets = (NamedSet(name="a", path=write("a.txt", "A.")), NamedSet(name="b", path=write("b.txt", "B.")))
    train, evals = one_training_set(DataConfig(train=corpus, eval=sets), pairs=False)
    assert len(list(train())) == 2000
    assert {name: [d.text for d in read()] for name, read in evals.items()} == {"a": ["A."], "b": ["B."]}
    assert open_splits(DataConfig(train=corpus, held_out=0), pairs=False).evals == {}


def test_splits_that_cannot_be_had_are_refused(write, corpus):
    one = write("one.txt", "A single text.")
    with pytest.raises(DataError, match=r"data\.held_out: 0\.05 .* leaves no document on the held-out side"):
        list(open_splits(DataConfig(train=one), pairs=False).evals["heldout"]())
    with pytest.raises(FlagError, match=r"data\.split.*data\.split=hash"):
        open_splits(DataConfig(train=one, split="tail"), pairs=True)
    with pytest.raises(FlagError, match=r"data\.split"):
        open_splits(DataConfig(split="tail"), pairs=False)
    with pytest.raises(FlagError, match=r"data\.eval: 'x' reads .*one\.txt.* and so does data\.train"):
        open_splits(DataConfig(train=one, eval=(NamedSet(name="x", path=one.replace("one", "on?")),)), pairs=False)
    with pytest.raises(DataError, match="no file matches"):
        open_splits(DataConfig(train=corpus + "x"), pairs=False)


def test_bad_configs_are_refused():
    with pytest.raises(pydantic.ValidationError, match="one name"):
        DataConfig(eval=(NamedSet(name="x", path="a"), NamedSet(name="x", path="b")))
    with pytest.raises(pydantic.ValidationError, match="pattern"):
        NamedSet(name="a/b", path="x")


@pytest.fixture
def mixture(write):
    """Two sets of 400 texts; every tenth text is in both."""
    texts = {name: [f"text {i} of {'both' if i % 10 == 0 else name}." for i in range(400)] for name in ("a", "b")}
    paths = {name: write(f"{name}.jsonl", json_lines({"text": t} for t in found)) for name, found in texts.items()}
    return DataConfig(mixture=tuple(f"{name}={path}" for name, path in paths.items()), held_out=0.3)


def test_each_set_of_a_mixture_is_held_out_under_its_own_name(mixture):
    train, evals = open_splits(mixture, pairs=False)
    assert [*train] == [*evals] == ["a", "b"]
    training, held_out = ({name: {d.text for d in read()} for name, read in side.items()} for side in (train, evals))
    for name in ("a", "b"):
        assert len(training[name]) + len(held_out[name]) == 400
    assert not (training["a"] | training["b"]) & (held_out["a"] | held_out["b"]), "a text of both sets is on both sides"


def test_a_set_is_split_alike_alone_and_in_a_mixture(mixture):
    """So its tokenised store, and its held-out loss, are the same whatever it is mixed with."""
    alone, evals = one_training_set(DataConfig(train=mixture.mixture[0].path, held_out=0.3), pairs=False)
    train, mixed = open_splits(mixture, pairs=False)
    assert [d.text for d in alone()] == [d.text for d in train["a"]()]
    assert [d.text for d in evals["heldout"]()] == [d.text for d in mixed["a"]()]


def test_sets_are_written_as_name_and_path():
    config = DataConfig(mixture=("lib=stdlib", "x=a=b.txt"), weights=("2", "0.5"))
    assert config.train_sets == {"lib": "stdlib", "x": "a=b.txt"}
    assert config.weights == (2.0, 0.5)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    assert DataConfig(train="a.txt").train_sets == {"train": "a.txt"}


def test_mixtures_that_cannot_be_had_are_refused(write):
    one = write("one.txt", "A single text.")
    with pytest.raises(FlagError, match=r"data\.mixture: 'b' reads .*one\.txt.*, and so does 'a'"):
        open_splits(DataConfig(mixture=(f"a={one}", f"b={one}")), pairs=False)
    with pytest.raises(FlagError, match=r"data\.eval: 'x' reads .*one\.txt.* and so does data\.mixture"):
        open_splits(DataConfig(mixture=(f"a={one}",), eval=(f"x={one}",)), pairs=False)
    for fields, message in (
        ({"mixture": ("a=x", "a=y")}, "two training sets have one name"),
        ({"mixture": ("a=x", "b=y"), "weights": (1,)}, "data.weights=1.0 are 1, and the mixture has 2 sets; give one"),
        ({"mixture": ("x.txt",)}, "a set is written NAME=PATH"),
        ({"mixture": ("a=x",), "weights": (-1,)}, "greater than or equal to 0"),
    ):
        with pytest.raises(pydantic.ValidationError, match=message):
            DataConfig(**fields)


def test_the_cache_folder_comes_from_the_config_then_the_environment(monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE", "/somewhere")
    assert DataConfig(cache_dir="/else").cache_path == "/else"
    assert DataConfig().cache_path == "/somewhere"
    monkeypatch.delenv("LMJAX_CACHE")
    assert DataConfig().cache_path.endswith("/.cache/lmjax")
