"""The floor of publishing to S3: boto3 and hashlib alone, put, get and hash."""

import hashlib
import io
import os
import time

import boto3

from benchmarks import trees
from benchmarks.side import serve


class Bare:
    """A client of the server that the first argument names."""

    def __init__(self) -> None:
        self.client = boto3.client("s3", endpoint_url=os.environ["LORATREE_S3_ENDPOINT"], region_name="us-east-1")

    def create(self, bucket: str) -> None:
        """Creates the bucket that both sides use."""
        self.client.create_bucket(Bucket=bucket)

    def publish_file(self, bucket: str, turn: int, rank: int) -> float:
        """Puts a large adapter, gets it back and hashes it; returns the seconds."""
        weights, key = trees.adapter(rank, seed=1_000_000 + turn), f"bare/{turn}"
        start = time.perf_counter()
        self.client.put_object(Bucket=bucket, Key=key, Body=io.BytesIO(weights))
        hasher = hashlib.sha256()
        for chunk in self.client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1024 * 1024):
            hasher.update(chunk)
        taken = time.perf_counter() - start
        assert hasher.digest() == hashlib.sha256(weights).digest()
        return taken


if __name__ == "__main__":
    bare = Bare()
    serve({"create": bare.create, "publish_file": bare.publish_file})
