"""A server that recognises speech while it is said, for many clients at once, by websockets.

A client connects to ``ws://HOST:PORT/`` and sends

- binary messages: 16-bit little-endian samples of one channel, at the rate that the server tells,
  any number of them in a message of MESSAGE_BYTES at most;
- the text message ``{"end": true}``: the utterance ends; another one may follow.

The server sends text messages, each a JSON object with a ``type``:

- ``{"type": "ready", "sample_rate": 16000, "chunk_ms": 640}``, first;
- ``{"type": "partial", "text": …, "words": […], "seconds": …}``: what was said since the last
  final part, which may change; a word has ``word``, ``begin``, ``end`` (seconds) and
  ``confidence``;
- ``{"type": "final", …}``, the same of a part that does not change any more;
- ``{"type": "end", "text": …}``, the whole utterance, after ``{"end": true}``;
- ``{"type": "error", "message": …}``, after which it closes: with 1007 what is no message of this
  protocol, with 1008 a client of which nothing was recognised for long, with 1013 one too many,
  with 1011 an error of the server. A message that is too long is closed with 1009 and without
  this, as is a server that stops, with 1001.

A client that sends faster than it can be recognised is read no faster; one that does not read its
answers is dropped. At ``http://HOST:PORT/`` is a page that sends the microphone's sound.
"""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.page import Door, is_loopback

logger = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8765
MAX_CLIENTS = 20
MAX_SILENCE_SECONDS = 60.0
MESSAGE_BYTES = 2**20  # 32 s at 16 kHz
BACKLOG_BYTES = 2**20  # of a client, after which it is not read until some was recognised
SEND_SECONDS = 10.0  # that a client has to take an answer
GATHER_SECONDS = 0.02  # that a batch waits for the other clients
SAMPLE_BYTES = 2


class SpeechServer:
    """Serves a model to clients that come and go; the module's docstring has the protocol.

    Arguments
    ---------
    model : StreamingModel
        Used by one thread, all clients' chunks in one batch.
    max_clients : int
        At once; the next is refused.
    max_silence_seconds : float
        After which a client of which no words were recognised is closed.
    origins : sequence of str
        Origins, such as "https://example.org", whose pages may connect beside the server's own.

    Example
    -------
    >>> async with SpeechServer(model).listen("127.0.0.1", 8765):  # doctest: +SKIP
    ...     await asyncio.sleep(3600)
    """

    def __init__(
        self,
        model,
        *,
        max_clients=MAX_CLIENTS,
        max_silence_seconds=MAX_SILENCE_SECONDS,
        origins=(),
    ):
        if max_clients < 1:
            raise UserError(f"max_clients is {max_clients}, but must be 1 or more")
        if not max_silence_seconds > 0:
            raise UserError(f"max_silence_seconds is {max_silence_seconds}, but must be above 0")
        self.model, self.origins = model, origins
        self.max_clients, self.max_silence_seconds = max_clients, max_silence_seconds
        self.clients = 0

    @contextlib.asynccontextmanager
    async def listen(self, host, port):
        """Serves within an ``async with``, which gives the port; 0 takes any that is free.

        Raises
        ------
        UserError
            If the host, the port or an origin cannot be used.
        """
        door, self.recogniser = Door(host, self.origins), _Recogniser(self.model)
        options = {"compression": None, "max_size": MESSAGE_BYTES, "max_queue": 2}
        try:
            server = await serve(self._answer, host, port, process_request=door, **options)
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(
                f"--host is {host} and --port {port}, which cannot be used ({error}): give an "
                "address of this machine and a port that no other program has; 0 finds one"
            ) from error
        task = asyncio.create_task(self.recogniser.run())
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()
            task.cancel()
            self.recogniser.close()

    async def _answer(self, websocket):
        client = _Client(websocket, self)
        if self.clients >= self.max_clients:
            message = f"{self.max_clients} clients are here, the most at once: try again later"
            return await client.close(1013, message)
        self.clients += 1
        try:
            await client.talk()
        except ConnectionClosed:
            pass
        except _ClientError as error:
            await client.close(error.code, str(error))
        except Exception:
            logger.exception("A client could not be served")
            await client.close(1011, "the server could not recognise it: its log has the reason")
        finally:
            self.clients -= 1


class _ClientError(Exception):
    """What ends a connection: a code of closing and why."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class _Client:
    """One connection: a task reads what it sends, another hears it and answers."""

    def __init__(self, websocket, server):
        self.websocket, self.server = websocket, server
        model = server.model
        self.chunk_bytes = SAMPLE_BYTES * model.sample_rate * model.chunk_ms // 1000
        self.audio, self.ended = bytearray(), False
        self.change = asyncio.Condition()
        self.now = asyncio.get_running_loop().time
        self.spoke = self.now()  # when words were last recognised

    async def talk(self):
        recogniser, model = self.server.recogniser, self.server.model
        stream, tasks = await recogniser.open(), []
        try:
            await self.send("ready", sample_rate=model.sample_rate, chunk_ms=model.chunk_ms)
            tasks = [asyncio.create_task(self.read()), asyncio.create_task(self.hear(stream))]
            await asyncio.gather(*tasks)  # each ends by an error only
        finally:
            for task in tasks:
                task.cancel()
            recogniser.forget(stream)

    async def read(self):
        while True:
            message = await self.receive()
            async with self.change:
                if isinstance(message, bytes):
                    self.audio += _whole_samples(message)
                else:
                    self.ended = _is_end(message)
                self.change.notify_all()
                await self.change.wait_for(
                    lambda: len(self.audio) < BACKLOG_BYTES and not self.ended
                )

    async def receive(self):
        patience = self.server.max_silence_seconds
        while (left := self.spoke + patience - self.now()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):  # words may have come meanwhile
                return await asyncio.wait_for(self.websocket.recv(), left)
        raise _ClientError(
            1008, f"no words were recognised for {patience:g} s: connect again to speak"
        )

    async def hear(self, stream):
        final = []
        while True:
            async with self.change:
                await self.change.wait_for(lambda: self.audio or self.ended)
                # no more than a chunk, for the other clients to have their turn
                piece = self.audio[: self.chunk_bytes]
                del self.audio[: self.chunk_bytes]
                end = self.ended and not self.audio
                self.change.notify_all()
            samples = numpy.frombuffer(piece, "<i2")
            for event in await self.server.recogniser.hear(stream, samples, end):
                self.spoke = self.now()
                if event.final:
                    final.append(event.text)
                kind = "final" if event.final else "partial"
                words = list(map(asdict, event.words))
                await self.send(kind, text=event.text, words=words, seconds=event.seconds)
            if end:
                await self.send("end", text=" ".join(final))
                final = []
                async with self.change:
                    self.ended = False
                    self.change.notify_all()

    async def send(self, kind, **content):
        message = json.dumps({"type": kind, **content}, ensure_ascii=False)
        await self._soon(self.websocket.send(message))

    async def close(self, code, message):
        """Tells an error and closes."""
        with contextlib.suppress(ConnectionClosed):
            await self.send("error", message=message)
            await self._soon(self.websocket.close(code))

    async def _soon(self, sending):
        """Sends, or drops a client that does not read."""
        try:
            await asyncio.wait_for(sending, SEND_SECONDS)
        except asyncio.TimeoutError:
            self.websocket.transport.abort()
            await self.websocket.wait_closed()


class _Recogniser:
    """Hears pieces of many streams in batches, on the one thread that has the model."""

    def __init__(self, model):
        self.model, self.streams = model, 0
        self._thread = ThreadPoolExecutor(1, "recogniser")
        self._waiting, self._wake = [], asyncio.Event()

    async def open(self):
        loop = asyncio.get_running_loop()
        stream = await loop.run_in_executor(self._thread, self.model.open)
        self.streams += 1
        return stream

    def forget(self, stream):
        self.streams -= 1
        self._thread.submit(stream.close)

    async def hear(self, stream, samples, end):
        """The events of a stream that goes on by samples (N,), and may end then."""
        news = asyncio.get_running_loop().create_future()
        self._waiting.append((stream, samples, end, news))
        self._wake.set()
        return await news

    async def run(self):
        while True:
            await self._wake.wait()
            if len(self._waiting) < self.streams:
                await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            batch = [waiting for waiting in self._waiting if not waiting[-1].cancelled()]
            self._waiting = []
            told, error = {}, None
            try:
                loop = asyncio.get_running_loop()
                told = await loop.run_in_executor(self._thread, self._advance, batch)
            except Exception as exception:
                error = exception
            for stream, *_, news in batch:
                if news.cancelled():
                    continue
                if error is not None:
                    news.set_exception(error)
                else:
                    news.set_result(told.get(stream, []))

    def _advance(self, batch):
        for stream, samples, end, _ in batch:
            stream.put(samples)
            if end:
                stream.end()
        return self.model.advance()

    def close(self):
        self._thread.shutdown()


def run(model, *, host=HOST, port=PORT, **options):
    """Serves a model until SIGINT or SIGTERM, and prints where.

    Arguments
    ---------
    model : StreamingModel
    host : str
        The machine's address to listen at; others than this machine cannot reach the default.
    port : int
        0 takes any that is free.
    **options
        Of `SpeechServer`.

    Raises
    ------
    UserError
        If an option cannot be used.
    """
    asyncio.run(_run(SpeechServer(model, **options), host, port))


async def _run(server, host, port):
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server.listen(host, port) as port:
        if not is_loopback(host):
            print(
                f"warning: --host is {host}: whoever reaches this machine may connect, without "
                "password or encryption. Put a server with both before it, or leave --host out",
                file=sys.stderr,
            )
        shown = f"[{host}]" if ":" in host else host
        print(f"listening at http://{shown}:{port}/ (Ctrl-C stops)", flush=True)
        await stop.wait()


def _whole_samples(message):
    if len(message) % SAMPLE_BYTES:
        raise _ClientError(
            1007, f"a message has {len(message)} bytes, but a sample has 2: send whole samples"
        )
    return message


def _is_end(message):
    try:
        if json.loads(message) == {"end": True}:
            return True
    except (ValueError, RecursionError):
        pass
    raise _ClientError(
        1007,
        f'a text message is {message[:40]!r}, but the only one is {{"end": true}}: send samples '
        "as binary messages",
    )
