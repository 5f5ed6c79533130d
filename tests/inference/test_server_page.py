"""The server's page and whose pages may connect, a browser's microphone, and the command."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import soundfile
from serving import Echo, answers, ready, serving
from tiny import EXAMPLE, FILES, SAID
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from speechbrain_summarymixing import cli, inference
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.page import is_loopback
from speechbrain_summarymixing.inference.server import SpeechServer
from speechbrain_summarymixing.inference.streaming import StreamingModel, StreamingRecognizer
from speechbrain_summarymixing.inference.transcribe import load_model

ORIGINS = [
    (None, None, True),
    ("http://127.0.0.1:{port}", None, True),
    ("http://localhost:{port}", "localhost:{port}", True),
    ("https://friend.example", None, True),
    ("http://friend.example", None, False),
    ("http://evil.example", None, False),
    ("http://evil.example:{port}", "evil.example:{port}", False),  # its name leads here
    ("http://127.0.0.1:1", None, False),
    ("http://[", "[", False),
    ("null", None, False),
]


@pytest.mark.parametrize("origin, host, allowed", ORIGINS)
def test_pages_of_others_may_not_connect(origin, host, allowed):
    async def main():
        async with serving(Echo(), origins=["https://Friend.example/"]) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            lines = [
                "GET / HTTP/1.1",
                f"Host: {host or '127.0.0.1:{port}'}",
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                *([] if origin is None else [f"Origin: {origin}"]),
            ]
            request = "\r\n".join([*lines, "", ""]).replace("{port}", str(client.port))
            writer.write(request.encode())
            status = (await reader.readline()).split()[1]
            assert status == (b"101" if allowed else b"403")
            writer.close()

    asyncio.run(main())


def test_a_page_that_may_not_connect_is_told_why():
    async def main():
        async with serving(Echo()) as client:
            with pytest.raises(InvalidStatus) as refused:
                async with client(origin="http://evil.example"):
                    pass
            assert b"--origin" in refused.value.response.body

    asyncio.run(main())


def test_the_page_is_served_and_loads_nothing_from_elsewhere():
    def get(url):
        with urllib.request.urlopen(url) as response:
            return response.status, dict(response.headers), response.read().decode()

    async def main():
        async with serving(Echo()) as client:
            url = f"http://127.0.0.1:{client.port}/"
            status, headers, text = await asyncio.to_thread(get, url)
            assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "<button" in text and not re.findall(r"(?:src|href)\s*=|@import|://\w", text)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                await asyncio.to_thread(get, url + "etc/passwd")

    asyncio.run(main())


@pytest.mark.parametrize(
    "option, value",
    [("max_clients", 0), ("max_silence_seconds", 0.0), ("max_silence_seconds", float("nan"))],
)
def test_limits_that_cannot_be(option, value):
    with pytest.raises(UserError, match=f"{option} is {value}"):
        SpeechServer(Echo(), **{option: value})


def test_hosts_ports_and_origins_that_cannot_be():
    async def main(host="127.0.0.1", port=0, **options):
        async with SpeechServer(Echo(), **options).listen(host, port):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UserError, match="--port"):
            asyncio.run(main(port=taken.getsockname()[1]))
    for options in ({"port": 70000}, {"host": "192.0.2.1"}):
        with pytest.raises(UserError, match="--host"):
            asyncio.run(main(**options))
    for origin in ("friend.example", "https://friend.example/page", "ftp://x", "https://"):
        with pytest.raises(UserError, match="--origin"):
            asyncio.run(main(origins=[origin]))


def test_which_hosts_are_this_machine_alone():
    hosts = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "192.0.2.1", "name"]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4


def test_without_websockets_it_tells_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "speechbrain_summarymixing.inference.server")
    monkeypatch.delattr(inference, "server")
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    assert cli.main(["serve", str(EXAMPLE)]) == 1
    assert "[serve]" in capsys.readouterr().err


def test_a_search_that_streams_lack_is_told(capsys):
    assert cli.main(["serve", str(EXAMPLE), "--decoder=joint", "--device=cpu"]) == 1
    assert "give a stream --decoder greedy or beam" in capsys.readouterr().err
    assert cli.main(["serve", str(EXAMPLE), "--beam-size=3", "--device=cpu"]) == 1
    assert "--beam-size is 3, but --decoder greedy" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_warns_of_other_hosts_and_ends_at_a_signal(number, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = threading.Event()

    async def client():
        while not ended.is_set():
            with contextlib.suppress(ConnectionRefusedError):
                async with connect(f"ws://127.0.0.1:{port}/") as websocket:
                    await ready(websocket)
                    os.kill(os.getpid(), number)
                    return await answers(websocket)
            await asyncio.sleep(0.05)

    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(asyncio.run, client())
        try:
            options = ["--host=0.0.0.0", f"--port={port}", "--device=cpu"]
            assert cli.main(["serve", str(EXAMPLE), *options]) == 0
        finally:
            ended.set()
        assert found.result() == ([], 1001)
    out, err = capsys.readouterr()
    assert out == f"listening at http://0.0.0.0:{port}/ (Ctrl-C stops)\n"
    assert "--host is 0.0.0.0" in err and "password" in err


@pytest.fixture
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"there is no browser ({', '.join(names)}): apt-get install chromium"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Tab:
    """A page of a browser, by the DevTools protocol."""

    def __init__(self, websocket):
        self.websocket, self.calls = websocket, 0

    async def call(self, method, **parameters):
        self.calls += 1
        call = {"id": self.calls, "method": method, "params": parameters}
        await self.websocket.send(json.dumps(call))
        while (answer := json.loads(await self.websocket.recv())).get("id") != self.calls:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    async def value(self, expression):
        answer = await self.call("Runtime.evaluate", expression=expression, userGesture=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression):
        while not await self.value(expression):
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def tab(chromium, folder, url, *options):
    """A page in a headless browser."""
    process = await asyncio.create_subprocess_exec(
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}",
        *options, url, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    told = folder / "DevToolsActivePort"
    try:
        while not (told.is_file() and (port := told.read_text().partition("\n")[0])):
            assert process.returncode is None, "the browser has ended"
            await asyncio.sleep(0.1)

        def pages():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as response:
                return [page for page in json.load(response) if page["url"] == url]

        while not (found := await asyncio.to_thread(pages)):
            await asyncio.sleep(0.1)
        address = found[0]["webSocketDebuggerUrl"]
        async with connect(address, compression=None, max_size=None) as websocket:
            page = Tab(websocket)
            await page.until("document.querySelector('button')?.textContent === 'Record'")
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def test_a_browser_sends_its_microphone_and_shows_the_words(chromium, tmp_path, monkeypatch):
    samples, rate = soundfile.read(FILES[0], dtype="int16")
    silence = numpy.zeros(60 * rate, "int16")  # the browser begins anew at the file's end
    wav = tmp_path / "said.wav"
    soundfile.write(wav, numpy.concatenate([silence[: rate // 2], samples, silence]), rate)
    options = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}",
    ]
    received, put = [], StreamingRecognizer.put

    def recorded(self, samples):
        received.append(samples)
        put(self, samples)

    monkeypatch.setattr(StreamingRecognizer, "put", recorded)
    model = StreamingModel(load_model(EXAMPLE, "cpu"))

    def shown(name):
        return f"document.getElementById('{name}').textContent.trim()"

    press = "document.getElementById('record').click()"

    async def main(profile):
        async with serving(model) as client:
            url = f"http://127.0.0.1:{client.port}/"
            async with tab(chromium, tmp_path / profile, url, *options) as page:
                await page.value(press)
                await page.until(f"{shown('record')} === 'Stop'")
                await page.until(f"{shown('partial')}.includes('PARIS')")
                assert client.server.clients == 1
                await page.value(press)
                await page.until(f"{shown('record')} === 'Record'")
                assert await page.value(shown("status")) == ""
                return await page.value(shown("final"))

    for attempt in range(3):  # on a busy machine the browser loses samples
        received.clear()
        found = asyncio.run(asyncio.wait_for(main(f"profile{attempt}"), 100))
        with model.open() as stream:
            stream.accept(numpy.concatenate(received))
            stream.finish()
            assert found == stream.text
        if SAID["bus"].removeprefix("BOOK").removesuffix("ON WEDNESDAY").strip() in found:
            return
    pytest.fail(f"never heard what was said: {found}")


WATCHED = """
    var stopped = 0, asked = false, allow = () => {};
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    const allowed = new Promise(resolve => { allow = resolve; });
    navigator.mediaDevices.getUserMedia = async constraints => {
      const stream = await ask(constraints);
      for (const track of stream.getTracks()) {
        const stop = track.stop.bind(track);
        track.stop = () => { stopped++; stop(); };
      }
      asked = true;
      await allowed;
      return stream;
    };
    var socket;
    WebSocket = class extends WebSocket {
      constructor(...given) { super(...given); socket = this; }
    };
    document.getElementById("record").click();
"""


@pytest.mark.parametrize(
    "failure, told",
    [
        (
            "AudioWorklet.prototype.addModule = async () => { throw Error('no module'); }",
            "no module",
        ),
        ("socket.close()", ""),  # while the browser asks
    ],
)
def test_the_microphone_is_closed_where_it_cannot_be_heard(chromium, tmp_path, failure, told):
    options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    record, status = (
        f"document.getElementById('{name}').textContent" for name in ("record", "status")
    )

    async def main():
        async with serving(Echo()) as client:
            url = f"http://127.0.0.1:{client.port}/"
            async with tab(chromium, tmp_path / "profile", url, *options) as page:
                await page.until("document.getElementById('record')?.onclick != null")
                await page.value(WATCHED)
                await page.until("asked")
                await page.value(f"{failure}; null")
                if "socket" in failure:
                    await page.until("socket.readyState === 3")
                await page.value("allow(), null")
                await page.until("stopped === 1")
                await page.until(f"{record} === 'Record'")
                assert told in await page.value(status)

    asyncio.run(asyncio.wait_for(main(), 60))
