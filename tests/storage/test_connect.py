"""Opening a storage: every usual mistake is one clear line, and soon."""

import http.server
import socket
import threading
import time

import pytest

from stetholm.settings import StorageSettings
from stetholm.storage import StorageError, default_storage, open_storage


def complaint(**values) -> str:
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        open_storage(StorageSettings(**values))
    assert time.monotonic() - began < 10, "the promise of storage.connect"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of(storage, **values):
    settings = dict(uri=storage.uri, endpoint_url=storage.endpoint_url)
    return {**settings, "access_key": storage.access_key, "secret_key": storage.secret_key, **values}


def test_opens_any_s3_endpoint_by_its_settings(storage):
    opened = open_storage(StorageSettings(**of(storage, uri="s3://stetholm/a/prefix/")))
    opened.write_text(opened.join("x"), "y")
    assert storage.read_text("s3://stetholm/a/prefix/x") == "y"


def test_wrong_keys(storage):
    for wrong in ({"secret_key": "wrong-secret"}, {"access_key": "wrong-key"}):
        message = complaint(**of(storage, **wrong))
        assert message.startswith(f"storage: the keys for {storage.endpoint_url} were refused")
        assert "wrong-secret" not in message and storage.secret_key not in message


def test_missing_bucket(storage):
    assert "no bucket 'nothing-here'" in complaint(**of(storage, uri="s3://nothing-here/x"))


def test_nothing_listens(storage):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert f"nothing answers at {url}" in complaint(**of(storage, endpoint_url=url))


def test_host_that_does_not_exist(storage):
    assert "nothing answers" in complaint(**of(storage, endpoint_url="http://no-such-host.invalid:9000"))


def test_a_listener_that_never_answers(storage):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert f"{url} does not answer as an S3 server" in complaint(**of(storage, endpoint_url=url))


def test_a_server_that_is_not_s3(storage):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert "does not answer as an S3 server" in complaint(**of(storage, endpoint_url=url))
    server.shutdown()


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"endpoint_url": "http://127.0.0.1:9"}, "storage.uri is 'embedded'"),
        ({"uri": "s3://bucket", "access_key": "only"}, "go together"),
        ({"uri": "s3://bucket", "endpoint_url": "127.0.0.1:9000"}, "must start with http"),
    ],
)
def test_settings_that_contradict_each_other(values, part):
    assert part in complaint(**values)


def test_no_keys_at_all(storage, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    message = complaint(uri="s3://stetholm", endpoint_url=storage.endpoint_url)
    assert "no keys for" in message or "were refused" in message


def test_a_session_token_of_the_environment_travels_along(storage, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", storage.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert open_storage(StorageSettings(**of(storage))).session_token == "token"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of something else")
    assert open_storage(StorageSettings(**of(storage))).session_token is None


def test_default_storage_is_that_of_the_environment(storage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert default_storage() == storage
    monkeypatch.setenv("STETHOLM_STORAGE__URI", "s3://no-such-bucket")
    for name, value in of(storage).items():
        if name != "uri":
            monkeypatch.setenv(f"STETHOLM_STORAGE__{name.upper()}", value)
    with pytest.raises(StorageError, match="no bucket 'no-such-bucket'"):
        default_storage()
