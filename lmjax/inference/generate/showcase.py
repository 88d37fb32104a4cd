"""A sample of a trained model's predictions on a held-out text, as lines to print."""

from __future__ import annotations

from lmjax.inference.generate.fill_mask import fill_mask
from lmjax.inference.generate.generate import GenerateConfig, generate
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.loaded import LoadedModel
from lmjax.objectives.samples import Sample

_DRAWN = SamplingConfig(temperature=0.8, top_k=40)


def showcase(loaded: LoadedModel, sample: Sample | None) -> str:
    """Returns a few lines: the input that an objective shows of held-out text, and the model's answer.

    Empty if there is no sample, or the model predicts no tokens.

    Args:
        loaded: the model.
        sample: made by the objective that the model was trained on.
    """
    if sample is None or not loaded.model.has_vocabulary:
        return ""
    row = loaded.prompts.around(sample.ids)
    if not sample.count:
        ids = [best[0].id for best in fill_mask(loaded, [row], top_k=1)[0]]
    else:
        # The answer shares the row of its prompt, except in an encoder-decoder.
        used = 0 if loaded.config.family.paired else len(row)
        count = min(sample.count, loaded.config.max_length - used)
        sampling = _DRAWN if sample.sampled else SamplingConfig()
        ids = generate(loaded, [row], GenerateConfig(max_new_tokens=count, sampling=sampling))[0][0].ids
    return f"{sample.shown}\n{sample.answer(ids)}"
