"""Settings of a run that no run has: refused by name, and no bound that needs memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from offaxis.comparison.run_info import RunInfo, reach, run_info
from offaxis.errors import InputError


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("steps=1e300", "steps = '1e300'"),
        ("learning_rate=1e308", "learning_rate = '1e308'"),
        ("method=a\nb", "method = 'a\\nb'; a name is needed, on one line"),
        ("x" * 5000 + "=1", "is not known"),
    ],
)
def test_text_that_no_run_has(text: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        RunInfo.parse(text)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"steps": 1' + "0" * 400 + "}", "steps = 1000"),
        ('{"learning_rate": NaN}', "learning_rate = nan"),
        ('{"steps": 1, "steps": 2}', "a key is given twice"),
        ("[" * 100_000, "not a JSON file"),
        ('{"method": "\\u001b[31m"}', "on one line"),
        ('{"optimizer": " "}', "a name is needed"),
    ],
)
def test_a_file_that_no_run_has(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "info.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        run_info(path)
    assert named in str(error.value)


def test_the_bound_of_a_run_without_end_needs_no_memory() -> None:
    info = {"learning_rate": 1.0, "optimizer": "adamw"}
    ends = (50_000, 50_001, 60_000, 10**15)
    near, after, far, farthest = (
        reach(RunInfo.of(info | {"steps": end}), rounded=False) or 0.0 for end in ends
    )
    assert far - near == pytest.approx(10_000 * (after - near), rel=1e-6)
    assert farthest == pytest.approx(10**15 * (after - near), rel=1e-6)
