"""The documents as tests read them: their blocks, the commands that they tell people to type, and a shell for those."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
DOCS: Final = ROOT / "docs"
PAGES: Final = sorted(DOCS.rglob("*.md"))
DOCUMENTS: Final = (ROOT / "README.md", *PAGES)

_MARK: Final = re.compile(r"<!-- run(?:: exits with (\d+))? -->")
_SHELL: Final = ("console", "bash")
_KEYWORDS: Final = frozenset({"until", "while", "do", "done", "if", "then", "else", "fi", "!"})


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences of a document."""

    page: str
    """Its path from the repository's root."""
    section: str
    """The heading that it stands below."""
    language: str
    text: str
    exits: int | None
    """With what it ends where `<!-- run -->` stands above it, so that a test runs it; else None."""

    @property
    def commands(self) -> tuple[str, ...]:
        """What is typed: behind `$ ` in a console, all of a script but for its comments; each with its next lines."""
        if self.language not in _SHELL:
            return ()
        lines = iter(self.text.splitlines())
        found: list[str] = []
        for line in lines:
            if self.language == "console" and not line.startswith("$ "):
                continue
            command = line.removeprefix("$ ")
            while command.endswith("\\"):
                command += "\n" + next(lines)
            if until := re.search(r"<<'(\w+)'", command):
                for more in lines:
                    command += "\n" + more
                    if more == until[1]:
                        break
            if command.strip() and not command.startswith("#"):
                found.append(command)
        return tuple(found)

    @property
    def python(self) -> str:
        """The command that runs a block of Python, as the file that its first line names, else empty."""
        if self.language != "python":
            return ""
        named = re.match(r"# (\w+\.py)\n", self.text)
        name = named[1] if named else "block.py"
        return f"cat > {name} <<'PYTHON'\n{self.text}PYTHON\npython {name}"

    @property
    def shown(self) -> tuple[str, ...]:
        """What a console shows in answer."""
        return tuple(line for line in self.text.splitlines() if line and not line.startswith("$ "))


def blocks(path: Path) -> tuple[Block, ...]:
    """Every fenced block of a document, in order."""
    return tuple(_blocks(path))


def _blocks(path: Path) -> Iterator[Block]:
    page, section, mark = str(path.relative_to(ROOT)), "", None
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("#"):
            section = line.lstrip("# ")
        if opening := re.match(r"\s*```(\S*)", line):
            text = []
            for inner in lines:
                if inner.strip() == "```":
                    break
                text.append(inner)
            exits = int(mark[1] or 0) if mark else None
            yield Block(page, section, opening[1], "".join(f"{inner}\n" for inner in text), exits)
        mark = _MARK.fullmatch(line)


def marked(page: str, section: str = "") -> tuple[Block, ...]:
    """The blocks of a page of docs/ that tests run; those below one heading, if one is named."""
    found = [block for block in blocks(DOCS / page) if block.exits is not None]
    return tuple(block for block in found if section in ("", block.section))


def simple(command: str) -> Iterator[tuple[str, ...]]:
    """The words of each program that a line of the shell runs, without redirections; also of those within."""
    line, _, _ = command.replace("\\\n", " ").partition("<<'")
    while inner := re.search(r"\$\(([^()]*)\)", line):
        yield from simple(inner[1])
        line = line.replace(inner[0], "SUBSTITUTED")
    parser = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    parser.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in (*parser, ";"):
        if redirected:
            redirected = False
        elif re.fullmatch(r"[<>]&?|>>|>&", word):
            redirected = True
            words = words[: -1 if words[-1:] in (["1"], ["2"]) else None]
        elif re.fullmatch(r"[;|&]+", word):
            while words and words[0] in _KEYWORDS:
                words = words[1:]
            if words and words[0] != "for":
                yield tuple(words)
            if words[-3:-1] == ["bash", "-c"]:
                yield from simple(words[-1])
            words = []
        else:
            words.append(word)


def run(
    told: Sequence[Block],
    directory: Path,
    environ: Mapping[str, str],
    stands_for: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run blocks in one shell, in a directory; what is a reader's own in them is replaced by what stands for it.

    Each has to end as its mark says, and one that ends in an error has to say what the page shows.
    """
    script = ""
    for block in told:
        lines = block.python or "\n".join(block.commands)
        for words, ours in (stands_for or {}).items():
            lines = lines.replace(words, ours)
        script += f"set +e\n{lines}\n[ $? = {block.exits} ] || exit 99\nset -e\n" if block.exits else f"{lines}\n"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env={**os.environ, "PATH": path, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    for block in told:
        missing = [line for line in block.shown if block.exits and line not in done.stderr.splitlines()]
        assert not missing, (missing, done.stderr)
    return done
