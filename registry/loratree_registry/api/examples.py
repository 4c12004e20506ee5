"""One small tree: the source of every example in the OpenAPI document."""

from dataclasses import asdict, replace
from typing import Any, Final

from loratree_registry.blobs.store import PART as _PART_SIZE
from loratree_registry.core.chain import Chain, Step
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.documents import Document
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.core.records import (
    AdapterSummary,
    Alias,
    Base,
    BaseRef,
    Count,
    Edge,
    Event,
    Lineage,
    Link,
    Mark,
    Node,
    Page,
    Pin,
    Published,
    Resolution,
    Retained,
    Tombstone,
    Version,
)
from loratree_registry.core.uploads import Part, Upload
from loratree_registry.wire.bodies import (
    Files,
    Health,
    Keep,
    Move,
    NewBase,
    NewNode,
    NewUpload,
    NewVersion,
    Reason,
    Source,
    Stored,
)

PATH: Final = "llama-3.1-8b/medicine/cardiology"
REF: Final = f"{PATH}@stable"
NULL: Final = "\0"  # FastAPI drops null from its document, so the application replaces this mark by null
WHEN: Final = "2026-01-31T09:30:00Z"


def _digest(letter: str) -> str:
    return "sha256:" + letter * 64


_FILE = FileDigest("adapter_model.safetensors", 84_000_000, _digest("e"))
_CONFIG: dict[str, Any] = {"r": 32, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"]}
PARENT: Final = "llama-3.1-8b/medicine"
_PIN = Pin(path=PARENT, version=3, digest=_digest("c"), found="lockfile")
_ON_BASE = Pin(path=None, version=None, digest=None, found="explicit")

UPLOAD_ID: Final = "5f2b9c0d4e6a7f8091a2b3c4d5e6f708"
HEALTH = Health(status="ok", version="0.1.0")
MANIFEST = BaseManifest(
    parameters=(
        Parameter(name="lm_head.weight", shape=(128_256, 4096), dtype="BF16", kind="Linear", sha256=_digest("1")),
        Parameter(name="model.norm.weight", shape=(4096,), dtype="BF16", kind="LlamaRMSNorm", sha256=_digest("2")),
    ),
    architecture="LlamaForCausalLM",
    vocabulary_size=128_256,
)
BASE = Base(
    name="llama-3.1-8b",
    digest=MANIFEST.digest,
    architecture="LlamaForCausalLM",
    parameters=128_256 * 4096 + 4096,
    vocabulary_size=128_256,
    source="meta-llama/Llama-3.1-8B",
    stored=True,
    created_at=WHEN,
)
SOURCE = Source(source="meta-llama/Llama-3.1-8B")
COUNT = Count(path=PATH, descendants=212, more=False)
NODE = Node(
    path=PATH,
    level="subdomain",
    head=2,
    has_children=True,
    aliases={"stable": 2},
    created_at=WHEN,
    marks=["stale"],
    kinds=["LoRA"],
    ranks=[32],
    pin=_PIN,
)
VERSION = Version(
    path=PATH,
    level="subdomain",
    number=2,
    digest=_digest("d"),
    content=_digest("f"),
    base=BASE.name,
    base_digest=BASE.digest,
    pin=_PIN,
    summary=AdapterSummary(
        ranks=[32], scales=[2.0], modules=64, parameters=41_943_040, dtypes=["BF16"], rules={"additive": 64}
    ),
    config=_CONFIG,
    files=[_FILE],
    size=_FILE.size,
    note="trained on the January notes",
    created_at=WHEN,
    withdrawn=None,
    quarantined=None,
)
_PARENT_FILE = FileDigest("adapter_model.safetensors", 168_000_000, _digest("3"))
_ABOVE = Link(
    path=PARENT,
    level="domain",
    version=3,
    digest=_digest("c"),
    weight=1.0,
    ranks=[64],
    scales=[2.0],
    pin=_ON_BASE,
    head=3,
    stale=False,
    withdrawn=None,
    follow=None,
    files=[_PARENT_FILE],
)
_LEAF = Link(
    path=PATH,
    level="subdomain",
    version=2,
    digest=VERSION.digest,
    weight=1.0,
    ranks=[32],
    scales=[2.0],
    pin=_PIN,
    head=2,
    stale=False,
    withdrawn=None,
    follow=None,
    files=[_FILE],
)
_STEPS = tuple(Step(link.path, link.version, link.digest, link.weight) for link in (_ABOVE, _LEAF))
PARENT_VERSION = replace(
    VERSION,
    path=PARENT,
    level="domain",
    number=3,
    digest=_ABOVE.digest,
    content=_digest("4"),
    pin=_ON_BASE,
    summary=replace(VERSION.summary, ranks=[64], parameters=83_886_080),
    config=_CONFIG | {"r": 64, "lora_alpha": 128},
    files=[_PARENT_FILE],
    size=_PARENT_FILE.size,
    note=None,
)
RESOLUTION = Resolution(
    ref=REF,
    base=BaseRef(name=BASE.name, digest=BASE.digest),
    chain=[_ABOVE, _LEAF],
    stale=False,
    composition=Chain(BASE.name, BASE.digest, _STEPS).digest,
)
LINEAGE = Lineage(
    ref=REF,
    base=RESOLUTION.base,
    edges=[
        Edge(
            child=f"{PATH}@2",
            child_digest=VERSION.digest,
            parent=f"{PARENT}@3",
            parent_digest=_PIN.digest,
            found="lockfile",
            stale=False,
            withdrawn=None,
            quarantined=None,
        ),
        Edge(
            child=f"{PARENT}@3",
            child_digest=_digest("c"),
            parent=None,
            parent_digest=None,
            found="explicit",
            stale=False,
            withdrawn=None,
            quarantined=None,
        ),
    ],
    stale=False,
)
ALIAS = Alias(path=PATH, name="stable", version=2, updated_at=WHEN)
EVENT = Event(
    id=17, path=PATH, kind="alias-set", detail={"alias": "stable", "version": 2, "previous": 1}, created_at=WHEN
)
WITHDRAWN = replace(VERSION, withdrawn=Mark(reason="trained on names of patients", at=WHEN))
IN_QUARANTINE = replace(VERSION, quarantined=WITHDRAWN.withdrawn)
TOMBSTONE = Tombstone(
    path=PATH,
    number=1,
    digest=_digest("7"),
    content=_digest("8"),
    created_at=WHEN,
    quarantined=None,
    reason="it diverges",
    deleted_at=WHEN,
)
RETAINED = Retained(path=PATH, kept=5, deleted=[1], bytes=_FILE.size)
DOCUMENTS = [Document("README.md", "# Cardiology\n\nTrained on reports of the clinic.\n")]
PUBLISHED = Published(version=VERSION, created=True)
PART = Part(number=2, url=f"/v1/uploads/{UPLOAD_ID}/parts/2", headers={"Content-Length": str(_FILE.size - _PART_SIZE)})
UPLOAD = Upload(
    id=UPLOAD_ID, sha256=_FILE.sha256, size=_FILE.size, part_size=_PART_SIZE, parts=2, arrived=[1], next=PART
)
BASE_FILES = [
    FileDigest("config.json", 826, _digest("5")),
    FileDigest("model.safetensors", 1_050_681_528, _digest("6")),
]
STORED = Stored(sha256=_FILE.sha256, size=_FILE.size)

NEW_BASE = NewBase(name=BASE.name, manifest=MANIFEST, source=BASE.source)
NEW_NODE = NewNode(path=PATH, level="subdomain")
NEW_BASE_FILES = Files(files=BASE_FILES)
NEW_UPLOAD = NewUpload(sha256=_FILE.sha256, size=_FILE.size)
NEW_VERSION = NewVersion(config=_CONFIG, files=[_FILE], parent=f"{PARENT}@3", found="lockfile", note=VERSION.note)
REASON = Reason(reason="trained on names of patients")
KEEP = Keep(keep=5, dry_run=True)
MOVE = Move(version=2, expected=1)


def one_page(item: Any, after: str) -> Page[Any]:
    """Return a page that holds `item` and has a next page; `after` is the item's key in the listing."""
    return Page(items=[item], next=after)


def as_json(value: Any) -> Any:
    """Convert a record, or a list of records, to JSON with NULL in place of every null."""
    return replaced([asdict(item) for item in value] if isinstance(value, list) else asdict(value), None, NULL)


def replaced(value: Any, old: Any, new: Any) -> Any:
    """Return the JSON `value` with every leaf `old` replaced by `new`."""
    if isinstance(value, dict):
        return {name: replaced(item, old, new) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replaced(item, old, new) for item in value]
    return new if value == old else value
