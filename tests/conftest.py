"""What tests share: the three event loops that asyncstep promises to run on, and an object store on loopback."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

pytest_plugins = ["asyncstep.testing.fixtures"]

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests of faults take."""
    parser.addoption(
        "--kills", type=int, default=56, help="how often tests/faults kills a process (default: %(default)s)"
    )


def pytest_collection_finish() -> None:
    """Spare every later collection of garbage all that the imports and the list of tests have left."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let be found again what refers to an object: Hypothesis asks for that, where it is first imported at the end."""
    gc.unfreeze()


@pytest.fixture(params=list(BACKENDS.values()), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The backend of a test marked `anyio`: asyncio, asyncio on uvloop, and trio, one after the other."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A server that speaks S3."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty bucket."""
    boto3 = pytest.importorskip("boto3")
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"
