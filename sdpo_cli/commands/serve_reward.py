"""`sdpo serve-reward`: any installed reward behind HTTP, for `http` in somebody's recipe."""

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_reward
from sdpo_cli.commands.sources import DeviceOption

if TYPE_CHECKING:
    from sdpo_cli.api import RewardSpec
    from sdpo_cli.api.remote import Limits
    from sdpo_cli.engine.rewards.serving import Service
    from sdpo_cli.registry import Chosen

TOKEN = "SDPO_REWARD_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_reward(
    name: Annotated[
        str,
        typer.Argument(
            help="A reward: its name, dist:name, or module:function.",
            show_default=False,
            autocompletion=complete_reward,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the reward. May be repeated."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(envvar=TOKEN, help="What clients must know; better given by the variable.", show_default=False),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures in one question.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of a question's pictures together.")] = 64_000_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a question.")] = 400_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a question may take, waiting included.")] = 300.0,
    device: DeviceOption = "auto",
) -> None:
    """Serve a reward over HTTP.

    Such as: sdpo serve-reward pickscore --port 8765. A recipe asks it with
    `reward: {http: {urls: ["http://127.0.0.1:8765"]}}`. Ctrl-C or SIGTERM ends it.
    """
    from sdpo_cli.api.remote import Limits
    from sdpo_cli.errors import UsageError

    check_installed()
    limits = Limits(max_images=max_images, max_pixels=max_pixels, max_bytes=max_bytes, timeout=timeout)
    token = checked_token(token)
    if token is None and host not in LOOPBACK:
        fault = f"{host} is open to others, and there is no token"
        raise UsageError(fault, place="--host", remedy=f"set {TOKEN}, or listen at 127.0.0.1")
    chosen = chosen_reward(name, overrides or [])
    from sdpo_cli.engine.rewards.serving import listening, make_app, serve  # imports torch, which takes seconds

    service = loaded_service(chosen, limits, token, device)
    app = make_app(service)
    with listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"serving {name} at http://{shown}:{listener.getsockname()[1]}; Ctrl-C ends it", err=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it is done
            signal.signal(number, lambda *_: None)
        serve(app, listener)


def check_installed() -> None:
    """UsageError where the extra that serves is not installed."""
    from importlib.util import find_spec

    from sdpo_cli.errors import UsageError

    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            remedy = "pip install 'sdpo-cli[serve]'"
            raise UsageError(f"{name} is not installed", place="sdpo serve-reward", remedy=remedy)


def checked_token(token: str | None) -> str | None:
    """The token; an empty one is none. UsageError where a header could not carry it."""
    from sdpo_cli.api.remote import is_token
    from sdpo_cli.errors import UsageError

    if token and not is_token(token):
        raise UsageError("holds other than printable ASCII letters", place="--token", remedy="use letters and digits")
    return token or None


def chosen_reward(name: str, overrides: list[str]) -> "Chosen[RewardSpec]":
    """The reward with its options, as `--set OPTION=VALUE` gives them."""
    from sdpo_cli.errors import UsageError
    from sdpo_cli.recipe.text import parse_yaml
    from sdpo_cli.registry import load_registry

    options = {}
    for text in overrides:
        option, equals, value = text.partition("=")
        if not equals or not option:
            raise UsageError("no option and value", place=f"--set {text}", remedy="write --set style=flat")
        options[option] = parse_yaml(value, f"--set {option}")
    return load_registry().reward(name, options)


def loaded_service(chosen: "Chosen[RewardSpec]", limits: "Limits", token: str | None, device: str) -> "Service":
    """The reward, loaded, and what is said about it."""
    from sdpo_cli.api import LoadContext
    from sdpo_cli.api.remote import Info
    from sdpo_cli.engine.rewards.scoring import full_version
    from sdpo_cli.engine.rewards.serving import Service
    from sdpo_cli.engine.setup import pick_device
    from sdpo_cli.registry.lookup import path_options

    where = pick_device(device)
    reward, spec = chosen.load(LoadContext(device=str(where))), chosen.spec
    paths = path_options(spec.options)  # of this machine alone
    info = Info(
        reward=chosen.name,
        version=full_version(spec.version, reward),
        summary=spec.summary,
        source=spec.source,
        options={name: value for name, value in chosen.all_options().items() if name not in paths},
        limits=limits,
    )
    return Service(info, reward, where, token)
