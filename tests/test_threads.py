"""Processes that fork, and threads that share a model or change its mode."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PHOTO, faces, lively, run
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, predict_proba

#: What a process may have called, and nothing else of ours, when it forks.
BEFORE = {
    "load_pretrained": "ferfacenet.load_pretrained()",
    "preprocess": "ferfacenet.preprocess(photo)",
    "the model": "ferfacenet.ImprovedVGG19().eval()(torch.rand(40, 1, 48, 48))",
    # A child that got a lock which a thread holds, and not the thread, would wait for it.
    "another thread": """
from ferfacenet import fast
fold, begun, model = fast._fold, threading.Event(), ferfacenet.ImprovedVGG19()
fast._fold = lambda *layer: begun.set() or time.sleep(0.1) or fold(*layer)
threading.Thread(target=ferfacenet.predict_proba, args=(model, torch.rand(2, 1, 48, 48))).start()
begun.wait()
""",
}

FORK = """
import os, signal, sys, threading, time
import torch
import ferfacenet
photo = sys.argv[1]
torch.set_num_threads(2)
{before}
if not os.fork():
    signal.alarm(60)  # the end of a child that waits for ever
    ferfacenet.predict_proba(ferfacenet.ImprovedVGG19(width=0.5), torch.rand(40, 1, 48, 48))
    os._exit(0)
assert os.wait()[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_answers_whatever_came_before() -> None:
    def fork(before: str) -> str:
        return run(FORK.format(before=before), str(PHOTO)).stderr

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(BEFORE, pool.map(fork, BEFORE.values()), strict=True))
    assert not any(found.values()), found


WORKERS = """
import multiprocessing, torch
from ferfacenet import ImprovedVGG19, predict_proba
torch.set_num_threads(2)
model, x = ImprovedVGG19(width=0.25).eval(), torch.rand(40, 1, 48, 48)
expected = predict_proba(model, x)
for method in ("fork", "spawn"):
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in [pool.apply_async(predict_proba, (model, x)) for _ in range(4)]:
            assert torch.allclose(found.get(60), expected, atol=1e-5)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_and_spawned_workers_answer_as_their_parent() -> None:
    done = run(WORKERS, env={"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr


def test_a_change_of_mode_by_others_changes_no_answer_and_is_kept() -> None:
    """Somebody else calls ``train`` or ``eval`` while the images are read."""
    model = lively(ImprovedVGG19(width=0.25))
    expected = predict_proba(model, faces(8), precision="float32")
    for before, meanwhile in ((False, True), (True, False), (True, True)):
        model.train(before)

        def source(mode: bool = meanwhile) -> Iterator[Tensor]:
            for image in faces(8):
                model.train(mode)
                yield image

        found = predict_proba(model, source(), batch_size=4, precision="float32")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert {module.training for module in model.modules()} == {meanwhile}


def test_other_modules_are_in_eval_mode_until_the_last_call_is_done() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(44 * 44, 7))
    expected = predict_proba(copy.deepcopy(model).eval(), faces(20))
    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(lambda _: predict_proba(model, faces(20), batch_size=20), range(64)):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert all(module.training for module in model.modules())
    assert float(model[0].running_mean) == 0  # type: ignore[arg-type]
