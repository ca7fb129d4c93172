"""API keys: stored as salted hashes, compared in constant time. ``python -m serve.keys NAME >> keys.txt`` makes one.

The hash is HMAC-SHA-256 with 16 random bytes of salt a key. Keys made here hold 256 random bits, which nobody guesses
however fast the hash, so a slow one (scrypt, Argon2) would protect nothing and let strangers keep the server busy. The
salt keeps a table of hashes, or two files with the same key, from telling anything.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from serve.limits import check_limits
from stetholm.errors import UserError

PREFIX = "sk-stetholm-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern})\s+hmac-sha256\$([0-9a-f]{{32}})\$([0-9a-f]{{64}})(?:\s+(\S.*))?")
_EXPECTED = "expected NAME hmac-sha256$SALT$HASH [LIMITS], as python -m serve.keys NAME makes it"


def hash_key(key: str, salt: bytes) -> str:
    """What is stored in place of a key, in hex."""
    return hmac.new(salt, key.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class ApiKey:
    """One line of the key file. ``limits`` as in :mod:`serve.limits`, empty for none."""

    name: str
    salt: bytes
    digest: str
    limits: str = ""

    @classmethod
    def of(cls, name: str, key: str, limits: str = "") -> ApiKey:
        """With a fresh salt."""
        salt = secrets.token_bytes(16)
        return cls(name, salt, hash_key(key, salt), limits)

    def matches(self, key: str) -> bool:
        """Whether this is the key, in constant time."""
        return hmac.compare_digest(self.digest, hash_key(key, self.salt))

    def __str__(self) -> str:
        """The line."""
        return f"{self.name} hmac-sha256${self.salt.hex()}${self.digest} {self.limits}".rstrip()


@dataclass(frozen=True)
class ApiKeys:
    """Who may ask. Without entries everybody may."""

    entries: tuple[ApiKey, ...] = ()

    def owner(self, authorization: str | None) -> ApiKey | None:
        """The key in an ``Authorization: Bearer …`` header; None if it is not one of ours."""
        scheme, _, key = (authorization or "").partition(" ")
        # All are compared, whichever matches, so that the time tells nothing.
        matches = [entry for entry in self.entries if entry.matches(key.strip())]
        return matches[0] if matches and scheme.lower() == "bearer" else None

    @property
    def limited(self) -> bool:
        """Whether any key has limits."""
        return any(entry.limits for entry in self.entries)


def load_keys(path: str | None, limits: str | None = None) -> ApiKeys:
    """Read ``serve.api_keys_file``; ``#`` begins a comment. ``limits`` hold for keys whose line has none.

    Raises:
        UserError: the file cannot be read, a line is malformed, a name stands there twice, or it holds no key.
    """
    if limits is not None:
        check_limits(limits, "serve.key_limits")
    if path is None:
        return ApiKeys()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"serve.api_keys_file: cannot read {path}: {error}") from error
    entries: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            entry = _parse(line, f"{path}, line {number}", limits or "")
            if entry.name in entries:
                raise UserError(f"{path}, line {number}: there is another key {entry.name}: give each its own name")
            entries[entry.name] = entry
    if not entries:
        raise UserError(f"serve.api_keys_file: {path} holds no key, so nobody could ask")
    return ApiKeys(tuple(entries.values()))


def _parse(line: str, where: str, limits: str) -> ApiKey:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise UserError(f"{where}: {_EXPECTED}")
    own = match[4] or limits
    if own:
        check_limits(own, where)
    return ApiKey(match[1], bytes.fromhex(match[2]), match[3], own)


def main() -> None:
    """Print a new key, once, on stderr, and its line for the key file on stdout."""
    parser = argparse.ArgumentParser(prog="python -m serve.keys", description=main.__doc__)
    parser.add_argument("name", help="whose key it is; letters, digits, . _ -")
    parser.add_argument("--limits", default="", help='what it may ask, e.g. "60/minute; 5000/day"')
    chosen = parser.parse_args()
    try:
        if not _NAME.fullmatch(chosen.name):
            raise UserError("a name has 1 to 64 letters, digits, . _ -")
        if chosen.limits:
            check_limits(chosen.limits, "--limits")
    except UserError as error:
        sys.exit(f"serve.keys: {error}")
    key = PREFIX + secrets.token_urlsafe(32)
    print(f"key (shown only now): {key}", file=sys.stderr)
    print(ApiKey.of(chosen.name, key, chosen.limits))


if __name__ == "__main__":
    main()
