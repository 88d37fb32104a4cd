"""One bad record leaves the others unchanged, in every format, gzipped or not; its error names the line."""

import csv
import gzip
import io
import json
import random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data import json_arrays
from lmjax.data.csv_rows import csv_rows
from lmjax.data.files import Faults, read_lines
from lmjax.data.records import read_records
from lmjax.errors import DataError

# The texts that each format writes; the third becomes bad. They have commas, quotes and several lines if the format
# allows these.
TEXTS = ["first", 'one, two\nthree "four"', 'bad, "x"\nMARK\nend, of it', 'next, "a"\nb', "last"]


def _csv(texts, delimiter=","):
    file = io.StringIO()
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    writer = csv.writer(
        file, delimiter=delimiter, lineterminator="\n", quoting=quoting, quotechar=None if delimiter == "\t" else '"'
    )
    writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    return file.getvalue()


def _flat(texts):
    return [text.replace("\n", " ") for text in texts]


def _array(texts, indent=1):
    return json.dumps([{"id": i, "text": text} for i, text in enumerate(texts)], indent=indent)


WRITERS = {
    "a.jsonl": (lambda t: "".join(json.dumps({"id": i, "text": x}) + "\n" for i, x in enumerate(t)), TEXTS, {}),
    "lines.json": (lambda t: "".join(json.dumps({"text": x}) + "\n" for x in t), TEXTS, {}),
    "array.json": (_array, TEXTS, {}),
    "dense.json": (lambda t: _array(t, None), TEXTS, {}),
    "rows.json": (lambda t: "[" + ",\n ".join(json.dumps({"text": x}) for x in t) + "]\n", TEXTS, {}),
    "a.csv": (_csv, TEXTS, {}),
    "crlf.csv": (lambda t: _csv(t).replace("\n", "\r\n"), TEXTS, {}),
    "a.tsv": (lambda t: _csv(_flat(t), "\t"), _flat(TEXTS), {}),
    "a.txt": ("\n\n".join, TEXTS, {}),
    "lines.txt": (lambda t: "\n".join(_flat(t)), _flat(TEXTS), {"documents": "lines"}),
    "old.txt": (lambda t: "\n\n".join(t).replace("\n", "\r"), TEXTS, {}),
    "old.csv": (lambda t: _csv(t).replace("\n", "\r"), TEXTS, {}),
}  # fmt: skip


def damaged(content: bytes, fault: str) -> bytes:
    """Returns the content with a fault at MARK, which is in the third text."""
    return {
        "byte": lambda: content.replace(b"MARK", b"M\xffRK"),
        "nul": lambda: content.replace(b"MARK", b"M\x00RK"),
        "long": lambda: content.replace(b"MARK", b"M" * 20_000),
        "none": lambda: content,
    }[fault]()


def read(path, action="skip", **options):
    faults = Faults(action)
    return [record.source for record in read_records(str(path), faults, pairs=False, **options)], faults


def write(folder, name, content: bytes, packed: bool):
    path = folder / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("fault", ["none", "byte", "nul", "long"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_fault_costs_one_record_and_no_neighbour(name, fault, packed, tmp_path):
    make, texts, options = WRITERS[name]
    content = make(TEXTS).encode()
    path = write(tmp_path, name, damaged(content, fault), packed)
    found, faults = read(path, max_bytes=4000, **options)
    if fault == "none":
        assert found == texts
        return
    assert found == [*texts[:2], *texts[3:]]
    assert faults._count == 1
    # In an array the object is too long, otherwise the line.
    at = (
        content.rindex(b"{", 0, content.index(b"MARK"))
        if fault == "long" and "[" in content.decode()[:1]
        else content.index(b"MARK")
    )
    line = 1 + content[:at].replace(b"\r\n", b"\n").count(b"\r" if "old" in name else b"\n")
    with pytest.raises(DataError, match=rf"{path.name}:{line}: "):
        read(path, "error", max_bytes=4000, **options)


@pytest.mark.parametrize("name", WRITERS)
def test_of_a_truncated_gzip_file_the_whole_records_stay(name, tmp_path):
    make, _, options = WRITERS[name]
    rng = random.Random(0)
    texts = [f"{i} {rng.getrandbits(900):x}" for i in range(2000)]
    packed = gzip.compress(make(texts).encode())
    (tmp_path / f"{name}.gz").write_bytes(packed[: len(packed) // 2])
    found, faults = read(tmp_path / f"{name}.gz", **options)
    assert 100 < len(found) < len(texts)
    assert found == texts[: len(found)]
    assert (faults._count, "the gzip file is truncated" in faults.first) == (1, True)


# Replacements that damage one record, so that the format itself is invalid there.
BROKEN = {
    "a.jsonl": [
        ('"text": "bad', '"text": bad'),
        ('"text": "bad', '"text": ["bad'),
        ('{"id": 2, "text"', '["id", "text"'),
        ('"id": 2, "text"', '"id": 2, "txt"'),
        ('"text": "bad', '"text": "", "text": "bad'),
        ('"bad', '"\\ud800'),
        ('"bad', '"\\u0000'),
    ],
    "array.json": [
        ('"text": "bad', '"text": bad'),
        ('"text": "bad', '"txt": "bad'),
        ('"text": "bad', '"text": ["bad'),
        ('"text": "bad', '"text": "", "text": "bad'),
        ('of it"\n }', 'of it"\n'),
        ('of it"\n }', 'of it"\n }}'),
        ('of it"\n }', 'of it\n }'),
    ],
    "dense.json": [('"text": "bad', '"text": bad'), ('"text": "bad', '"txt": "bad'), ('"bad', '"\\u0000')],
    "rows.json": [('of it"}', 'of it}'), ('of it"}', 'of it"'), ('of it"},', 'of it"}')],
    "a.csv": [
        ('2,"bad', '2,bad'),
        ('2,"bad', '2,"ba"d'),
        ('2,"bad', '2,,"bad'),
        ('of it"', 'of it"x'),
        ('of it"', 'of it",,'),
        ('of it"', 'of it""'),
        ('of it"', 'of it'),
        ('MARK\n', 'M"K\n'),
        ('2,"bad, ""x""\nMARK\nend, of it"', '2,"bad'),
        ('2,"bad, ""x""\nMARK\nend, of it"', '2'),
        ('2,"bad, ""x""\nMARK\nend, of it"', '2,b\rad'),
        ('2,"bad, ""x""\nMARK\nend, of it"', '"2,bad'),
    ],
    "a.tsv": [("2\tbad", "bad"), ("2\tbad", "2\tba\td")],
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("name", "old", "new"), [(name, *pair) for name, pairs in BROKEN.items() for pair in pairs])
def test_a_broken_record_is_left_out_alone(name, old, new, packed, tmp_path):
    make, texts, _ = WRITERS[name]
    content = make(TEXTS)
    assert content.count(old) == 1
    path = write(tmp_path, name, content.replace(old, new).encode(), packed)
    found, _ = read(path)
    assert found == [*texts[:2], *texts[3:]]
    with pytest.raises(DataError, match=rf"{path.name}:\d+: "):
        read(path, "error")


def rows_of(content: str | bytes, action: str = "skip") -> tuple[list[list[str]], Faults]:
    data = content.encode() if isinstance(content, str) else content
    faults = Faults(action)
    lines = read_lines("a.csv", io.BytesIO(data), 10_000)
    return [row for _, row in csv_rows("a.csv", lines, faults, tabs=False, max_bytes=40_000)], faults


CELLS = st.text('ab,"\n \u00e9', max_size=8)
TABLES = st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=2, max_size=7))


def table_text(rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", quoting=quoting).writerows(rows)
    return file.getvalue()


@settings(deadline=None)
@given(TABLES, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_rows_are_those_that_pythons_writer_wrote(rows, quoting):
    found, faults = rows_of(table_text(rows, quoting), "error")
    assert found == rows
    assert not faults.first


@settings(deadline=None, max_examples=300)
@given(st.text('ab,"\n', max_size=40))
def test_what_pythons_strict_reader_takes_is_taken_alike(content):
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row]
    except csv.Error:
        return
    if len({len(row) for row in rows}) <= 1:
        assert rows_of(content, "error")[0] == rows


@settings(deadline=None)
@given(TABLES, st.data())
def test_a_bad_byte_anywhere_costs_its_row_alone(rows, data):
    number = data.draw(st.integers(1, len(rows) - 1))
    column = data.draw(st.integers(0, len(rows[0]) - 1))
    bad = [list(row) for row in rows]
    at = data.draw(st.integers(0, len(bad[number][column])))
    bad[number][column] = f"{bad[number][column][:at]}@{bad[number][column][at:]}"
    content = table_text(bad).encode().replace(b"@", data.draw(st.sampled_from([b"\xff", b"\x00", b"\xed\xa0\x80"])))
    found, faults = rows_of(content)
    assert found == [*rows[:number], *rows[number + 1 :]]
    assert faults._count == 1


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.text("ab\n", max_size=6), CELLS), min_size=2, max_size=7), st.data())
def test_no_edit_of_a_row_harms_the_rows_before_it(rows, data):
    rows = [["id", "text"], *map(list, rows)]
    lines = [table_text([row]) for row in rows]
    number = data.draw(st.integers(1, len(rows) - 1))
    at = data.draw(st.integers(0, len(lines[number]) - 1))
    edited = lines[number][:at] + data.draw(st.sampled_from(['"', ",", "", "\r", "\n"])) + lines[number][at + 1 :]
    found, _ = rows_of("".join([*lines[:number], edited, *lines[number + 1 :]]))
    assert found[:number] == rows[:number]


ELEMENTS = st.lists(st.dictionaries(st.text("ab\"", max_size=2), st.recursive(
    st.text('a"\\[]{},\n', max_size=6) | st.integers() | st.none(), lambda x: st.lists(x, max_size=2), max_leaves=4),
    max_size=3), max_size=5)  # fmt: skip


@settings(deadline=None)
@given(ELEMENTS, st.sampled_from([None, 1, 4]), st.integers(1, 9))
def test_elements_of_an_array_are_those_that_json_reads(elements, indent, piece):
    """With parts of any length, so that strings, escapes and numbers are cut too."""
    content = json.dumps(elements, indent=indent, ensure_ascii=False).encode()
    with mock.patch.object(json_arrays, "_PIECE_BYTES", piece):
        found = list(
            json_arrays.array_elements("a", io.BytesIO(content), Faults("error"), load=json.loads, max_bytes=999)
        )
    assert [value for _, value in found] == elements
    assert [number for number, _ in found] == sorted(number for number, _ in found)
