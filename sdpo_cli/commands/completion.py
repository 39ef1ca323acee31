"""Shell completion of plug-in and recipe names; callbacks for Typer's `autocompletion`. They import no torch."""


def complete_reward(incomplete: str) -> list[tuple[str, str]]:
    """Installed rewards that begin so, with their summaries."""
    from sdpo_cli.api import RewardSpec

    return _plugins(RewardSpec, incomplete)


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Installed base models that begin so, with their summaries."""
    from sdpo_cli.api import BaseModelSpec

    return _plugins(BaseModelSpec, incomplete)


def complete_prompts(incomplete: str) -> list[tuple[str, str]]:
    """Installed prompt sources that begin so, with their summaries."""
    from sdpo_cli.api import PromptSourceSpec

    return _plugins(PromptSourceSpec, incomplete)


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Shipped recipes that begin so, with the first line of their comment."""
    from sdpo_cli.recipe import shipped_recipes

    return [
        (name, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
        for name, path in shipped_recipes().items()
        if name.startswith(incomplete)
    ]


def complete_source(incomplete: str) -> list[tuple[str, str]]:
    """What pictures can be drawn with: recipes and base models that begin so."""
    return complete_recipe(incomplete) + complete_model(incomplete)


def complete_plugin(incomplete: str) -> list[tuple[str, str]]:
    """Installed plug-ins of every kind that begin so, with their summaries."""
    from sdpo_cli.api import Spec

    return _plugins(Spec, incomplete)


def _plugins(kind: type, incomplete: str) -> list[tuple[str, str]]:
    from sdpo_cli.registry import load_registry

    specs = [plugin.spec for plugin in load_registry().of_kind(kind)]
    return [(spec.name, spec.summary) for spec in specs if spec.name.startswith(incomplete)]
