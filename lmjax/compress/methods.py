"""The methods of compression: what each makes of a model, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lmjax.compress.layers import Change, by_awq, by_gptq, by_smoothing
from lmjax.errors import FlagError
from lmjax.model.quantized import QuantizationConfig

# Inputs that share a scale where codes have 4 bits, as in Dettmers et al. 2023, section 3.
GROUP = 64


class Method(NamedTuple):
    """A method of compression.

    Attributes:
        text: what it does, for --help.
        weights: the usual form of kernels; none: they stay floating-point numbers.
        activations: as in QuantizationConfig.
        forms: the other forms that it can have.
        factors: as in QuantizationConfig.
        calibrated: from the form to the change of each kernel, for which it needs text; None: it needs none.
    """

    text: str
    weights: str = "none"
    activations: str = "none"
    forms: tuple[str, ...] = ()
    factors: bool = False
    calibrated: Callable[[QuantizationConfig], Change] | None = None


METHODS: dict[str, Method] = {
    "int8": Method("8-bit integers", "int8"),
    "int8_activations": Method("8-bit integers, whose products round their inputs to 8 bits too", "int8", "int8"),
    "int4": Method("4-bit integers", "int4"),
    "nf4": Method("16 quantiles of the normal distribution (Dettmers et al. 2023)", "nf4"),
    "fp8": Method("8-bit floating-point numbers, e4m3", "fp8"),
    "smoothquant": Method(
        "as int8_activations, with outliers of the inputs moved to the kernels (Xiao et al. 2023)",
        "int8",
        "int8",
        factors=True,
        calibrated=by_smoothing,
    ),
    "gptq": Method(
        "codes whose errors make up for each other (Frantar et al. 2022)",
        "int4",
        forms=("int8", "nf4", "fp8"),
        calibrated=by_gptq,
    ),
    "awq": Method(
        "codes that are finer for large inputs (Lin et al. 2024)",
        "int4",
        forms=("int8", "nf4", "fp8"),
        factors=True,
        calibrated=by_awq,
    ),
}


def form_of(name: str, weights: str | None = None, group: int | None = None) -> QuantizationConfig:
    """Returns the form in which a method keeps kernels.

    Args:
        name: of the method.
        weights: the form that the user asks for; None: the usual one.
        group: inputs that share a scale; None: GROUP for 4 bits, else all inputs of an output.

    Raises:
        FlagError: the method does not have this form.
    """
    method = METHODS[name]
    if weights is not None and weights not in (method.weights, *method.forms):
        can = f"choose from {', '.join((method.weights, *method.forms))}" if method.forms else "leave it out"
        raise FlagError(f"--weights={weights}: --method={name} does not keep kernels so; {can}")
    weights = weights or method.weights
    if group is None:
        group = GROUP if weights in ("int4", "nf4") else 0
    elif group and method.activations != "none":
        raise FlagError(f"--group={group}: --method={name} has one scale for each output; leave it out")
    return QuantizationConfig(
        weights=weights, group=group, activations=method.activations, stored=True, factors=method.factors
    )
