import json
import subprocess
import sys

from pipeline.errors import StorageError
from pipeline.stages.release import run
from tests.pipeline.report.fabricated import build


def test_release_publishes_weights_and_report(tmp_path):
    result = run(build(str(tmp_path)))
    names = {"model.safetensors", "config.json", "README.md"}
    assert set(result.outputs) == {f"weights/{name}" for name in names} | {"report.json", "report.html"}
    assert all((tmp_path / name).is_file() for name in result.outputs)
    copied = (tmp_path / "weights/model.safetensors").read_bytes()
    assert copied == (tmp_path / "checkpoints/unlearned/model.safetensors").read_bytes()
    assert json.loads((tmp_path / "weights/config.json").read_bytes()) == {"component": "autoencoder", "width": 32}


def test_release_names_a_missing_file(tmp_path):
    job = build(str(tmp_path))
    (tmp_path / "evaluation/errors.npz").unlink()
    try:
        run(job)
    except StorageError as fault:
        assert "errors.npz" in fault.message
    else:
        raise AssertionError("nothing was raised")


def test_release_loads_no_torch():
    code = "import sys, pipeline.stages.release; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
