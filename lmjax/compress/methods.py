"""The methods of compression: what each makes of a model, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lmjax.compress.layers import Change, by_awq, by_gptq, by_smoothing
from lmjax.compress.structure import Shrink, without_heads, without_layers, without_neurons, without_rows
from lmjax.compress.zeros import by_sparsegpt, by_wanda
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
        change: from the form, or from `Zeros`, to the change of each kernel; None: it does not go by inputs.
        prunes: whether it makes numbers zero.
        shrink: makes a smaller model of fewer parts; None: the model keeps its sizes.
        reads: whether it needs texts.
    """

    text: str
    weights: str = "none"
    activations: str = "none"
    forms: tuple[str, ...] = ()
    factors: bool = False
    change: Callable[[Any], Change] | None = None
    prunes: bool = False
    shrink: Shrink | None = None
    reads: bool = False

    @property
    def takes_amount(self) -> bool:
        """Whether the user says how much leaves."""
        return self.prunes or (self.shrink is not None and self.reads)


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
        change=by_smoothing,
        reads=True,
    ),
    "gptq": Method(
        "codes whose errors make up for each other (Frantar et al. 2022)",
        "int4",
        forms=("int8", "nf4", "fp8"),
        change=by_gptq,
        reads=True,
    ),
    "awq": Method(
        "codes that are finer for large inputs (Lin et al. 2024)",
        "int4",
        forms=("int8", "nf4", "fp8"),
        factors=True,
        change=by_awq,
        reads=True,
    ),
    "magnitude": Method("the smallest numbers become zero", prunes=True),
    "wanda": Method(
        "numbers become zero that are small times their input (Sun et al. 2024)",
        change=by_wanda,
        prunes=True,
        reads=True,
    ),
    "sparsegpt": Method(
        "numbers become zero, and others make up for them (Frantar and Alistarh 2023)",
        change=by_sparsegpt,
        prunes=True,
        reads=True,
    ),
    "heads": Method("the least important heads leave (Michel et al. 2019)", shrink=without_heads, reads=True),
    "neurons": Method("the least important neurons of MLPs leave", shrink=without_neurons, reads=True),
    "layers": Method("the layers leave that do least (Men et al. 2024)", shrink=without_layers, reads=True),
    "vocabulary": Method("the rows of the token table leave that no token has", shrink=without_rows),
}


def form_of(name: str, weights: str | None = None, group: int | None = None) -> QuantizationConfig:
    """Returns the form in which a method keeps kernels; of one that keeps numbers, the form of these.

    Args:
        name: of the method.
        weights: the form that the user asks for; None: the usual one.
        group: inputs that share a scale; None: GROUP for 4 bits, else all inputs of an output.

    Raises:
        FlagError: the method does not have this form.
    """
    method = METHODS[name]
    if method.weights == "none":
        if weights is not None or group is not None:
            raise FlagError(f"--weights={weights} --group={group}: --method={name} keeps no codes; leave them out")
        return QuantizationConfig()
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
