"""A run's data in the columns that TRL's trainers read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offaxis.errors import InputError
from offaxis.evaluate.problems import load_problems
from offaxis.evaluate.reading import read_rows
from offaxis.train.arguments import Arguments
from offaxis.train.extras import ExtraArguments

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Source", "load_data", "needs_samples"]

Source = Callable[[str], "Dataset"]
"""What a name after a prefix (`lab:arithmetic`) stands for."""

_NATIVE = {"text", "messages"}  # what SFTTrainer reads without a prompt


def load_data(
    arguments: Arguments, *, sources: Mapping[str, Source] | None = None
) -> tuple[Dataset, Dataset | None]:
    """Training data and, with `eval_strategy`, evaluation data, columns renamed and rendered."""
    extra = arguments.extra
    wants_eval = str(arguments.config.eval_strategy).rsplit(".", 1)[-1].lower() != "no"
    if extra.preset is not None:
        train, evaluation = _of_preset(extra), None
    elif extra.data is not None:
        train = _opened(extra.data, sources or {})
        evaluation = _opened(extra.eval_data, sources or {}) if extra.eval_data else None
    else:
        train, evaluation = _from_trl(arguments, wants_eval)
    if wants_eval and evaluation is None:
        raise InputError("eval_strategy is set: name the data with eval_data")
    return _shaped(train, arguments), _shaped(evaluation, arguments) if evaluation else None


def _opened(source: str, sources: Mapping[str, Source]) -> Dataset:
    from datasets import Dataset

    prefix, colon, rest = source.partition(":")
    if colon and prefix in sources:
        return sources[prefix](rest)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"data {source}: no such file (a Hub data set is named by dataset_name)")
    return Dataset.from_list([row.values for row in read_rows(path)])


def _of_preset(extra: ExtraArguments) -> Dataset:
    """Problems of a benchmark, its right answers taken from wherever it keeps them."""
    from datasets import Dataset

    assert extra.preset is not None
    found = load_problems(
        extra.data or extra.preset,
        preset=extra.preset,
        split=None if extra.data else extra.data_split,
    )
    rows = [{extra.prompt_column: one.prompt, extra.answer_column: one.answer} for one in
            found.problems]  # fmt: skip
    return Dataset.from_list(rows)


def _from_trl(arguments: Arguments, wants_eval: bool) -> tuple[Dataset, Dataset | None]:
    """TRL's own keys: `datasets`, or `dataset_name` with its configuration and splits."""
    from datasets import load_dataset
    from trl import get_dataset

    script = arguments.script
    if not arguments.mixture.datasets and not script.dataset_name:
        raise InputError("no data: name a file with data, or a data set with dataset_name")
    try:
        if arguments.mixture.datasets:
            found = get_dataset(arguments.mixture)
        else:
            found = load_dataset(
                script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming
            )
        evaluation = found[script.dataset_test_split] if wants_eval else None
        return found[script.dataset_train_split], evaluation
    except KeyError as error:
        raise InputError(f"{script.dataset_name}: has no split {error}") from error
    except Exception as error:  # the Hub, its cache and the readers raise many kinds
        raise InputError(
            f"{script.dataset_name or 'datasets'}: cannot be loaded ({type(error).__name__}: "
            f"{error})"
        ) from error


def needs_samples(arguments: Arguments, data: Dataset) -> bool:
    """Must completions be sampled before training starts?

    Always for rejection_sft, and for distill with a teacher; otherwise where the data lack them.
    """
    method = arguments.method
    if method.sampler is None:
        return False
    if method.data == "pairs":
        return not {"chosen", "rejected"} <= set(data.column_names)
    given = "completion" in data.column_names and method.sampler == "teacher"
    return arguments.extra.teacher is not None or not given


def _shaped(data: Dataset, arguments: Arguments) -> Dataset:
    extra, kind = arguments.extra, arguments.method.data
    columns = list(data.column_names or ())
    if kind == "solutions" and extra.prompt_column not in columns and _NATIVE & set(columns):
        return data
    renamed = {
        extra.prompt_column: "prompt",
        extra.answer_column: "answer",
        extra.completion_column: "completion",
        extra.chosen_column: "chosen",
        extra.rejected_column: "rejected",
    }
    needed = {"prompts": ["prompt"], "solutions": ["prompt", "completion"],
              "pairs": ["prompt", "chosen", "rejected"]}[kind]  # fmt: skip
    if arguments.method.sampler is not None:
        needed = ["prompt"]
    present = {old: new for old, new in renamed.items() if old in columns}
    absent = [old for old, new in renamed.items() if new in needed and old not in columns]
    if absent:
        raise InputError(
            f"the data have columns {', '.join(columns)}; {arguments.method.name} needs "
            f"{', '.join(absent)}: say which column it is with prompt_column and its kin"
        )
    clash = [new for old, new in present.items() if old != new and new in columns]
    data = data.remove_columns([name for name in clash if name not in present])
    data = data.rename_columns({old: new for old, new in present.items() if old != new})
    return _rendered(data, extra)


def _rendered(data: Dataset, extra: ExtraArguments) -> Dataset:
    """Prompts with the template around them, and as conversations where that was asked for."""
    chat = extra.chat or extra.system_prompt is not None
    if not chat and extra.prompt_template is None:
        return data
    roles = {"completion": "assistant", "chosen": "assistant", "rejected": "assistant"}

    def shape(row: dict[str, Any]) -> dict[str, Any]:
        text = row["prompt"]
        if not isinstance(text, str):
            raise InputError("prompts are conversations already: leave out chat, system_prompt and "
                             "prompt_template")  # fmt: skip
        if extra.prompt_template is not None:
            text = extra.prompt_template.replace("{prompt}", text)
        if not chat:
            return {"prompt": text}
        system = [{"role": "system", "content": extra.system_prompt}] if extra.system_prompt else []
        found: dict[str, Any] = {"prompt": [*system, {"role": "user", "content": text}]}
        for name, role in roles.items():
            if isinstance(row.get(name), str):
                found[name] = [{"role": role, "content": row[name]}]
        return found

    return data.map(shape)
