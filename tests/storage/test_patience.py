"""Patience: what is tried again, how the pauses grow, what is said, and how it ends. No test here waits."""

import asyncio
import errno
import http.client
import random
import socket
from itertools import pairwise

import aiohttp
import botocore.exceptions as boto
import pyarrow as pa
import pytest
from botocore.parsers import ResponseParserError
from hypothesis import given
from hypothesis import strategies as st
from s3fs.errors import translate_boto_error

from stetholm.errors import UserError
from stetholm.storage import StorageError
from stetholm.storage.patience import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NOTICE_SECONDS,
    PATIENCE_SECONDS,
    Notices,
    Patience,
    is_lost_upload,
    is_transient,
    minutes,
    patiently,
    patiently_awaited,
    reason,
)

WHERE = "http://127.0.0.1:9000"
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def answer(code, status):
    """What botocore raises for an error that S3 answers."""
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, "GetObject")


def arrow(text):
    return OSError(f"When reading information for key 'x' in bucket 'b': {text}")


REFUSED_BY_CURL = arrow(
    "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect; D: x"
)

PASSING = [
    REFUSED,
    ConnectionResetError("reset"),
    BrokenPipeError("pipe"),
    TimeoutError("late"),
    socket.gaierror(socket.EAI_AGAIN, "name resolution"),
    OSError(errno.EHOSTUNREACH, "no route"),
    http.client.IncompleteRead(b"12"),
    boto.EndpointConnectionError(endpoint_url=WHERE),
    boto.ConnectTimeoutError(endpoint_url=WHERE),
    boto.ReadTimeoutError(endpoint_url=WHERE),
    boto.ConnectionClosedError(endpoint_url=WHERE),
    boto.HTTPClientError(error="reset"),
    boto.SSLError(endpoint_url=WHERE, error="EOF occurred in violation of protocol"),
    ResponseParserError("no XML"),
    aiohttp.ClientPayloadError("not completed"),
    aiohttp.ServerDisconnectedError(),
    *(answer(code, status) for code, status in [("SlowDown", 503), ("503", 503), ("InternalError", 500), ("502", 502)]),
    *(answer(code, status) for code, status in [("504", 504), ("TooManyRequests", 429), ("RequestTimeout", 400)]),
    REFUSED_BY_CURL,
    arrow("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file; D: x"),
    *(arrow(f"AWS Error UNKNOWN (HTTP status {status}) during HeadObject operation") for status in (429, 500, 503)),
    arrow("AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream (eof: 0, bad: 1)"),
    arrow("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate."),
]
LASTING = [
    UserError("bad"),
    StorageError("gone"),
    ValueError("bad"),
    KeyError("x"),
    PermissionError("403"),
    FileNotFoundError("404"),
    OSError(errno.ENOSPC, "disk full"),
    pa.ArrowInvalid("not a Parquet file"),
    boto.NoCredentialsError(),
    boto.ParamValidationError(report="bucket"),
    boto.SSLError(endpoint_url=WHERE, error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
    *(answer(code, status) for code, status in [("AccessDenied", 403), ("SignatureDoesNotMatch", 403), ("501", 501)]),
    *(answer(code, status) for code, status in [("NoSuchKey", 404), ("NoSuchBucket", 404), ("InvalidBucketName", 400)]),
    arrow("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    arrow("AWS Error UNKNOWN (HTTP status 501) during HeadObject operation"),
]


def named(error):
    return f"{type(error).__name__}-{str(error)[-30:]}"


@pytest.mark.parametrize("error", PASSING, ids=named)
def test_what_may_pass(error):
    assert is_transient(error)
    assert is_transient(translate_boto_error(error))
    assert "\n" not in reason(error) and len(reason(error)) <= 120


@pytest.mark.parametrize("error", LASTING, ids=named)
def test_what_lasts(error):
    assert not is_transient(error)
    assert not is_transient(translate_boto_error(error))


def test_an_error_that_patience_ended_with_is_final_whatever_caused_it():
    for cause in (answer("SlowDown", 503), answer("NoSuchUpload", 404)):
        final = StorageError("ended")
        final.__cause__ = cause
        assert not is_transient(final) and not is_lost_upload(final)


def test_a_lost_upload_is_told_from_other_missing_things():
    lost = translate_boto_error(answer("NoSuchUpload", 404))
    assert is_lost_upload(lost) and not is_transient(lost)
    assert not is_lost_upload(translate_boto_error(answer("NoSuchKey", 404)))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (REFUSED, "connection refused"),
        (boto.EndpointConnectionError(endpoint_url=WHERE, error=REFUSED), "connection refused"),
        (translate_boto_error(answer("SlowDown", 503)), "SlowDown, HTTP 503"),
        (answer("503", 503), "HTTP 503"),
        (REFUSED_BY_CURL, "connection refused"),
        (arrow("AWS Error UNKNOWN (HTTP status 500) during"), "HTTP 500"),
        (
            OSError("AWS Error X during Y: curlCode: 18, Transferred a partial file; Details: x"),
            "Transferred a partial file",
        ),
        (TimeoutError(), "TimeoutError"),
        (aiohttp.ClientPayloadError("a\nb"), "a b"),
    ],
    ids=str,
)
def test_the_reason_is_a_few_words(error, words):
    assert reason(error) == words


# --- trying again: a world whose clock only sleeping moves ---


class World:
    def __init__(self, seed=0, patience_s=PATIENCE_SECONDS):
        self.now, self.pauses, self.said, self.tries = 100.0, [], [], 0
        self.draw, self.patience_s = random.Random(seed).uniform, patience_s
        self.notices = Notices(clock=lambda: self.now, say=self.said.append)

    def patience(self, **changes):
        values = dict(patience_s=self.patience_s, clock=lambda: self.now, draw=self.draw, notices=self.notices)
        return Patience("reading s3://b/x", WHERE, **{**values, **changes})

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def call(self, until, error=REFUSED, takes=0.01):
        """A call that fails until so many seconds have passed."""

        def go():
            self.tries += 1
            self.now += takes
            if self.now - 100.0 < until:
                raise error
            return "done"

        return go

    def run(self, *args, **kwargs):
        return patiently(self.call(*args, **kwargs), self.patience(), self.sleep)


def test_what_succeeds_is_made_once_and_says_nothing():
    world = World()
    assert world.run(0) == "done"
    assert (world.tries, world.pauses, world.said) == (1, [], [])


def test_what_lasts_is_raised_at_once_as_it_is():
    for error in LASTING:
        world = World()
        with pytest.raises(type(error)) as caught:
            world.run(1000, error)
        assert caught.value is error and world.tries == 1 and not world.said


def test_short_troubles_go_unmentioned():
    world = World()
    assert world.run(NOTICE_SECONDS - 1) == "done"
    assert world.tries > 2 and not world.said


@given(seed=st.integers(0, 10**6), outage=st.floats(NOTICE_SECONDS + 1, PATIENCE_SECONDS - 1))
def test_an_outage_is_ridden_out_and_said_once_in_time(seed, outage):
    world = World(seed)
    said_at = []
    world.notices.say = lambda line: (said_at.append(world.now - 100.0), world.said.append(line))
    assert world.run(outage) == "done"
    before, after = world.said
    assert before == f"storage: {WHERE} does not answer (connection refused); trying again for up to 1:55"
    assert after.startswith(f"storage: {WHERE} answers again after ")
    assert NOTICE_SECONDS - 0.2 <= said_at[0] <= NOTICE_SECONDS + 0.3
    assert outage <= said_at[1] <= outage + LONGEST_PAUSE + 0.1


@given(seed=st.integers(0, 10**6))
def test_pauses_grow_to_a_cap_with_jitter_and_end_with_patience(seed):
    world = World(seed)
    with pytest.raises(StorageError) as caught:
        world.run(10_000)
    for number, pause in enumerate(world.pauses):
        assert 0 <= pause <= min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
    assert PATIENCE_SECONDS <= world.now - 100.0 <= PATIENCE_SECONDS + 1
    assert world.tries < 200
    assert len(world.said) == 1
    message = str(caught.value)
    assert message.startswith(f"storage: {WHERE} did not answer for 2:00 (connection refused) while reading s3://b/x")
    assert "\n" not in message and caught.value.__cause__ is REFUSED


def test_the_longest_jitter_doubles_up_to_the_cap():
    world = World(patience_s=60.0)
    world.draw = lambda low, high: high
    with pytest.raises(StorageError):
        world.run(1000, takes=0.0)
    assert world.pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert all(a <= b for a, b in pairwise(world.pauses[5:-1])) and LONGEST_PAUSE in world.pauses


def test_no_patience_means_one_try_and_the_error_itself():
    world = World(patience_s=0)
    with pytest.raises(ConnectionRefusedError):
        world.run(1000)
    assert world.tries == 1 and not world.said


def test_a_lasting_error_after_passing_ones_is_raised():
    errors = [REFUSED, answer("SlowDown", 503), PermissionError("403")]
    world = World()

    def call():
        raise errors.pop(0)

    with pytest.raises(PermissionError):
        patiently(call, world.patience(), world.sleep)
    assert not errors


def test_many_calls_say_it_once():
    world = World()
    waiting = [world.patience() for _ in range(8)]
    for _ in range(100):
        for patience in waiting:
            assert patience.pause_after(REFUSED) is not None
        world.now += 0.5
    for patience in waiting:
        patience.succeeded()
    assert len(world.said) == 2
    # One whose try was under way when the others got through does not cry wolf.
    waiting[0].pause_after(REFUSED)
    assert len(world.said) == 2


def test_a_second_outage_is_said_again():
    world = World()
    for _ in range(2):
        world.now = 100.0
        world.notices._back.clear()
        world.run(20)
    assert len(world.said) == 4


def test_coroutines_are_as_patient():
    world = World()
    attempt = world.call(20)

    async def call():
        return attempt()

    async def sleep(seconds):
        world.sleep(seconds)

    assert asyncio.run(patiently_awaited(call, world.patience(), sleep)) == "done"
    assert world.tries > 3 and len(world.said) == 2
    with pytest.raises(StorageError, match="did not answer"):
        attempt = World().call(10_000)
        asyncio.run(patiently_awaited(call, world.patience(), sleep))


def test_interrupts_are_not_retried():
    world = World()

    def call():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently(call, world.patience(), world.sleep)
    assert not world.pauses


def test_minutes():
    assert [minutes(s) for s in (0, 4.6, 59.6, 120)] == ["0:00", "0:05", "1:00", "2:00"]
