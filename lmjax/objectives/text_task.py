"""Tasks on a text or a pair of texts: classification and regression read the same rows and train the same head."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lmjax.data.columns import Column
from lmjax.objectives.base import Batch, Features, Forward
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import RecordTask, TokenRecord

TEXT, SECOND = "text", "text2"


@dataclasses.dataclass(frozen=True)
class TextTask(RecordTask):
    """Predicts something for one or two texts, from an encoder's [CLS] or from a decoder's last token.

    An encoder reads [CLS] A [SEP], or [CLS] A [SEP] B [SEP] with type 1 from B on. A decoder reads BOS A, or
    BOS A EOS B (Radford et al. 2018, section 3.3, with EOS as the delimiter). With the tokenizer of a checkpoint both
    read what this tokenizer makes of one or two texts.
    """

    architectures: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    texts: ClassVar[tuple[Column, ...]] = (Column(TEXT), Column(SECOND, optional=True))
    # Devlin et al. 2019, appendix A.3: rates from 2e-5 to 5e-5, 2 to 4 epochs, batches of 16 or 32; the warm-up and
    # the linear decay to 0 are those of the code of its authors.
    recipe: ClassVar[Mapping[str, Any]] = {
        "epochs": 3.0,
        "batch_size": 32,
        "optimizer.learning_rate": 3e-5,
        "optimizer.schedule": "linear",
        "optimizer.final_ratio": 0.0,
        "optimizer.warmup_share": 0.1,
        "optimizer.weight_decay": 0.01,
        "evaluation.every": 500,
        "evaluation.batches": 200,
    }

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns the features of `text_row`."""
        return [self.text_row(form, [record.texts[name][0] for name in (TEXT, SECOND)], length)]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of records."""
        return {self.name: jnp.sum(batch["label_weights"])}

    def logits(self, forward: Forward) -> jax.Array:
        """Returns the outputs of the head, float32 `[batch, labels]`."""
        return forward.head("classifier", forward.hidden).astype(jnp.float32)
