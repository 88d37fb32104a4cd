"""A new head begins with the pretrained layers of another head, as a classifier with BERT's pooler."""

import json

import numpy as np

import lmjax
from lmjax.runs.pretrained import open_pretrained, storage_mesh


def test_a_classifier_begins_with_the_pooler(tiny, tmp_path, capsys):
    fields = {"model__architecture": "encoder", "steps": 1, "evaluation__batches": 1}
    source = lmjax.train(tiny("mlm,nsp", **fields), tmp_path / "pre", progress=False)
    for name in ("a", "dev"):
        lines = [json.dumps({"text": f"{i}", "label": i % 2}) for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = tiny("classification", data__train=tmp_path / "a.jsonl", data__eval=f"dev={tmp_path / 'dev.jsonl'}",
                  init_from=source, tokenizer__path=source, optimizer__learning_rate=1e-12, **fields)  # fmt: skip
    model = open_pretrained(source).config
    workdir = lmjax.train(config.with_fields({"model": model}), tmp_path / "run", progress=True)
    assert "of these loaded classifier_head/dense from next_sentence_head/pooler" in capsys.readouterr().err
    before, after = (
        opened.params(opened.config, storage_mesh(opened.config, opened.heads))
        for opened in map(open_pretrained, (source, workdir))
    )
    kept, new = before["next_sentence_head"]["pooler"]["kernel"], after["classifier_head"]["dense"]["kernel"]
    np.testing.assert_allclose(new, kept, atol=1e-6)
