"""A server with tiny models on a port of its own, for the tests of a file."""

import dataclasses
import threading
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from lmjax.serving.app import Limits, make_app
from lmjax.serving.server import listen, run
from tests.serving.models import served_models


@dataclasses.dataclass
class Running:
    """A server: its address, its models, and the engines."""

    port: int
    models: dict

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def _server():
    models = served_models()
    listening = listen("127.0.0.1", 0)
    running = Running(listening.getsockname()[1], models)
    app = make_app(models, Limits(body_bytes=200_000, body_seconds=2.0))
    engines = [each.engine for each in models.values()]

    def serve():
        run(app, listening, engines, drain=1.0, url=running.url)

    threading.Thread(target=serve, daemon=True).start()
    yield running
    for engine in engines:
        engine.close()


@pytest.fixture
def server(_server):
    """The server; after a test nothing is being written any more, and nothing was compiled for texts."""
    yield _server
    deadline = time.monotonic() + 20
    engines = [each.engine for each in _server.models.values()]
    while any(any(engine.load) for engine in engines):
        assert time.monotonic() < deadline, "texts are written although nobody waits for them"
        time.sleep(0.01)
    assert not any(engine.counts.compiled for engine in engines)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """Keeps compiled programs after a file, as other folders do not: the server lives on and must not compile again."""
    return
