"""The base class of configs: dotted paths set fields of groups; the error for a former path names the present one."""

from typing import ClassVar

import pydantic
import pytest

from lmjax.config import Config
from lmjax.schema import Schema


class Inner(Schema):
    """A group."""

    moved: ClassVar[dict[str, str]] = {"size": "width"}

    width: int = pydantic.Field(1, gt=0)
    depth: int = 1


class Outer(Schema):
    """A config with a group, one of whose fields was outside the group before."""

    moved: ClassVar[dict[str, str]] = {"inner_depth": "inner.depth", "both": "inner.depth or other"}

    inner: Inner = Inner()
    other: int = 0


def groups(schema: type[Schema], prefix: str = ""):
    """Yields every schema in a tree of configs with its dotted path."""
    yield prefix, schema
    for name, info in schema.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Schema):
            yield from groups(info.annotation, f"{prefix}{name}.")


def test_a_dotted_path_changes_one_field_of_a_group():
    assert Outer(**{"inner.width": 2}) == Outer(inner=Inner(width=2))
    assert Outer(**{"inner": Inner(width=2), "inner.depth": 3}) == Outer(inner=Inner(width=2, depth=3))
    assert Outer(inner={"width": 2}).with_fields({"inner.depth": 3, "other": 4}).model_dump() == {
        "inner": {"width": 2, "depth": 3},
        "other": 4,
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inner.width": 0}, "inner.width"),
        ({"inner.heigth": 1}, "inner.heigth"),
        ({"iner.width": 1}, "iner"),
        ({"inner_depth": 3}, "inner_depth is now inner.depth"),
        ({"inner": {"size": 3}}, "size is now width"),
    ],
)
def test_a_copy_with_other_fields_is_validated(fields, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        Outer().with_fields(fields)
    with pytest.raises(pydantic.ValidationError, match=words):
        Outer().model_copy(update=fields)


def test_a_path_of_before_is_found_from_any_config_above():
    assert Outer.moved_to("inner_depth") == "inner.depth"
    assert Outer.moved_to("inner.size") == "inner.width"
    assert Outer.moved_to("both") == "inner.depth or other"
    for path in ("inner.depth", "inner", "iner.size", "inner.size.more"):
        assert Outer.moved_to(path) is None


def test_paths_of_before_are_no_fields_and_lead_to_fields():
    tree = dict(groups(Config))
    paths = {prefix + name for prefix, schema in tree.items() for name in schema.model_fields}
    for prefix, schema in tree.items():
        for old, new in schema.moved.items():
            assert prefix + old not in paths, f"{prefix}{old} is a field: it cannot have moved"
            for each in new.split(" or "):
                assert prefix + each in paths, f"{prefix}{old} leads to {prefix}{each}, which is no field"
