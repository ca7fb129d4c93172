"""The documentation: links lead somewhere, and what it tells people to type exists."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stetholm.errors import UserError
from stetholm.settings import load_settings
from stetholm.settings.load import setting_keys
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRITTEN = [page for page in PAGES if page.name != "CHANGELOG.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
"""Of pictures too."""
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHED = r"ray (?:up|down|dashboard|get-auth-token)|serve (?:deploy|status)|kubectl|helm|docker"
ELSEWHERE = re.compile(rf"^\s*(?:\.venv/bin/)?({LAUNCHED})\b", re.MULTILINE)
MARK = re.compile(r"\A# needs (a cloud|Kubernetes|Docker|machines|your data|a run)\b")


def name(page):
    return page.relative_to(ROOT).as_posix()


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


@functools.cache
def anchors(page):
    """As GitHub and mkdocs make them of headings."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)).strip().lower() for text in headings
    ]
    return {text.replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page):
    for target in LINK.findall(without_code(page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), target
        assert not anchor or to.suffix != ".md" or anchor in anchors(to), target


def commands(page):
    """Lines of the blocks that are no other language, and code within sentences."""
    text = page.read_text()
    blocks = [body for info, body in FENCE.findall(text) if info.strip() in ("", "sh", "bash", "console")]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [line for block in blocks for line in block.splitlines()] + inline


def targets():
    return set(re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_make_targets_scripts_and_modules_exist(page):
    known = {word for target in targets() for word in target.split()}
    for line in commands(page):
        for target in re.findall(r"(?:^|[ (])make ([a-z][a-z-]+)\b(?![=:])", line):
            assert target in known, line
        for script in re.findall(r"(?:^| )python3? ((?:jobs|scripts|benchmarks)/[\w/]+\.py)", line):
            assert (ROOT / script).exists(), line
        for module in re.findall(r"python3? -m ((?:stetholm|serve|benchmarks)[\w.]*)", line):
            assert importlib.util.find_spec(module) is not None, line


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_settings_that_are_set_exist(page):
    """Keys after ``--set``, and in SET="…"; a placeholder like a.b=c or key=value stands for any."""
    keys = {*setting_keys(), *(key.rpartition(".")[0] for key in setting_keys())}  # judge=… sets a whole section
    for line in commands(page):
        pairs = re.findall(r"--set[ =]['\"]?([a-z_]+\.[a-z_.]+)=", line)
        pairs += re.findall(r"([a-z_]+\.[a-z_.]+)=", " ".join(re.findall(r'SET="([^"]*)"', line)))
        for key in pairs:
            free = key.startswith(("evaluate.gate.", "plan.rates.", "plan.prices.", "serve.versions."))
            assert free or key in keys or key == "a.b", line


def test_code_spans_name_settings_that_exist():
    """`train.workers` and the like, in every page: of a section's name and a key of it."""
    keys = set(setting_keys())
    sections = {key.partition(".")[0] for key in keys}
    prefixes = {".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 1)}
    for page in WRITTEN:
        for span in re.findall(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`", FENCE.sub("", page.read_text())):
            section, _, last = span.partition(".")
            if section in sections and last not in FILE_ENDINGS:
                known = span in keys | prefixes or section in MODULES
                assert known, f"{name(page)}: {span}"


FILE_ENDINGS = {"py", "md", "yaml", "yml", "json", "jsonl", "txt", "parquet", "csv", "html", "safetensors"}
MODULES = {"serve", "audio", "corpus", "model", "storage", "evaluate", "export", "plan"}
"""Sections whose name is a package's or another thing's too: a span may mean that."""


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_what_needs_a_cloud_says_so(page):
    for _, body in FENCE.findall(page.read_text()):
        found = ELSEWHERE.search(body)
        assert found is None or MARK.match(body), f"{found[0].strip()}: begin the block with “# needs …”"


def test_settings_shown_as_yaml_are_valid(tmp_path):
    """Blocks that begin with metadata: are settings files."""
    shown = [body for page in WRITTEN for info, body in FENCE.findall(page.read_text()) if info.strip() == "yaml"]
    files = [body for body in shown if body.startswith("metadata:")]
    assert files
    for body in files:
        path = tmp_path / "cluster.yaml"
        path.write_text(body)
        try:
            load_settings(path, environ={})
        except UserError as error:
            pytest.fail(f"{error}\n{body}")


def test_each_page_is_on_the_site():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])) - {"index.md"}
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def test_the_site_is_built_without_a_warning(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    home = Path(tmp_path / "site" / "index.html").read_text()
    assert "getting-started.html" in home
    assert pictures(home) == {"images/architecture.svg", "images/page.png"}
    reference = (tmp_path / "site" / "reference" / "settings.html").read_text()
    assert "grace_seconds" in reference
    for page in (tmp_path / "site").rglob("*.html"):
        assert not FETCHED.findall(page.read_text()), page


FETCHED = re.compile(
    r'<(?:script|img|iframe)\b[^>]*src="(?:https?:)?//|<link\b[^>]*rel="stylesheet"[^>]*"https?://|class="mermaid'
)
"""What a browser would get from elsewhere."""


def pictures(page):
    """What a page of the site shows, all of which is there."""
    return set(re.findall(r'<img [^>]*src="([^"]+)"', page))
