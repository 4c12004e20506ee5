"""A base's manifest is checked before other code relies on it."""

from dataclasses import replace

import pytest

from loratree_registry.core.manifest import BaseManifest, Parameter, check_manifest
from loratree_registry.errors import Invalid
from tests.registry.material import sha256

LINEAR = Parameter(name="a.weight", shape=(3, 2), dtype="F32", kind="Linear", sha256=sha256(b"a"))
TIED = Parameter(name="b.weight", shape=(3, 2), dtype="F32", kind="Linear", tied_to="a.weight")


def test_a_manifest_of_whole_parameters_is_given_back() -> None:
    bias = replace(LINEAR, name="a.bias", shape=(3,))
    norm = replace(LINEAR, name="norm.weight", shape=(3,), kind="LayerNorm")
    odd = replace(LINEAR, name="en->fr.größe 1.weight")
    manifest = BaseManifest(parameters=(LINEAR, TIED, bias, norm, odd))
    assert check_manifest(manifest) is manifest


@pytest.mark.parametrize(
    ("parameters", "phrase"),
    [
        ((), "it has no parameters"),
        ((LINEAR, LINEAR), "a.weight appears twice"),
        ((replace(LINEAR, sha256=None),), "needs either a sha256 or a tensor that it is tied to"),
        ((TIED,), "b.weight is tied to a.weight, which is not an untied tensor"),
        ((replace(LINEAR, shape=(3,)),), r"a.weight of a Linear has shape \[3\], expected two dimensions"),
        ((replace(LINEAR, shape=(1, 3, 2), kind="Conv1D"),), "of a Conv1D has shape"),
        ((replace(LINEAR, name="a..weight"),), "joined by dots"),
        ((replace(LINEAR, name="a\n.weight"),), "joined by dots"),
        ((replace(LINEAR, name="a" * 513),), "513 characters"),
    ],
)
def test_a_manifest_that_others_could_not_use_is_refused(parameters: tuple[Parameter, ...], phrase: str) -> None:
    with pytest.raises(Invalid, match=phrase):
        check_manifest(BaseManifest(parameters=parameters))
