"""A guarded `sdpo train` from the outside: what is said in a terminal, and what is written."""

import json

from sdpo_cli.main import main

RULES = "guard={keep_best: {measure: colorfulness}, stop_if: [{measure: emoji-clip, below: LIMIT, steps: [1]}]}"
SETTINGS = ["eval.every=1", "eval.steps=[1]", "eval.images_per_prompt=1", "train.samples_every=0"]


def train(*settings: str) -> int:
    return main(["train", "small.yaml", *(part for setting in (*SETTINGS, *settings) for part in ("--set", setting))])


def test_the_terminal_the_report_and_the_card_say_which_epoch_is_kept_and_why(workplace, capsys):
    assert train(RULES.replace("LIMIT", "-1")) == 0
    run, err = workplace / "runs" / "small", capsys.readouterr().err.splitlines()
    assert "evaluate: tuned model, 1 step (1 of 1)" in err, "the base model's pictures are there already"
    lines = [line for line in err if line.startswith(("guard, ", "Kept: "))]
    assert len(lines) == 3
    best = [json.loads(line)["best"] for line in (run / "guard.jsonl").read_text().splitlines()][-1]
    assert lines[-1].startswith(f"Kept: epoch {best}, where colorfulness, ")
    for page in ("report.html", "adapter/README.md"):
        assert all(line in (run / page).read_text() for line in lines)
    assert main(["export", "runs/small", "--out", "exported", "--quiet"]) == 0
    assert lines[-1] in (workplace / "exported" / "README.md").read_text()
    capsys.readouterr()
    assert main(["train", "--resume", "--set", "eval.images_per_prompt=2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: runs/small/recipe.yaml: eval.images_per_prompt: 1 cannot become 2 in a resumed run; "
        "--override eval.images_per_prompt allows it"
    ]


def test_a_run_with_nothing_worth_keeping_ends_in_one_line_and_exit_code_5(workplace, capsys):
    assert train(RULES.replace("LIMIT", "1.0")) == 5
    *_, kept, error = capsys.readouterr().err.splitlines()
    assert error == (
        "error: runs/small: every evaluation broke a rule of the guard, so no epoch is worth keeping; evaluate more "
        "often (eval.every) or lower train.learning_rate; report.html shows the last epoch"
    )
    assert kept == "Kept: the last epoch, 1, for want of a better one: every evaluation broke a rule."
    assert main(["train", "--resume"]) == 5
    assert capsys.readouterr().err.splitlines() == [error], "the guard has ended the run, before its last epoch"


def test_an_unknown_measure_is_one_line_before_anything_is_loaded(workplace, capsys):
    assert train("guard.keep_best.measure=emoji-clop") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: small.yaml: guard.keep_best.measure: nothing called 'emoji-clop' is measured; did you mean emoji-clip? "
        "measured: colorfulness, emoji-clip, diversity, kl_base"
    ]
    assert not (workplace / "runs").exists()
