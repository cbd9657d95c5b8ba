"""What `offaxis gates` prints: its results as short tables."""

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "against",
    "anchor",
    "lemmas",
    "policies",
    "print_json",
    "rates",
    "stores",
    "weights",
]

Row = dict[str, Any]

_NULLS = ("gaussian", "permuted", "permuted_in_bins", "signs")


def print_json(result: Any) -> None:
    """The result alone on standard output, no NaN among it."""
    import json
    import sys

    json.dump(result, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def _number(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _estimate(row: Row, name: str = "") -> str:
    """`value [low, high]` of an estimate, or of the columns NAME, NAME_low, NAME_high."""
    value, low, high = (
        (row["value"], row["low"], row["high"])
        if not name
        else (row[name], row[f"{name}_low"], row[f"{name}_high"])
    )
    if low is None:
        return _number(value)
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Left-aligned first column, the others right-aligned; numbers to three digits."""
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*(_number(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
    print()


def anchor(found: Row) -> None:
    """Gate I."""
    _table(
        "Gate I: KL and its quadratic form, nats a sequence (95 % over prompts)",
        ("", "KL", "½ΔᵀFΔ", "KL / form", "KL a token"),
        (
            (one["direction"], _estimate(one["kl"]), _estimate(one["half_form"]),
             _estimate(one["ratio"]), one["per_token"])
            for one in found["leashes"]
        ),
    )  # fmt: skip
    kinds = {"model", "matrices", "role"}
    quotients = [one for one in found["quotients"] if one["scope"] in kinds]
    names = dict.fromkeys(one["name"] for one in quotients)
    by = {(one["name"], one["null"]): one for one in quotients}
    _table(
        "Gate I: curvature along Δ over that of steps as long in every tensor",
        ("", *_NULLS),
        ((name, *(_estimate(by[name, null], "ratio") for null in _NULLS)) for name in names),
    )
    _table(
        "Gate I: curvature along noise in one space of the matrices over another",
        ("", "ratio", "above 1 in"),
        (
            (one["contrast"], _estimate(one, "ratio"), f"{one['above']} of {one['matrices']}")
            for one in found["contrasts"]
            if one["scope"] == "matrices"
        ),
    )
    _table(
        "Gate I: ‖Δ‖ ≤ √(2K/μ) (proposition 3.2)",
        ("on", "‖Δ‖", "bound", "measured / bound", "status"),
        (
            (one["subspace"], one["measured"], one["bound"], one["ratio"], one["status"])
            for one in found["bounds"]
        ),
    )  # fmt: skip


def against(found: Row) -> None:
    """Gate I of two runs on completions of their base."""
    _table(
        f"Gate I: both runs on {found['positions']} equal positions of the base's completions",
        ("", "scope", "‖Δ‖", "ΔᵀFΔ / ‖Δ‖²", "KL(base ‖ run)"),
        (
            (one["run"], one["scope"], one["norm"], _estimate(one["quotient"]),
             _estimate(one["kl_base_tuned"]))
            for one in found["sides"]
        ),
    )  # fmt: skip
    for one in found["contrasts"]:
        ratio = _estimate(one["over_prompts"])
        print(f"first / second, {one['scope']}: {ratio}: below 1 the first lies flatter")
    print("The interval is over prompts. One run of each says nothing of another seed.\n")


def weights(summary: Row) -> None:
    """Gates II and III of one pair."""
    kinds = ("random", "permuted", "turned")
    _table(
        f"Gate II: measured / bound over {summary['matrices']} matrices",
        ("check", "median", "worst", "vacuous", "over", *(f"×{kind}" for kind in kinds)),
        (
            (row["check"], row["median_ratio"], row["largest_ratio"], row["vacuous"],
             row["exceeded"], *(row["nulls"][k] and row["nulls"][k]["times"] for k in kinds))
            for row in summary["checks"]
        ),
    )  # fmt: skip
    print("over: bound exceeded; ×: the measured side over that of updates drawn at random, median")
    print()
    _table(
        "Gate III: share of entries unchanged in bfloat16",
        ("update times", "unchanged", "were |ΔW| independent of |W|"),
        ((row["factor"], row["unchanged"], row["expected"]) for row in summary["melting"]),
    )
    if summary["melting_rounded"]:
        share = f"{summary['melting_rounded']:.0%}"
        print(f"{share} of TUNED is stored as bfloat16: its ΔW has lost its small part\n")


def rates(found: Row) -> None:
    """Gate III of many runs."""
    kind = ("store", "optimizer", "method")
    names = (*kind, "learning_rate", "runs", "norm", "unchanged", "unchanged_sd", "rescaled",
             "independent", "by_rate", "lost")  # fmt: skip
    _table(
        f"Gate III: share unchanged in {found['runs']} runs, and TUNED's update at their norm",
        (*kind, "rate", "runs", "‖ΔW‖/‖W₀‖", "unchanged", "sd", "rescaled", "independent",
         "by rate", "one step lost"),
        ([row[name] for name in names] for row in found["by_rate"]),
    )  # fmt: skip
    spread = _number(found["root_mean_square"])
    title = f"Unchanged less rescaled (root mean square {spread}, masters with AdamW)"
    columns = (*kind, "runs", "mean", "sd", "largest")
    _table(title, columns, ([row[name] for name in columns] for row in found["residuals"]))
    if found["stores"]:
        _table(
            "Two stores, AdamW: share unchanged after the run",
            ("method", "task", "steps", "prompts", "rate", "masters", "pure", "one step lost",
             "norm: masters", "pure"),
            (
                [row[name] for name in ("method", "task", "steps", "prompts_per_step",
                                        "learning_rate", "masters", "pure", "lost",
                                        "masters_norm", "pure_norm")]
                for row in found["stores"]
            ),
        )  # fmt: skip


def lemmas(found: Sequence[Row]) -> None:
    """Every statement that was tried, with its verdict."""
    from rich.console import Console

    console = Console(highlight=False)
    for one in found:
        counts = f"{one['counterexamples']:,} of {one['cases']:,} cases against"
        told = f"  {counts}" if one["cases"] else ""
        console.print(
            f"{one['verdict']:5}  {one['name']} ({one['source']}){told}", style="bold", markup=False
        )
        console.print(f"       said: {one['statement']}", markup=False)
        console.print(f"       found: {one['finding']}", markup=False)
        for example in one["examples"]:
            console.print(f"       e.g. {example}", markup=False)
        if one["by_hand"]:
            console.print(f"       by hand: {one['by_hand']}", markup=False)


def policies(found: dict[str, list[Row]]) -> None:
    """Proposition 3.1 and lemma E.9 on small policies."""
    for title, name in (
        ("Proposition 3.1: KL(π_θ⁺‖π) / κ on random policies", "leash"),
        ("Its exception: logits on a circle", "circle"),
        ("Lemma E.9: clipped PPO on one batch, ε = 0.2", "clipping"),
    ):
        rows = found[name]
        _table(
            title,
            tuple(one.replace("_", " ") for one in rows[0]),
            (tuple(r.values()) for r in rows),
        )


def stores(rows: list[Row]) -> None:
    """What each store keeps of each path."""
    title = "Gate III: what a bfloat16 store keeps of small steps"
    _table(title, tuple(rows[0]), (tuple(row.values()) for row in rows))
