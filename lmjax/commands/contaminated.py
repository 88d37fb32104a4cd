"""`--training_data` of `lmjax evaluate`: sets are measured with and without the examples that stand in that data."""

from __future__ import annotations

from collections.abc import Mapping

from absl import flags

from lmjax.audit.contamination import parts, text_of
from lmjax.audit.duplicates import contamination
from lmjax.data.records import FieldNames
from lmjax.data.sources import read_unsplit
from lmjax.errors import DataError, FlagError
from lmjax.evaluation.tasks import Data
from lmjax.phases import phase


def check_training_data(values: flags.FlagValues) -> None:
    """Raises FlagError for flags that do not go with --training_data."""
    for name in ("harness", "predictions"):
        if values["training_data"].value and values[name].value:
            why = "brings its own data" if name == "harness" else "has each example once"
            raise FlagError(f"--training_data and --{name}: {name} {why}; leave one of them out")


def parted(values: flags.FlagValues, data: Mapping[str, Data], names: FieldNames) -> dict[str, Data]:
    """Returns each set, and if some but not all of its examples are contaminated, these and the others as sets too.

    An example is contaminated if `--ngram` of its words in a row stand in a text of the training data, or all its
    words if they are fewer.

    Args:
        values: the flags.
        data: the sets by name.
        names: of the fields of texts and pairs.

    Raises:
        DataError: the training data cannot be read.
    """
    spec, size, found = values["training_data"].value, values["ngram"].value, {}
    header = values["column_names"].value
    for name, whole in data.items():
        try:
            with phase(f"looking for {name} in {spec}"):
                training = (each.text for each in read_unsplit(spec, False, "error", "auto", names, header=header))
                dirty = contamination([text_of(record) for record in whole.records], training, size) > 0
        except DataError as e:
            raise DataError(str(e).replace("--data:", "--training_data:")) from e
        print(f"{name}: {dirty.sum():,} of {len(dirty):,} examples stand in {spec} ({size} words in a row)")
        found[name] = whole
        found |= {f"{name}, {part}": own for part, own in parts(whole, dirty.tolist()).items()}
    return found
