"""OpenAI's own client reads every answer."""

import pytest

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
USER = [{"role": "user", "content": "The young king"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_completions_and_conversations(client):
    assert [each.id for each in client.models.list()][:2] == ["decoder", "plain"]
    assert client.models.retrieve("both").id == "both"
    found = client.completions.create(model="plain", prompt="a", max_tokens=4, logprobs=2, n=2, seed=1)
    assert len(found.choices) == 2
    assert len(found.choices[0].logprobs.top_logprobs[0]) == 2
    answer = client.chat.completions.create(model="decoder", messages=USER, max_completion_tokens=4, temperature=0)
    stream = client.chat.completions.create(
        model="decoder", messages=USER, max_tokens=4, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == answer.choices[0].message.content
    assert parts[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_schemas(client):
    pytest.importorskip("llguidance")
    # The tiny tokenizer has letters and no braces.
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="this tokenizer has no token"):
        client.chat.completions.create(model="decoder", messages=USER, response_format=form)


def test_embeddings_errors_and_limits(client, server):
    assert len(client.embeddings.create(model="encoder", input=["a", "b"]).data[1].embedding) == 16
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-5", messages=USER)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="plain", prompt="a", max_tokens=4000)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="plain", prompt="a", extra_body={"nothing": 1})
