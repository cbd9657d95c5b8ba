"""Math-verify and offaxis's math verifier on labelled data: the tables of docs/verifier.md.

    python benchmarks/verifier.py [--data ../shared/data/verifier] [--page docs/verifier.md]

Prints Markdown, or writes it into the page between its two markers. One worker, one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offaxis.verifiers import Mark, Match, MathVerifier, NumericVerifier, final_answer, last_boxed

BEGIN, END = "<!-- begin: benchmarks/verifier.py -->", "<!-- end: benchmarks/verifier.py -->"
Pair = tuple[str, str]
Judge = Callable[[Sequence[Pair]], list[bool]]

RESTATED = {
    "A: 18": "A: {x}",
    "\\boxed{18}": "So it is \\boxed{{{x}}}.",
    "#### 18": "#### {x}",
    "The answer is 18.": "The answer is {x}.",
    "The answer is $18$.": "The answer is ${x}$.",
    "The answer is \\$18.": "The answer is \\${x}.",
    "The answer is $18.": "The answer is ${x}.",
    "**Final Answer:** 18": "**Final Answer:** {x}",
    "<answer>18</answer>": "<answer>{x}</answer>",
    "\\boxed{18 \\text{ dollars}}": "\\boxed{{{x} \\text{{ dollars}}}}",
    "\\boxed{18.00}": "\\boxed{{{x}.00}}",
    "It is 9 + 9 = **18**": "It is 9 + 9 = **{x}**",
    "\\boxed{1{,}800}": "\\boxed{{{commas}}}",
}
"""Ways to state the same answer behind the same working; `{x}` is the response's own."""
HEDGED = {
    "The answer is 18 or 19.": "The answer is {x} or {y}.",
    "The answer is 19 or 18.": "The answer is {y} or {x}.",
    "\\boxed{18} or \\boxed{19}": "\\boxed{{{x}}} or \\boxed{{{y}}}",
    "\\boxed{19}, \\boxed{18}": "\\boxed{{{y}}}, \\boxed{{{x}}}",
    "\\boxed{18, 19}": "\\boxed{{{x}, {y}}}",
    "\\boxed{19 \\text{ or } 18}": "\\boxed{{{y} \\text{{ or }} {x}}}",
    "19, 20, 21, 18": "{y}, {z}, {w}, {x}",
    "18 \\boxed{}": "{x} \\boxed{{}}",
    "\\boxed{18": "\\boxed{{{x}",
    "\\boxed{\\pm 18}": "\\boxed{{\\pm {x}}}",
    "\\boxed{x \\geq 18}": "\\boxed{{x \\geq {x}}}",
    "\\boxed{18 \\pm 1}": "\\boxed{{{x} \\pm 1}}",
    "The answer is not 18.": "The answer is not {x}.",
    "<think>\\boxed{18}</think> I give up.": "<think>\\boxed{{{x}}}</think> I give up.",
    "\\boxed{18_{5}}": "\\boxed{{{x}_{{5}}}}",
}
"""Responses that commit to no right answer, whatever they contain; `{x}` is the gold one."""
COPIED = {
    "\\boxed{19 - 1}": "\\boxed{{{y} - 1}}",
    "\\boxed{2 \\cdot 18/2}": "\\boxed{{2 \\cdot {x}/2}}",
}
"""A calculation in the place of its result: what a model gets that copies the question."""
EXPLAINED = {
    190: "two boxes joined by `++++++`: no list here, so the last box is the gold",
    217: "the gold's box never closes",
    263: "wrong label: 1 − 1/e is not 1 + 1/e (math-verify's clean-up cuts `\\mathrm{e}` out)",
    291: "the suite compares tuples as text: 4/6 is 2/3",
    299: "the suite asks for lowest terms: 2/4 is 1/2",
}
"""Pairs of verifier_cases.json on which offaxis and the label differ, by row."""


def plain(pairs: Sequence[Pair]) -> list[bool]:
    """math-verify as its documentation says: parse both, verify."""
    from math_verify import parse, verify

    return [verify(parse(gold or ""), parse(response or "")) for response, gold in pairs]


def last_number(pairs: Sequence[Pair]) -> list[bool]:
    """The simplest rule: the last number in the text, commas dropped."""
    found = [re.findall(r"-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+", text) for text, _ in pairs]
    numbers = [float(one[-1].replace(",", "")) if one else None for one in found]
    golds = [float(gold.replace(",", "")) for _, gold in pairs]
    return [one == gold for one, gold in zip(numbers, golds, strict=True)]


def wanted(options: dict[str, Any]) -> Match:
    """What a case's suite asks for."""
    exact = "strict exact" in options.get("note", "")
    return Match(
        plain=options.get("match_types") != ["latex"],
        precision=None if exact else options.get("precision", 6),
        percent="literal" if exact else "either",
        strict=options.get("strict", True),
        relation_as_set=options.get("allow_set_relation_comp", False),
    )


def configured(case: dict[str, Any]) -> bool:
    """math-verify with the settings that the case's suite gave it."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    options = case["options"]
    known = {"latex": LatexExtractionConfig(boxed_match_priority=0), "expr": ExprExtractionConfig()}
    settings = [known[one] for one in options.get("match_types", known)]
    names = {"strict": "strict", "precision": "float_rounding",
             "allow_set_relation_comp": "allow_set_relation_comp"}  # fmt: skip
    more = {new: options[old] for old, new in names.items() if old in options}
    both = [parse(case[side] or "", settings) for side in ("gold", "prediction")]
    return bool(verify(*both, **more))


@dataclass(frozen=True)
class Tally:
    """How verdicts compare with labels."""

    pairs: int
    false_positives: int
    false_negatives: int

    @classmethod
    def of(cls, found: Sequence[bool], labels: Sequence[bool]) -> Tally:
        both = list(zip(found, labels, strict=True))
        wrong = sum(mark and not label for mark, label in both)
        return cls(len(both), wrong, sum(label and not mark for mark, label in both))

    @property
    def agreement(self) -> str:
        return f"{1 - (self.false_positives + self.false_negatives) / self.pairs:.2%}"

    def cells(self) -> list[str]:
        return [self.agreement, str(self.false_positives), str(self.false_negatives)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|").replace("\n", " ")


def number(text: str) -> str | None:
    found = final_answer(text)
    stated = found.text.replace(",", "") if found else ""
    return stated if stated.lstrip("-").isdigit() and len(stated) < 16 else None


def filled(form: str, x: int) -> str:
    commas = f"{x:,}".replace(",", "{,}")
    return form.format(x=x, y=x + 1, z=x + 2, w=x + 3, commas=commas)


def restated(rows: Sequence[dict[str, Any]], form: str) -> tuple[list[Pair], list[bool]]:
    """Responses with their last line in another form, where what they state is an integer."""
    pairs, labels = [], []
    for row in rows:
        stated = number(row["response"])
        if stated is not None and "\nA:" in row["response"]:
            working = row["response"].rpartition("A:")[0]
            pairs.append((working + filled(form, int(stated)), row["gold"]))
            labels.append(row["label"])
    return pairs, labels


def responses(rows: Sequence[dict[str, Any]], ours: MathVerifier) -> Iterator[str]:
    """The responses as they are."""
    pairs = [(row["response"], row["gold"]) for row in rows]
    labels = [row["label"] for row in rows]
    marks: list[Mark] = []

    def judged(pairs: Sequence[Pair]) -> list[bool]:
        marks[:] = ours.mark(pairs)
        return [mark.correct for mark in marks]

    lines = []
    judges: dict[str, Judge] = {"last number": last_number, "math-verify": plain, "offaxis": judged}
    for name, judge in judges.items():
        started = time.process_time() + workers(ours)
        found = judge(pairs)
        spent = time.process_time() + workers(ours) - started
        cells = Tally.of(found, labels).cells()
        lines.append(
            [name, *cells, f"{spent / len(pairs) * 1e3:.2f}", f"{len(pairs) / spent:,.0f}"]
        )
    head = [
        "",
        "agreement",
        "false positives",
        "false negatives",
        "CPU ms a response",
        "a CPU second",
    ]
    yield f"### The {len(rows):,} GSM8K responses\n"
    yield from table(head, lines)
    misses = [row for row, mark in zip(rows, marks, strict=True) if mark.correct != row["label"]]
    yield f"Responses on which offaxis and the label differ: {len(misses)}.\n"
    yield from (f"- {row['id']}: {code(row['response'][-80:])}" for row in misses)


def forms(rows: Sequence[dict[str, Any]], ours: MathVerifier) -> Iterator[str]:
    """The same answers in other words, and no answers at all."""
    head = ["form", "pairs", "math-verify: agreement", "false +", "false −",
            "offaxis: agreement", "false +", "false −"]  # fmt: skip
    lines = []
    for name, form in RESTATED.items():
        pairs, labels = restated(rows, form)
        both = [plain(pairs), [mark.correct for mark in ours.mark(pairs)]]
        cells = [cell for found in both for cell in Tally.of(found, labels).cells()]
        lines.append([code(name), str(len(pairs)), *cells])
    yield "### The same answers in other forms\n"
    yield from table(head, lines)
    golds = [int(gold) for gold in dict.fromkeys(row["gold"] for row in rows) if gold.isdigit()]
    strict = MathVerifier(match=Match(explicit=True, worked_out=True))
    for title, cases in (("Hedges and empty claims", HEDGED), ("Calculations", COPIED)):
        lines = []
        for name, form in cases.items():
            pairs = [(filled(form, gold), str(gold)) for gold in golds]
            strictly = [mark.correct for mark in strict.mark(pairs)]
            found = [plain(pairs), [mark.correct for mark in ours.mark(pairs)], strictly]
            lines.append([code(name), *(f"{sum(one) / len(one):.0%}" for one in found)])
        yield f"### {title}: the share called right, {len(golds)} golds each\n"
        yield from table(["response", "math-verify", "offaxis", "offaxis, strict"], lines)
    strict.close()


def labelled(cases: Sequence[dict[str, Any]], ours: MathVerifier) -> Iterator[str]:
    """The labelled pairs, with and without the options of their suites."""
    labels = [case["expected"] for case in cases]
    pairs = [(case["prediction"], case["gold"]) for case in cases]
    default = [mark.correct for mark in ours.mark(pairs)]
    chosen, kept = [], ours.match
    for case, pair in zip(cases, pairs, strict=True):
        ours.match = wanted(case["options"])
        chosen.append(ours.mark([pair])[0].correct)
    ours.match = kept
    rows = {
        "math-verify, as documented": plain(pairs),
        "math-verify, the suite's options": [configured(case) for case in cases],
        "offaxis, defaults": default,
        "offaxis, the suite's options": chosen,
    }
    yield f"### The {len(cases)} labelled pairs\n"
    lines = [[name, *Tally.of(found, labels).cells()] for name, found in rows.items()]
    yield from table(["", "agreement", "false positives", "false negatives"], lines)
    yield "Pairs on which offaxis, with the suite's options, and the label differ:\n"
    wrong = [index for index, found in enumerate(chosen) if found != labels[index]]
    lines = [
        [str(i), code(cases[i]["gold"][-60:]), code(cases[i]["prediction"][-60:]),
         "equal" if labels[i] else "different", EXPLAINED.get(i, "NOT EXPLAINED")]
        for i in wrong
    ]  # fmt: skip
    yield from table(["row", "gold", "prediction", "label", "why"], lines)
    only = [i for i, found in enumerate(default) if found != labels[i] and i not in wrong]
    yield f"Rows that offaxis misses by default and not with these options: {only}.\n"
    others = rows["math-verify, the suite's options"]
    missed = [i for i, found in enumerate(others) if found != labels[i] and i not in wrong]
    yield "Pairs that math-verify, so configured, misses and offaxis does not:\n"
    lines = [
        [str(i), code(cases[i]["gold"][-60:]), code(str(cases[i]["prediction"])[-60:]),
         "equal" if labels[i] else "different"] for i in missed
    ]  # fmt: skip
    yield from table(["row", "gold", "prediction", "label"], lines)


def extracted(cases: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The extraction cases, by what each suite extracts."""
    numeric = NumericVerifier()
    wrong = []
    for case in cases:
        test, text, expected = case["test"], case["text"], case["expected"]
        found = final_answer(text)
        if "boxed" in test.lower():
            same = last_boxed(text) == expected
        elif "final_int" in test:
            mark = numeric.mark([(text, str(expected or 0))])[0]
            same = mark.correct if expected is not None else mark.reason == "no_answer"
        else:
            stated = (
                found.text.replace(",", "") if found and "gsm8k" in test else found and found.text
            )
            same = (stated or "").rstrip(".") == (expected or "").strip().rstrip(".")
        if not same:
            wrong.append((text, expected, found.text if found else None))
    yield f"### The {len(cases)} extraction cases\n"
    yield f"{len(cases) - len(wrong)} of {len(cases)} as labelled.\n"
    yield from (" / ".join(code(str(one)) for one in row) for row in wrong)


def workers(verifier: MathVerifier) -> float:
    """CPU seconds that a verifier's workers have used."""
    return sum(spent(pid) for pid in verifier._pool.pids())


def spent(pid: int) -> float:
    """User and system seconds of a process, from /proc (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(pid: int, field: str) -> float:
    """A field of /proc/PID/status in MiB; NaN where there is none."""
    path = Path(f"/proc/{pid}/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan")
    )


def costs(cases: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Time and memory of the worker."""
    with MathVerifier() as verifier:
        verifier.mark([("\\boxed{x+1}", "$1+x$")])
        (pid,) = verifier._pool.pids()
        start = spent(pid)
        idle = status(pid, "VmRSS"), status(pid, "VmPeak")
        pairs = [(f"\\boxed{{x+{i}}}", f"${i}+x$") for i in range(300)]
        started = spent(pid)
        verifier.mark(pairs)
        each = (spent(pid) - started) / len(pairs)
        started = spent(pid)
        verifier.mark([(case["prediction"], case["gold"]) for case in cases])
        cased = (spent(pid) - started) / len(cases)
        (pid,) = verifier._pool.pids()
        busy = status(pid, "VmRSS"), status(pid, "VmPeak")
    with MathVerifier(timeout_s=1.0) as verifier:
        verifier.mark([("\\boxed{x+1}", "$1+x$")])
        started = time.perf_counter()
        verifier.mark([("\\boxed{9^{9^{9^{9}}}}", "$x+7$"), ("\\boxed{x+1}", "$1+x$")])
        killed = time.perf_counter() - started
    yield "### Costs of a worker\n"
    yield from table(["", ""], [
        ["start, import of sympy and first pair, CPU", f"{start:.2f} s"],
        ["a pair of sums (`x+17` and `17+x`), CPU", f"{each * 1e3:.1f} ms"],
        ["a pair of the 309, on average, CPU", f"{cased * 1e3:.1f} ms"],
        ["a hanging pair at `timeout_s=1`, and one behind it, wall clock", f"{killed:.1f} s"],
        ["resident memory, after one pair / the 309", f"{idle[0]:.0f} / {busy[0]:.0f} MiB"],
        ["address space, peak", f"{idle[1]:.0f} / {busy[1]:.0f} MiB"],
    ])  # fmt: skip


def report(data: Path) -> Iterator[str]:
    """All tables."""
    lines = (data / "labelled_responses_gsm8k.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    cases = json.loads((data / "verifier_cases.json").read_text())
    with MathVerifier(timeout_s=20.0) as ours:
        yield from responses(rows, ours)
        yield from forms(rows[::4], ours)
        yield from labelled(cases["verify"], ours)
    yield from extracted(cases["extract"])
    yield from costs(cases["verify"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/verifier"))
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    text = "\n".join(report(chosen.data))
    if chosen.page is None:
        print(text)
        return
    head, begin, rest = chosen.page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{chosen.page}: no markers {BEGIN} ... {END}; add them")
    chosen.page.write_text(f"{head}{BEGIN}\n{text.rstrip()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
