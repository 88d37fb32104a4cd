"""Objectives of the tests' own, registered for the time of a test."""

import contextlib

from pydantic.fields import FieldInfo

from lmjax.config import Config
from lmjax.objectives.registry import OBJECTIVES, settings
from lmjax.objectives.task import TaskConfig


@contextlib.contextmanager
def registered(objective):
    """Does for one objective what its line in lmjax/objectives/registry.py does."""
    config, name = settings(objective), objective.name
    OBJECTIVES[name] = objective
    TaskConfig.__pydantic_fields__[name] = FieldInfo.from_annotated_attribute(config, config())
    try:
        for schema in (TaskConfig, Config):
            schema.model_rebuild(force=True)
        yield
    finally:
        del OBJECTIVES[name], TaskConfig.__pydantic_fields__[name]
        for schema in (TaskConfig, Config):
            schema.model_rebuild(force=True)
