"""A series of checkpoints: steps, layouts, and everything that makes a fit meaningless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import adapter_states as adapters
import families
from models import State, read, tiny, write
from offaxis.errors import AlignmentError, CheckpointError, InputError
from offaxis.predict import Linear, Stop, open_series, predict, survey
from offaxis.predict.steps import named_step, steps_of
from offaxis.predict.surveying import check_different
from predict_runs import distance, planted, read_all


def refuse(run, error=CheckpointError, **options):
    """The words of the refusal to predict from a run, which leaves nothing behind."""
    out = run.base.parent / "out"
    with pytest.raises(error) as caught:
        predict(run.base, run.checkpoints, method="relex", at=90, out=out, **options)
    left = [one.name for one in out.parent.iterdir() if "out" in one.name]
    assert left == []
    return str(caught.value)


def changed(place: Path, name: str, values: torch.Tensor) -> None:
    """One tensor of a saved checkpoint, replaced."""
    state = read(place) | {name: values}
    save_file(state, place / "model.safetensors")


NAMES = {
    "checkpoint-20": 20,
    "rl/checkpoint-20/": 20,
    "run/global_step_40/actor/huggingface": 40,
    "iter_0000100": 100,
    "out/step60": 60,
    "out/step-60": 60,
    "model_step_60.safetensors": 60,
    "org/name@step-1000": 1000,
    "steps_5": 5,
    "ckpt-7": 7,
    "epoch_2": 2,
    "checkpoint-20/step_30": 30,
    "run/80": 80,
    "run/80/": 80,
    "rl-checkpoint-20": 20,
    "final": None,
    "Qwen2.5-7B": None,
    "gemma-2-9b-it": None,
    "checkpoint": None,
    "checkpoint-20b": None,
    "footstep40": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_a_name(name):
    assert named_step(name) == NAMES[name]


def test_steps_of_a_trainers_state(tmp_path):
    for name, step in (("early", 7), ("late", 12)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    names = [str(tmp_path / "early"), str(tmp_path / "late")]
    assert steps_of(names) == [7, 12]
    assert steps_of([*names, "checkpoint-30"]) == [7, 12, 30]
    assert steps_of(names, [1, 2.5]) == [1, 2.5]


def test_a_name_and_a_state_that_disagree(tmp_path):
    place = tmp_path / "checkpoint-20"
    place.mkdir()
    (place / "trainer_state.json").write_text('{"global_step": 30}')
    with pytest.raises(InputError, match=r"says step 20 and its trainer_state.json 30.*--steps"):
        steps_of([str(place)])
    renamed = place.rename(tmp_path / "epoch-2")
    assert steps_of([str(renamed)]) == [30]


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (
            ["step-40", "step-20"],
            None,
            r"step-20 \(step 20\) comes after step-40.*step-20, step-40",
        ),
        (["a/step-20", "b/step-20"], None, "both at step 20"),
        (["a", "b"], [20, 20], "both at step 20"),
        (["a", "b"], [30, 20], "comes after a.*increasing order"),
        (["a", "b"], [30], "--steps has 1 numbers for 2 checkpoints"),
        (["a"], [0], "0 is no step"),
        (["a"], [-5], "-5 is no step"),
        (["a"], [float("nan")], "nan is no step"),
        (["a"], [float("inf")], "inf is no step"),
        (["global_step_0"], None, "step 0 is BASE"),
    ],
)
def test_steps_that_are_refused(names, given, words):
    with pytest.raises(InputError, match=words):
        steps_of(names, given)


def test_unknown_steps_are_asked_for_where_they_are_needed(tmp_path):
    run = planted(tmp_path, steps=(10, 20))
    plain = [
        place.rename(tmp_path / name) for place, name in zip(run.checkpoints, "ab", strict=True)
    ]
    series = open_series(run.base, plain)
    with pytest.raises(InputError, match=r"/a: neither its name .* --steps with 2 numbers"):
        series.timeline(90)
    assert series.timeline(needs=frozenset()).steps.tolist() == [1, 2]
    named = open_series(run.base, plain, steps=[10, 20]).timeline(90)
    assert named.steps.tolist() == [10, 20]
    assert named.at == 90


@pytest.mark.parametrize("at", [0, -1, float("nan"), float("inf")])
def test_no_step_to_predict(at, tmp_path):
    run = planted(tmp_path, steps=(10, 20))
    with pytest.raises(InputError, match="greater than 0"):
        open_series(run.base, run.checkpoints).timeline(at)


def test_a_step_between_checkpoints_is_told(tmp_path):
    run = planted(tmp_path, steps=(10, 20))
    found = predict(run.base, run.checkpoints, method="relex", at=15, out=tmp_path / "out")
    assert any("not after the last checkpoint" in note for note in found.notes)
    assert distance(read_all(tmp_path / "out"), run.truth(15)) < 1e-12


def test_rows_are_differences_in_float64(tmp_path):
    run = planted(tmp_path, steps=(10, 20), dtype=torch.bfloat16, layers=2)
    series = open_series(run.base, run.checkpoints)
    start, last = read_all(run.base), read_all(run.checkpoints[1])
    seen = set()
    for trail in series.trails():
        exact = last[trail.name].double() - start[trail.name].double()
        np.testing.assert_array_equal(trail[1], exact.numpy())
        np.testing.assert_array_equal(trail.rows(1, slice(3, 9)), exact.reshape(-1)[3:9].numpy())
        np.testing.assert_array_equal(trail.base(), start[trail.name].double().numpy())
        seen.add(trail.name)
    assert seen == set(start)
    assert len(list(series.matrices())) == 14
    assert all(trail.is_matrix for trail in series.matrices())


def test_sharding_and_renaming_do_not_matter(tmp_path):
    found = {}
    for name, options in {
        "plain": {},
        "shards": {"shards": 3},
        "prefix": {"prefix": "_orig_mod."},
    }.items():
        run = planted(tmp_path / name, noise=1e-5, **options)
        predict(run.base, run.checkpoints, method="relex", at=90, out=tmp_path / name / "out")
        found[name] = read_all(tmp_path / name / "out")
    assert len(list((tmp_path / "shards" / "out").glob("*.safetensors"))) == 3
    assert distance(found["plain"], found["shards"]) == 0
    assert distance(found["plain"], found["prefix"]) == 0


def test_a_single_file_is_a_checkpoint(tmp_path):
    run = planted(tmp_path)
    files = []
    for place in run.checkpoints:
        files.append(tmp_path / f"{place.name}.safetensors")
        shutil.copyfile(place / "model.safetensors", files[-1])
    predict(run.base, files, method="relex", at=90, out=tmp_path / "out")
    assert distance(read_all(tmp_path / "out"), run.truth(90)) < 1e-11


def test_pickles_need_leave(tmp_path):
    run = planted(tmp_path)
    for place in run.checkpoints:
        torch.save(read(place), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
    assert "--allow-pickle" in refuse(run)
    predict(
        run.base, run.checkpoints, method="relex", at=90, out=tmp_path / "o2", allow_pickle=True
    )
    assert distance(read_all(tmp_path / "o2"), run.truth(90)) < 1e-11
    torch.save(read(run.base), run.base / "pytorch_model.bin")
    (run.base / "model.safetensors").unlink()
    assert "safetensors first" in refuse(run, allow_pickle=True)


def test_a_tied_head_is_one_tensor(tmp_path):
    """Stored twice, it is predicted once and written twice."""
    run = planted(tmp_path, noise=1e-5)
    for place in (run.base, *run.checkpoints):
        state = read(place)
        changed(place, "lm_head.weight", state["model.embed_tokens.weight"].clone())
    series = open_series(run.base, run.checkpoints)
    assert dict(series.aliases) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in {trail.name for trail in series.trails()}
    predict(run.base, run.checkpoints, method="relex", at=90, out=tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_a_subset_is_the_series_without_the_rest(tmp_path):
    run = planted(tmp_path, steps=(10, 20, 30), noise=1e-5)
    series = open_series(run.base, run.checkpoints, scores=[0.1, None, 0.3])
    some, fresh = series.subset([2, 0]), open_series(run.base, run.checkpoints[::2])
    assert some.names == fresh.names
    assert some.timeline().scores.tolist() == [0.1, 0.3]
    one, other = next(some.trails()), next(fresh.trails())
    np.testing.assert_array_equal(one[1], other[1])
    with pytest.raises(InputError, match="at least one"):
        series.subset([])


def test_scores_are_shares(tmp_path):
    run = planted(tmp_path, steps=(10, 20))
    series = open_series(run.base, run.checkpoints, scores=[0.5, float("nan")], base_score=0.25)
    when = series.timeline()
    assert when.base_score == 0.25
    np.testing.assert_array_equal(when.scores, [0.5, np.nan])
    assert open_series(run.base, run.checkpoints).timeline().scores is None
    for scores, words in (
        ([61.3, 0.5], "61.3 is outside .* percent, give 0.613"),
        ([-0.1, 0.5], "-0.1 is outside"),
        ([0.5, 161], "161 is outside"),
        ([0.5], "1 scores for 2 checkpoints"),
    ):
        with pytest.raises(InputError, match=words):
            open_series(run.base, run.checkpoints, scores=scores)


def test_norms_are_those_of_the_weights(tmp_path):
    run = planted(tmp_path, steps=(10, 20), noise=1e-5)
    found = survey(open_series(run.base, run.checkpoints))
    states = [read_all(place) for place in (run.base, *run.checkpoints)]
    nothing = {name: torch.zeros_like(one) for name, one in states[0].items()}
    assert found.base_norm == pytest.approx(distance(states[0], nothing), rel=1e-12)
    assert found.update_norms == pytest.approx([distance(one, states[0]) for one in states[1:]])
    assert found.step_norms == pytest.approx(
        [distance(states[1], states[0]), distance(states[2], states[1])]
    )
    assert found.parameters == sum(one.numel() for one in states[0].values())
    assert found.matrix_norms[0] < found.update_norms[0]


def test_one_checkpoint_is_too_few(tmp_path):
    run = planted(tmp_path, steps=(10,))
    assert "at least 2 are needed" in refuse(run, InputError)


def test_the_base_is_no_row(tmp_path):
    run = planted(tmp_path)
    run.checkpoints.insert(0, run.base)
    assert "is BASE itself" in refuse(run, InputError, steps=[1, 10, 20, 40])
    again = tmp_path / "link"
    again.symlink_to(run.base)
    run.checkpoints[0] = again
    assert "is BASE itself" in refuse(run, InputError, steps=[1, 10, 20, 40])


def test_a_copy_of_the_base_is_no_row(tmp_path):
    run = planted(tmp_path)
    shutil.copytree(run.base, tmp_path / "rl" / "checkpoint-5")
    run.checkpoints.insert(0, tmp_path / "rl" / "checkpoint-5")
    words = refuse(run)
    assert "checkpoint-5: all its values are those of BASE" in words


def test_a_checkpoint_named_twice(tmp_path):
    run = planted(tmp_path)
    run.checkpoints.append(run.checkpoints[-1])
    assert "named twice" in refuse(run, InputError, steps=[1, 2, 3, 4])


def test_two_equal_checkpoints_are_one(tmp_path):
    run = planted(tmp_path, steps=(10, 20))
    shutil.rmtree(run.checkpoints[1])
    shutil.copytree(*run.checkpoints)
    words = refuse(run, InputError)
    assert "2 different checkpoints, and there are 1" in words
    assert "checkpoint-10 and" in words
    more = planted(tmp_path / "more", steps=(10, 20, 30))
    shutil.rmtree(more.checkpoints[1])
    shutil.copytree(*more.checkpoints[:2])
    series = open_series(more.base, more.checkpoints)
    found = survey(series)
    assert found.twins == ((0, 1),)
    assert "hold the same values" in found.notes[0]
    check_different(series, found, least=2, method="relex")
    with pytest.raises(InputError, match="3 different"):
        check_different(series, found, least=3, method="relex")


def test_equal_values_in_two_dtypes_are_one(tmp_path):
    run = planted(tmp_path, steps=(10, 20), dtype=torch.bfloat16)
    state = {name: one.float() for name, one in read(run.checkpoints[0]).items()}
    shutil.rmtree(run.checkpoints[1])
    write(run.checkpoints[1], state)
    assert "hold the same values" in refuse(run, InputError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_entries_that_are_no_numbers(value, tmp_path):
    run = planted(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    bad = read(run.checkpoints[1])[name].clone()
    bad[2, 3] = bad[0, 0] = value
    changed(run.checkpoints[1], name, bad)
    words = refuse(run)
    assert f"checkpoint-20: {name!r} has 2 of 1536 entries" in words
    changed(run.base, name, bad)
    assert f"BASE: {name!r} has 2 of 1536" in refuse(run)


def test_another_models_checkpoint(tmp_path):
    run = planted(tmp_path)
    write(tmp_path / "rl" / "checkpoint-80", tiny(seed=9, layers=1), dtype=torch.float64)
    run.checkpoints.append(tmp_path / "rl" / "checkpoint-80")
    words = refuse(run)
    assert "checkpoint-80" in words
    assert "another base" in words


def test_one_matrix_of_another_model(tmp_path):
    run = planted(tmp_path)
    name = "model.layers.0.self_attn.k_proj.weight"
    changed(run.checkpoints[2], name, tiny(seed=9, layers=1)[name].double())
    assert f"checkpoint-40: {name!r} is 1.3" in refuse(run)


def test_a_large_step_along_the_base_is_no_other_model(tmp_path):
    """A matrix that has doubled points where the base's does."""
    run = planted(tmp_path, steps=(10, 20))
    for factor, place in zip((2.0, 3.0), run.checkpoints, strict=True):
        state: State = {name: factor * one for name, one in run.start.items()}
        shutil.rmtree(place)
        write(place, state)
    predict(run.base, run.checkpoints, method="relex", at=30, out=tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert distance(found, {name: 4 * one for name, one in run.start.items()}) < 1e-12


@pytest.mark.parametrize(
    ("constant", "other"),
    [
        (torch.arange(6), torch.arange(6) + 1),
        (torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.25])),
        (torch.arange(6), torch.arange(5)),
    ],
)
def test_a_constant_that_differs(constant, other, tmp_path):
    run = planted(tmp_path)
    integer = not constant.is_floating_point()
    name = "model.position_ids" if integer else "model.layers.0.self_attn.rotary_emb.inv_freq"
    for place in (run.base, *run.checkpoints):
        changed(place, name, constant)
    predict(run.base, run.checkpoints, method="relex", at=90, out=tmp_path / "good")
    assert torch.equal(read_all(tmp_path / "good")[name], constant)
    changed(run.checkpoints[1], name, other)
    words = refuse(run)
    assert f"checkpoint-20: the constant {name!r} differs" in words


def test_matrices_that_went_back_to_the_base(tmp_path):
    run = planted(tmp_path)
    matrices = [name for name in run.start if name.endswith("_proj.weight")]
    for name in matrices[:3]:
        changed(run.checkpoints[2], name, run.start[name].clone())
    series = open_series(run.base, run.checkpoints)
    assert "3 of 7 matrices that had moved" in survey(series).notes[0]
    changed(run.checkpoints[2], matrices[3], run.start[matrices[3]].clone())
    assert "4 of 7 matrices" in refuse(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("model.norm.weight"), "'model.norm.weight'.*not in tuned"),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(33).double()}),
            r"'model.norm.weight'.*\(32,\).*\(33,\)",
        ),
        (
            lambda state: state.update({"model.extra.weight": torch.ones(4, 4).double()}),
            r"'model.extra.weight' \(4, 4\), which BASE",
        ),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(32).long()}),
            "model.norm.weight",
        ),
    ],
)
def test_another_architecture(change, words, tmp_path):
    run = planted(tmp_path)
    state = read(run.checkpoints[1])
    change(state)
    save_file(state, run.checkpoints[1] / "model.safetensors")
    with pytest.raises((AlignmentError, CheckpointError), match=words) as caught:
        predict(run.base, run.checkpoints, method="relex", at=90, out=tmp_path / "out")
    assert "checkpoint-20" in str(caught.value)
    assert not (tmp_path / "out").exists()


def fused(state: State) -> State:
    """gate_proj and up_proj in one tensor, as Phi-3 stores them."""
    stem = "model.layers.0.mlp."
    out = dict(state)
    parts = [out.pop(f"{stem}{part}_proj.weight") for part in ("gate", "up")]
    return out | {f"{stem}gate_up_proj.weight": torch.cat(parts)}


class InParts(Linear):
    """A line for each weight, fitted part by part: the same, since no weight sees another."""

    cuts = True


@pytest.mark.parametrize(
    ("method", "plainly"),
    [(Linear(), Linear()), (InParts(), Linear()), (Stop(), Stop())],
    ids=["whole", "parts", "stop"],
)
@pytest.mark.parametrize("which", ["base", "checkpoints", "both"])
def test_fused_on_one_side_alone(which, method, plainly, tmp_path):
    """The base's layout is written whatever the checkpoints' is."""
    run = planted(tmp_path, noise=1e-5)
    places = {"base": [run.base], "checkpoints": run.checkpoints}
    places["both"] = places["base"] + places["checkpoints"]
    predict(run.base, run.checkpoints, method=plainly, at=90, out=tmp_path / "plain")
    for place in places[which]:
        save_file(fused(read(place)), place / "model.safetensors")
    predict(run.base, run.checkpoints, method=method, at=90, out=tmp_path / "out")
    plain = read_all(tmp_path / "plain")
    expected = plain if which == "checkpoints" else fused(plain)
    assert distance(read_all(tmp_path / "out"), expected) < 1e-13


def test_a_stretch_reads_the_parts_in_it_alone(tmp_path, monkeypatch):
    """A tensor that the base stores whole and the checkpoints in parts."""
    run = planted(tmp_path, noise=1e-5)
    save_file(fused(read(run.base)), run.base / "model.safetensors")
    series = open_series(run.base, run.checkpoints)
    trail = next(one for one in series.trails() if "gate_up" in one.name)
    whole = trail[1].reshape(-1)
    for start, stop in ((0, 1), (0, 3072), (1500, 1600), (1536, 1537), (3071, 3072), (7, 7)):
        np.testing.assert_array_equal(trail.rows(1, slice(start, stop)), whole[start:stop])
    read_names = []
    kind = type(series.points[1].checkpoint)
    before = kind.__getitem__
    monkeypatch.setattr(
        kind, "__getitem__", lambda one, name: (read_names.append(name), before(one, name))[1]
    )
    trail.rows(1, slice(1600, 1700))
    assert {name.split(".")[-2] for name in read_names} == {"gate_up_proj", "up_proj"}


def test_a_head_that_is_no_longer_tied(tmp_path):
    run = planted(tmp_path)
    for place in run.checkpoints:
        changed(place, "lm_head.weight", torch.ones(40, 32).double())
        (place / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    assert "its head is no longer tied" in refuse(run, AlignmentError)


def test_a_value_head_is_left_out_and_told(tmp_path):
    run = planted(tmp_path)
    for place in run.checkpoints:
        changed(place, "v_head.weight", torch.ones(1, 32).double())
    found = predict(run.base, run.checkpoints, method="relex", at=90, out=tmp_path / "out")
    assert any("v_head.weight" in note for note in found.notes)
    assert "v_head.weight" not in read_all(tmp_path / "out")


def test_a_missing_checkpoint(tmp_path):
    run = planted(tmp_path)
    run.checkpoints.append(tmp_path / "rl" / "checkpoint-99")
    assert "checkpoint-99: no such file or directory" in refuse(run)


def lora_run(
    tmp_path: Path, family: str, dtype: torch.dtype = torch.float64
) -> tuple[Path, list[Path], list[Path]]:
    """A base, adapters at two steps, and the models that peft merges them into."""
    base = adapters.base_dir(family, tmp_path / "base", dtype=dtype)
    saved, merged = [], []
    for step, size in ((10, 0.02), (20, 0.05)):
        model = adapters.adapted(base, "lora?rank=4", dtype=dtype, size=size)
        saved.append(adapters.saved(model, tmp_path / f"checkpoint-{step}"))
        whole = tmp_path / "merged" / f"checkpoint-{step}"
        model.merge_and_unload().save_pretrained(whole)
        merged.append(whole)
    return base, saved, merged


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_are_the_models_that_they_make(family, tmp_path):
    base, saved, merged = lora_run(tmp_path, family)
    assert open_series(base, saved).points[0].adapter
    for name, places in (("bound", saved), ("whole", merged)):
        predict(base, places, method="relex", at=40, out=tmp_path / name)
    one, other = read_all(tmp_path / "bound"), read_all(tmp_path / "whole")
    assert distance(one, other) < 1e-10 * distance(other, read_all(base))
    with pytest.raises(InputError, match="is an adapter; BASE must be"):
        open_series(saved[0], merged)


def test_what_adapters_foretell_is_in_the_dtype_of_the_base(tmp_path):
    base, saved, _ = lora_run(tmp_path, "llama", torch.bfloat16)
    predict(base, saved, method="relex", at=40, out=tmp_path / "out")
    assert {one.dtype for one in read_all(tmp_path / "out").values()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["gpt2", "phi3", "qwen3_moe"])
def test_fused_and_stacked_models_load_after_it(family, tmp_path):
    """GPT-2's turned and fused matrices, Phi-3's fused ones, stacked experts."""
    own = family == "gpt2"
    model = adapters._built(family, 0) if own else families.build(family)
    model.save_pretrained(tmp_path / "base")
    start = read_all(tmp_path / "base")
    places = []
    for step in (10, 20):
        model = adapters.shaken(model, size=0.01, seed=step)
        places.append(tmp_path / f"checkpoint-{step}")
        model.save_pretrained(places[-1])
    series = open_series(tmp_path / "base", places)
    cut = {trail.name for trail in series.matrices()}
    assert any("[" in name for name in cut) or family == "qwen3_moe"
    predict(tmp_path / "base", places, method="linear", at=30, out=tmp_path / "out")
    found, last = read_all(tmp_path / "out"), [read_all(place) for place in places]
    for name, one in start.items():
        rise = last[1][name].double() - last[0][name].double()
        expected = last[1][name].double() + rise if one.is_floating_point() else one
        torch.testing.assert_close(found[name].double(), expected.double(), rtol=1e-6, atol=1e-7)
    predict(tmp_path / "base", places, method=InParts(), at=30, out=tmp_path / "parts")
    assert distance(read_all(tmp_path / "parts"), found) == 0
    with torch.no_grad():
        logits = adapters.load(tmp_path / "out")(input_ids=torch.arange(16)[None]).logits
    assert torch.isfinite(logits).all()
