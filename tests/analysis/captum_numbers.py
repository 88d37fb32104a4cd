"""Records captum's attributions of a BERT classifier in float64: `python -m tests.analysis.captum_numbers`.

Needs torch, transformers and captum (0.9.0 when the numbers were recorded). The checkpoint is one of those that the
tests of the Hugging Face interop read.
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent.parent / "interop" / "recorded" / "bert_classifier"
RECORDED = pathlib.Path(__file__).parent / "captum.json"
# The first and the last id are special in the test's tokenizer, and 0 is its padding.
IDS, LABEL, PAD = [4, 17, 33, 8, 50, 21, 5], 1, 0


def attributions() -> dict[str, list[float]]:
    """Returns gradient x input and integrated gradients of each token, for the logit of a label."""
    import torch
    from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(FOLDER, dtype=torch.float64).eval()
    words = model.bert.embeddings.word_embeddings
    ids = torch.tensor([IDS])
    nothing = torch.tensor([[IDS[0], *[PAD] * (len(IDS) - 2), IDS[-1]]])

    def logits(ids):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    integrated = LayerIntegratedGradients(logits, words).attribute(
        ids, baselines=nothing, target=LABEL, n_steps=256, method="gausslegendre"
    )
    gradient = LayerGradientXActivation(logits, words).attribute(ids, target=LABEL)
    both = {"integrated": integrated, "gradient": gradient}
    return {name: found.sum(dim=-1)[0].tolist() for name, found in both.items()}


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(attributions(), indent=1) + "\n")
