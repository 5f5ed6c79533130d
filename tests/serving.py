"""A server of streams, its clients, and a model that tells what it heard."""

import asyncio
import contextlib
import json

import numpy
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from speechbrain_summarymixing.inference.server import SpeechServer
from speechbrain_summarymixing.inference.streaming import Event

END = json.dumps({"end": True})


class Echo:
    """In place of a StreamingModel: what it is told is what it heard, at once or at a gate."""

    sample_rate, chunk_ms = 16000, 640

    def __init__(self, *, gate=None, text="HEARD", fail=lambda samples: False):
        self.gate, self.text, self.fail = gate, text, fail
        self.heard, self.open_streams, self.news = 0, 0, {}

    def open(self):
        self.open_streams += 1
        return EchoStream(self)

    def advance(self):
        if self.gate is not None:
            self.gate.wait()
        news, self.news = self.news, {}
        return news


class EchoStream:
    def __init__(self, model):
        self.model = model

    def put(self, samples):
        if len(samples) and self.model.text is not None:
            assert not self.model.fail(samples), "it is ill"
            self.model.heard += 2 * len(samples)
            self.model.news[self] = [Event(True, self.model.text, (), float(samples[0]))]

    def end(self):
        pass

    def close(self):
        self.model.open_streams -= 1


@contextlib.asynccontextmanager
async def serving(model, **options):
    """A server, as a function that connects to it."""
    served = SpeechServer(model, **options)
    async with served.listen("127.0.0.1", 0) as port:

        @contextlib.asynccontextmanager
        async def client(**options):
            async with connect(
                f"ws://127.0.0.1:{port}/", compression=None, max_size=None, **options
            ) as websocket:
                yield websocket

        client.port, client.server = port, served
        yield client


async def answers(websocket):
    """All that the server says until it closes, and the code."""
    found = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            found.append(json.loads(await websocket.recv()))
    return found, websocket.close_code


async def ready(websocket):
    message = json.loads(await websocket.recv())
    assert message == {"type": "ready", "sample_rate": 16000, "chunk_ms": 640}


async def heard(websocket, clip, *, samples=1600):
    """The server's answers to a clip in messages of so many samples, its end included."""

    async def speak():
        for start in range(0, len(clip), samples):
            await websocket.send(clip[start : start + samples].tobytes())
        await websocket.send(END)

    speaking = asyncio.create_task(speak())
    found = []
    while not found or found[-1]["type"] != "end":
        found.append(json.loads(await websocket.recv()))
        assert found[-1]["type"] != "error", found[-1]
    await speaking
    return found


async def good(client):
    """A client beside others gets its answers."""
    async with client() as websocket:
        await ready(websocket)
        found = await heard(websocket, numpy.ones(100, "<i2"), samples=100)
        assert [message["text"] for message in found] == ["HEARD", "HEARD"]
