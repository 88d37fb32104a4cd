"""The families of checkpoints by `model_type`: a config and a table of names each."""

from lmjax.interop.families import bart, bert, gemma, gpt2, llama, mistral, modernbert, neox, olmo, opt, phi, qwen, t5
from lmjax.interop.table import Family

FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **gpt2.FAMILIES,
    **t5.FAMILIES,
    **bart.FAMILIES,
    **mistral.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **phi.FAMILIES,
    **olmo.FAMILIES,
    **neox.FAMILIES,
    **opt.FAMILIES,
    **bert.FAMILIES,
    **modernbert.FAMILIES,
}
