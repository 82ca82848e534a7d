"""predict_proba's answers from programs for other runtimes, whatever the batch."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable

import pytest
import torch
from conftest import faces
from torch import Tensor

from ferfacenet import ImprovedVGG19, predict_proba

pytest.importorskip("onnx", reason="needs the onnx extra")
import export_onnx


def check(program: Callable[[Tensor], Tensor], model: ImprovedVGG19, *batches: int) -> None:
    x = faces(max(batches))
    expected = predict_proba(model, x, precision="float32")
    for count in batches:
        assert torch.allclose(program(x[:count]), expected[:count], atol=1e-4)


def exported(model: ImprovedVGG19) -> torch.export.ExportedProgram:
    """From an example of zeros, which the program holds, and of eight faces: of fewer, PyTorch's
    choice of a convolution keeps ExecuTorch's programs from taking more than seven."""
    whole, x = export_onnx.Probabilities(model, "flip").eval(), torch.zeros(8, 1, 48, 48)
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(whole, (x,), dynamic_shapes=({0: batch},))


def test_torch_export(model: ImprovedVGG19) -> None:
    file = io.BytesIO()
    torch.export.save(exported(model), file)
    file.seek(0)
    check(torch.export.load(file).module(), model, 1, 7, 64)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++, which torch.compile calls")
def test_torch_compile(model: ImprovedVGG19) -> None:
    program = torch.compile(export_onnx.Probabilities(model, "flip").eval())
    with torch.no_grad():
        check(program, model, 1, 7)


def test_openvino(model: ImprovedVGG19) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino, of the dev extra")
    core = openvino.Core()
    network = core.read_model(export_onnx.export(model))
    program = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(lambda x: torch.from_numpy(program(x.numpy())[0]), model, 1, 7, 64)


def test_executorch(model: ImprovedVGG19) -> None:
    pytest.importorskip("executorch", reason="needs executorch 1.4 or newer, with its 20 packages")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    edge = to_edge_transform_and_lower(exported(model), partitioner=[XnnpackPartitioner()])
    program = Runtime.get().load_program(edge.to_executorch().buffer)  # it outlives its method
    method = program.load_method("forward")
    assert method is not None
    check(lambda x: method.execute([x])[0], model, 1, 7, 64)
