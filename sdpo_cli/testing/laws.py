"""Laws, and how they are tried: stage by stage, each with its verdict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdpo_cli.errors import PluginError, SdpoError, UsageError, one_line

TOLERANCE = 1e-4

Stage = Mapping[str, Callable[[], None]]
"""Laws by what they say, independent of each other. One returns when it holds, and raises otherwise."""


@dataclass(frozen=True)
class Verdict:
    """What became of a law, and why it failed or could not be tried."""

    law: str
    result: Literal["ok", "failed", "skipped"]
    why: str = ""


class BrokenLawError(Exception):
    """How a law is broken."""


class NotTriedError(Exception):
    """Why a law cannot be tried here."""


def judged(stages: Sequence[Stage]) -> Iterator[Verdict]:
    """A verdict on every law, in order. Where a stage has one that does not hold, the stages after it are skipped."""
    standing = True
    for stage in stages:
        verdicts = [
            verdict(law, holds) if standing else Verdict(law, "skipped", "rests on a law above")
            for law, holds in stage.items()
        ]
        yield from verdicts
        standing = standing and all(one.result == "ok" for one in verdicts)


def verdict(law: str, holds: Callable[[], None]) -> Verdict:
    """The verdict on one law, whatever it raises. What the user has to mend (UsageError) is nobody's failure."""
    try:
        holds()
    except (NotTriedError, UsageError) as reason:
        return Verdict(law, "skipped", str(reason))
    except (BrokenLawError, SdpoError) as fault:
        return Verdict(law, "failed", str(fault))
    except Exception as error:
        return Verdict(law, "failed", one_line(f"raised {type(error).__name__}: {error}"))
    return Verdict(law, "ok")


def keep(stages: Sequence[Stage]) -> None:
    """Try every law. PluginError naming the first that does not hold; what the plug-in itself raises passes through."""
    for stage in stages:
        for law, holds in stage.items():
            try:
                holds()
            except NotTriedError:
                pass
            except BrokenLawError as fault:
                raise PluginError(str(fault), place=law) from None


def require(holds: bool, fault: str) -> None:
    """BrokenLawError with `fault` unless it holds."""
    if not holds:
        raise BrokenLawError(fault)


def require_floats(value: Any, shape: tuple[int, ...]) -> None:
    """BrokenLawError unless `value` is a finite float32 tensor of that shape."""
    require(isinstance(value, Tensor), f"it gives a {type(value).__name__}")
    require(value.shape == shape, f"it gives {list(value.shape)}, not {list(shape)}")
    require(value.dtype == torch.float32, f"it gives {value.dtype}")
    require(bool(value.isfinite().all()), f"{int((~value.isfinite()).sum())} are not finite")


def require_number(value: Any) -> None:
    """BrokenLawError unless `value` is a tensor of one finite number."""
    require(isinstance(value, Tensor) and value.ndim == 0 and bool(value.isfinite()), f"it is {value!r}")


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to 1e-4, absolute and relative."""
    return torch.allclose(one.float().cpu(), other.float().cpu(), rtol=TOLERANCE, atol=TOLERANCE)
