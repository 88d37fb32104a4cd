"""How the records of an objective stand in files: which formats are read, and what their fields become."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmjax.data.fields import Fields, Header, has_fields, read_fields
from lmjax.data.files import Faults


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """JSONL, JSON arrays, CSV and TSV, with one object or row for each record.

    A subclass reads other files too, and turns fields into those that the columns name. Its own fields are settings
    that change what is read.

    Attributes:
        gold: whether what is to be predicted is checked; if not, a record may lack it.
    """

    gold: bool = dataclasses.field(default=True, kw_only=True)

    @property
    def parts(self) -> dict[str, Any]:
        """Returns the settings as JSON values, for the fingerprint of what is read; empty without any."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "gold"}

    def reads(self, path: str) -> bool:
        """Returns whether a file of this name has records."""
        return has_fields(path)

    def records(
        self, path: str, faults: Faults, check_header: Header, max_bytes: int, header: Sequence[str] = ()
    ) -> Iterator[tuple[str, Fields]]:
        """Yields the place of each record (file and line) and its fields, as `read_fields` does."""
        yield from read_fields(path, faults, check_header=check_header, max_bytes=max_bytes, header=header)

    def arranged(self, where: str, fields: Fields) -> Fields:
        """Returns the fields of a record under the names of the columns; raises DataError if they cannot be read."""
        del where
        return fields

    def checked(self, where: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the values of a record by column, in the types of their columns, after checks of this format.

        Raises:
            DataError: they do not fit together.
        """
        del where
        return values


PLAIN = RecordFormat()
