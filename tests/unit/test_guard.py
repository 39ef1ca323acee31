"""The guard's decisions, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_cli.engine.evaluating.guard import Evaluated, Judgement, conclusion, decide, in_words, lr_share
from sdpo_cli.errors import RecipeError
from sdpo_cli.recipe import (
    GuardSection,
    KeepBestSection,
    RollbackSection,
    StopRule,
    dump_recipe,
    read_recipe,
    recipe_faults,
)
from sdpo_cli.recipe.text import parse_yaml
from sdpo_cli.registry import resolve

BASE = {"colour": {1: 50.0, 4: 60.0}, "gold": {1: 0.75, 4: 0.875}}


def evaluations(*rows: tuple[float, float], start: int = 1) -> list[Evaluated]:
    """Epochs 1, 2, ... with (colour, gold) at 1 step; at 4 steps colour is 10 higher and gold 1/8."""
    return [
        Evaluated(epoch, BASE, {"colour": {1: float(colour), 4: colour + 10.0}, "gold": {1: gold, 4: gold + 0.125}})
        for epoch, (colour, gold) in enumerate(rows, start)
    ]


def guard(*rules: StopRule, measure: str | None = "colour", times: int = 0, **keep: object) -> GuardSection:
    return GuardSection(
        keep_best=KeepBestSection(measure=measure, **keep),
        stop_if=rules,
        rollback=RollbackSection(times=times, lr_factor=0.5),
    )


def course(found: tuple[Judgement, ...]) -> list[tuple[int | None, str]]:
    return [(one.best, one.action) for one in found]


DROP = StopRule(measure="gold", drop=0.0625)


class TestKeepBest:
    def test_the_highest_so_far_and_the_earliest_of_equals(self):
        found = decide(guard(), evaluations((55, 0.7), (70, 0.6), (70, 0.9), (65, 0.7)))
        assert course(found) == [(1, "go on"), (2, "go on"), (2, "go on"), (2, "go on")]
        assert found[-1].best_value == 75  # the mean of 70 and 80

    def test_the_lowest_where_that_is_the_goal(self):
        found = decide(guard(goal="lowest"), evaluations((55, 0.7), (40, 0.6), (45, 0.9)))
        assert [one.best for one in found] == [1, 2, 2]

    def test_an_epoch_that_breaks_a_rule_is_never_kept(self):
        patient = StopRule(measure="gold", drop=0.0625, patience=9)
        found = decide(guard(patient), evaluations((55, 0.75), (90, 0.5), (60, 0.7)))
        assert [one.best for one in found] == [1, 1, 3]
        assert [bool(one.broken) for one in found] == [False, True, False]

    def test_only_the_step_counts_that_are_named_are_looked_at(self):
        one = Evaluated(1, BASE, {"colour": {1: 10.0, 4: 90.0}, "gold": BASE["gold"]})
        assert decide(guard(steps=(4,)), [one])[0].best_value == 90
        assert decide(guard(steps=(1, 4)), [one])[0].best_value == 50
        assert decide(guard(steps=(4,)), [one])[0].values == {"colour at 4 steps": 90}

    def test_nothing_is_kept_where_nothing_is_asked_for(self):
        found = decide(guard(DROP, measure=None), evaluations((55, 0.75), (90, 0.5), (60, 0.75)))
        assert course(found) == [(None, "go on"), (None, "stop")]


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "stops_at"),
        [
            (StopRule(measure="gold", drop=0.0625), 3),  # from the base's 0.8125: 0.75 is not more below, 0.6875 is
            (StopRule(measure="gold", drop=0.125), 4),
            (StopRule(measure="gold", drop=0.125, since="best"), 3),  # from 0.875 at epoch 1
            (StopRule(measure="gold", below=0.6875, steps=(1,)), 3),
            (StopRule(measure="gold", below=0.5), 5),
            (StopRule(measure="colour", above=75, steps=(1,)), 3),
            (StopRule(measure="gold", drop=0.0625, patience=2), 4),
            (StopRule(measure="gold", below=0.1), None),
        ],
    )
    def test_each_kind_by_hand(self, rule, stops_at):
        # gold over both step counts: 0.875, 0.75, 0.6875, 0.625, 0.4375
        rows = evaluations((50, 0.8125), (75, 0.6875), (80, 0.625), (85, 0.5625), (90, 0.375))
        found = decide(guard(rule), rows)
        assert (found[-1].epoch if found[-1].action == "stop" else None) == stops_at
        assert len(found) == (stops_at or 5)

    def test_patience_counts_evaluations_in_a_row(self):
        rule = StopRule(measure="gold", below=0.6, steps=(1,), patience=2)
        found = decide(guard(rule), evaluations((1, 0.5), (1, 0.7), (1, 0.5), (1, 0.5), (1, 0.9)))
        assert [one.streaks for one in found] == [(1,), (0,), (1,), (2,)]
        assert found[-1].action == "stop"

    def test_any_of_several_rules_is_enough(self):
        rules = (StopRule(measure="gold", below=0.1), StopRule(measure="colour", above=80, steps=(1,)))
        found = decide(guard(*rules), evaluations((70, 0.7), (90, 0.7)))
        assert course(found) == [(1, "go on"), (1, "stop")]
        assert found[-1].streaks == (0, 1)

    def test_a_rule_that_is_broken_at_once_stops_with_nothing_kept(self):
        assert course(decide(guard(DROP, times=3), evaluations((90, 0.5)))) == [(None, "stop")]

    def test_no_evaluation_no_judgement(self):
        assert decide(guard(DROP), []) == ()


class TestRollback:
    def test_goes_back_so_often_then_stops_and_counts_patience_anew(self):
        rule = StopRule(measure="gold", drop=0.0625, patience=2)
        bad, good = (90, 0.5), (60, 0.75)
        found = decide(guard(rule, times=1), evaluations(good, bad, bad, bad, bad, good))
        assert course(found) == [(1, "go on"), (1, "go on"), (1, "go back"), (1, "go on"), (1, "stop")]
        assert [one.rollbacks for one in found] == [0, 0, 1, 1, 1]
        assert [one.streaks for one in found] == [(0,), (1,), (2,), (1,), (2,)]

    def test_each_takes_its_factor_off_the_learning_rate(self):
        rules = guard(DROP, times=2)
        found = decide(rules, evaluations((60, 0.75), (90, 0.5), (70, 0.75), (90, 0.5)))
        assert course(found) == [(1, "go on"), (1, "go back"), (3, "go on"), (3, "go back")]
        assert [lr_share(rules, one) for one in (None, *found)] == [1, 1, 0.5, 0.5, 0.25]


ROWS = st.lists(st.tuples(st.integers(40, 100), st.sampled_from([0.25, 0.5, 0.6875, 0.75, 0.875])), max_size=12)


@given(rows=ROWS, patience=st.integers(1, 3), times=st.integers(0, 3), cut=st.integers(0, 12))
def test_laws_of_every_course(rows, patience, times, cut):
    rules = guard(StopRule(measure="gold", drop=0.0625, since="best", patience=patience), times=times)
    seen = evaluations(*rows)
    found = decide(rules, seen)
    assert found[:cut] == decide(rules, seen[:cut])  # what comes later changes nothing
    assert "stop" not in [one.action for one in found[:-1]]
    assert sum(one.action == "go back" for one in found) <= times
    sound = [(one.values["colour"], -one.epoch) for one in found if not one.broken]
    for one in found[-1:]:
        assert one.best == (-max(sound)[1] if sound else None)


class TestWords:
    def said(self, rules: GuardSection, *rows: tuple[float, float]) -> list[str]:
        return [in_words(rules, one) for one in decide(rules, evaluations(*rows))]

    def test_every_outcome(self):
        rule = StopRule(measure="gold", steps=(1,), drop=0.1, patience=2)
        rows = ((60, 0.75), (59, 0.75), (90, 0.5), (90, 0.5), (70, 0.5), (70, 0.5))
        fell = "gold at 1 step fell from the base model's 0.75 to 0.5, by more than 0.1"
        assert self.said(guard(rule, times=1), *rows) == [
            "guard, epoch 1: colour is 65, the best so far",
            "guard, epoch 2: colour is 64, epoch 1 stays the best",
            f"guard, epoch 3: {fell}; waiting for the next evaluation",
            f"guard, epoch 4: {fell}; back to epoch 1, at 0.5 of the learning rate",
            f"guard, epoch 5: {fell}; waiting for the next evaluation",
            f"guard, epoch 6: {fell}; training stops",
        ]

    def test_all_that_is_broken_is_said(self):
        rules = (StopRule(measure="gold", below=0.9), StopRule(measure="colour", above=10, steps=(1, 4)))
        assert self.said(guard(*rules, measure=None), (80, 0.75)) == [
            "guard, epoch 1: gold is 0.8125, below 0.9; colour at 1 and 4 steps is 85, above 10; training stops"
        ]

    def test_a_fall_from_the_best(self):
        rule = StopRule(measure="colour", drop=5, since="best")
        assert self.said(guard(rule, measure=None), (80, 0.9), (60, 0.7)) == [
            "guard, epoch 1: every rule is kept",
            "guard, epoch 2: colour fell from its best 85 to 65, by more than 5; training stops",
        ]

    def test_which_epoch_is_kept_and_why(self):
        rows = evaluations((60, 0.75), (90, 0.5))
        assert [
            conclusion(rules, decide(rules, rows)) for rules in (guard(), guard(DROP), guard(DROP, measure=None))
        ] == [
            "Kept: epoch 2, where colour, 95, was highest.",
            "Kept: epoch 1, where colour, 65, was highest among the evaluations that broke no rule.",
            "Kept: the last epoch, 2; the guard was told to keep no other.",
        ]
        assert conclusion(guard(DROP), decide(guard(DROP), rows[1:])) == (
            "Kept: the last epoch, 2, for want of a better one: every evaluation broke a rule."
        )


class TestFaults:
    """What is wrong with a guard is said when the recipe is read."""

    @staticmethod
    def faults(guard: str, evaluation: str = "{every: 2}", model: str = "emoji-turbo") -> list[str]:
        text = f"model: {model}\nprompts: simple-animals\nreward: colorfulness\neval: {evaluation}\nguard: {guard}\n"
        with pytest.raises(RecipeError) as fault:
            resolve(parse_yaml(text, "r.yaml"), "r.yaml")
        return fault.value.faults

    @pytest.mark.parametrize(
        ("guard", "fault"),
        [
            (
                "{keep_best: {measure: colorfulnes}}",
                "guard.keep_best.measure: nothing called 'colorfulnes' is measured; did you mean colorfulness? "
                "measured: colorfulness, diversity, kl_base",
            ),
            (
                "{stop_if: [{measure: kl_base, above: 0.1}, {measure: emoji-clip, drop: 0.1}]}",
                "guard.stop_if.1.measure: nothing called 'emoji-clip' is measured; "
                "measured: colorfulness, diversity, kl_base",
            ),
            (
                "{stop_if: [{measure: kl_base, above: 0.1, steps: [4]}]}",
                "guard.stop_if.0.steps: kl_base is measured in training, at no step count; leave it out",
            ),
            (
                "{stop_if: [{measure: diversity, below: 0.1, drop: 0.1}]}",
                "guard.stop_if.0: needs one of below, above and drop",
            ),
            ("{stop_if: [{measure: diversity}]}", "guard.stop_if.0: needs one of below, above and drop"),
            (
                "{stop_if: [{measure: diversity, belw: 0.1}]}",
                "guard.stop_if.0.belw: unknown field; did you mean below?",
            ),
            ("{keep_bets: {}}", "guard.keep_bets: unknown field; did you mean keep_best?"),
            (
                "{keep_best: {measure: colorfulness, steps: [3]}}",
                "guard.keep_best.steps: 3 is not in eval.steps; evaluated are 1, 2, 4, 8",
            ),
            (
                "{rollback: {times: 1}}",
                "guard.rollback: there is no kept epoch to go back to; set guard.keep_best.measure",
            ),
            ("{stop_if: [{measure: diversity, drop: 0}]}", "guard.stop_if.0.drop: 0 should be above 0"),
        ],
    )
    def test_one_line_each(self, guard, fault):
        assert self.faults(guard) == [f"r.yaml: {fault}"]

    def test_a_guard_needs_evaluations(self):
        (fault,) = self.faults("{keep_best: {measure: colorfulness}}", "{}")
        assert fault == (
            "r.yaml: guard: acts on evaluations, and eval.every 0 makes none; set eval.every, or leave guard out"
        )

    def test_a_guard_watches_to_the_end(self):
        (fault,) = self.faults("{keep_best: {measure: colorfulness}}", "{every: 3}")
        assert fault == (
            "r.yaml: eval.every: 3 does not divide train.epochs 16: guard would miss the last 1; use 1, 2, 4, 8 or 16"
        )

    def test_diversity_needs_two_pictures_of_a_prompt(self):
        (fault,) = self.faults("{stop_if: [{measure: diversity, below: 0.1}]}", "{every: 2, images_per_prompt: 1}")
        assert fault == (
            "r.yaml: guard.stop_if.0.measure: diversity compares pictures of one prompt, and eval.images_per_prompt is "
            "1; set eval.images_per_prompt to 2 or more"
        )

    def test_the_divergence_is_not_logged_where_all_weights_are_trained(self):
        rule = "{stop_if: [{measure: kl_base, above: 0.1}]}"
        (fault,) = self.faults(rule, model="{name: emoji-turbo, train: full}")
        assert fault.startswith("r.yaml: guard.stop_if.0.measure: nothing called 'kl_base' is measured; ")

    @staticmethod
    def test_a_guard_reads_back_as_it_was_written(tmp_path):
        text = "model: m\nprompts: p\nreward: r\neval: {every: 1}\nguard: {stop_if: [{measure: r, below: 1}]}\n"
        (tmp_path / "r.yaml").write_text(text)
        recipe, _ = recipe_faults(read_recipe(tmp_path / "r.yaml").raw, "r.yaml")
        (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
        assert recipe_faults(read_recipe(tmp_path / "again.yaml").raw, "r.yaml") == (recipe, [])
        assert recipe.guard.stop_if == (StopRule(measure="r", below=1),)
