"""Faults of a real S3 server: outages, restarts, 5xx and throttling are ridden out; refused keys end at once."""

import http.client
import http.server
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stetholm.corpus.manifest import Manifest
from stetholm.corpus.shards import write_corpus
from stetholm.corpus.stream import CorpusStream
from stetholm.settings import StorageSettings
from stetholm.storage import Storage, StorageError, open_storage
from stetholm.storage.embedded import answers, rclone_binary
from stetholm.storage.s3 import PART_BYTES, PatientS3
from tests.corpus.sounds import rows

ROOT = Path(__file__).resolve().parents[2]
ACCESS, SECRET = "access-key-of-the-test", "secret-key-of-the-test"
OUTAGE_SECONDS = 8.0


class S3Server:
    """rclone on one port, over one folder, that can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.address, self.started = folder, f"127.0.0.1:{port}", 0.0
        (folder / "bucket").mkdir(parents=True)
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        keys = {"RCLONE_AUTH_KEY": f'"{ACCESS},{SECRET}"', "RCLONE_CONFIG": "", "HOME": str(self.folder)}
        self.process = subprocess.Popen(
            [rclone_binary(), "serve", "s3", "--addr", self.address, str(self.folder)],
            env={"PATH": os.environ["PATH"], **keys}, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while not answers(f"http://{self.address}"):
            assert time.monotonic() < deadline, "rclone does not start"
            time.sleep(0.05)
        self.started = time.monotonic()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def be_away(self, seconds: float) -> threading.Thread:
        """Killed now, back on the same port after so long."""
        self.kill()
        thread = threading.Thread(target=lambda: (time.sleep(seconds), self.start()))
        thread.start()
        return thread

    def storage(self, **changes: str) -> Storage:
        values = {"uri": "s3://bucket", "endpoint_url": f"http://{self.address}", "access_key": ACCESS}
        return open_storage(StorageSettings(**{**values, "secret_key": SECRET, **changes}))


@pytest.fixture
def server(tmp_path: Path, unused_tcp_port: int) -> Iterator[S3Server]:
    server = S3Server(tmp_path / "s3", unused_tcp_port)
    server.start()
    yield server
    server.kill()


# --- outages ---


def test_reads_and_writes_go_on_through_an_outage(server, tmp_path, capsys):
    storage = server.storage()
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "file").write_text("a file")
    back = threading.Event()
    written: tuple[list[str], list[str]] = ([], [])

    def work(worker: int, own: list[str]) -> None:
        """Every kind of access, over and over, and five times more once the server is back."""
        since_then = 0
        while since_then < 5:
            since_then += back.is_set()
            uri = storage.join(str(worker), str(len(own)))
            storage.write_text(uri, uri)
            assert storage.read_text(uri) == uri and storage.size(uri) == len(uri) and storage.exists(uri)
            own.append(uri)
            assert len(storage.list(storage.join(str(worker)))) == len(own)
            if len(own) % 5 == 0:
                storage.upload_dir(tmp_path / "up", storage.join("up", str(worker)))
                storage.download_dir(storage.join("up", str(worker)), tmp_path / "down" / str(worker))
                storage.remove_dir(storage.join("up", str(worker)))

    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(work, worker, own) for worker, own in enumerate(written)]
        while min(len(own) for own in written) < 3 and not any(each.done() for each in working):
            time.sleep(0.05)
        server.be_away(OUTAGE_SECONDS).join()
        back.set()
        for each in working:
            each.result()
    there = [uri for uri in storage.list(storage.uri) if "/up/" not in uri]
    assert Counter(there) == Counter(written[0] + written[1])
    assert all(storage.read_text(uri) == uri for uri in there)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, said
    assert said[0].startswith(f"storage: {storage.endpoint_url} does not answer (connection refused); trying again")
    assert said[1].startswith(f"storage: {storage.endpoint_url} answers again after 0:")


def test_raw_users_of_the_filesystems_ride_it_out_too(server):
    """As Ray Train does it: a pickled filesystem writes through an outage, larger than one part."""
    storage = server.storage()
    writer = pickle.loads(pickle.dumps(storage.arrow_writer()))
    data = os.urandom(2 * PART_BYTES + 12345)
    with writer.open_output_stream("bucket/checkpoint/weights") as stream:
        stream.write(data[:PART_BYTES])
        back = server.be_away(2.0)
        stream.write(data[PART_BYTES:])
    back.join()
    assert storage.read_bytes("s3://bucket/checkpoint/weights") == data
    back = server.be_away(1.0)
    with storage.fs.open("bucket/checkpoint/weights", "rb") as file:
        assert file.read() == data
    back.join()


def test_a_server_that_forgot_a_multipart_upload_gets_it_anew(server, monkeypatch):
    storage = server.storage()
    calls: list[str] = []
    call = PatientS3._call_s3

    async def restart_before_the_second_part(self, method, *args, **kwargs):
        calls.append(method)
        if calls.count("upload_part") == 2 and method == "upload_part":
            server.kill()
            server.start()
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(PatientS3, "_call_s3", restart_before_the_second_part)
    data = os.urandom(5 * PART_BYTES)
    with storage.arrow_writer().open_output_stream("bucket/big") as stream:
        stream.write(data)
    assert calls.count("create_multipart_upload") == 2
    assert storage.read_bytes("s3://bucket/big") == data


def test_a_file_that_failed_half_way_is_not_uploaded(server):
    storage = server.storage()
    with pytest.raises(RuntimeError, match="half way"), storage.fs.open("bucket/half", "wb") as file:
        file.write(b"half")
        raise RuntimeError("half way")
    assert not storage.exists("s3://bucket/half")


def test_an_outage_that_does_not_end_is_one_line(server, monkeypatch):
    storage = server.storage()
    filesystem = storage.new_s3fs(patience_s=1.5)
    server.kill()
    for write in (lambda: filesystem.pipe_file("bucket/x", b"1"), lambda: filesystem.find("bucket")):
        with pytest.raises(StorageError, match=r"did not answer for 0:0\d \(connection refused\) while \w+") as caught:
            write()
        assert "\n" not in str(caught.value) and storage.endpoint_url in str(caught.value)


def slow(started: str, row: dict) -> dict:
    """Runs in the reading tasks: tells that they are at work, and makes them last."""
    Path(started).touch()
    time.sleep(0.01)
    return {}


@pytest.mark.parametrize("seconds", [OUTAGE_SECONDS, pytest.param(30.0, marks=pytest.mark.long)])
@pytest.mark.usefixtures("ray_cluster")
def test_an_epoch_goes_on_through_an_outage(server, tmp_path, seconds):
    storage = server.storage()
    uri, given = storage.join("corpus"), rows(80)
    write_corpus(storage, uri, {"train": given}, inputs={}, shard_bytes=300_000, row_group_rows=4)
    assert len(Manifest.load(storage, uri).splits["train"].shards) > 3
    started = tmp_path / "started"

    def go_away_in_mid_epoch() -> None:
        while not started.exists():
            time.sleep(0.02)
        server.be_away(seconds).join()

    with ThreadPoolExecutor(1) as pool:
        back = pool.submit(go_away_in_mid_epoch)
        prepare = partial(slow, str(started))
        # Tasks read some 256 rows before they go on to the rest: so many epochs that tasks follow one another.
        found = list(CorpusStream(storage, uri, split="train", seed=3, epochs=16, prepare=prepare).rows())
        finished = time.monotonic()
        back.result()
    assert finished > server.started, "the epoch was over before the server came back: nothing was proven"
    expected = Counter((epoch, row["sample_id"]) for epoch in range(16) for row in given)
    assert Counter((row["epoch"], row["sample_id"]) for row in found) == expected


# --- 5xx and throttling ---


class Flaky(http.server.BaseHTTPRequestHandler):
    """Forwards to the server behind, but answers every third request with an error."""

    protocol_version = "HTTP/1.1"
    behind, requests, refused, lock = "", 0, 0, threading.Lock()
    errors = ((503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests"))

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.lock:
            type(self).requests += 1
            refuse = self.requests % 3 == 0
            type(self).refused += refuse
        self._answer(*(self._error() if refuse else self._ask(body)))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def _error(self) -> tuple[int, dict, bytes]:
        status, code = self.errors[self.refused % len(self.errors)]
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>please wait</Message></Error>'
        return status, {"Content-Type": "application/xml", "Content-Length": str(len(text))}, text.encode()

    def _ask(self, body: bytes) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection(self.behind, timeout=30)
        # The Host header as it is: it is part of what the client has signed.
        headers = {name: value for name, value in self.headers.items() if name not in ("Expect", "Connection")}
        connection.request(self.command, self.path, body or None, headers)
        response = connection.getresponse()
        data, answer = response.read(), dict(response.getheaders())
        connection.close()
        length = answer.get("Content-Length", str(len(data)))
        kept = {name: value for name, value in answer.items() if name not in ("Transfer-Encoding", "Content-Length")}
        return response.status, {**kept, "Content-Length": length}, data

    def _answer(self, status: int, headers: dict, data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def flaky(server) -> Iterator[tuple[Storage, type[Flaky]]]:
    handler = type("FlakyHere", (Flaky,), {"behind": server.address})
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    storage = Storage("s3://bucket", f"http://127.0.0.1:{proxy.server_port}", ACCESS, SECRET)
    yield storage, handler
    proxy.shutdown()
    proxy.server_close()


def test_every_third_request_refused(flaky, tmp_path, capsys):
    storage, handler = flaky
    (tmp_path / "up").mkdir()
    for number in range(6):
        (tmp_path / "up" / str(number)).write_bytes(os.urandom(1000 + number))
    storage.upload_dir(tmp_path / "up", storage.join("up"))
    storage.download_dir(storage.join("up"), tmp_path / "down")
    for number in range(6):
        assert (tmp_path / "down" / str(number)).read_bytes() == (tmp_path / "up" / str(number)).read_bytes()
    storage.write_text(storage.join("x"), "text")
    assert storage.read_text(storage.join("x")) == "text" and storage.size(storage.join("x")) == 4
    assert not storage.exists(storage.join("none")) and len(storage.list(storage.uri)) == 7
    big = os.urandom(PART_BYTES + 1)
    storage.write_bytes(storage.join("big"), big)
    assert storage.read_bytes(storage.join("big")) == big
    storage.remove_dir(storage.join("up"))
    assert storage.list(storage.uri) == [storage.join("big"), storage.join("x")]
    assert handler.refused > 5
    assert capsys.readouterr().err == ""


def test_every_third_request_refused_of_shards(flaky):
    storage, handler = flaky
    uri, given = storage.join("corpus"), rows(24)
    write_corpus(storage, uri, {"train": given}, inputs={}, shard_bytes=600_000, row_group_rows=8)
    refused = handler.refused
    reader = CorpusStream(storage, uri, split="train", seed=0)._reader
    index = [row for shard in Manifest.load(storage, uri).splits["train"].shards for row in reader.index(shard)]
    assert [row.sample_id for row in index] == [row["sample_id"] for row in given]
    assert handler.refused > refused > 0


def test_every_third_request_refused_of_arrow_writers(flaky):
    storage, _ = flaky
    table = pa.table({"a": list(range(1000))})
    pq.write_table(table, "bucket/t.parquet", filesystem=storage.arrow_writer())
    read = storage.patiently(lambda: pq.read_table("bucket/t.parquet", filesystem=storage.arrow_reader()), "reading")
    assert read.equals(table)


# --- wrong keys ---


def test_a_wrong_secret_is_one_line_at_once(server, capsys):
    began = time.monotonic()
    with pytest.raises(StorageError, match="were refused") as caught:
        server.storage(secret_key="a-wrong-secret")
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value) and "a-wrong-secret" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_a_wrong_secret_after_opening_is_not_waited_for(server):
    storage = Storage("s3://bucket", f"http://{server.address}", ACCESS, "a-wrong-secret")
    began = time.monotonic()
    for access in (storage.read_bytes, storage.list, storage.exists, storage.size):
        with pytest.raises(StorageError, match="was refused"):
            access(storage.join("x"))
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        storage.patiently(lambda: storage.arrow_reader().open_input_file("bucket/x"), "reading")
    assert time.monotonic() - began < 10


def test_a_wrong_secret_of_a_job(server, tmp_path):
    given = {"uri": "s3://bucket", "endpoint_url": f"http://{server.address}", "access_key": ACCESS}
    values = {**given, "secret_key": "a-wrong-secret"}
    options = [part for name, value in values.items() for part in ("--set", f"storage.{name}={value}")]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "ingest.py"), *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert time.monotonic() - began < 10
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ingest: storage: the keys for http://{server.address} were refused")
    assert "a-wrong-secret" not in line
