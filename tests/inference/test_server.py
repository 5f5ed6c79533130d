"""The server of streams: its words, its clients good and bad, and its limits."""

import asyncio
import contextlib
import json
import socket
import threading
from types import SimpleNamespace

import numpy
import pytest
import soundfile
from pages import run_python
from serving import END, Echo, answers, good, heard, ready, serving
from tiny import EXAMPLE, FILES
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from speechbrain_summarymixing.inference import server
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_model

CLIPS = [soundfile.read(file, dtype="int16")[0] for file in FILES]


@pytest.fixture(scope="module")
def model():
    return StreamingModel(load_model(EXAMPLE, "cpu"))


@pytest.fixture(scope="module")
def expected(model):
    """The events of each clip, and its whole text, of a `StreamingRecognizer`."""
    found = []
    for clip in CLIPS:
        with model.open() as stream:
            events = [*stream.accept(clip), *stream.finish()]
            found.append((events, stream.text))
    assert all(len(events) > 2 and text for events, text in found)
    return found


def check(found, expected):
    """Answers are the events of a recogniser and its text."""
    events, text = expected
    *parts, end = found
    assert end == {"type": "end", "text": text}
    for part, event in zip(parts, events, strict=True):
        assert part["type"] == ("final" if event.final else "partial")
        assert (part["text"], part["seconds"]) == (event.text, event.seconds)
        for word, other in zip(part["words"], event.words, strict=True):
            assert (word["word"], word["begin"], word["end"]) == (
                other.word,
                other.begin,
                other.end,
            )
            assert word["confidence"] == pytest.approx(other.confidence, abs=2e-3)


@pytest.mark.parametrize("samples", [7, 1600, 10**6])
def test_the_words_are_those_of_a_recogniser_utterance_after_utterance(model, expected, samples):
    async def main():
        async with serving(model) as client, client() as websocket:
            await ready(websocket)
            for clip, events in list(zip(CLIPS, expected))[: 1 if samples == 7 else 3]:
                check(await heard(websocket, clip, samples=samples), events)

    asyncio.run(main())


def test_twenty_clients_at_once_hear_what_one_alone_does(model, expected, monkeypatch):
    batches, hear = [], model._hear

    def counted(streams):
        batches.append(len(streams))
        return hear(streams)

    monkeypatch.setattr(model, "_hear", counted)

    async def one(client, index):
        async with client() as websocket:
            await ready(websocket)
            clip = CLIPS[index % 3]
            return await heard(websocket, clip, samples=800 + 100 * index)

    async def main():
        async with serving(model) as client:
            return await asyncio.gather(*(one(client, index) for index in range(20)))

    for index, found in enumerate(asyncio.run(main())):
        check(found, expected[index % 3])
    assert max(batches) > 10 and len(model._streams) == 0


def test_a_stream_that_cannot_begin_is_not_counted():
    async def main():
        recogniser = server._Recogniser(SimpleNamespace(open=lambda: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            await recogniser.open()
        assert recogniser.streams == 0

    asyncio.run(main())


def test_an_end_without_samples_is_an_empty_text():
    async def main():
        async with serving(Echo()) as client, client() as websocket:
            await ready(websocket)
            await websocket.send(b"")
            for _ in range(2):
                await websocket.send(END)
                assert json.loads(await websocket.recv()) == {"type": "end", "text": ""}

    asyncio.run(main())


RUBBISH = {
    "odd length": (b"123", 1007, "3 bytes"),
    "no JSON": ("hello", 1007, "hello"),
    "other JSON": ('{"end": false}', 1007, "end"),
    "deep JSON": ("[" * 100_000, 1007, "end"),
    "too long": (bytes(server.MESSAGE_BYTES + 2), 1009, None),
}


@pytest.mark.parametrize("message, code, told", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_closes_its_client_and_no_other(message, code, told):
    async def main():
        async with serving(echo := Echo()) as client, client() as bystander:
            await ready(bystander)
            async with client() as bad:
                await ready(bad)
                await bad.send(message)
                found, closed = await answers(bad)
            assert closed == code
            if told is not None:
                assert [answer["type"] for answer in found] == ["error"]
                assert told in found[0]["message"]
            await heard(bystander, numpy.ones(100, "<i2"))
            await good(client)
        assert echo.open_streams == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01 no HTTP\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"", b"frame"]
)
def test_what_speaks_another_protocol_or_leaves_harms_nobody(data):
    async def main():
        async with serving(echo := Echo()) as client:
            if data == b"frame":  # a websocket, then a frame with reserved bits
                async with client() as bad:
                    await ready(bad)
                    bad.transport.write(b"\xff\xff\xff")
                    assert (await answers(bad))[1] == 1002
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
                writer.write(data)
                if data:
                    assert b"101" not in await reader.read()
                writer.close()
            await good(client)
        assert echo.open_streams == 0

    asyncio.run(main())


def test_one_that_disappears_makes_room():
    async def main():
        async with serving(echo := Echo(), max_clients=1) as client:
            for _ in range(3):
                async with client() as gone:
                    await ready(gone)
                    await gone.send(bytes(50_000))
                    gone.transport.abort()
                while client.server.clients:
                    await asyncio.sleep(0.01)
            await good(client)
        assert echo.open_streams == 0

    asyncio.run(main())


def test_one_that_does_not_read_is_dropped_and_harms_no_other(monkeypatch):
    monkeypatch.setattr(server, "SEND_SECONDS", 0.5)

    async def main():
        async with serving(echo := Echo(text="HEARD " * 2**20)) as client:
            plain = socket.create_connection(("127.0.0.1", client.port))
            plain.setblocking(True)
            plain.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                + Frame(Opcode.BINARY, bytes(2**15)).serialize(mask=True)
            )
            while not echo.heard:
                await asyncio.sleep(0.01)
            echo.text = "HEARD"
            await good(client)
            while client.server.clients:  # it never reads
                await asyncio.sleep(0.01)
            plain.close()
        assert echo.open_streams == 0

    asyncio.run(main())


def test_one_that_sends_too_fast_is_not_read():
    gate, sent, ahead = threading.Event(), 0, []
    echo = Echo(gate=gate, fail=lambda samples: ahead.append(sent - echo.heard))
    message, count = bytes(server.MESSAGE_BYTES), 40

    async def speak(websocket):
        nonlocal sent
        for _ in range(count):
            await websocket.send(message)
            sent += len(message)
        await websocket.send(END)

    async def main():
        async with serving(echo) as client, client() as fast:
            await ready(fast)
            speaking, before = asyncio.create_task(speak(fast)), -1
            while sent > before:  # until it is held up
                before = sent
                await asyncio.sleep(0.5)
            gate.set()
            while json.loads(await fast.recv())["type"] != "end":
                pass
            await speaking

    asyncio.run(main())
    assert echo.heard == sent == count * len(message)
    # the rest is in the kernel's buffers
    assert max(ahead) < 0.6 * sent


def test_an_error_of_the_recogniser_is_told_and_the_server_goes_on(caplog):
    async def main():
        async with serving(echo := Echo(fail=lambda samples: samples[0] == 13)) as client:
            async with client() as bad:
                await ready(bad)
                await bad.send(numpy.full(10, 13, "<i2").tobytes())
                found, code = await answers(bad)
            assert code == 1011 and found[0]["type"] == "error"
            await good(client)
        assert echo.open_streams == 0

    asyncio.run(main())
    assert "it is ill" in caplog.text


def test_one_client_too_many_is_refused_until_another_leaves():
    async def main():
        async with serving(Echo(), max_clients=2) as client:
            async with client() as first, client() as second:
                await ready(first)
                await ready(second)
                async with client() as third:
                    found, code = await answers(third)
                    assert code == 1013 and found[0]["type"] == "error"
                    assert "2 clients" in found[0]["message"]
                await heard(first, numpy.ones(100, "<i2"))
            while client.server.clients:
                await asyncio.sleep(0.01)
            await good(client)

    asyncio.run(main())


@pytest.mark.parametrize("sends", [False, True])
def test_silence_and_no_data_close_a_client(sends):
    async def main():
        async with serving(Echo(text=None), max_silence_seconds=0.5) as client, client() as quiet:
            await ready(quiet)
            with contextlib.suppress(ConnectionClosed):
                while sends:
                    await quiet.send(bytes(3200))
                    await asyncio.sleep(0.05)
            found, code = await answers(quiet)
            assert code == 1008 and "0.5 s" in found[-1]["message"]

    asyncio.run(main())


def test_words_keep_a_client():
    async def main():
        closed = []

        async def wait(websocket, name):
            assert (await answers(websocket))[1] == 1008
            closed.append(name)

        async with serving(Echo(), max_silence_seconds=1.0) as client, client() as speaker:
            await ready(speaker)
            await asyncio.sleep(0.3)
            async with client() as quiet:
                await ready(quiet)
                await asyncio.sleep(0.3)
                await speaker.send(bytes(2))
                await asyncio.gather(wait(quiet, "quiet"), wait(speaker, "speaker"))
        assert closed == ["quiet", "speaker"]

    asyncio.run(main())


def test_the_python_of_the_page(model, expected, capsys):
    async def main():
        async with serving(model) as client:
            port = ("8765", client.port)
            await asyncio.to_thread(run_python, "docs/server.md", replaced=[port])

    asyncio.run(main())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ready None" and lines[-1] == f"end {expected[0][1]}"
