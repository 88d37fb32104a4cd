"""A reward model: a number for an answer to a prompt, which is larger for better answers.

The loss of a pair is -log sigmoid(reward of the better answer - reward of the worse one): Bradley and Terry 1952,
"Rank analysis of incomplete block designs", Biometrika 39, equation 1; for texts Ouyang et al. 2022, arXiv:2203.02155,
equation 1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.data.preferences import CHOSEN, PROMPT, REJECTED, PreferenceFormat
from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary
from lmjax.objectives.base import Batch, Features, Forward, Rows
from lmjax.objectives.preference import (
    Preference,
    PreferenceConfig,
    answer_format,
    pair_sums,
    settings_of,
    shares,
)
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import Prediction, RecordRows, RecordTask, TokenRecord
from lmjax.objectives.rows import joined, pad, side
from lmjax.objectives.sums import LossSum
from lmjax.objectives.text_task import TextTask


class RewardConfig(PreferenceConfig):
    """Settings of the reward model; `prompt` is for decoders, which read what they would read to write the answer."""


@dataclasses.dataclass(frozen=True)
class Reward(RecordTask):
    """Predicts a reward for each of two answers to a prompt, or for one.

    The answers share a row, each a segment with the prompt: an encoder reads [CLS] prompt [SEP] answer [SEP], and a
    decoder the prompt, the answer and the token that ends it. An encoder-decoder reads prompt EOS answer EOS in its
    encoder, and one token for each in its decoder. The reward is the score of the head of multiple choice.
    """

    config: RewardConfig
    name: ClassVar[str] = "reward"
    architectures: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "encoder_decoder")
    heads: ClassVar[tuple[str, ...]] = ("choice",)
    columns: ClassVar[tuple[Column, ...]] = Preference.columns
    gold: ClassVar[tuple[str, ...]] = (REJECTED,)
    # One epoch, and the rate of Ouyang et al. 2022, appendix C.2.
    recipe: ClassVar[Mapping[str, Any]] = {
        **TextTask.recipe,
        "epochs": 1.0,
        "task.length": 512,
        "optimizer.learning_rate": 9e-6,
    }

    @classmethod
    def record_format(cls, config: RewardConfig) -> PreferenceFormat:
        """Returns the format of preferences; an answer that is scored alone may be called a completion."""
        return PreferenceFormat(chat=config.chat, alone=True)

    @classmethod
    def encoder(cls, config: RewardConfig, tokenizer: Vocabulary) -> Encoder | None:
        """Returns what renders conversations, or None for texts."""
        return Preference.encoder(config, tokenizer)

    @classmethod
    def running_text(cls, config: RewardConfig, document: Document) -> str:
        """Returns the prompt and the answers."""
        return Preference.running_text(config, document)

    @classmethod
    def default_target_length(cls, config: RewardConfig, length: int) -> int:
        """Returns the fewest tokens of a decoder's row: one for each answer is enough."""
        del config, length
        return 8

    @classmethod
    def penalised_by(cls, config: RewardConfig) -> tuple[str, ...]:
        """Returns none: a reward has no probabilities of its own."""
        del config
        return ()

    @classmethod
    def continued(cls, form: Callable[[], PromptFormat]) -> dict[str, Any]:
        """Returns the ids around the prompts of the model that the run starts from, if it writes answers."""
        return settings_of(cls.name, form()) if form().stop else {}

    def prompt_format(self) -> PromptFormat:
        """Returns the ids around texts; a decoder has those of the model that it starts from."""
        if self.family.causal and not self.family.paired:
            return answer_format(self.config, self.tokenizer, self.family)
        if self.family.paired and self.tokenizer.template() is None:
            return PromptFormat(after=(self.tokenizer.eos_id,))
        return super().prompt_format()

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns one row for each record."""
        del seed
        return RecordRows(store, self)

    def reads(self, record: TokenRecord, form: PromptFormat, length: int) -> list[Features]:
        """Returns `side` of the answers with their prompt, each a segment, and `text_ids`, int32 `[2]`, 0 for none.

        A prompt that does not fit loses its beginning, and an answer its end.
        """
        (prompt,) = record.texts[PROMPT]
        answers = [record.texts[name][0] for name in (CHOSEN, REJECTED) if len(record.texts[name][0])] or [prompt[:0]]
        end = np.array([] if self.config.chat else form.stop[:1], np.int32)
        decoder = self.family.causal and not self.family.paired
        answers = [np.concatenate([answer, end]) if decoder else answer for answer in answers]
        end_id = self.tokenizer.role_ids.get("eos", self.tokenizer.pad_id)
        between = (form.after or (end_id,)) if form.between is None else form.between
        around = len(form.before) + len(form.after) + (0 if decoder else len(between))
        kept, sizes = shares(length, around, len(prompt), [len(answer) for answer in answers])
        prompt, made = prompt[len(prompt) - kept :], []
        for answer, size in zip(answers, sizes, strict=True):
            if decoder:
                ids = np.array([*form.around(prompt), *answer[:size]], np.int32)
                made.append((ids, np.zeros_like(ids)))
            else:
                made.append(joined(form, [prompt, answer[:size]], end_id=end_id, length=length))
        tokens, types = zip(*made, strict=True)
        row, pad_id = {"text_ids": pad(np.arange(1, len(answers) + 1), 2)}, self.tokenizer.pad_id
        if self.family.paired:
            starts = [np.array([pad_id], np.int32)] * len(answers)
            return [
                row
                | side(list(tokens), length, pad_id, "encoder_")
                | side(starts, self.target_length, pad_id, "decoder_")
            ]
        return [row | side(list(tokens), length, pad_id) | {"type_ids": pad(np.concatenate(types), length)}]

    def targets(self, record: TokenRecord, rows: Sequence[Features]) -> list[Features]:
        """Returns the weight 1 of the pair."""
        del record, rows
        return [{"row_weights": np.float32(1)}]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of pairs."""
        return {self.name: jnp.sum(batch["row_weights"])}

    def losses(self, forward: Forward, batch: Batch) -> dict[str, LossSum]:
        """Returns the sums over the pairs."""
        rewards = self.outputs(forward, batch)["rewards"]
        losses = jax.nn.softplus(rewards[:, 1] - rewards[:, 0])
        return {self.name: pair_sums(losses, rewards, batch["row_weights"], {"chosen_reward": rewards[:, 0]})}

    def outputs(self, forward: Forward, batch: Batch) -> dict[str, jax.Array]:
        """Returns the rewards of the answers, `[batch, 2]`."""
        del batch
        return {"rewards": forward.head("choice", forward.hidden).astype(jnp.float32)}

    def predict(
        self, record: TokenRecord, rows: Sequence[Features], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> Prediction:
        """Returns the reward of the answer; of two answers also that of the second, and the first minus the second."""
        del rows
        first, second = outputs[0]["rewards"][:2].tolist()
        both = {"rejected reward": second, "margin": first - second} if len(record.texts[REJECTED][0]) else {}
        return {"score": first, **both}

    def truth(self, record: TokenRecord) -> Prediction:
        """Returns nothing: the better answer is the first one."""
        del record
        return {}

    def right(self, truth: Prediction, prediction: Prediction) -> bool:
        """Returns whether the better answer has the larger reward."""
        del truth
        return prediction["margin"] > 0

    def vote(self, predictions: Sequence[Prediction]) -> Prediction:
        """Returns the means of the rewards."""
        return {name: sum(each[name] for each in predictions) / len(predictions) for name in predictions[0]}

    def shown(self, prediction: Mapping[str, Any]) -> str:
        """Returns the rewards and their difference, separated by tabs."""
        return "\t".join(f"{x:.4f}" for x in prediction.values())
