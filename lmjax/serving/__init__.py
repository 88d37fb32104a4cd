"""Serving: a process that answers many requests at once, over HTTP in the form of OpenAI's API or at a terminal.

| module | contents |
|---|---|
| `engine`, `texts`, `searches`, `rows` | the thread that owns the device; texts; beam search; arrays of the batch |
| `ticket`, `fair`, `served` | a request on its way, the queue of those that wait, and a model under its name |
| `app`, `bodies`, `writes`, `own`, `views` | HTTP: routes, bodies, endpoints that write, compute, or show |

This room may import everything below `commands`. Starlette and uvicorn (extra `serve`) are imported only by the HTTP
half. To add an endpoint: a body in `bodies`, a function of `(served, body)` in the file of its kind, a line in `app`,
and its answer in `openapi`.
"""
