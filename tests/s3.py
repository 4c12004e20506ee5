"""S3 servers for the tests: what is known of one, and moto's, which runs in threads of this process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import boto3
import botocore.session
from moto.server import ThreadedMotoServer

# Each client reads 2 MB of JSON anew, which takes 0.15 s of its 0.2. The tests open thousands: they share what is read.
botocore.session.create_loader = cache(botocore.session.create_loader)


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server and its owner's keys."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which boto3 in this process or a child takes these keys, and asks no one else for others."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }

    def client(self) -> Any:
        """The owner's boto3 client, which is the caller's to close."""
        session = boto3.Session(self.access_key, self.secret_key, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.endpoint)


@contextmanager
def moto() -> Iterator[S3Server]:
    """Starts moto's server on a free port, and stops it at the end."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3Server(f"http://{host}:{port}", "key", "secret")
    finally:
        server.stop()
