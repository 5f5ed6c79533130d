"""Files of trained models, from a hub that speaks the Hugging Face hub's protocol."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import EXAMPLE

from speechbrain_summarymixing.inference import sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one folder as those of the repository owner/sumformer-mini."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        repository, _, name = self.path.lstrip("/").partition("/resolve/main/")
        file = EXAMPLE / name
        if repository != "owner/sumformer-mini" or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def with_hub(tmp_path_factory):
    """Runs a command of the package, for which the server is the hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield partial(
        subprocess.run,
        cwd=tmp_path_factory.mktemp("work"),
        env={
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path_factory.mktemp("cache")),
        },
        capture_output=True,
        text=True,
    )
    server.shutdown()


FIND = """
import sys
from speechbrain_summarymixing.inference.sources import find_file
print(find_file(sys.argv[1], sys.argv[2], option="--tokenizer_folder"))
"""


def test_a_file_comes_from_the_hub(with_hub):
    found = with_hub([sys.executable, "-c", FIND, "owner/sumformer-mini", "tokenizer.ckpt"])
    assert found.returncode == 0, found.stderr
    path = Path(found.stdout.splitlines()[-1])
    assert path.read_bytes() == (EXAMPLE / "tokenizer.ckpt").read_bytes()


def test_a_file_that_the_hub_does_not_have(with_hub):
    found = with_hub([sys.executable, "-c", FIND, "owner/sumformer-mini", "lm.ckpt"])
    assert found.returncode != 0
    assert "--tokenizer_folder is owner/sumformer-mini" in found.stderr
    assert "lm.ckpt did not come from the hub" in found.stderr


def test_a_model_of_the_hub_transcribes(with_hub):
    command = [sys.executable, "-m", "speechbrain_summarymixing.cli", "transcribe"]
    heard = with_hub([*command, "owner/sumformer-mini", EXAMPLE / "bus.flac"])
    assert heard.returncode == 0, heard.stderr
    alone = with_hub([*command, EXAMPLE, EXAMPLE / "bus.flac"])
    assert heard.stdout.split() == alone.stdout.split() != []


def test_a_hub_that_cannot_be_reached_is_told_without_retries(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment.update(HF_ENDPOINT=f"http://127.0.0.1:{closed}", HF_HOME=str(tmp_path))
    tried = subprocess.run(
        [sys.executable, "-c", FIND, "owner/sumformer-mini", "tokenizer.ckpt"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert tried.returncode != 0 and "cannot be reached" in tried.stderr
    assert "Retrying" not in tried.stderr


def test_a_network_that_comes_back_is_used(monkeypatch):
    clock, answers = [0.0], [OSError("down"), SimpleNamespace(close=lambda: None)]

    def connect(address, timeout):
        if isinstance(answer := answers[0], OSError):
            raise answer
        return answer

    monkeypatch.setattr(sources.socket, "create_connection", connect)
    monkeypatch.setattr(sources, "getproxies", dict)
    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    sources._hub.cache_clear()
    assert not sources.hub().allow_network
    answers.pop(0)
    assert not sources.hub().allow_network  # asked once a minute
    clock[0] = 61.0
    assert sources.hub().allow_network
    sources._hub.cache_clear()
