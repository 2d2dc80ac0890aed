"""A run on two ranks becomes a signed release that another process verifies and loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from pipeline.models.autoencoder import Config, build
from tests.support.command import unlearn

pytestmark = pytest.mark.distributed
SECRETS = (b"train-000002", b"train-000006")


def test_a_finished_run_is_released_verified_elsewhere_and_loads(finished: Path, tmp_path: Path) -> None:
    key, secret, to = str(tmp_path / "signer"), str(tmp_path / "digests.key"), str(tmp_path / "releases")
    assert unlearn("keys", "new", key).returncode == 0
    assert unlearn("keys", "new-secret", secret).returncode == 0
    words = ("release", str(finished), "--to", to, "--key", f"{key}.key", "--secret", secret, "--alias", "production", "--json")
    refused = unlearn(*words, cwd=tmp_path)
    assert refused.returncode == 4 and "no verdict" in refused.stderr  # this run sets no rules
    done = unlearn(*words, "--approve", "Ada", "--reason", "a test without rules", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    elsewhere = tmp_path / "another machine"
    shutil.move(made["folder"], str(elsewhere))
    checked = unlearn("verify", str(elsewhere), "--key", f"{key}.pub", "--secret", secret, "--image-key", "train-000006")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("this image is among the forgotten") and ": trusted" in checked.stdout
    model = build(Config(image_size=8, width=8, latent=16))
    model.load_state_dict(safetensors.torch.load((elsewhere / "model.safetensors").read_bytes()))
    for path in (path for root in (elsewhere, Path(to)) for path in root.rglob("*") if path.is_file()):
        assert not any(word in path.read_bytes() for word in SECRETS), path
    flipped = bytearray((elsewhere / "statement.dsse.json").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (elsewhere / "statement.dsse.json").write_bytes(flipped)
    tampered = unlearn("verify", str(elsewhere), "--key", f"{key}.pub")
    assert tampered.returncode == 3 and "statement.dsse.json" in tampered.stderr and "Traceback" not in tampered.stderr
    assert not any(word.decode() in text.stdout + text.stderr for word in SECRETS for text in (done, refused, checked))
