import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.core.text import without_secrets


@pytest.mark.parametrize(
    ("address", "left"),
    [
        ("http://127.0.0.1:8321", "http://127.0.0.1:8321"),
        ("http://u:sekret@host/x", "http://host/x"),
        ("postgresql://u@host/x?password=sekret", "postgresql://host/x"),
        ("postgresql://u:a/b@c@host/x#y", "postgresql://host/x"),
        ("http://u:se?kret@host", "http://…"),
        ("u:sekret@host", "host"),
        ("sqlite:////a@b/c.db", "sqlite:////a@b/c.db"),
        ("s3:///u:sekret@bucket", "s3://bucket"),
        ("//u:sekret@bucket", "bucket"),
        ("s3:u:sekret@bucket", "bucket"),
        ("/srv/a@b", "/srv/a@b"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_what_may_hold_a_secret_is_left_out(address: str, left: str) -> None:
    assert without_secrets(address) == left


@given(password=st.text(min_size=1), place=st.sampled_from(["{}@h", "u:{}@h/x", "u@h/?password={}", "h/x?a=b&c={}"]))
def test_no_password_is_shown_whatever_it_is_made_of(password: str, place: str) -> None:
    assert f"<{password}>" not in without_secrets("http://" + place.format(f"<{password}>"))
