"""Any Python function as a reward, named `module:function`: for people who do not want a package yet.

The function takes three arguments, in this order, and gives one number a picture, higher is better, as a list, an
array or a tensor:

    def score(images, prompts, metadata):
        '''images [B, 3, H, W], float32, 0..1; prompts, B texts; metadata, B dicts of what the prompts' source says.'''
        return images.mean((1, 2, 3))

The module is looked for in the recipe's folder, the working folder and the Python path, and is really imported: a
recipe that names one runs its code. Importing this module imports no torch.
"""

import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sdpo_cli.api import Options, RewardSpec, UserPath
from sdpo_cli.errors import PluginError, SdpoError, UsageError
from sdpo_cli.recipe import did_you_mean
from sdpo_cli.registry.discovery import said

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import ScoreRequest, ScoreResult

_NAME = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_TAKES = "(images, prompts, metadata)"


class FunctionOptions(Options):
    """Where the module is."""

    folder: UserPath | None = Field(
        default=None, description="folder of the module; a run's record has the one where it was found"
    )


def is_function_name(name: str) -> bool:
    """Whether a name has the form `module:function`, either with dots."""
    return _NAME.fullmatch(name) is not None


def function_spec(name: str, folders: Sequence[Path], place: str) -> tuple[RewardSpec, Path | None]:
    """The record of the reward `module:function`, and that of `folders` in which its module lies, if any.

    Its version is a hash of the source files that define module and function; what those import is not in it.
    UsageError, naming `place`, where there is no such function, PluginError where it does not take the three arguments.
    """
    module_name, attribute = name.split(":")
    module = imported(module_name, folders, place)
    function = found(module, attribute, place)
    files = sources(module, function)
    if not files:
        remedy = "write a function of your own that calls it"
        raise PluginError("has no source file, so its version cannot be told", place=place, remedy=remedy)
    spec = RewardSpec(
        name=attribute,
        summary=(inspect.getdoc(function) or name).splitlines()[0].strip() or name,
        version=f"sha256 {hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:16]}",
        source=files[0].name,
        options=FunctionOptions,
        load=lambda options, context: FunctionReward(name, function, files),
    )
    return spec, next((folder for folder in folders if files[0].is_relative_to(folder.resolve())), None)


def imported(name: str, folders: Sequence[Path], place: str) -> ModuleType:
    """The module, looked for in `folders` before the Python path.

    UsageError where it is not there, PluginError where it breaks.
    """
    with on_path(folders):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # it is there and lacks another
                raise PluginError(f"cannot be imported: {said(error)}", place=place) from error
            looked = ", ".join(dict.fromkeys(map(str, folders)))
            remedy = f"looked in {looked} and the Python path; correct the name, or move the file there"
            raise UsageError(f"no module {error.name}", place=place, remedy=remedy) from None
        except (Exception, SystemExit) as error:
            where = last_line(error, None)
            raise PluginError(f"cannot be imported: {said(error)}{where}", place=place) from error


@contextmanager
def on_path(folders: Sequence[Path]) -> Iterator[None]:
    """The folders in front of the Python path while entered, at its end afterwards for what is imported later."""
    texts = list(dict.fromkeys(map(str, folders)))
    sys.path[:0] = texts
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for text in texts:
            if text in sys.path:
                sys.path.remove(text)
        sys.path += [text for text in texts if text not in sys.path]


def found(module: ModuleType, attribute: str, place: str) -> Callable[..., Any]:
    """What `attribute`, perhaps with dots, is in the module. UsageError where there is nothing.

    PluginError unless it takes the three arguments.
    """
    try:
        function = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        known = [name for name, value in vars(module).items() if callable(value)]
        remedy = did_you_mean(attribute, known) or f"define {attribute}{_TAKES} there"
        where = getattr(module, "__file__", None) or module.__name__
        raise UsageError(f"{where} has no {attribute}", place=place, remedy=remedy) from None
    if not callable(function) or inspect.isclass(function):
        kind = "class" if inspect.isclass(function) else type(function).__name__
        raise PluginError(f"is no function ({kind})", place=place, remedy=f"name a function of {_TAKES}")
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        takes = str(inspect.signature(function))
        raise PluginError(f"takes {takes}", place=place, remedy=f"let it take {_TAKES}") from None
    except ValueError:  # written in C, and silent about it
        pass
    return function


def sources(module: ModuleType, function: Callable[..., Any]) -> list[Path]:
    """The files of the module and of the function, which may come from another one."""
    owner = sys.modules.get(getattr(inspect.unwrap(function), "__module__", None) or type(function).__module__)
    files = [getattr(one, "__file__", None) for one in (module, owner)]
    return [Path(file).resolve() for file in dict.fromkeys(files) if file]


def last_line(error: BaseException, files: Sequence[Path] | None) -> str:
    """` at my_module.py:12`: the innermost line of an error that is in `files`, or in any where None."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if files is None or Path(frame.filename).resolve() in files]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


class FunctionReward:
    """The function as a reward."""

    def __init__(self, name: str, function: Callable[..., Any], files: Sequence[Path]) -> None:
        self.name, self.function, self.files = name, function, files

    def score(self, request: "ScoreRequest") -> "ScoreResult":
        """Its numbers as float32. PluginError where it raises, or gives no numbers."""
        import torch

        from sdpo_cli.api.tensors import ScoreResult

        place = f"reward {self.name}"
        metadata: list[Mapping[str, Any]] = [dict(one) for one in request.metadata] or [{} for _ in request.prompts]
        try:
            answer = self.function(request.images.clone(), list(request.prompts), metadata)
        except (SdpoError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            fault = f"raised {said(error)}{last_line(error, self.files)}"
            raise PluginError(fault, place=place, remedy="mend the function") from error
        try:
            return ScoreResult(torch.as_tensor(answer, dtype=torch.float32).detach().clone())
        except (TypeError, ValueError, RuntimeError) as error:
            remedy = "return one number a picture, as a list, an array or a tensor"
            raise PluginError(f"gave {type(answer).__name__}", place=place, remedy=remedy) from error
