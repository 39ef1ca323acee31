"""For plug-in authors: each check tries one object against its contract and names the law that it breaks.

    from sdpo_cli.testing import check_reward

    def test_brightness_keeps_the_contract():
        check_reward(Brightness())

`sdpo plugins check NAME` tries the same laws and reports on each. All of them use small random inputs and fixed seeds.
"""

from sdpo_cli.testing.examples import compare
from sdpo_cli.testing.laws import Verdict
from sdpo_cli.testing.models import check_base_model
from sdpo_cli.testing.objectives import check_objective
from sdpo_cli.testing.prompts import check_prompt_source
from sdpo_cli.testing.report import conformance
from sdpo_cli.testing.rewards import check_reward

__all__ = [
    "Verdict",
    "check_base_model",
    "check_objective",
    "check_prompt_source",
    "check_reward",
    "compare",
    "conformance",
]
