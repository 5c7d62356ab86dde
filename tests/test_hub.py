"""Exports to the Hugging Face hub and back, against a hub of our own on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

import pytest

from cnn_research.core.errors import UsageError, UserError
from cnn_research.inference import exported, hub

COMMIT = "c" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as one small repository needs; `files` is what it holds."""

    files: dict[str, bytes]
    known: set[str]
    denied = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.denied:
            return self.answer({"error": "denied"}, status=self.denied)
        if self.path == "/api/repos/create":
            values = json.loads(body)
            name = "/".join(filter(None, (values.get("organization"), values["name"])))
            self.known.add(name)
            return self.answer({"url": f"https://huggingface.co/{name}"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]})  # fmt: skip
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            return self.answer(
                {
                    "commitUrl": f"https://huggingface.co/owner/net/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )
        return self.answer({})  # what it thinks of the model card

    def do_GET(self) -> None:
        name, rest = re.match(r"/(?:api/models/)?(\w+/\w+)/?(.*)", self.path).groups()
        if name not in self.known:
            return self.answer({}, status=404, **{"X-Error-Code": "RepoNotFound"})
        if rest.startswith("resolve/"):
            content = self.files[rest.split("/", 2)[2]]
            digest = hashlib.sha256(content).hexdigest()
            return self.answer(content, ETag=f'"{digest}"', **{"X-Repo-Commit": COMMIT})
        if rest.startswith("tree/"):
            return self.answer([
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in self.files.items()
            ])  # fmt: skip
        siblings = [{"rfilename": path} for path in self.files]
        return self.answer({"id": name, "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET

    def answer(self, values: object, status: int = 200, **headers: str) -> None:
        content = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub, which the client takes for the real one, with a token for it."""
    kind = type("OneHub", (Hub,), {"files": {}, "known": set()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{listening.server_port}"
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield kind
        listening.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path) -> Path:
    """What looks like an export, as far as its checksums go."""
    path = tmp_path / "export"
    path.mkdir()
    (path / exported.MODEL).write_bytes(bytes(range(256)))
    (path / exported.FACTS).write_text("{}")
    (path / "README.md").write_text("---\nlibrary_name: jax\n---\n")
    exported.write_sums(path)
    return path


def test_there_and_back(server, folder, tmp_path, capsys):
    hub.main(["push", str(folder), "owner/net"])
    assert "owner/net" in capsys.readouterr().out
    assert set(server.files) == {file.name for file in folder.iterdir()}
    hub.main(["pull", "owner/net", str(tmp_path / "back")])
    assert {file.name: file.read_bytes() for file in (tmp_path / "back").iterdir()} == server.files


def test_what_is_not_whole_neither_goes_nor_comes(server, folder, tmp_path):
    hub.push(folder, "owner/net")
    server.files[exported.MODEL] = bytes(256)
    with pytest.raises(UserError, match=r"owner/net holds no whole export: .* is damaged"):
        hub.pull("owner/net", tmp_path / "back")
    assert not list(tmp_path.glob("back*"))
    (folder / exported.MODEL).write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        hub.push(folder, "owner/net")


def test_mistakes(server, folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no repository owner/other that you may see"):
        hub.pull("owner/other", tmp_path / "back")
    with pytest.raises(UsageError, match="write OWNER/NAME"):
        hub.pull("a/b/c", tmp_path / "back")
    with pytest.raises(UsageError, match="is there already"):
        hub.pull("owner/net", folder)
    server.denied = 403
    with pytest.raises(UserError, match="does not let you write to owner/net"):
        hub.push(folder, "owner/net")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="put it in HF_TOKEN"):
        hub.push(folder, "owner/net")
    assert not list(tmp_path.glob("back*"))


def test_without_a_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        hub.pull("owner/net", tmp_path / "back")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        hub.push(folder, "owner/net")
