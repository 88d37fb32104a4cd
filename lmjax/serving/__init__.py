"""Serving: a process that answers many requests at once, over HTTP in the form of OpenAI's API or at a terminal.

| module | contents |
|---|---|
| `engine`, `rows` | one thread that owns the device: requests join and leave a running batch; its arrays |
| `ticket`, `fair`, `asked` | a request on its way, the queue of those that wait, and its settings from a body |

This room may import everything below `commands`. Starlette and uvicorn (extra `serve`) are imported only by the HTTP
half. To add an endpoint: a body in `bodies`, a function of `(served, body)` in the file of its kind, a line in `app`.
"""
