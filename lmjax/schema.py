"""The base class of every config: frozen, typed, hashable, and closed to unknown fields."""

import pydantic


class Schema(pydantic.BaseModel):
    """A small config that stands beside the code that reads it.

    Frozen and hashable, so an instance serves as a Flax module attribute and as a static jit argument. An unknown
    field is an error. Numbers must be finite: no hyperparameter of a run is legitimately NaN or infinite.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), validate_default=True
    )
