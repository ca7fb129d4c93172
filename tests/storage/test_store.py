"""Storage: objects, folders, local copies, pickling, and the two pyarrow filesystems."""

import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stetholm.storage import Storage, StorageError

PLAIN = Storage("s3://bucket/some/prefix")


@pytest.fixture
def place(storage, request):
    """A URI of this test's own."""
    return storage.join("test-store", request.node.name.split("[")[0])


def test_join_and_key():
    assert PLAIN.join("runs", "a/", "/b") == "s3://bucket/some/prefix/runs/a/b"
    assert PLAIN.join() == PLAIN.uri
    assert PLAIN.key("s3://bucket/a/b/") == "bucket/a/b"


@pytest.mark.parametrize("uri", ["/tmp/x", "bucket/key", "s3://", "s3:///x", "https://a/b", "", "S3://b/x"])
def test_key_refuses_what_is_not_a_storage_uri(uri):
    with pytest.raises(StorageError, match="not a storage URI"):
        PLAIN.key(uri)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(name=names.filter(lambda n: n not in (".", "..") and len(n.encode()) < 100), data=st.binary(max_size=1000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_come_back_under_any_name(storage, place, name, data):
    uri = f"{place}/{name}"
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data and storage.size(uri) == len(data)
    assert uri.rstrip("/") in storage.list(place)


def test_text_and_json(storage, place):
    storage.write_text(f"{place}/t", "Geräusch ♥")
    assert storage.read_text(f"{place}/t") == "Geräusch ♥"
    storage.write_json(f"{place}/j", {"a": [1, 2.5, None, "ü"]})
    assert storage.read_json(f"{place}/j") == {"a": [1, 2.5, None, "ü"]}
    with pytest.raises(StorageError, match="is not JSON"):
        storage.read_json(f"{place}/t")


def test_writing_again_replaces(storage, place):
    storage.write_text(f"{place}/x", "a longer first text")
    storage.write_text(f"{place}/x", "second")
    assert storage.read_text(f"{place}/x") == "second"


def test_what_is_not_there_is_one_clear_line(storage, place):
    assert not storage.exists(f"{place}/none")
    assert storage.list(f"{place}/none") == []
    for read in (storage.read_bytes, storage.read_json, storage.size, storage.local_copy):
        with pytest.raises(StorageError, match=f"nothing at {place}/none"):
            read(f"{place}/none")


def test_list_and_exists_know_folders(storage, place):
    for name in ("run/b", "run/a/c", "run2/d"):
        storage.write_text(f"{place}/{name}", name)
    assert storage.list(f"{place}/run") == [f"{place}/run/a/c", f"{place}/run/b"]
    assert storage.exists(f"{place}/run") and storage.exists(f"{place}/run/b") and not storage.exists(f"{place}/ru")


def test_remove_dir_removes_only_what_is_below(storage, place):
    for name in ("run/b", "run/a/c", "run2/d"):
        storage.write_text(f"{place}/{name}", name)
    storage.remove_dir(f"{place}/run")
    assert storage.list(place) == [f"{place}/run2/d"]
    storage.remove_dir(f"{place}/run")


def make_folder(folder, big=0):
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "deep" / "w.bin").write_bytes(b"\1" * (1000 + big))
    (folder / "empty").write_bytes(b"")
    return folder


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_folders_go_up_and_come_back(storage, place, tmp_path):
    local = make_folder(tmp_path / "up", big=60 * 2**20)  # more than one part of a multipart upload
    storage.upload_dir(local, place)
    storage.download_dir(place, tmp_path / "down")
    assert contents(tmp_path / "down") == contents(local)


def test_uploading_nothing_is_an_error(storage, place, tmp_path):
    with pytest.raises(StorageError, match="nothing to upload"):
        storage.upload_dir(tmp_path / "none", place)


def test_local_copy_of_a_folder_and_of_an_object(storage, place, tmp_path):
    local = make_folder(tmp_path / "up")
    storage.upload_dir(local, place)
    copy = storage.local_copy(place)
    assert contents(copy) == contents(local) and copy.name == place.rsplit("/", 1)[1]
    assert storage.local_copy(f"{place}/config.json").read_text() == "{}"


def test_local_copy_downloads_once_and_again_after_a_change(storage, place, tmp_path):
    storage.upload_dir(make_folder(tmp_path / "up"), place)
    first = storage.local_copy(place)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert storage.local_copy(place + "/") == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    storage.write_text(f"{place}/config.json", "[]")
    assert (storage.local_copy(place) / "config.json").read_text() == "[]"
    assert (first / "config.json").read_text() == "{}"


def _copy_in_process(arguments):
    storage, uri = arguments
    return {name: len(data) for name, data in contents(storage.local_copy(uri)).items()}


def test_local_copy_is_safe_among_processes_and_threads(storage, place, tmp_path):
    local = make_folder(tmp_path / "up", big=10 * 2**20)
    storage.upload_dir(local, place)
    expected = {name: len(data) for name, data in contents(local).items()}
    with multiprocessing.get_context("spawn").Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        asked = [(storage, place)] * 4
        there, here = pool.map_async(_copy_in_process, asked), list(threads.map(_copy_in_process, asked))
        assert all(result == expected for result in [*there.get(), *here])


def test_a_broken_download_leaves_no_copy(storage, place, tmp_path, monkeypatch):
    storage.upload_dir(make_folder(tmp_path / "up"), place)
    fetch = storage.fs.get

    def cut(keys, targets):
        fetch(keys, targets)
        with open(targets[-1], "wb") as file:
            file.write(b"cut")

    monkeypatch.setattr(storage.fs, "get", cut)
    with pytest.raises(StorageError, match="changed while"):
        storage.local_copy(place)
    monkeypatch.undo()
    assert contents(storage.local_copy(place)) == contents(tmp_path / "up")


def test_hostile_keys_do_not_leave_the_folder(storage, place, tmp_path, monkeypatch):
    key = storage.key(place) + "/../../evil"
    monkeypatch.setattr(storage.fs, "find", lambda *a, **k: {key: {"type": "file", "size": 1}})
    with pytest.raises(StorageError, match="leads outside"):
        storage.download_dir(place, tmp_path / "down")


def test_pickles_without_connections_and_never_prints_keys(storage):
    storage.exists(storage.uri)
    again = pickle.loads(pickle.dumps(storage))
    assert again == storage
    for text in (repr(storage), str(storage)):
        assert storage.secret_key not in text and storage.access_key not in text


def _read_after_fork(storage, uri, queue):
    queue.put(storage.read_text(uri))


def test_works_in_a_forked_process(storage, place):
    storage.write_text(f"{place}/x", "forked")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_after_fork, args=(storage, f"{place}/x", queue))
    process.start()
    assert queue.get(timeout=60) == "forked"
    process.join()


def test_sees_what_another_process_wrote(storage, place):
    assert storage.list(place) == []
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=storage.write_text, args=(f"{place}/x", "theirs"))
    process.start()
    process.join()
    assert storage.list(place) == [f"{place}/x"] and storage.exists(f"{place}/x")
    assert storage.read_text(f"{place}/x") == "theirs"


def test_arrow_writer_writes_what_the_reader_reads(storage, place):
    table = pa.table({"a": list(range(1000)), "b": ["ü"] * 1000})
    path = storage.key(f"{place}/deep/part.parquet")
    writer = storage.arrow_writer()
    writer.create_dir(storage.key(f"{place}/deep"), recursive=True)
    pq.write_table(table, path, filesystem=writer, row_group_size=100)
    assert pq.read_table(path, filesystem=storage.arrow_reader()).equals(table)
    assert pq.ParquetFile(path, filesystem=storage.arrow_reader()).metadata.num_row_groups == 10
    assert storage.list(place) == [f"{place}/deep/part.parquet"]


def test_arrow_filesystems_travel_to_other_processes(storage, place):
    storage.write_text(f"{place}/x", "hello")
    for filesystem in (storage.arrow_reader(), storage.arrow_writer()):
        again = pickle.loads(pickle.dumps(filesystem))
        with again.open_input_stream(storage.key(f"{place}/x")) as stream:
            assert stream.read() == b"hello"


def test_a_table_comes_back(storage, place):
    table = pa.table({"a": [1, None], "b": [["x"], []]})
    storage.write_table(f"{place}/t.parquet", table)
    assert storage.read_table(f"{place}/t.parquet").equals(table)


def test_write_json_keeps_text_readable(storage, place):
    storage.write_json(f"{place}/x", {"b": "ü"})
    assert "ü" in storage.read_text(f"{place}/x") and json.loads(storage.read_text(f"{place}/x"))


def test_ray_data_writes_and_reads_back(storage, place, ray_cluster):
    import ray.data

    where = storage.key(f"{place}/rows")
    ray.data.range(100).write_parquet(where, filesystem=storage.arrow_writer())
    rows = ray.data.read_parquet(where, filesystem=storage.arrow_reader()).take_all()
    assert sorted(row["id"] for row in rows) == list(range(100))


def test_the_last_file_comes_when_the_others_are_there(storage, place, tmp_path, monkeypatch):
    for name in ("a", "deep/b", "marker"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    storage.upload_dir(tmp_path, f"{place}/1", last="marker")
    assert storage.list(f"{place}/1") == [f"{place}/1/{name}" for name in ("a", "deep/b", "marker")]
    put = storage.fs.put

    def put_and_lose(paths, keys):
        put(paths, keys)
        storage.fs.rm(keys[0])  # somebody else, in the midst of it

    monkeypatch.setattr(storage.fs, "put", put_and_lose)
    with pytest.raises(StorageError, match="2/a is gone again: does another job write there"):
        storage.upload_dir(tmp_path, f"{place}/2", last="marker")
    assert storage.list(f"{place}/2") == [f"{place}/2/deep/b"]
