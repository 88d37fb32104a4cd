"""The fields of an adapter."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from lmjax.errors import FlagError
from lmjax.schema import Schema

Kind = Literal["none", "lora", "rslora", "dora", "ia3"]
# Where each kind is put if no targets are given: as in Hu et al. 2021, section 4.2, and Liu et al. 2022, section 3.3.
_USUAL = {"ia3": "key|value|down"}


class AdapterConfig(Schema):
    """Which layers of the model in init_from are changed by trained parameters beside them, and how.

    With a kind, the model's own parameters are not trained: the optimizer, the gradients and the checkpoints have only
    those of the adapter, and of the parts in `whole`.
    """

    kind: Kind = Field(
        "none",
        description="lora: Hu et al. 2021, arXiv:2106.09685; rslora: Kalajdzievski 2023, arXiv:2312.03732; dora: Liu et"
        " al. 2024, arXiv:2402.09353; ia3: Liu et al. 2022, arXiv:2205.05638; none: all parameters are trained",
    )
    rank: int = Field(8, ge=1, description="inner width of the two matrices beside a layer; ia3 has none")
    alpha: float = Field(
        16.0, gt=0, description="their product is multiplied by alpha / rank, or by alpha / sqrt(rank) in rslora"
    )
    targets: str = Field(
        "",
        description="a regular expression for the last names of the paths of layers, such as query|value, or"
        " .*/mlp/.*; empty: query|value, in ia3 key|value|down",
    )
    whole: tuple[str, ...] = Field(
        (),
        description="parts of the model, such as classifier_head, that are trained whole and kept with the adapter; "
        "those that init_from lacks are among them",
    )

    base_dtype: Literal["param", "int8"] = Field(
        "param",
        description="how the kernels in the base's layers are kept: as --config.model.param_dtype says, or as 8-bit"
        " integers with a scale for each output, which the adapter learns to make up for (as Dettmers et al. 2023,"
        " arXiv:2305.14314, section 3, with 8 bits instead of 4)",
    )

    @property
    def scale(self) -> float:
        """Returns the factor on the product of the two matrices."""
        return self.alpha / (self.rank**0.5 if self.kind == "rslora" else self.rank)

    @property
    def pattern(self) -> str:
        """Returns the regular expression that is used."""
        return self.targets or _USUAL.get(self.kind, "query|value")

    def chooses(self, path: tuple[str, ...]) -> bool:
        """Returns whether the layer at a path, such as `backbone/stack/layer_0/attention/query`, is changed."""
        if self.kind == "none" or path[0] in self.whole:
            return False
        return re.fullmatch(f"(.*/)?({self.pattern})", "/".join(path)) is not None

    def check(self, init_from: str) -> None:
        """Raises FlagError for an adapter of a model with random parameters, or for fields of none.

        Args:
            init_from: the place of the model that is adapted; empty: there is none.
        """
        none = AdapterConfig()
        if self.kind == "none" and self != none:
            name, value = next((name, value) for name, value in self if value != getattr(none, name))
            raise FlagError(f"--config.adapter.{name}={value}: there is no adapter; give --config.adapter.kind=lora")
        if self.kind != "none" and not init_from:
            raise FlagError(f"--config.adapter.kind={self.kind}: adapts a trained model; give one with --init_from")

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            re.compile(self.targets)
        except re.error as e:
            raise ValueError(f"targets={self.targets!r} is no regular expression: {e}") from e
        return self
