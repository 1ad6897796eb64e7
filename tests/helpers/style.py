"""Counts how densely a Python tree is written: `python tests/helpers/style.py [FOLDER]`.

A code line is one on which a token starts; docstrings, comments and layout are no tokens.
"""

import ast
import dataclasses
import pathlib
import sys
import tokenize
from collections.abc import Iterator

_LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)


@dataclasses.dataclass
class Counts:
    """What a tree of source files adds up to."""

    tokens: int = 0
    code_lines: int = 0
    # Lines that are not blank.
    lines: int = 0
    comment_lines: int = 0
    # Places as "file:line".
    over_100_columns: list[str] = dataclasses.field(default_factory=list)
    over_60_lines: list[str] = dataclasses.field(default_factory=list)
    splatted_dicts: list[str] = dataclasses.field(default_factory=list)

    @property
    def tokens_per_line(self) -> float:
        """Tokens a code line."""
        return self.tokens / self.code_lines

    @property
    def comment_share(self) -> float:
        """Share of the lines that are comments alone."""
        return self.comment_lines / self.lines


def count(files: list[pathlib.Path]) -> Counts:
    """Counts source files."""
    counts = Counts()
    for file in files:
        lines = file.read_text().splitlines()
        counts.lines += sum(bool(line.strip()) for line in lines)
        counts.over_100_columns += [
            f"{file}:{number}"
            for number, line in enumerate(lines, 1)
            if len(line) > 100
        ]
        tree = ast.parse(file.read_text())
        _count_tokens(counts, file, _docstring_lines(tree))
        for node in ast.walk(tree):
            if isinstance(node, _FUNCTIONS):
                if node.end_lineno - node.lineno >= 60:
                    counts.over_60_lines.append(f"{file}:{node.lineno}")
                counts.splatted_dicts += [f"{file}:{line}" for line in _splatted(node)]
    return counts


def _docstring_lines(tree: ast.AST) -> set[int]:
    docstrings = (
        node.body[0]
        for node in ast.walk(tree)
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None
    )
    return {n for node in docstrings for n in range(node.lineno, node.end_lineno + 1)}


def _count_tokens(counts, file, docstring_lines):
    code_lines = set()
    with file.open() as text:
        for token in tokenize.generate_tokens(text.readline):
            line = token.start[0]
            if token.type == tokenize.COMMENT:
                counts.comment_lines += token.line.lstrip().startswith("#")
            elif token.type not in _LAYOUT and line not in docstring_lines:
                counts.tokens += 1
                code_lines.add(line)
    counts.code_lines += len(code_lines)


def _splatted(function: ast.AST) -> Iterator[int]:
    """Yields the lines of calls `f(**local)`, where the function assigns `local` itself."""
    stored = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            splatted = (
                keyword.value for keyword in node.keywords if keyword.arg is None
            )
            for value in splatted:
                if isinstance(value, ast.Name) and value.id in stored:
                    yield node.lineno


def project_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The files of the package, configs and benchmarks."""
    folders = ("biedsnet_jax", "configs", "benchmarks")
    return sorted(file for name in folders for file in (root / name).rglob("*.py"))


def main() -> None:
    """Prints the counts of a checkout."""
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    counts = count(project_files(root))
    print(f"tokens                  {counts.tokens:,}")
    print(f"tokens a code line      {counts.tokens_per_line:.2f}")
    print(f"lines over 100 columns  {len(counts.over_100_columns)}")
    print(f"comments on own lines   {counts.comment_share:.1%}")
    print(f"splatted local dicts    {len(counts.splatted_dicts)}")
    print(f"functions over 60 lines {len(counts.over_60_lines)}")
    for place in counts.over_60_lines + counts.splatted_dicts:
        print(f"  {place}")


if __name__ == "__main__":
    main()
