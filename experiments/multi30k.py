r"""German-to-English translation of image captions, Multi30k (Elliott et al. 2016, arXiv:1605.00459): 29,000 pairs.

A Transformer of width 128 with 4 encoder and 4 decoder layers, the size that Wu et al. 2021 (arXiv:2105.14462, section
3.1) found best for this corpus. The files of the corpus have one sentence per line, and one sentence contains a tab.
This makes a table of pairs, which lmjax reads:

    pairs() { printf 'source\ttarget\n'; paste <(zcat $1.de.gz | tr '\t' ' ') <(zcat $1.en.gz); }
    pairs train > train.tsv; pairs val > val.tsv; pairs test_2016_flickr > test.tsv
    lmjax train --config=experiments/multi30k.py --data=train.tsv --eval_data=val=val.tsv --eval_data=test=test.tsv

English to German: the same with --config.data.source_field=target --config.data.target_field=source. With more updates
and more dropout it reaches 40.1 BLEU, lower-cased, and German to English 44.0 (experiments/README.md, "Multi30k").

Hardware: two CPU cores (AVX2), about 25 minutes. Result: 1.767 nats per token on val, 1.775 on test (before: 8.35);
37.4 BLEU on test with five beams, 35.6 with greedy decoding. experiments/README.md has the commands.
"""

from lmjax.config import Config
from lmjax.data.sources import DataConfig
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.config import ModelConfig
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig
from lmjax.training.optimizers.adam import AdamW


def get_config(variant: str = "") -> Config:
    """Returns the recipe."""
    del variant
    return Config(
        steps=2_400,
        batch_size=16,
        task=TaskConfig(objective=("seq2seq",), length=128, target_length=128, label_smoothing=0.1),
        model=ModelConfig(
            architecture="encoder_decoder",
            vocab_size=0,
            embed_dim=128,
            num_heads=4,
            mlp_dim=256,
            num_layers=4,
            max_length=128,
            norm="rmsnorm",
            biases=(),
            mlp="swiglu",
            positions="rope",
            initializer="scaled",
            dropout={"residual": 0.1},
            scan_layers=False,
        ),
        data=DataConfig(train="train.tsv"),
        tokenizer=TokenizerConfig(vocab_size=4096),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=200, final_ratio=0.02, adamw=AdamW(beta2=0.98)),
        evaluation=EvaluationConfig(every=300, batches=100),
        checkpoint=CheckpointConfig(every=600),
    )
