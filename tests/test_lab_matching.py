"""Contrasts at equal step, norm and accuracy, on runs whose answer is known."""

import math

import polars as pl
import pytest

from offaxis.lab.matching import CONTRASTS, Point, Series, common_point, contrasts, position
from offaxis.table import Measurement, measurements_frame

TENSORS = tuple(f"model.layers.{i}.mlp.up_proj.weight" for i in range(6))


def rows(tuned: str, values: dict[str, list[float | None]]) -> list[Measurement]:
    """One measurement a tensor and measure."""
    return [
        Measurement(tuned, tensor, index, "up_proj", None, 8, 8, measure, value)
        for measure, column in values.items()
        for index, (tensor, value) in enumerate(zip(TENSORS, column, strict=True))
    ]


def run(
    name: str, norms: list[float], slope: float, scores: list[float | None]
) -> tuple[Series, list[Measurement]]:
    """A run whose NSS is `slope` times its norm, times 1, 2, ... for the tensors."""
    points, table = [], []
    for index, (norm, score) in enumerate(zip(norms, scores, strict=True)):
        tuned = f"{name}/{index}"
        points.append(Point(tuned, 10 * (index + 1), norm, score))
        table += rows(
            tuned,
            {
                "nss": [slope * math.log(norm / 1e-4) * (i + 1) for i in range(6)],
                "low_magnitude_overlap": [0.6] * 6,
                "low_magnitude_overlap_magnitude_null": [0.5 + 0.01 * i for i in range(6)],
            },
        )
    return Series(name, tuple(points)), table


def pick(frame: pl.DataFrame, measure: str, matched_by: str) -> dict[str, object]:
    return frame.filter(pl.col("measure") == measure, pl.col("matched_by") == matched_by).row(
        0, named=True
    )


def test_a_difference_of_step_size_alone_goes_away_at_equal_norm() -> None:
    a, table_a = run("rl", [1e-3, 2e-3, 4e-3], 1.0, [0.5, 0.6, 0.7])
    b, table_b = run("sft", [2e-3, 4e-3, 8e-3], 1.0, [0.5, 0.6, 0.7])
    found = contrasts(measurements_frame(table_a + table_b), a, b)
    by_step, by_norm = pick(found, "nss", "step"), pick(found, "nss", "norm")
    assert by_step["verdict"] == "differ"
    assert by_step["at"] == 30
    assert by_step["difference"] == pytest.approx(-math.log(2) * 3.5)
    assert by_norm["at"] == pytest.approx(math.sqrt(2e-3 * 4e-3))
    assert by_norm["difference"] == pytest.approx(0, abs=1e-12)
    assert by_norm["a_value"] == pytest.approx(3.5 * math.log(math.sqrt(8e-6) / 1e-4))


def test_a_difference_of_kind_stays_at_equal_norm() -> None:
    a, table_a = run("rl", [1e-3, 2e-3, 4e-3], 1.0, [None] * 3)
    b, table_b = run("sft", [2e-3, 4e-3, 8e-3], 1.5, [None] * 3)
    by_norm = pick(contrasts(measurements_frame(table_a + table_b), a, b), "nss", "norm")
    assert by_norm["verdict"] == "differ"
    assert by_norm["low"] < by_norm["difference"] < by_norm["high"] < 0  # type: ignore[operator]
    assert by_norm["b_value"] == pytest.approx(1.5 * by_norm["a_value"])  # type: ignore[operator]


def test_a_difference_that_changes_sign_across_tensors_cannot_be_told() -> None:
    table = rows("rl/0", {"nss": [1, 2, 3, 4, 5, 6.5], "low_magnitude_overlap": [0.5] * 6})
    table += rows("sft/0", {"nss": [2, 1, 4, 3, 6, 5], "low_magnitude_overlap": [0.5] * 6})
    a, b = (Series(name, (Point(f"{name}/0", 1, None, None),)) for name in ("rl", "sft"))
    row = pick(contrasts(measurements_frame(table), a, b), "nss", "step")
    assert row["difference"] == pytest.approx(0.5 / 6)
    assert row["low"] < 0 < row["high"]  # type: ignore[operator]
    assert row["verdict"] == "cannot tell"


def test_equal_accuracy_interpolates_each_run_at_its_own_place() -> None:
    a, table_a = run("rl", [1e-3, 2e-3], 1.0, [0.6, 0.8])
    b, table_b = run("sft", [1e-3, 2e-3], 1.0, [0.7, 0.9])
    by_accuracy = pick(contrasts(measurements_frame(table_a + table_b), a, b), "nss", "accuracy")
    assert by_accuracy["at"] == pytest.approx(0.75)
    low, high = math.log(10), math.log(20)
    assert by_accuracy["a_value"] == pytest.approx(3.5 * (0.25 * low + 0.75 * high))
    assert by_accuracy["b_value"] == pytest.approx(3.5 * (0.75 * low + 0.25 * high))


def test_an_excess_is_the_overlap_minus_its_null_tensor_by_tensor() -> None:
    a, table_a = run("rl", [1e-3], 1.0, [None])
    b, table_b = run("sft", [1e-3], 1.0, [None])
    row = pick(
        contrasts(measurements_frame(table_a + table_b), a, b),
        "low_magnitude_overlap_excess",
        "step",
    )
    assert row["a_value"] == pytest.approx(0.075)  # 0.6 - mean(0.50, ..., 0.55)
    assert (row["difference"], row["verdict"], row["n"]) == (0, "cannot tell", 6)


def test_ranges_that_do_not_meet_have_no_rows() -> None:
    a, table_a = run("rl", [1e-3, 2e-3], 1.0, [0.1, 0.2])
    b, table_b = run("sft", [3e-3, 4e-3], 1.0, [0.3, 0.4])
    found = contrasts(measurements_frame(table_a + table_b), a, b)
    assert set(found["matched_by"]) == {"step"}
    assert found.schema == pl.Schema(CONTRASTS)


def test_tensors_without_a_number_are_left_out_in_pairs() -> None:
    table = rows("rl/0", {"nss": [1, None, 3, 4, 5, 6], "low_magnitude_overlap": [0.5] * 6})
    table += rows("sft/0", {"nss": [1, 2, None, 4, 5, 6], "low_magnitude_overlap": [0.5] * 6})
    a, b = (Series(name, (Point(f"{name}/0", 1, None, None),)) for name in ("rl", "sft"))
    row = pick(contrasts(measurements_frame(table), a, b), "nss", "step")
    assert (row["n"], row["a_value"]) == (4, 4)


def test_tensors_that_are_no_matrices_are_left_out() -> None:
    table = [
        Measurement(tuned, tensor, None, "norm", None, 1, 8, "unchanged_bf16", value)
        for tuned in ("rl/0", "sft/0")
        for tensor, value in ((TENSORS[0], 0.5), ("model.norm.weight", 0.9))
    ]
    table += [
        m for t in ("rl/0", "sft/0") for m in rows(t, {"low_magnitude_overlap": [0.5] + [None] * 5})
    ]
    a, b = (Series(name, (Point(f"{name}/0", 1, None, None),)) for name in ("rl", "sft"))
    row = pick(contrasts(measurements_frame(table), a, b), "unchanged_bf16", "step")
    assert (row["n"], row["a_value"]) == (1, 0.5)
    assert (row["low"], row["high"], row["verdict"]) == (None, None, "cannot tell")


@pytest.mark.parametrize(
    ("xs", "target", "expected"),
    [
        ([1, 2, 4], 3, 1.5),
        ([1, 2, 4], 1, 0),
        ([1, 2, 4], 4, 2),
        ([0.5, 0.8, 0.6, 0.9], 0.7, 2 / 3),  # the first time that it is reached
        ([0.9, 0.5], 0.6, 0.75),
        ([1, 2], 3, None),
        ([], 1, None),
    ],
)
def test_position(xs: list[float], target: float, expected: float | None) -> None:
    assert position(xs, target) == (None if expected is None else pytest.approx(expected))


def test_common_point() -> None:
    assert common_point([1, 3], [2, 6]) == 2.5
    assert common_point([1, 2], [3, 4]) is None
    assert common_point([10, 20, 30], [10, 20], last=True) == 20
    assert common_point([10], [20], last=True) is None
    assert common_point([], [1]) is None
