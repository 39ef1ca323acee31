"""Comparing runs: curves, tables and parts of a comparison, worked out by hand."""

import json
from pathlib import Path

import pytest

from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.engine.comparing.compare import plan_trials
from sdpo_cli.engine.comparing.comparison import (
    Cell,
    Curve,
    Holding,
    Point,
    highest_while_holding,
    means_of,
    read_curve,
    short_names,
    t_limit,
    tabulate,
    value_at,
)
from sdpo_cli.engine.comparing.pace import Made, Work, foreseen
from sdpo_cli.engine.comparing.plan import (
    Arm,
    Budget,
    check_arms,
    check_holding,
    parse_arms,
    parse_budget,
    parse_holding,
)
from sdpo_cli.engine.comparing.table import (
    comparison_json,
    comparison_markdown,
    leading,
    main_table,
    preamble,
    stored_comparison,
)
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.evaluating.records import Diversity, EvaluationReport, Interval, StepResult, to_json
from sdpo_cli.engine.learning.credit import queries_per_prompt
from sdpo_cli.errors import ArtifactError, RecipeError, UsageError
from sdpo_cli.recipe import dump_recipe
from sdpo_cli.registry import load_recipe

KEY = (4, "style")


def curve(arm, seed, *points):
    return Curve(arm, seed, tuple(Point(images, queries, {KEY: value}) for images, queries, value in points))


CURVES = [
    curve("dense", 0, (0, 0, 0.3), (64, 192, 0.5), (128, 384, 0.9)),
    curve("dense", 1, (0, 0, 0.3), (64, 192, 0.7), (128, 384, 0.7)),
    curve("sparse", 0, (0, 0, 0.3), (64, 64, 0.4), (192, 192, 0.8)),
]


def test_values_between_evaluations_lie_on_the_line():
    assert value_at(CURVES[2], "images", 64, KEY) == pytest.approx(0.4)
    assert value_at(CURVES[2], "images", 96, KEY) == pytest.approx(0.5)
    assert value_at(CURVES[0], "queries", 96, KEY) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="193 queries are beyond the run"):
        value_at(CURVES[2], "queries", 193, KEY)


def test_the_table_compares_what_every_run_reached():
    rows = {(cell.arm, cell.axis): cell for cell in tabulate(CURVES)}
    # 128 pictures: means 0.9 and 0.7, spread √(2 · 0.1²); the sparse run between 64 and 192: 0.4 + 0.5 · 0.4.
    assert rows["dense", "images"].amount == 128
    assert (rows["dense", "images"].mean, rows["dense", "images"].spread) == (
        pytest.approx(0.8), pytest.approx(0.02**0.5)
    )  # fmt: skip
    assert (rows["sparse", "images"].mean, rows["sparse", "images"].spread) == (pytest.approx(0.6), None)
    # 192 queries: the dense runs after 64 pictures, the sparse one after 192.
    assert rows["dense", "queries"].amount == 192
    assert rows["dense", "queries"].mean == pytest.approx(0.6)
    assert rows["sparse", "queries"].mean == pytest.approx(0.8)
    assert rows["sparse", "queries"].base == pytest.approx(0.3)


def test_the_table_in_words():
    assert comparison_markdown(tabulate(CURVES)) == (
        "| style, after 128 pictures | 4 steps |\n|---|---|\n| base model | 0.300 |\n"
        "| dense | 0.800 ± 0.141 |\n| sparse | 0.600 |\n\n"
        "| style, after 192 reward queries | 4 steps |\n|---|---|\n| base model | 0.300 |\n"
        "| dense | 0.600 ± 0.141 |\n| sparse | 0.800 |\n\n"
        "Means ± standard deviation over seeds. Bold: the highest mean, and every mean that Welch's t-test at 5 % "
        "does not tell from it; none where a part has one seed alone. Between two evaluations a value is read off the "
        "line between them.\n"
    )


def test_what_stands_above_the_tables():
    figures = {"4 steps": "steps-4.png", "style against emoji-clip": "trade-off.png"}
    links = "- figures: [4 steps](steps-4.png), [style against emoji-clip](trade-off.png)\n\n"
    assert preamble("recipe: `r.yaml`", CURVES, figures) == (
        f"# Comparison of dense, sparse\n\n- recipe: `r.yaml`\n- seeds: 0, 1 of dense; 0 of sparse\n{links}"
    )
    assert "# Comparison of dense\n\n- recipe: `r.yaml`\n- seeds: 0, 1\n" in preamble(
        "recipe: `r.yaml`", CURVES[1::-1], figures
    )


def test_runs_to_come_take_as_long_an_epoch_as_those_before_them():
    made = [Made("sdpo", 10, 60.0), Made("sdpo", 5, 15.0), Made("ddpo", 10, 20.0), Made("ddpo", 0, 99.0)]
    assert foreseen(made, [Work("sdpo", 10)]) == pytest.approx(10 * 75 / 15)
    assert foreseen(made, [Work("ddpo", 4), Work("grpo", 5)]) == pytest.approx(4 * 2 + 5 * 95 / 25)
    assert foreseen(made[3:], [Work("ddpo", 4)]) is None


def cell(arm, mean, spread):
    return Cell(arm, "images", 128, 4, "style", 0.3, mean, spread, 1 if spread is None else 3)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # of b t is 2.98 and may be 2.83 at 3.8 degrees of freedom, of c 2.22 and 2.80 at 3.9
        ([cell("a", 0.8, 0.05), cell("b", 0.69, 0.04), cell("c", 0.7, 0.06)], {"a", "c"}),
        ([cell("a", 0.7, 0.0), cell("b", 0.7, 0.0), cell("c", 0.6, 0.0)], {"a", "b"}),
        ([cell("a", 0.8, None), cell("b", 0.2, 0.01)], set()),
        ([cell("a", 0.8, 0.01), cell("b", 0.2, None)], set()),
    ],
)
def test_what_no_test_tells_from_the_best_is_bold_with_it(cells, expected):
    assert leading(cells) == expected


@pytest.mark.parametrize(
    ("freedom", "limit", "off"),
    [
        (2.0, 4.303, 0.04),
        (3.0, 3.182, 0.01),
        (4.0, 2.776, 0.01),
        (10.0, 2.228, 1e-3),
        (30.0, 2.042, 1e-3),
        (1e9, 1.95996, 1e-5),
    ],
)
def test_the_limit_of_t_is_that_of_printed_tables(freedom, limit, off):
    assert t_limit(freedom) == pytest.approx(limit, rel=off)
    assert t_limit(freedom) <= limit * 1.001


def test_the_table_for_programs_holds_every_point():
    found = json.loads(comparison_json(tabulate(CURVES), CURVES, ["style"]))
    assert found["runs"][2]["points"][2] == {
        "images": 192, "queries": 192, "means": [{"steps": 4, "measure": "style", "mean": 0.8}]
    }  # fmt: skip
    assert len(found["table"]) == 4
    assert found["held"] == []


def test_a_stored_comparison_shows_the_table_that_was_shown_then(tmp_path):
    cells = [*tabulate(BOUGHT), *tabulate(BOUGHT, Holding("style", 0.1))]
    for some, trained in [(cells, ["style"]), (tabulate(BOUGHT), ["alignment"])]:
        (tmp_path / "comparison.json").write_text(comparison_json(some, BOUGHT, trained))
        assert list(stored_comparison(tmp_path).cells) == main_table(some, trained)


def bought(arm, seed, *points):
    """A run whose points are (pictures, queries, style, alignment)."""
    means = [{KEY: style, (4, "alignment"): alignment} for _, _, style, alignment in points]
    return Curve(arm, seed, tuple(Point(*point[:2], mean) for point, mean in zip(points, means, strict=True)))


BOUGHT = [
    bought("greedy", 0, (0, 0, 0.3, 0.8), (64, 128, 0.5, 0.78), (128, 256, 0.9, 0.58)),
    bought("greedy", 1, (0, 0, 0.3, 0.8), (64, 128, 0.2, 0.6), (128, 256, 0.9, 0.8)),
    bought("modest", 0, (0, 0, 0.3, 0.8), (64, 64, 0.6, 0.75), (128, 128, 0.5, 0.71)),
]


@pytest.mark.parametrize(
    ("run", "amount", "drop", "expected"),
    [
        (0, 128, 0.1, 0.66),  # alignment is .70 at 0.4 of the second part: .5 + .4 · .4
        (0, 128, 0.3, 0.9),  # never below .50
        (0, 80, 0.1, 0.6),  # at a quarter of the second part alignment is .73 still: .5 + .25 · .4
        (0, 64, 0.1, 0.5),
        (0, 128, 0.0, 0.3),  # at once
        (1, 128, 0.1, 0.3),  # what comes after alignment was lost does not count, though it came back
        (2, 128, 0.1, 0.6),  # the highest, not the last
    ],
)
def test_the_highest_reward_while_another_measure_holds(run, amount, drop, expected):
    found = highest_while_holding(BOUGHT[run], "images", amount, KEY, Holding("alignment", drop))
    assert found == pytest.approx(expected)


def test_the_table_of_what_was_reached_while_a_measure_held():
    cells = tabulate(BOUGHT, Holding("alignment", 0.1))
    assert comparison_markdown(cells[:2]).splitlines()[:5] == [
        "| style, highest within 128 pictures while alignment fell by at most 0.1 | 4 steps |",
        "|---|---|",
        "| base model | 0.300 |",
        "| greedy | 0.480 ± 0.255 |",  # .66 and .30: √(2 · .18²)
        "| modest | 0.600 |",
    ]
    # At 128 queries the greedy runs have drawn 64 pictures.
    assert [(cell.arm, cell.axis, cell.amount) for cell in cells[2:]] == [
        ("greedy", "queries", 128), ("modest", "queries", 128)
    ]  # fmt: skip
    assert cells[2].mean == pytest.approx((0.5 + 0.3) / 2)
    found = json.loads(comparison_json([*tabulate(BOUGHT), *cells], BOUGHT, ["style"]))
    assert (len(found["table"]), len(found["held"])) == (8, 4)
    assert found["held"][1]["holding"] == {"measure": "alignment", "drop": 0.1}
    assert found["held"][1]["mean"] == pytest.approx(0.6)


def test_the_main_table_is_the_trained_rewards_at_equal_pictures_while_another_measure_held():
    cells = tabulate(BOUGHT)
    free = [(cell.measure, cell.arm, cell.axis) for cell in main_table(cells, ["style"])]
    assert free == [("style", "greedy", "images"), ("style", "modest", "images")]
    held = tabulate(BOUGHT, Holding("alignment", 0.1))
    assert main_table([*cells, *held], ["style"]) == main_table([*cells, *held], ["alignment"]) == held[:2]


def test_what_is_to_hold():
    assert parse_holding("emoji-style style=3d=0.25") == Holding("emoji-style style=3d", 0.25)
    check_holding(Holding("diversity", 0.1), ["emoji-clip", "diversity"])
    with pytest.raises(UsageError) as fault:
        check_holding(Holding("emoji-clop", 0.1), ["emoji-clip", "diversity"])
    assert str(fault.value) == (
        "--holding: nothing called 'emoji-clop' is measured; did you mean emoji-clip? measured: emoji-clip, diversity"
    )
    with pytest.raises(UsageError) as fault:
        check_holding(Holding("emoji-clip", 0.1), ["emoji-clip", "diversity"])
    assert str(fault.value) == (
        "--holding: no reward is measured beside emoji-clip; add one to eval.rewards, or leave --holding out"
    )


@pytest.mark.parametrize("text", ["emoji-clip", "emoji-clip=", "=0.1", "emoji-clip=-1", "emoji-clip=nan", "a=1e3"])
def test_what_cannot_hold(text):
    with pytest.raises(UsageError) as fault:
        parse_holding(text)
    assert str(fault.value) == f"--holding: {text!r} is no measure and fall; write as in emoji-clip=0.1"


def test_parts_and_their_overrides():
    arms, shared = parse_arms("sdpo, now=sdpo,ddpo", ["seed=3", "now:objective.sdpo.credit=current", "a.b=x:y"])
    assert arms == [Arm("sdpo", "sdpo"), Arm("now", "sdpo", ("objective.sdpo.credit=current",)), Arm("ddpo", "ddpo")]
    assert shared == ["seed=3", "a.b=x:y"]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("sdpo,sdpo", [], "--objectives: sdpo comes twice; tell them apart: sdpo-2=sdpo"),
        ("a/b=sdpo", [], "--objectives: 'a/b' cannot name a part of the comparison; use letters, digits, dots, hyphens "
         "and underscores"),
        ("sdpo,", [], "--objectives: '' cannot name a part of the comparison; use letters, digits, dots, hyphens and "
         "underscores"),
        ("sdpo", ["sdpo:seed=1"], "--set sdpo:seed=1: is not to be set in a comparison; it follows from --seeds, "
         "--budget and --points; a guard is left out"),
        ("sdpo", ["guard.stop_if=[]"], "--set guard.stop_if=[]: is not to be set in a comparison; it follows from "
         "--seeds, --budget and --points; a guard is left out"),
        ("sdpo", ["ddpo:seed=1"], "--set ddpo:seed=1: no part called ddpo; there are sdpo"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be(text, overrides, message):
    with pytest.raises(UsageError) as fault:
        parse_arms(text, overrides)
    assert str(fault.value) == message


@pytest.mark.parametrize(
    "text", ["2000", "images", "images=0", "images=-1", "pictures=10", "images=1e3", "images=" + "9" * 5000]
)
def test_budgets_that_are_none(text):
    with pytest.raises(UsageError) as fault:
        parse_budget(text)
    assert str(fault.value) == f"--budget: {text!r} is no budget; write images=2000 or queries=2000"


def planned(tmp_path, objectives, budget, *overrides):
    arms, shared = parse_arms(objectives, ["rollout.pairs=16", "rollout.steps=4", *overrides])
    return plan_trials("quickstart", arms, shared, 2, budget, 3, tmp_path)


def test_every_part_draws_alike_and_spends_the_budget(tmp_path):
    trials = planned(tmp_path, "sdpo,ddpo,grpo", Budget("images", 300))
    recipes = {trial.folder.name: trial.resolved.recipe for trial in trials}
    assert list(recipes) == ["sdpo-seed0", "ddpo-seed0", "grpo-seed0", "sdpo-seed1", "ddpo-seed1", "grpo-seed1"]
    assert {name: one.rollout.pairs for name, one in recipes.items() if one.seed == 0} == {
        "sdpo-seed0": 16, "ddpo-seed0": 16, "grpo-seed0": 4
    }  # fmt: skip
    # 32 pictures an epoch: 10 epochs, evaluated every 3: 12.
    assert {(one.train.epochs, one.eval.every) for one in recipes.values()} == {(12, 3)}
    assert recipes["sdpo-seed0"].objective.options["gamma"] == 0.9  # the recipe's own objective keeps its options


def test_a_budget_of_queries_pays_for_fewer_pictures_where_each_asks_more(tmp_path):
    trials = planned(tmp_path, "sdpo,ddpo,ddpo8=ddpo", Budget("queries", 96 * 6), "ddpo8:rollout.pairs=8")
    recipes = {trial.arm: trial.resolved.recipe for trial in trials}
    assert {arm: one.train.epochs for arm, one in recipes.items()} == {"sdpo": 6, "ddpo": 18, "ddpo8": 36}
    assert recipes["ddpo8"].rollout.pairs == 8


def test_a_part_whose_rollouts_are_too_short_is_refused_before_any_run_is_made(tmp_path):
    with pytest.raises(RecipeError) as fault:
        planned(tmp_path, "ddpo,sdpo", Budget("queries", 64), "sdpo:rollout.steps=1")
    assert str(fault.value) == (
        "quickstart: rollout.steps: no action of a 1-step rollout earns a reward of its own; use 2 or more steps"
    )


def test_a_budget_that_a_run_has_outspent_is_refused_by_its_name(tmp_path):
    for trial, epochs in zip(planned(tmp_path, "sdpo,ddpo", Budget("images", 300)), (12, 9), strict=False):
        folder = RunFolder(trial.folder)
        (folder.checkpoints / f"epoch-{epochs:05d}").mkdir(parents=True)
        folder.recipe.write_text(dump_recipe(trial.resolved.recipe))
    planned(tmp_path, "sdpo,ddpo", Budget("images", 384))
    for unit, amount, spent in [("images", 200, 384), ("queries", 512, 1152)]:
        with pytest.raises(UsageError) as fault:
            planned(tmp_path, "sdpo,ddpo", Budget(unit, amount))
        assert str(fault.value) == (
            f"--budget {unit}={amount}: is less than sdpo-seed0 has spent: {unit}={spent}; give {unit}={spent} or "
            "more, or choose another --out"
        )
        planned(tmp_path, "sdpo,ddpo", Budget(unit, spent))


def test_a_part_of_other_pairs_keeps_them_however_they_are_written(tmp_path):
    (own, usual) = planned(tmp_path, "own=sdpo,sdpo", Budget("images", 64), "own:rollout={pairs: 8, steps: 3}")[:2]
    assert (own.resolved.recipe.rollout.pairs, usual.resolved.recipe.rollout.pairs) == (8, 16)


def test_an_optimiser_step_sees_as_many_pictures_with_larger_groups(tmp_path):
    trials = planned(tmp_path, "sdpo,grpo,grpo1=grpo", Budget("images", 64), "train.batch=8", "grpo1:train.batch=1")
    assert {trial.arm: trial.resolved.recipe.train.batch for trial in trials} == {"sdpo": 8, "grpo": 2, "grpo1": 1}


def test_only_what_every_evaluation_measured_is_compared():
    sparse = Point(8, 8, {KEY: 0.4})
    full = Point(0, 0, {KEY: 0.3, (2, "style"): 0.3}), Point(16, 16, {KEY: 0.5, (2, "style"): 0.5})
    curve = Curve("one", 0, (full[0], sparse, full[1]))
    assert {(cell.steps, cell.measure) for cell in tabulate([curve])} == {KEY}


def test_folders_of_one_name_are_told_apart():
    paths = [Path("a/runs/sdpo"), Path("b/runs/sdpo"), Path("b/runs/ddpo")]
    assert short_names(paths) == dict(zip(paths, ["a/runs/sdpo", "b/runs/sdpo", "ddpo"], strict=True))


def test_a_part_without_an_objective_and_one_with_a_faulty_recipe():
    with pytest.raises(UsageError) as unknown:
        check_arms("quickstart", *parse_arms("sdpo,other=ddop", []), None)
    assert str(unknown.value) == (
        "--objectives: no objective named 'ddop'; did you mean ddpo? installed: d3po, ddpo, grpo, prdp, rebel, sdpo"
    )
    with pytest.raises(RecipeError) as faulty:
        check_arms("quickstart", *parse_arms("sdpo,ddpo", ["ddpo:objective.ddpo.clip=-1"]), None)
    assert str(faulty.value) == "quickstart: objective.ddpo.clip: -1 should be at least 0"


@pytest.mark.parametrize(
    ("plan", "steps", "expected"),
    [
        (LearningPlan(), 2, 2),
        (LearningPlan(), 3, 4),
        (LearningPlan(), 50, 6),
        (LearningPlan(credit="current"), 50, 5),
        (LearningPlan(credit="current", shared_noise=False), 50, 6),
        (LearningPlan(dense="exact"), 8, 14),
        (LearningPlan(dense="exact", credit="current"), 8, 15),
        (LearningPlan(dense="final", rollouts=8), 4, 8),
        (LearningPlan(branched=True), 2, 2),
        (LearningPlan(branched=True), 4, 5),  # 6, 5 or 4: steps 1 to 3 are queried, those before the branch once
        (LearningPlan(branched=True, dense="exact"), 8, 11),  # 14 to 8
        (LearningPlan(branched=True, dense="final"), 4, 2),
    ],
)
def test_queries_are_foreseen(plan, steps, expected):
    assert queries_per_prompt(plan, steps) == expected


RECIPE = """\
model: emoji-turbo
prompts: simple-animals
reward: {colorfulness: {}, emoji-clip: {weight: 100}}
eval: {steps: [1, 4], rewards: {emoji-style: {style: 3d}}}
seed: 7
"""


def report(colour, clip, style, diversity=0.5):
    """An evaluation at 1 and 4 steps: the base model's means are the tuned ones less 0.1, at 4 steps 1 more."""

    def at(steps, name, mean):
        mean = float(mean)
        base, tuned = Interval(mean - 0.1 + (steps == 4), None, None), Interval(mean + (steps == 4), None, None)
        return StepResult(steps, name, base, tuned, tuned, 0.5, 2)

    named = {"colorfulness": colour, "emoji-clip": clip, "emoji-style": style}
    return EvaluationReport(
        "m", "a", 2, 4, "ddim", 0.0, 7, tuple(at(steps, *one) for steps in (1, 4) for one in named.items()),
        (Diversity(1, "x", 0.4, diversity), Diversity(4, "x", 0.4, diversity)),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A finished run of 3 epochs, evaluated after the first and, as though it had once been longer, after a fifth."""
    folder = RunFolder(tmp_path / "run")
    folder.evaluations.mkdir(parents=True)
    folder.recipe.write_text(RECIPE)
    rows = [{"epoch": epoch, "images": 32 * epoch, "queries": 64 * epoch} for epoch in (1, 2, 3)]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder.evaluations / "epoch-00001.json").write_text(to_json(report(50, 0.8, 0.3)))
    (folder.evaluations / "epoch-00005.json").write_text(to_json(report(99, 0.9, 0.9)))
    folder.evaluation.write_text(to_json(report(60, 0.7, 0.5)))
    return folder


def test_a_curve_is_read_from_a_run(run):
    curve = read_curve(run, "arm")
    assert (curve.arm, curve.seed) == ("arm", 7)
    assert [(point.images, point.queries) for point in curve.points] == [(0, 0), (32, 64), (96, 192)]
    # The base model of the report; the trained rewards' sum is colour + 100 · alignment, without the style.
    assert [point.means[1, "total reward"] for point in curve.points] == pytest.approx([59.9 + 60, 50 + 80, 60 + 70])
    assert [point.means[4, "emoji-style"] for point in curve.points] == pytest.approx([1.4, 1.3, 1.5])
    assert [point.means[4, "diversity"] for point in curve.points] == pytest.approx([0.4, 0.5, 0.5])


def test_an_evaluation_after_the_last_epoch_stands_before_the_report(run):
    (run.evaluations / "epoch-00003.json").write_text(to_json(report(70, 0.7, 0.5)))
    assert read_curve(run, "arm").points[-1].means[1, "colorfulness"] == 70


@pytest.mark.parametrize(
    "reward", ["{colorfulness: {}}", "{colorfulness: {normalise: prompt}, emoji-clip: {normalise: prompt}}"]
)
def test_there_is_no_sum_of_what_is_not_added_as_it_is(run, reward):
    recipe = load_recipe(run.recipe, [f"reward={reward}"]).recipe
    means = means_of(report(60, 0.7, 0.5), recipe, "tuned")
    assert (1, "total reward") not in means
    assert means[1, "colorfulness"] == 60


@pytest.mark.parametrize("text", ["", '{"epoch": 1}\n'])
def test_a_run_whose_metrics_do_not_belong_to_it(run, text):
    run.metrics.write_text(text)
    with pytest.raises(ArtifactError) as fault:
        read_curve(run, "arm")
    assert str(fault.value) == f"{run.metrics}: does not say what every epoch took; leave this run out"


def test_a_run_that_has_not_ended_has_no_curve(run):
    run.evaluation.unlink()
    with pytest.raises(ArtifactError) as fault:
        read_curve(run, "arm")
    assert str(fault.value) == f"{run.path}: has no report yet; finish it with `sdpo train --resume`"
