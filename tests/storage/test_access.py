"""Where buckets are reached and with which keys."""

from pathlib import Path

import pytest

from tests.data.loader.made import refusal
from tests.storage.faulty import Faulty
from udl_dist.errors import UsageError
from udl_dist.storage import access
from udl_dist.storage.objects import Object
from udl_dist.storage.uris import parse

FILES = {
    "credentials": (
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key ="
        " s3cr3t\n[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key ="
        " s3cr3t\naws_session_token = t0k3n\n"
    ),
    "config": "[profile lab]\nregion = eu-north-1\n[profile sso]\nsso_session = lab\n",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    for name, text in FILES.items():
        (tmp_path / ".aws" / name).write_text(text)


def test_a_profile_gives_its_keys_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    assert access.profile()["access_key_id"] == "AKIADEFAULT"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = access.profile()
    assert (found["access_key_id"], found["session_token"]) == ("AKIALAB", "t0k3n")
    assert found["region"] == "eu-north-1"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    assert access.profile() == {}


def test_a_profile_without_keys_names_the_command_that_gives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "sso")
    with refusal(
        UsageError, "'sso' holds no keys", "aws configure export-credentials --profile sso"
    ):
        access.profile()


def test_requests_are_signed_with_the_keys_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with Faulty({"bucket/a.tar": b"12345"}) as server:
        assert Object(server.uri("bucket/a.tar")).read(1, 3) == b"234"
        assert "Credential=AKIALAB/" in server.signed and "/eu-north-1/" in server.signed
        anonymous = Object(server.uri("bucket/a.tar") + "&anonymous=true")
        assert anonymous.read(1, 3) == b"234" and server.signed == ""


@pytest.mark.parametrize("status", ["", "301", "403"])
def test_the_region_of_a_bucket_is_asked_of_the_service(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with Faulty({"bucket": b""}) as server:
        monkeypatch.setattr(access, "REGIONS", server.address)
        server.always = {"301": f"301 {server.address}"}.get(status, status)
        assert access.region_of(parse("s3://bucket/a.tar")) == "ap-south-1"
        assert access.region_of(parse("s3://bucket/a.tar?region=eu-west-1")) == "eu-west-1"
        assert len(server.seen) == 1
    monkeypatch.setattr(access, "REGIONS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert access.region_of(parse("s3://bucket/a.tar")) == "us-west-2"
