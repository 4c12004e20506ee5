"""A whole number that a body writes as `2.0` is the integer 2, as a JSON schema says; no other float is."""

import httpx
import pytest

DIGEST = "sha256:" + "a" * 64
HEAD = '{"name": "whole", "manifest": {"parameters": [{"name": "a.weight", "dtype": "F32", "kind": "Linear", '
TAIL = f'"sha256": "{DIGEST}"}}], "vocabulary_size": 7.0}}}}'


def send(http: httpx.Client, path: str, body: str) -> httpx.Response:
    return http.post(path, content=body, headers={"Content-Type": "application/json"})


def test_a_whole_number_with_a_point_is_taken(http: httpx.Client) -> None:
    answer = send(http, "/v1/uploads", f'{{"sha256": "{DIGEST}", "size": 12.0}}')
    assert (answer.status_code, answer.json()["size"]) == (201, 12)
    answer = send(http, "/v1/bases", f'{HEAD}"shape": [2.0, 3e0], {TAIL}')
    assert (answer.status_code, answer.json()["parameters"], answer.json()["vocabulary_size"]) == (200, 6, 7)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('"size": 12.5', "size: Input should be a valid integer"),
        ('"size": "12"', "size: Input should be a valid integer"),
        ('"size": true', "size: Input should be a valid integer"),
        ('"size": 1e400', "size: Input should be a valid integer"),
        ('"size": 12.0, "size": 13.0', "may be read in two ways"),
        ('"size": 12.0, "sizes": 13.0', "sizes: no such field (did you mean 'size'?)"),
    ],
)
def test_any_other_number_is_refused(http: httpx.Client, body: str, said: str) -> None:
    answer = send(http, "/v1/uploads", f'{{"sha256": "{DIGEST}", {body}}}')
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
