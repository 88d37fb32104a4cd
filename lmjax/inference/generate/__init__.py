"""Generation: one cached decode loop, the strategies that choose its tokens, and the conversion of tokens to text.

| module | contents |
|---|---|
| `generate` | `generate`, `stream`: continue prompts |
| `fill_mask` | `fill_mask`: an encoder's predictions for masked tokens |
| `unmask` | text from an encoder of masked diffusion, whose masks are replaced in steps |
| `decode`, `writing` | the loop on the device, and its host half |
| `strategy`, `sampling`, `beam`, `processors` | how the next token is chosen |
| `speculative` | a loop of its own with the same cache: the model checks tokens proposed by a draft |
| `constrain`, `text`, `progress` | regular expressions and JSON schemas, streams of text, the host's state of a text |
| `requests` | rows of a batch |

A strategy is a class with the methods of `strategy.Strategy`, in a file of its own.
"""
