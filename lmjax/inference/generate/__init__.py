"""Generation: one cached decode loop, the strategies that choose its tokens, and the text that they become.

| module | what it gives |
|---|---|
| `generate` | `generate`, `stream`: text behind prompts |
| `fill_mask` | `fill_mask`: what an encoder puts in the place of masks |
| `decode`, `writing` | the loop on the device, and its host half |
| `strategy`, `sampling`, `beam`, `processors` | how the next token is chosen |
| `speculative` | a loop of its own over the same cache: a draft is checked by the model |
| `constrain`, `text`, `requests` | regular expressions and JSON schemas, streams of text, rows of a batch |

A strategy is a class with the methods of `strategy.Strategy`, in a file of its own.
"""
