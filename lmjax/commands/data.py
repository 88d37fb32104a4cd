"""`lmjax data`: what stands in data, before a model learns it."""

from __future__ import annotations

from absl import flags

from lmjax.audit.documents import Documents, contaminated, histogram, lengths, private, read, repeats, spoken
from lmjax.audit.findings import Section, chart
from lmjax.commands.audit import check_numbers, page_path, tell
from lmjax.data.records import FieldNames
from lmjax.data.sources import read_unsplit
from lmjax.errors import DataError, FlagError
from lmjax.phases import phase


def main(values: flags.FlagValues) -> list[Section]:
    """Returns the sections of the report."""
    if not values["data"].value:
        raise FlagError("lmjax data needs --data=FILE, or a quoted glob, or stdlib")
    check_numbers(values, "held_out", "threshold")
    output = page_path(values["output"].value)
    # The smaller one first, so that a file that is missing is told at once.
    evaluation = _read(values, "against") if values["against"].value else None
    documents = _read(values, "data")
    sections = [lengths(documents)]
    with phase("looking for copies"):
        near, threshold = values["near"].value, values["threshold"].value
        sections.append(repeats(documents, values["held_out"].value, near=near, threshold=threshold))
    with phase("looking for personal data"):
        sections.append(private(documents, values["show"].value))
    drawn = {"Size": chart(*histogram(documents))}
    if values["languages"].value:
        with phase("looking for languages"):
            sections.append(spoken(documents))
        shares = [(f.name.partition(":")[0], round(f.value)) for f in sections[-1].findings if "documents" in f.name]
        drawn["Languages"] = chart([share for _, share in shares], [f"{name}, %" for name, _ in shares])
    if evaluation is not None:
        with phase("looking for the evaluation set"):
            sections.append(contaminated(documents, evaluation, values["ngram"].value))
    tell("data", [("data", documents.spec)], sections, output, drawn)
    return sections


def _read(values: flags.FlagValues, flag: str) -> Documents:
    """Returns the documents that a flag names."""
    spec, field = values[flag].value, values["text_field"].value
    names = FieldNames(text=field)
    try:
        with phase(f"reading {spec}"):
            header = values["column_names"].value
            return read(spec, read_unsplit(spec, False, "error", values["documents"].value, names, header=header))
    except DataError as e:
        raise DataError(str(e).replace("--data:", f"--{flag}:")) from e
