"""Requests of the tests, by the standard library alone."""

import http.client
import json


def ask(server, path, body=None, *, method=None, headers=None, raw=None):
    """Returns status, headers and the parsed body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | (headers or {})
    try:
        connection.request(method or ("GET" if sent is None else "POST"), path, sent, given)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, dict(answer.headers), json.loads(content) if is_json else content
    finally:
        connection.close()


def events(server, path, body):
    """Yields the parsed parts of a stream."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        for line in answer:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                yield json.loads(line[6:])
    finally:
        connection.close()
