"""API keys: stored hashed, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from stetholm.errors import UserError

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")


def hash_key(key: str) -> str:
    """What the key file holds in place of a key. Keys are long and random, so a plain SHA-256 will do."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class ApiKeys:
    """Who may ask. Without entries everybody may."""

    entries: tuple[tuple[str, str], ...] = ()
    """(name, sha256 in hex)."""

    def owner(self, authorization: str | None) -> str | None:
        """Name of the key in an ``Authorization: Bearer …`` header; None if it is not one of ours."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hash_key(key.strip())
        # All are compared, whichever matches, so that the time tells nothing.
        matches = [name for name, known in self.entries if hmac.compare_digest(known, digest)]
        return matches[0] if matches and scheme.lower() == "bearer" else None


def load_keys(path: str | None) -> ApiKeys:
    """Read ``serve.api_keys_file``: lines ``name:sha256hex``, ``#`` begins a comment.

    Raises:
        UserError: the file cannot be read, a line is malformed, or it holds no key.
    """
    if path is None:
        return ApiKeys()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"serve.api_keys_file: cannot read {path}: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{path}, line {number}: expected name:sha256hex (python -m serve.keys <name> makes one)")
        entries.append((match[1], match[2]))
    if not entries:
        raise UserError(f"serve.api_keys_file: {path} holds no key, so nobody could ask")
    return ApiKeys(tuple(entries))


def main() -> None:
    """``python -m serve.keys NAME``: print a new key, once, on stderr and its line for the key file on stdout."""
    import secrets
    import sys

    if len(sys.argv) != 2 or not _LINE.fullmatch(f"{sys.argv[1]}:{'0' * 64}"):
        sys.exit("usage: python -m serve.keys NAME >> keys.txt   (letters, digits, . _ -)")
    key = "sk-stetholm-" + secrets.token_urlsafe(32)
    print(f"key (shown only now): {key}", file=sys.stderr)
    print(f"{sys.argv[1]}:{hash_key(key)}")


if __name__ == "__main__":
    main()
