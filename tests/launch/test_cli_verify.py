"""`unlearn verify` of releases: what it prints, its exit codes, and that it never repeats a key."""

from __future__ import annotations

import json
from pathlib import Path

import typer.testing

from launch.cli import app
from launch.cli_verify import release_lines
from launch.verify_bundle import verify_release
from pipeline.ledger.store import open_ledger
from tests.launch.test_cli_release import unlearn
from tests.support.finished import FORGOTTEN
from tests.support.releasing import Place

KEY = next(iter(FORGOTTEN))


def test_an_intact_release_with_and_without_its_key(shop: Place, bundle: Path) -> None:
    trusted = unlearn("verify", str(bundle), "--key", f"{shop.base}/signer.pub")
    assert trusted.exit_code == 0, trusted.output
    assert trusted.stdout.splitlines() == [
        "16 files, 8 receipts checked; statement, report and receipts agree",
        f"signed by {shop.key.key_id}: trusted",
        "signature of the weights: fits",
        "what may be claimed: measured; no certificate",
    ]
    without = unlearn("verify", str(bundle))
    assert without.exit_code == 0 and f"signed by {shop.key.key_id}, key not given: not trusted" in without.stdout
    assert json.loads(unlearn("verify", str(bundle), "--json").stdout)["trusted"] is False
    assert release_lines(verify_release(str(bundle), shop.key.public)) == trusted.stdout.splitlines()


def test_faults_end_with_three_and_are_named(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"other")
    (bundle / "extra.bin").write_bytes(b"x")
    done = unlearn("verify", str(bundle))
    assert done.exit_code == 3 and "3 faults" in done.stderr and "do not use these weights" in done.stderr
    assert f"{bundle}/model.safetensors: changed" in done.stderr and "extra.bin: a stranger" in done.stderr


def test_whether_an_image_was_forgotten(shop: Place, bundle: Path) -> None:
    secret = ("--secret", f"{shop.base}/digests.key")
    yes = unlearn("verify", str(bundle), *secret, "--image-key", KEY)
    assert yes.exit_code == 0 and yes.stdout.startswith("this image is among the forgotten of this release\n")
    no = unlearn("verify", str(bundle), *secret, "--image-key", "s0/img0", "--json")
    assert json.loads(no.stdout)["forgotten"] is False
    piped = typer.testing.CliRunner().invoke(app, ["verify", str(bundle), *secret, "--image-key", "-"], input=f"{KEY}\n")
    assert piped.exit_code == 0 and "is among the forgotten" in piped.stdout
    assert unlearn("keys", "destroy", secret[1], "--yes").exit_code == 0
    gone = unlearn("verify", str(bundle), *secret, "--image-key", KEY)
    assert gone.exit_code == 2 and "digests.key: no such file" in gone.stderr
    unlearn("keys", "new-secret", secret[1])
    answers = {unlearn("verify", str(bundle), *secret, "--image-key", key).stderr for key in (KEY, "s0/img0", "none at all")}
    assert len(answers) == 1 and "another secret" in answers.pop()
    assert not any(KEY in result.output for result in (yes, no, piped, gone))


def test_a_ledger_is_held_against_the_release(room: Place, usual: Path) -> None:
    url, other = (f"sqlite:///{room.base}/{name}.sqlite" for name in ("own", "other"))
    with open_ledger(url) as ledger, open_ledger(other, actor="someone else"):
        folder = room.send(usual, ledger).release.folder
    assert unlearn("verify", folder, "--ledger", url).exit_code == 0
    done = unlearn("verify", folder, "--ledger", other)
    assert done.exit_code == 3 and "not what it was when this was released" in done.stderr


def test_what_belongs_together_is_given_together(shop: Place, bundle: Path, usual: Path) -> None:
    assert unlearn("verify", str(bundle), "--image-key", KEY).exit_code == 2
    run = unlearn("verify", str(usual), "--key", f"{shop.base}/signer.pub")
    assert run.exit_code == 2 and "not a release" in run.stderr
    assert unlearn("verify", str(usual)).stdout.endswith("receipts and digests intact; unsigned\n")
