"""How well a model generates the targets of sources: translations, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence

from lmjax.evaluation.intervals import Measurement, joined
from lmjax.evaluation.texts import References, bleu, chrf, exact_match, rouge
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text

# Modules of the extra `evaluate` that the metrics need.
NEEDS = ("sacrebleu", "rouge_score")


def targets(
    loaded: LoadedModel,
    sources: Sequence[Text],
    config: GenerateConfig | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Returns the best text that a model generates for each source.

    Args:
        loaded: an encoder-decoder, or a decoder that was trained on pairs.
        sources: texts, or the ids of prompts.
        config: settings of the generation, such as beams; None: the model's own.
        names: of the sources in error messages.
    """
    return [found[0].text for found in generate(loaded, sources, config, names=names)]


def text_metrics(references: References, predicted: Sequence[str]) -> Measurement:
    """Returns BLEU with and without case, chrF, ROUGE-1, -2 and -L, and exact match, as `lmjax.evaluation.texts`."""
    return joined(
        bleu(references, predicted),
        bleu(references, predicted, lowercase=True),
        chrf(references, predicted),
        rouge(references, predicted),
        exact_match(references, predicted),
    )
