"""Each family's own laws: its answers, its working and its verifier, against other code."""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, permutations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offaxis.lab.tasks import DIFFICULTIES, TASKS
from offaxis.lab.tasks.countdown import CountdownProblem
from offaxis.lab.tasks.interpreter import OPERATIONS, run_program
from offaxis.lab.tasks.programs import ProgramProblem

ARITHMETIC, PROGRAMS, COUNTDOWN = (TASKS[name] for name in ("arithmetic", "programs", "countdown"))
levels = pytest.mark.parametrize("difficulty", DIFFICULTIES)
digit_lists = st.lists(st.integers(0, 9), max_size=6).map(tuple)


# Arithmetic


@levels
def test_answers_agree_with_python(difficulty: int) -> None:
    for problem in ARITHMETIC.problems(90, seed=5, split="train", difficulty=difficulty):
        assert problem.prompt.endswith("=")
        assert int(problem.answer) == eval(problem.prompt[:-1]) >= 0


@pytest.mark.parametrize("task", [ARITHMETIC, COUNTDOWN])
@levels
def test_every_line_of_a_right_solution_holds(task, difficulty: int) -> None:  # type: ignore[no-untyped-def]
    rng = Random(0)
    for problem in task.problems(90, seed=4, split="train", difficulty=difficulty):
        text = task.solution(problem, style="steps", right=True, rng=rng)
        working, _, answer = text.partition("#")
        lines = working.split(";")
        assert len(lines) == (3 if task is COUNTDOWN and difficulty == 3 else 2)
        assert all(
            eval(left) == int(result) for left, _, result in (x.partition("=") for x in lines)
        )
        last = lines[-1].partition("=")[2]
        assert int(last) == eval(answer.lstrip("0") or "0") == int(problem.answer)


# Programs: another interpreter, on strings


def reference(program: str, text: str) -> str:
    for letter in program:
        if letter == "r":
            text = "".join(reversed(text))
        elif letter == "s":
            text = "".join(digit * text.count(digit) for digit in "0123456789")
        elif letter in "th":
            text = text[1:] if letter == "t" else text[: len(text) - 1] if text else ""
        else:
            text = text.translate(
                str.maketrans("0123456789", "1234567890" if letter == "i" else "9876543210")
            )
    return text


def as_text(digits: Sequence[int]) -> str:
    return "".join(map(str, digits))


@given(st.text(alphabet="rsthic", min_size=1, max_size=16), digit_lists)
def test_the_interpreter_agrees_with_another(program: str, digits: tuple[int, ...]) -> None:
    found = run_program(program, digits)
    assert found is not None
    assert as_text(found) == reference(program, as_text(digits))


@given(st.text(max_size=20), digit_lists)
def test_the_interpreter_takes_any_text(program: str, digits: tuple[int, ...]) -> None:
    found = run_program(program, digits)
    is_program = 1 <= len(program) <= 16 and set(program) <= set("rsthic")
    assert (found is not None) == is_program
    assert found is None or (len(found) <= len(digits) and set(found) <= set(range(10)))


@given(st.text(), st.text())
def test_the_programs_verifier_takes_any_text(completion: str, answer: str) -> None:
    assert PROGRAMS.reward(completion, "5061>2716,2839>0493:", answer) in (0.0, 1.0)


def test_the_table_of_operations() -> None:
    found = {letter: as_text(operation((5, 0, 6, 1))) for letter, operation in OPERATIONS.items()}
    assert found == {"r": "1605", "s": "0156", "t": "061", "h": "506", "i": "6172", "c": "4938"}


@levels
def test_examples_and_working_are_what_the_program_does(difficulty: int) -> None:
    rng = Random(0)
    for problem in PROGRAMS.problems(90, seed=4, split="train", difficulty=difficulty):
        program = problem.answer
        assert len(program) == difficulty
        shown = [example.split(">") for example in problem.prompt.rstrip(":").split(",")]
        assert all(reference(program, before) == after != before for before, after in shown)
        text = PROGRAMS.solution(problem, style="steps", right=True, rng=rng)
        working, _, answer = text.partition("#")
        traced = [reference(program[: at + 1], shown[0][0]) for at in range(difficulty)]
        expected = [letter + after for letter, after in zip(program, traced, strict=True)]
        assert (working.split(";"), answer) == (expected, program)


def test_an_equivalent_program_is_right() -> None:
    for problem in PROGRAMS.problems(200, seed=6, split="train"):
        for other in (problem.answer + "rr", "cc" + problem.answer, problem.answer + "i" * 10):
            assert PROGRAMS.reward(f"#{other}", problem.prompt, problem.answer) == 1.0
    assert PROGRAMS.reward("#ir", "5061>2716,2839>0493:", "ri") == 1.0
    assert PROGRAMS.reward("#ri" + "rr" * 8, "5061>2716,2839>0493:", "ri") == 0.0  # 18 letters


def test_a_program_that_fits_the_shown_examples_alone_is_wrong() -> None:
    prompt = "1234>4321,0011>1100:"  # sorted lists: reversing and sorting downwards look alike
    assert all(
        reference("sr", before) == after
        for before, after in (pair.split(">") for pair in prompt.rstrip(":").split(","))
    )
    assert PROGRAMS.reward("#r", prompt, "r") == 1.0
    assert PROGRAMS.reward("#sr", prompt, "r") == 0.0
    assert PROGRAMS.reward("#r", "1234>4321,5061>6510:", "sr") == 0.0  # and one that fits neither


def test_the_hidden_lists_tell_all_programs_apart_that_differ() -> None:
    rng = Random(0)
    lists = [as_text(rng.choices(range(10), k=4)) for _ in range(300)]
    lists += ["".join(digits) for digits in product("059", repeat=4)]
    programs = ["".join(p) for n in DIFFICULTIES for p in product(OPERATIONS, repeat=n)]
    does = {p: tuple(reference(p, one) for one in lists) for p in programs}
    leaders: dict[tuple[str, ...], str] = {}
    for program in programs:
        leaders.setdefault(does[program], program)
    constant = "0000>0000,0000>0000:"  # no help from the examples: all alike
    for a, b in product(leaders.values(), leaders.values()):
        same = PROGRAMS.reward(f"#{a}", constant, b) == 1.0
        assert same == (a == b), (a, b)


def test_no_program_has_an_idle_operation() -> None:
    rng = Random(0)
    lists = [as_text(rng.choices(range(10), k=4)) for _ in range(60)]
    found = {p.answer for p in PROGRAMS.problems(400, seed=0, split="train", difficulty=3)}
    assert len(found) > 30
    for program in found:
        shorter = [program[:at] + program[at + 1 :] for at in range(3)]
        assert all(
            any(reference(one, x) != reference(program, x) for x in lists) for one in shorter
        )


def test_a_wrong_program_is_traced_as_it_is() -> None:
    rng = Random(0)
    problem: ProgramProblem
    for problem in PROGRAMS.problems(90, seed=4, split="train"):
        text = PROGRAMS.solution(problem, style="steps", right=False, rng=rng)
        working, _, program = text.partition("#")
        first = as_text(problem.inputs[0])
        assert working.split(";")[-1] == program[-1] + reference(program, first)
        assert sum(a != b for a, b in zip(program, problem.answer, strict=True)) >= 1


# Countdown


def reachable(numbers: Sequence[int], operators: str) -> Iterator[int]:
    """Targets of chains over the numbers in every order: larger minus smaller, all from 1 to 99."""
    for order in set(permutations(numbers)):
        for chosen in product(operators, repeat=len(order) - 1):
            value: int = order[0]
            for number, operator in zip(order[1:], chosen, strict=True):
                value = {"+": value + number, "-": abs(value - number), "*": value * number}[
                    operator
                ]
                if not 1 <= value <= 99:
                    break
            else:
                yield value


@levels
def test_countdown_problems_can_be_solved_within_their_rules(difficulty: int) -> None:
    problem: CountdownProblem
    for problem in COUNTDOWN.problems(90, seed=2, split="train", difficulty=difficulty):
        shown, target = problem.prompt.rstrip("=").split("@")
        numbers = [int(number) for number in shown.split(",")]
        assert len(numbers) == (4 if difficulty == 3 else 3)
        assert all(1 <= number <= 9 for number in numbers)
        assert target == problem.answer
        assert int(target) in set(reachable(numbers, "+-" if difficulty == 1 else "+-*"))


def test_every_countdown_problem_has_a_wrong_solution() -> None:
    """Else the search for one would never end."""
    for count in (3, 4):
        for numbers in combinations_with_replacement(range(1, 10), count):
            assert len(set(reachable(numbers, "+-"))) > 1, numbers


def test_another_way_to_the_target_is_right_and_other_numbers_are_not() -> None:
    prompt = "3,7,2@15="
    for right in ("(7-2)*3", "3*(7-2)", "(3)*(7-2)"):
        assert COUNTDOWN.reward(f"#{right}", prompt, "15") == 1.0
    for wrong in ("15", "3*7-2*3", "7*2+1", "(7-2)*3*1", "(7-2)*4", "7+2+3", "(7-2)*3=15"):
        assert COUNTDOWN.reward(f"#{wrong}", prompt, "15") == 0.0
