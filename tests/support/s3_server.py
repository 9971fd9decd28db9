"""A server that speaks S3, on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


@contextmanager
def serving_s3(monkeypatch: pytest.MonkeyPatch, objects: dict[str, bytes], bucket: str = "pictures") -> Iterator[str]:
    """Serve a bucket with these objects until the end of the block; the environment leads to it. Yields its address.

    A page of a listing has three names, so that small tests have several pages.
    """
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "secret-word",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=address)
    S3FileSystem.clear_instance_cache()  # one of another server would be used again
    try:
        client.create_bucket(Bucket=bucket)
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data)
        yield address
    finally:
        server.stop()
