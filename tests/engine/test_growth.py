"""What a run holds does not grow with its epochs; `long_run.py` measures hundreds of them."""

import dataclasses
import gc
import threading
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import tiny
import torch

from sdpo_cli.engine.disk.artifacts import RunFolder, write_recipe
from sdpo_cli.engine.events import EpochDone
from sdpo_cli.engine.training.run import whole_run
from sdpo_cli.recipe import GuardSection, KeepBestSection, dump_recipe


def held() -> tuple[Counter, list[str], int]:
    """Tensors by shape, but for the latest returns of each prompt, of which there may be ever more up to a bound;
    open files; threads.
    """
    gc.collect()
    tensors = Counter(tuple(one.shape) for one in gc.get_objects() if issubclass(type(one), torch.Tensor))
    returns = [shape for shape in tensors if len(shape) == 2 and shape[1] == STEPS]
    for shape in returns:
        tensors["returns"] += tensors.pop(shape)
    files = []
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            files.append(str(file.readlink()))
    return tensors, sorted(files), threading.active_count()


STEPS = 3
"""So many numbers in a row in two dimensions has nothing of the model."""


def test_tensors_open_files_and_threads_stay_as_many(checkpoint, tmp_path):
    setup = tiny.setup(checkpoint, epochs=8, steps=STEPS, pairs=5, micro_batch=5)
    changes = {
        "train": setup.recipe.train.model_copy(update={"keep_last": 1, "ema_decay": 0.5}),
        "eval": setup.recipe.eval.model_copy(update={"steps": (1,), "every": 2, "images_per_prompt": 1}),
        "guard": GuardSection(keep_best=KeepBestSection(measure="brightness")),
    }
    setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update=changes))
    folder = RunFolder(tmp_path)
    write_recipe(folder, dump_recipe(setup.recipe))
    found = {}
    with closing(whole_run(setup, folder, None)) as events:
        while 7 not in found:
            event = next(events)
            if isinstance(event, EpochDone):
                found[event.epoch] = held()
    assert found[3][0] == found[7][0]
    assert found[3][1:] == found[7][1:]
    assert found[7][0]["returns"] >= len(tiny.PROMPTS), "the tensors were seen"
