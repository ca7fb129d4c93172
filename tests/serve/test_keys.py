"""Keys on disk: made, read, recognised; and counted."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.keys import ApiKey, ApiKeys, load_keys
from serve.limits import LocalLimiter
from stetholm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GOOD = str(ApiKey.of("clinic", "sk-1"))


def test_keys_are_read_and_recognised(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# clinic\n\n{GOOD}\n{ApiKey.of('lab.2', 'sk-2', '5/minute')}\n")
    keys = load_keys(str(path), "60/minute")
    owners = [keys.owner(f"Bearer {key}") for key in ("sk-1", "sk-2", "sk-3", "")]
    assert [owner and owner.name for owner in owners] == ["clinic", "lab.2", None, None]
    assert [entry.limits for entry in keys.entries] == ["60/minute", "5/minute"]
    assert keys.owner(None) is None and load_keys(None) == ApiKeys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clinic:sk-plain\n", "line 1"),
        (f"clinic:{'0' * 64}\n", "python -m serve.keys"),
        (f"{GOOD} sixty a minute\n", "no list of limits"),
        (f"{GOOD} 0/minute\n", "at least 1"),
        (f"{GOOD}\n{GOOD}\n", "line 2: there is another key clinic"),
        ("# nothing\n", "no key"),
        (None, "cannot read"),
    ],
)
def test_a_bad_key_file_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_keys(str(path))
    assert "sk-plain" not in str(caught.value) and "\n" not in str(caught.value)


def test_bad_limits_for_all_keys_are_one_clear_line():
    with pytest.raises(UserError, match=r"serve\.key_limits"):
        load_keys(None, "often")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "serve.keys", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_a_key_is_made_and_only_its_hash_goes_to_the_file(tmp_path):
    made = command("clinic", "--limits", "60/minute; 5000/day")
    assert made.returncode == 0
    key = made.stderr.split()[-1]
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    owner = load_keys(str(path)).owner(f"Bearer {key}")
    assert owner is not None and (owner.name, owner.limits) == ("clinic", "60/minute; 5000/day")
    assert key not in made.stdout


def test_a_bad_name_or_limit_makes_no_key():
    for arguments in (("two words",), ("clinic", "--limits", "often")):
        refused = command(*arguments)
        assert refused.returncode == 1 and not refused.stdout and refused.stderr.startswith("serve.keys: ")


def test_the_same_key_is_stored_differently_each_time():
    first, second = ApiKey.of("a", "sk-1"), ApiKey.of("a", "sk-1")
    assert first.digest != second.digest and first.matches("sk-1") and second.matches("sk-1")


@given(st.text(max_size=40), st.text(max_size=40))
def test_only_the_key_itself_matches(key, other):
    clean = [text.encode("utf-8", "replace").decode() for text in (key, other)]
    assert ApiKey.of("a", clean[0]).matches(clean[1]) == (clean[0] == clean[1])


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 30))
async def test_never_more_than_any_of_the_limits(rate, quota, asked):
    limiter = LocalLimiter()
    refusals = [await limiter.take("a", f"{rate}/hour; {quota}/day") for _ in range(asked)]
    allowed = [refusal for refusal in refusals if refusal is None]
    assert len(allowed) == min(rate, quota, asked)
    assert all(refusal.retry_after_s >= 1 for refusal in refusals if refusal)
    assert await limiter.take("b", f"{rate}/hour; {quota}/day") is None
