"""Evaluate a model: render, sample, mark and keep, problem by problem; then score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.errors import InputError
from offaxis.evaluate.against import Other
from offaxis.evaluate.folder import Folder
from offaxis.evaluate.marking import MarkedProblem, mark_all
from offaxis.evaluate.models import (
    ModelId,
    adapter_base,
    identify,
    load_model,
    load_tokenizer,
    versions,
)
from offaxis.evaluate.problems import Problem, ProblemSet, load_problems
from offaxis.evaluate.prompts import Prompt, Style, render
from offaxis.evaluate.result import Evaluation
from offaxis.evaluate.samplers import SAMPLERS, Sampler, Sampling, batches
from offaxis.live import LiveModel

if TYPE_CHECKING:
    from offaxis.verifiers import Verifier

__all__ = ["Plan", "Step", "evaluate", "plan"]


@dataclass(frozen=True, slots=True)
class Step:
    """How far an evaluation is, as a progress bar wants it."""

    done: int
    total: int
    tensor: str
    """What is counted, in words."""


@dataclass(frozen=True)
class Plan:
    """All that decides an evaluation, before a model is loaded."""

    source: str
    problems: ProblemSet
    style: Style
    sampling: Sampling
    sampler: str = "transformers"
    verifier: str = "math"
    verifier_options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str | None = None

    def prompts(self, live: LiveModel | None = None) -> list[Prompt]:
        """What the model will read; loads the tokenizer alone."""
        tokenizer = live.tokenizer if live is not None else load_tokenizer(self.source)
        return render(tokenizer, self.problems.problems, self.style)

    def header(self, model: ModelId) -> dict[str, Any]:
        """What a result tells of itself. Runs agree where `identity` does."""
        settings = {
            **asdict(self.sampling),
            **asdict(self.style),
            "sampler": self.sampler,
            "verifier": self.verifier,
            "verifier_options": dict(self.verifier_options),
            "dtype": self.dtype,
        }
        data = {
            "source": self.problems.source,
            "preset": self.problems.preset.name if self.problems.preset else None,
            "problems": len(self.problems.problems),
            "digest": self.problems.digest,
        }
        weights = model.digest if model.digest is not None else model.source
        return {
            "schema": 1,
            "model": asdict(model),
            "data": data,
            "settings": settings,
            "identity": {"model": weights, "data": data["digest"], "settings": settings},
            "versions": versions(),
        }

    def open_sampler(self, live: LiveModel | None) -> Sampler:
        """The sampler, with the model loaded unless `live` is it."""
        if self.sampler == "vllm":
            from offaxis.evaluate.vllm_sampler import VllmSampler

            if live is not None:
                raise InputError("vLLM loads models itself: give a directory or a Hub id")
            if adapter_base(Path(self.source).expanduser()) is not None:
                raise InputError(
                    f"{self.source}: an adapter; merge it into its base for the vLLM sampler, or "
                    "choose --sampler transformers"
                )
            return VllmSampler(self.source, dtype=self.dtype)
        from offaxis.evaluate.transformers_sampler import TransformersSampler

        loaded = live or load_model(self.source, dtype=self.dtype, device=self.device)
        return TransformersSampler(loaded)

    def open_verifier(self) -> Verifier:
        from offaxis.verifiers import verifier_named

        return verifier_named(self.verifier, **self.verifier_options)


def plan(
    model: str | Path | LiveModel,
    data: str | Path | ProblemSet | Sequence[Problem],
    *,
    sampling: Sampling | None = None,
    verifier: str | None = None,
    verifier_options: Mapping[str, Any] | None = None,
    template: str | None = None,
    system: str | None = None,
    chat_template: str = "auto",
    sampler: str = "transformers",
    dtype: str = "float32",
    device: str | None = None,
    limit: int | None = None,
) -> Plan:
    """Everything checked that can be before sampling. Defaults of a preset apply where it is used.

    data: what `load_problems` takes, or problems. template: instructions around `{problem}`; the
    preset's, else the problem alone. verifier: a name that `offaxis.verifiers` knows; the preset's,
    else `math`. Raises InputError for what cannot be used.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
    problems = _problem_set(data, limit)
    preset = problems.preset
    words = template or (preset.template if preset is not None else "{problem}")
    if chat_template not in ("auto", "none"):
        raise InputError(f"chat template {chat_template!r}: choose auto or none")
    made = Plan(
        model.source if isinstance(model, LiveModel) else str(model),
        problems,
        Style(words, system, "auto" if chat_template == "auto" else "none"),
        sampling or Sampling(),
        sampler,
        verifier or (preset.verifier if preset is not None else "math"),
        dict(verifier_options or {}),
        str(model.model.dtype).removeprefix("torch.") if isinstance(model, LiveModel) else dtype,
        device,
    )
    made.open_verifier().close()
    return made


def _problem_set(
    data: str | Path | ProblemSet | Sequence[Problem], limit: int | None
) -> ProblemSet:
    if isinstance(data, str | Path):
        return load_problems(data, limit=limit)
    given = data if isinstance(data, ProblemSet) else ProblemSet(tuple(data), "problems")
    return ProblemSet(given.problems[:limit], given.source, given.preset)


def evaluate(
    model: str | Path | LiveModel,
    data: str | Path | ProblemSet | Sequence[Problem],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    against: str | Path | None = None,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[Step], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Sample and mark `sampling.k` completions of every problem, and score them.

    options: those of `plan`. out: a directory that keeps every problem's samples as soon as they
    are marked, so that the same call goes on where one was killed; with a directory that holds
    another run InputError names what differs, unless `overwrite`. The results are written there
    when all is sampled. against: another run on the same problems, or lighteval's, to compare with
    in pairs. A problem's samples depend on the seed, its text and the model, not on the
    other problems, except through the rounding of logits in shared batches (`batch_size` <= k
    leaves every problem a batch of its own).
    """
    made = plan(model, data, **options)
    other = Other.opened(against, made.problems) if against is not None else None
    live = model if isinstance(model, LiveModel) else None
    header = made.header(_identity(made.source, live))
    with _kept(out, header, overwrite=overwrite) as folder:
        _sample_all(made, live, folder, announce or _silent, progress or _silent)
        problems = tuple(folder.done.values())
        found = Evaluation(problems, header)
        if other is not None:
            found = replace(found, versus=other.compared_with(found))
        if out is not None:
            found.write_results(folder.directory)
    return found


def _silent(_: object) -> None:
    """Where nobody listens."""


def _identity(source: str, live: LiveModel | None) -> ModelId:
    if live is not None and not Path(source).expanduser().is_dir():
        return ModelId(source, None)
    return identify(source)


@contextmanager
def _kept(
    out: str | Path | None, header: Mapping[str, Any], *, overwrite: bool
) -> Iterator[Folder]:
    """The folder at `out`, or one in a temporary directory."""
    if out is not None:
        with Folder.opened(Path(out), header, overwrite=overwrite) as folder:
            yield folder
        return
    import tempfile

    with (
        tempfile.TemporaryDirectory(prefix="offaxis-eval-") as directory,
        Folder.opened(Path(directory), header) as folder,
    ):
        yield folder


def _sample_all(
    made: Plan,
    live: LiveModel | None,
    folder: Folder,
    announce: Callable[[str], None],
    progress: Callable[[Step], None],
) -> None:
    """Sample what is not kept yet, in batches that do not depend on what is."""
    problems = made.problems.problems
    missing = [one for one in problems if one.id not in folder.done]
    if folder.done:
        announce(f"{len(folder.done)} of {len(problems)} problems are kept already")
    if not missing:
        return
    prompts = made.prompts(live)
    sampler = made.open_sampler(live)
    _check_lengths(sampler, prompts, problems, made.sampling)
    with made.open_verifier() as verifier:
        for batch in batches(prompts, sampler.together(made.sampling)):
            if all(problems[at].id in folder.done for at in batch):
                continue
            drawn = sampler.sample([prompts[at] for at in batch], made.sampling)
            chosen = [problems[at] for at in batch]
            folder.append(mark_all(chosen, drawn, verifier, name=made.verifier))
            progress(Step(len(folder.done), len(problems), _so_far(folder.done)))


def _so_far(done: Mapping[str, MarkedProblem]) -> str:
    right = sum(one.correct for problem in done.values() for one in problem.samples)
    samples = sum(len(problem.samples) for problem in done.values())
    return f"{len(done)} problems, {right / samples:.3f} right"


def _check_lengths(
    sampler: Sampler, prompts: Sequence[Prompt], problems: Sequence[Problem], sampling: Sampling
) -> None:
    """Raise InputError where a prompt and `max_new_tokens` do not fit into the model's context."""
    context = sampler.context
    if context is None:
        return
    at = max(range(len(prompts)), key=lambda at: len(prompts[at].tokens))
    length = len(prompts[at].tokens)
    if length + sampling.max_new_tokens > context:
        raise InputError(
            f"problem {problems[at].id}: its prompt has {length} tokens, and {length} + "
            f"{sampling.max_new_tokens} do not fit into the model's {context} positions; pass "
            f"--max-new-tokens {max(1, context - length)} or less"
        )
