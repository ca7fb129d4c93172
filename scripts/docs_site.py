"""What the site of ``docs/`` has besides its files: the README as its first page, and links into the repository.

Hooks of mkdocs (``mkdocs.yml`` names this file). Pages link to files beside ``docs/`` as the repository shows them; the
site has no such files, so there such a link becomes the file's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
"""A link, or a picture."""
HOME = "index.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the README, with its links as seen from ``docs/``."""
    text = LINK.sub(_from_docs, (ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, HOME, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of ``docs/``: to the README's page, or to a name in plain text."""
    return LINK.sub(lambda link: _inside(link, depth=page.file.src_uri.count("/")), markdown)


def _from_docs(link: re.Match[str]) -> str:
    target = link["target"]
    if "://" in target or target.startswith("#"):
        return link[0]
    there = target.removeprefix("docs/") if target.startswith("docs/") else "../" + target
    return f"{link['image']}[{link['text']}]({there})"


def _inside(link: re.Match[str], depth: int) -> str:
    up = "../" * (depth + 1)
    target = link["target"]
    if not target.startswith(up):
        return link[0]
    path, hash_, anchor = target.removeprefix(up).partition("#")
    if path == "README.md":
        return f"[{link['text']}]({'../' * depth}{HOME}{hash_}{anchor})"
    return link["text"] if link["text"].startswith("`") else f"{link['text']} (`{path}`)"
