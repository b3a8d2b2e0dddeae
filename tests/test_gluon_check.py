"""The script that checks kernels in Gluon on a device, with the emulator in the device's place."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gluon_machine import Machine

ROOT = Path(__file__).parent.parent


def imported(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(tmp_path, monkeypatch):
    tools = imported("gpu_gluon", ROOT / "tools" / "gpu_gluon.py")
    tools.write_gluon(tmp_path, ["documents"])
    shutil.copy(ROOT / "tools" / "gpu" / "gluon_check.py", tmp_path)
    script = imported("gluon_check", tmp_path / "gluon_check.py")
    monkeypatch.setattr(script, "DEVICE", "cpu")
    return script


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_kernel_is_checked(script, spoiled):
    path = script.HERE / "gluon_documents.py"
    module = script.load(path)

    def emulated(kernel, described):
        def run(**arguments):
            Machine(path.read_text()).launch(kernel.__name__, described.grid[0], arguments)
            if spoiled:
                arguments["out_desc"].base[0, 0, 0, 0] += 0.1

        return run

    module.gluon_launchable = emulated
    with module.assume_target("sm_90", shares=1):
        row = script.attempt(script.checked, module, (1, 2, 1, 65, 65, 64), torch.float16)
    assert row["name"] == "documents"
    assert row["launches"] == 1
    assert row["ok"] is not spoiled


def test_an_entry_is_one_that_import_takes(script):
    import json

    from attnc.runtime.tuned_store import FORMAT, parse_tuned

    module = script.load(script.HERE / "gluon_documents.py")
    script.torch.cuda.get_device_name, original = (lambda: "a device"), script.torch.cuda.get_device_name
    try:
        entry = script.entry_of(
            module, "documents 1 gluon", (1, 8, 8, 4096, 4096, 128), torch.bfloat16, {"gluon": 1.0, "tl": 2.0}
        )
    finally:
        script.torch.cuda.get_device_name = original
    (found,) = parse_tuned(json.dumps({"format": FORMAT, "entries": [entry]}))
    assert found.entry.kernel == "documents 1 gluon"
    assert found.entry.tiles.query == 128
