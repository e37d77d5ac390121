"""The README's example runs, and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_example_prints_what_the_readme_shows() -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```\s*```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code, shown = found.groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), {})
    told, seen = printed.getvalue().split(), shown.split()
    assert len(told) == len(seen)
    for a, b in zip(told, seen, strict=True):
        try:  # another processor may round the last digit differently
            assert abs(float(a) - float(b)) <= 0.02 * max(1.0, abs(float(b)))
        except ValueError:
            assert a == b
    assert len(code.strip().splitlines()) <= 18
