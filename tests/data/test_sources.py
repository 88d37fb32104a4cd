"""Documents: the same from every format, and errors name file and line."""

import gzip
import json
import shlex
import subprocess
import sys
import tracemalloc

import pydantic
import pytest

from lmjax.data.sources import DataConfig, NamedSet, corpus_fingerprint, read_documents
from lmjax.data.splits import open_splits
from lmjax.errors import DataError, FlagError

PAIRS = [("a b", "x y"), ("c, d", 'z "q"'), ("ä", "ö")]


def texts(spec, **options):
    return [document.text for document in read_documents(spec, **options)]


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_one_file_of_text_is_split_at_blank_lines_or_kept_whole(write):
    path = write("a.txt", "One. Two.\nline\n\n \n\nThree.\n")
    assert texts(path) == ["One. Two.\nline", "Three."]
    assert texts(path, documents="files") == ["One. Two.\nline\n\n \n\nThree.\n"]
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
    ("a.jsonl", '{"text": 3}\n', r"a\.jsonl:1: 'text' is '3', not a string"),
    ("a.jsonl", '{"source": "a"}\n', r"a\.jsonl:1: no 'target'"),
    ("a.jsonl", '{"source": "a", "target": " "}\n', r"a\.jsonl:1: 'target' is empty"),
    ("a.jsonl", '{"text": "\\ud800"}\n', r"a\.jsonl:1: 'text' holds half a surrogate"),
    ("a.csv", "id,body\n1,x\n", r"a\.csv:1: the header \['id', 'body'\] has no 'text'"),
    ("a.tsv", "text\tid\na\n", r"a\.tsv:2: 1 fields, but the header has 2"),
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


def test_a_line_past_the_bound_is_refused_without_being_read(write):
    path = write("a.jsonl.gz", b'{"text": "' + b"a" * 20_000_000 + b'"}\n')
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:1: a line of more than 100000 bytes"):
        texts(path, max_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000, "the whole line was in memory"
    with pytest.raises(DataError, match=r"a\.txt:\d+: a text of more than 100000 bytes"):
        texts(write("a.txt", "line\n" * 30_000), documents="files", max_bytes=100_000)


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


def test_bad_configs_are_refused():
    with pytest.raises(pydantic.ValidationError, match="the same name"):
        DataConfig(eval=(NamedSet(name="x", path="a"), NamedSet(name="x", path="b")))
    with pytest.raises(pydantic.ValidationError, match="pattern"):
        NamedSet(name="a/b", path="x")


def test_sets_are_written_as_name_and_path():
    config = DataConfig(mixture=("lib=stdlib", "x=a=b.txt"), weights=("2", "0.5"))
    assert config.train_sets == {"lib": "stdlib", "x": "a=b.txt"}
    assert config.weights == (2.0, 0.5)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    assert DataConfig(train="a.txt").train_sets == {"train": "a.txt"}


def test_the_cache_folder_comes_from_the_config_then_the_environment(monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE", "/somewhere")
    assert DataConfig(cache_dir="/else").cache_path == "/else"
    assert DataConfig().cache_path == "/somewhere"
    monkeypatch.delenv("LMJAX_CACHE")
    assert DataConfig().cache_path.endswith("/.cache/lmjax")


def test_two_columns_of_one_name_are_refused_only_where_they_are_read(write):
    assert texts(write("a.csv", "n,text,n\n1,x,2\n")) == ["x"]
    with pytest.raises(DataError, match=r"b\.csv:1: 2 columns are called 'text'; rename one"):
        texts(write("b.csv", "text,text\nx,y\n"))
    with pytest.raises(DataError, match=r"b\.jsonl:1: two fields are called 'text'"):
        texts(write("b.jsonl", '{"text": "a", "text": "b"}\n'))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_fields_may_have_other_names(write, name):
    rows = [{"body": "b", "de": "d", "en": "e"}]
    if name.endswith("json"):
        path = write(name, json.dumps(rows))
    elif name.endswith("jsonl"):
        path = write(name, json_lines(rows))
    else:
        mark = "," if name.endswith("csv") else "\t"
        path = write(name, "".join(f"{mark.join(line)}\n" for line in ([*rows[0]], [*rows[0].values()])))
    config = DataConfig(train=path, held_out=0, text_field="body", source_field="de", target_field="en")
    (document,) = open_splits(config, pairs=False).train["train"]()
    assert document.text == "b"
    (document,) = open_splits(config, pairs=True).train["train"]()
    assert document.segments == ("d", "e")
    with pytest.raises(
        DataError,
        match=r":1: .*no 'text'; a record needs text, or .*text_field, source_field and target_field name others",
    ):
        texts(path)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv"])
def test_an_empty_file_beside_others_is_left_out_and_told(write, tmp_path, suffix, packed, caplog):
    contents = {"txt": "one", "jsonl": '{"text": "one"}', "json": '[{"text": "one"}]', "csv": "text\none\n"}
    write(f"a.{suffix}{packed}", contents[suffix])
    write(f"b.{suffix}{packed}", "")
    write(f"c.{suffix}{packed}", "\ufeff")
    assert texts(f"{tmp_path}/*") == ["one"]
    assert f"2 empty files left out; the first: {tmp_path}/b.{suffix}{packed}" in caplog.text
    with pytest.raises(DataError, match=rf"b\.{suffix}{packed}: the file is empty"):
        texts(f"{tmp_path}/b.*")


def test_a_directory_is_answered_with_the_glob_of_its_files(write, tmp_path):
    for name in ("it's a/b/x.jsonl.gz", "it's a/y.jsonl.gz", "it's a/z.txt", "it's a/.hidden/.DS_Store"):
        write(name, '{"text": "x"}')
    with pytest.raises(DataError, match="is a directory") as error:
        texts(f"{tmp_path}/it's a/")
    (spec,) = shlex.split(str(error.value).split("as in ")[1])
    assert spec == f"{tmp_path}/it's a/**/*.jsonl.gz"
    assert texts(spec) == ["x", "x"]


def test_what_is_not_utf8_text_at_all_is_told_once(write):
    data = gzip.compress(b"text")
    for content, message in ((data, r"gzip data; give it a name that ends in \.gz"), ("a".encode("utf-16"), "UTF-16")):
        with pytest.raises(DataError, match=rf"a\.txt: this is {message}"):
            texts(write("a.txt", content))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_carriage_returns_are_line_ends_where_there_are_no_others(write, name):
    assert texts(write(name, "one\rtwo\r\rthree\r")) == ["one\ntwo", "three"]
    assert texts(write(name, "10 %\r20 %\nend\n")) == ["10 %\r20 %\nend"]
    # The head of the file ends between the two characters of a CRLF.
    assert texts(write(name, "x" * (2**16 - 1) + "\r\n\r\nthree")) == ["x" * (2**16 - 1), "three"]


def test_documents_are_what_is_asked_for(write, tmp_path):
    one = write("one.txt", "a\nb\n\nc\n")
    cuts = {"lines": ["a", "b", "c"], "paragraphs": ["a\nb", "c"], "files": ["a\nb\n\nc\n"], "auto": ["a\nb", "c"]}
    assert {kind: texts(one, documents=kind) for kind in cuts} == cuts
    write("two.txt", "d\n\ne")
    more = {"lines": ["d", "e"], "paragraphs": ["d", "e"], "files": ["d\n\ne"], "auto": ["a\nb\n\nc\n", "d\n\ne"]}
    both = {kind: texts(f"{tmp_path}/*.txt", documents=kind) for kind in cuts}
    assert both == {kind: more[kind] if kind == "auto" else cuts[kind] + more[kind] for kind in cuts}
    train = open_splits(DataConfig(train=one, held_out=0, documents="lines"), pairs=False).train["train"]
    assert [d.text for d in train()] == ["a", "b", "c"]
    with pytest.raises(FlagError, match=r"data\.documents=lines: data\.split=tail cuts"):
        open_splits(DataConfig(train=one, documents="lines", split="tail"), pairs=False)


def test_reading_otherwise_is_another_corpus():
    """Other settings of reading give another store; the default ones do not change the names of older stores."""
    assert DataConfig().reading == {}
    assert DataConfig(documents="lines", text_field="t").reading == {"documents": "lines", "text_field": "t"}


MEASURE = """
import resource, sys
from lmjax.data.files import Faults
from lmjax.data.records import read_records

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

path, documents, bound = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = peak()
faults = Faults("skip")
found = sum(1 for _ in read_records(path, faults, pairs=False, documents=documents, max_bytes=bound))
print(found, faults._count, peak() - before)
"""


@pytest.mark.parametrize(
    ("name", "unit", "documents", "counts"),
    [
        ("a.txt", "word by word by word by word by word by word by word\n", "paragraphs", (0, 1)),
        ("a.txt", "word by word by word by word by word by word by word\n", "files", (0, 1)),
        ("a.txt", "word by word ", "lines", (0, 1)),
        ("a.csv", "word, by, word\n", "paragraphs", (0, 1)),
        ("a.jsonl", "word by word ", "paragraphs", (0, 1)),
        ("a.json", "word by word ", "paragraphs", (0, 1)),
    ],
)
def test_memory_follows_the_bound_and_not_the_file(write, name, unit, documents, counts):
    start = {"a.csv": 'text\n"', "a.json": '[{"text": "'}.get(name, "")
    path = write(name, start + unit * (32 * 2**20 // len(unit)))
    argv = [sys.executable, "-c", MEASURE, path, documents, str(2**20)]
    found, bad, grown = map(int, subprocess.run(argv, capture_output=True, check=True, text=True).stdout.split())
    assert (found, bad) == counts
    assert grown < 16 * 2**20, "the whole file was in memory"
