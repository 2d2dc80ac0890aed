"""What must hold of the program on any store behind S3's interface. A test module names the store in a fixture `store`."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.access import check_access
from pipeline.config import ReadingConfig
from pipeline.data.tombstones import Tombstones, watch, write_tombstones
from pipeline.errors import StorageError
from pipeline.storage import exists, list_files, open_read, publish, publish_bytes
from tests.support.cuts import FORGOTTEN, batches, cut, image, index, streams, upload, write_tars
from tests.support.stores import Keys, S3Store, client_of, forget_clients

numbers = itertools.count()
READERS = ("s3:ListBucket", "s3:GetObject")


class Bucket:
    """A new bucket, looked at with a client that is not under test."""

    def __init__(self, store: S3Store, **settings: Any) -> None:
        self.name, self.client = f"images-{next(numbers)}", store.client
        self.base = f"s3://{self.name}"
        self.client.create_bucket(Bucket=self.name, **settings)

    def put(self, uri: str, content: bytes) -> str:
        """Store an object; returns its version."""
        key = uri.removeprefix(f"{self.base}/")
        return str(self.client.put_object(Bucket=self.name, Key=key, Body=content).get("VersionId", ""))

    def read(self, key: str) -> bytes:
        """What lies there."""
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keep_versions(self) -> None:
        """From now on nothing is overwritten."""
        self.client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})

    def versions(self) -> set[tuple[str, str]]:
        """Key and version of all there is, delete markers included."""
        found = self.client.list_object_versions(Bucket=self.name)
        return {(e["Key"], e["VersionId"]) for kind in ("Versions", "DeleteMarkers") for e in found.get(kind, ())}

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Key and bytes of every version of every object."""
        for entry in self.client.list_object_versions(Bucket=self.name).get("Versions", ()):
            where = {"Bucket": self.name, "Key": entry["Key"], "VersionId": entry["VersionId"]}
            yield entry["Key"], self.client.get_object(**where)["Body"].read()

    def uploads(self) -> list[str]:
        """Keys of unfinished uploads."""
        return sorted(entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ()))

    def allow_all_to_read(self) -> None:
        """Let every user list and read, and nobody but the owner write; where users have no rights of their own."""
        where = [f"arn:aws:s3:::{self.name}", f"arn:aws:s3:::{self.name}/*"]
        rule = {"Effect": "Allow", "Principal": "*", "Action": READERS, "Resource": where}
        self.client.put_bucket_policy(Bucket=self.name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))


class WithBucket:
    """Every test is a client of the store, with a bucket of its own."""

    @pytest.fixture
    def bucket(self, store: S3Store) -> Iterator[Bucket]:
        bucket = Bucket(store)
        with client_of(store.environment()):
            yield bucket


class S3Laws(WithBucket):
    """Index, stream, publish, tombstones, and refusals."""

    def test_a_source_in_the_bucket_is_what_it_is_on_disk(self, bucket: Bucket, tmp_path: Path) -> None:
        upload(write_tars(tmp_path / "tars")[0].parent, f"{bucket.base}/tars", bucket.put)
        here, there = cut(f"{tmp_path}/tars", f"{tmp_path}/out"), cut(f"{bucket.base}/tars", f"{bucket.base}/out")
        assert there.content == here.content
        for split in ("forget", "retain", "holdout"):
            assert batches(there, split=split) == batches(here, split=split)
        assert {uri.rpartition("/")[2] for uri in list_files(bucket.base, ".tar")} >= {"train-0.tar", "forget-000000.tar"}

    def test_an_index_is_made_anew_only_where_a_shard_changed(self, bucket: Bucket, tmp_path: Path) -> None:
        tars = write_tars(tmp_path / "tars")
        upload(tmp_path / "tars", f"{bucket.base}/tars", bucket.put)
        first = index(f"{bucket.base}/tars", f"{bucket.base}/out")
        assert index(f"{bucket.base}/tars", f"{bucket.base}/out") == first
        # Of the same size, and perhaps in the same second: only the store's own mark tells.
        old = image("s0/img0")
        changed = tars[0].read_bytes().replace(old, old[:-1] + bytes([old[-1] ^ 1]))
        bucket.put(f"{bucket.base}/tars/train-0.tar", changed)
        second, _ = index(f"{bucket.base}/tars", f"{bucket.base}/out")
        assert (first[0].generation, second.generation) == (1, 2)
        assert second.training[0].sha256 == hashlib.sha256(changed).hexdigest() != first[0].training[0].sha256

    @pytest.mark.parametrize("megabytes", [0, 1, 11])
    def test_what_is_published_is_there_whole(self, bucket: Bucket, megabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The largest goes up in three parts, the least that the store takes in one."""
        monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
        content, uri = random.Random(1).randbytes(megabytes << 20), f"{bucket.base}/a folder/é+&.bin"
        assert publish_bytes(uri, content).sha256 == hashlib.sha256(content).hexdigest()
        found = bucket.client.get_object(Bucket=bucket.name, Key="a folder/é+&.bin")
        assert found["Body"].read() == content
        assert found["ETag"].endswith('-3"') == (megabytes == 11)
        with open_read(uri) as stream:
            assert stream.read() == content

    def test_a_writer_that_fails_leaves_nothing(self, bucket: Bucket) -> None:
        with pytest.raises(RuntimeError, match="the writer"), publish(f"{bucket.base}/x/y.tar") as out:
            out.write(bytes(9 << 20))
            raise RuntimeError("the writer failed")
        assert not exists(f"{bucket.base}/x/y.tar") and not bucket.versions() and not bucket.uploads()

    def test_streams_skip_what_has_a_tombstone(self, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.data.tombstones.POLL_SECONDS", 0.0)
        upload(write_tars(tmp_path / "tars")[0].parent, f"{bucket.base}/tars", bucket.put)
        run = cut(f"{bucket.base}/tars", f"{bucket.base}/out")
        source = run.manifest.source_folder.rpartition("/")[2]
        dead, given = hashlib.sha256(FORGOTTEN[0].encode()).hexdigest(), {}
        (stream,) = streams(run, "original", ReadingConfig(threads=2), 1, tombstones=watch(run.output, source))
        try:
            for step in range(2 * stream.steps_per_pass):
                if step == stream.steps_per_pass:
                    write_tombstones(run.output, Tombstones(batch_digest="b" * 64, source=source, keys=(dead,), images=()))
                part = stream.batch(step)
                weights = dict(zip(part.keys, part.weights.tolist(), strict=False))
                given.update({(step // stream.steps_per_pass, key): weight for key, weight in weights.items()})
        finally:
            stream.close()
        assert [place for place, weight in given.items() if not weight] == [(1, FORGOTTEN[0])]

    @pytest.mark.parametrize(
        ("who", "where", "write", "message"),
        [
            ("wrong secret", "", False, "the secret key is wrong"),
            ("unknown key", "", True, "the store does not know this access key"),
            ("nobody", "", True, "no credentials were found"),
            ("owner", "nowhere-at-all", False, "there is no bucket 'nowhere-at-all'"),
            ("stranger", "", False, "these credentials may not read bucket '{bucket}'"),
            ("reader", "", True, "these credentials may not write to bucket '{bucket}'"),
        ],
    )
    def test_each_refusal_has_one_message(
        self, store: S3Store, bucket: Bucket, who: str, where: str, write: bool, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strangers = {"wrong secret": Keys(store.owner.access, "s" * 32), "unknown key": Keys("UNKNOWNKEY0123456789", "s" * 32)}
        keys = {**strangers, "stranger": store.stranger, "reader": store.reader}.get(who, store.owner)
        if who == "reader":
            bucket.allow_all_to_read()
        with client_of(store.environment(keys)):
            if who == "nobody":
                for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                    monkeypatch.delenv(name)
                forget_clients()
            if who == "reader":
                check_access(f"{bucket.base}/runs", write=False)
            uri = f"s3://{where or bucket.name}/runs"
            with pytest.raises(StorageError) as caught:
                check_access(uri, write=write)
        assert caught.value.message == f"{uri}: {message.format(bucket=bucket.name)}"
        assert caught.value.cure and keys.secret not in str(caught.value)
        assert not bucket.versions() and not bucket.uploads()

    def test_leave_to_write_is_asked_for_and_nothing_is_left_of_it(self, bucket: Bucket) -> None:
        bucket.keep_versions()
        check_access(f"{bucket.base}/runs", write=True)
        check_access(bucket.base, write=True)
        assert not bucket.versions() and not bucket.uploads()

    def test_without_credentials_nothing_is_tried_again(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        forget_clients()
        began = time.monotonic()
        for act in (exists, list_files, lambda uri: publish_bytes(uri, b"x")):
            with pytest.raises(StorageError, match="credentials"):
                act(f"{bucket.base}/x")
        assert time.monotonic() - began < 10

    def test_addresses_keep_the_scheme_that_was_given(self, bucket: Bucket) -> None:
        """Else what was written under one name would not be known again in a list, and be taken for a leftover."""
        bucket.put(f"{bucket.base}/x/y.tar", b"y")
        for base in (bucket.base, bucket.base.replace("s3://", "s3a://")):
            assert list_files(f"{base}/x", ".tar") == list_files(f"{base}/*/y.tar") == [f"{base}/x/y.tar"]

    def test_a_refusal_without_a_reason_is_asked_for_its_reason(self, store: S3Store, bucket: Bucket) -> None:
        """The first thing that most commands do is a HEAD request, whose answer has no body that could say why."""
        with client_of(store.environment(Keys(store.owner.access, "s" * 32))):
            with pytest.raises(StorageError, match="the secret key is wrong"):
                exists(f"{bucket.base}/runs/config.yaml")
