"""Screens at terminals of four widths: nothing is broken, and the path and the state are always there."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import trees
from benchmarks.loading import load
from loratree_registry.database.engine import writing
from loratree_registry.settings import Settings
from tests import screens
from tests.cli.conftest import LEAF as TINY_LEAF
from tests.cli.conftest import Filled, Shell
from tests.registry.fresh import open_fresh
from tests.registry.serving import command_serving
from tests.screens import BASE, CONTRACTS, DIAGNOSIS, LEAF, MEDICINE, SCREENS, USERS
from tests.terminals import on_terminal

ROOT = Path(__file__).parents[3]
WIDTHS = (60, 80, 120, 200)
WHOLE = 1000  # columns that every screen fits in
CHAIN = [f"{MEDICINE}@1", f"{MEDICINE}/cardiology@1", f"{DIAGNOSIS}@1", f"{LEAF}@1"]
# What each screen shows at every width.
SHOWN: dict[str, list[str]] = {
    "tree": [
        *("medicine domain @3", "cardiology subdomain @1 stale", "contracts subdomain @1 quarantined"),
        *("user-123 user withdrawn", f"… {USERS - 3} more users", "qwen3-4b base"),
    ],
    f"tree {BASE} --depth 2": ["medicine domain @3", "@1 stale", f"… 2 tasks, {USERS} users (1 withdrawn)"],
    "ls": [BASE, "qwen3-4b"],
    f"ls {MEDICINE}": [f"{MEDICINE}/cardiology", f"{MEDICINE}/radiology", "stale"],
    f"show {MEDICINE}": [f"{MEDICINE} (domain) @3", "withdrawn", "@2 was deleted on"],
    f"show {MEDICINE}@4": [f"{MEDICINE}@4", "withdrawn: diverges on prompts"],
    f"show {BASE}": ["LlamaForCausalLM", "23,200", "meta-llama/Llama-3.1-8B", "209 nodes below", "not known"],
    f"resolve {LEAF}": [*CHAIN, "stale", "120 ranks", "1 edge is stale:", f"{MEDICINE}@1, now @3"],
    f"resolve {LEAF} --follow stable": [*CHAIN, "older", "by alias", "stale, by pin"],
    f"resolve {LEAF} --follow latest": [
        *(f"{MEDICINE}@3", "trained on @1, not @3, by alias", "1 version stands on another than it was trained on:"),
        f"{MEDICINE}/cardiology@1 on {MEDICINE}@3, trained on {MEDICINE}@1",
    ],
    f"lineage {LEAF}": [*CHAIN, "stale", "1 edge is stale:", f"{MEDICINE}@1, now @3"],
    f"lineage {CONTRACTS}/review": [f"{CONTRACTS}/review@1", "quarantined", "1 version is quarantined"],
    f"dependents {MEDICINE}@1": [f"{MEDICINE}/cardiology@1", f"{MEDICINE}/radiology@1"],
    f"alias ls {MEDICINE}": ["canary", "stable"],
    f"log {MEDICINE} --limit 6": ["2026-01-31T09:30:00Z", "version withdrawn: @4, reason diverges on prompts that are"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screens")
    screens.grow(folder / "home", folder / "work")
    return folder / "home"


def test_the_page_is_what_the_commands_print(home: Path) -> None:
    assert (ROOT / "docs" / "screens.md").read_text() == screens.page(home)


def test_every_screen_says_what_it_shows() -> None:
    assert list(SHOWN) == [" ".join(arguments) for arguments in SCREENS.values()]


@pytest.mark.parametrize("arguments", SCREENS.values(), ids=" ".join)
def test_screens_fit_every_terminal_and_break_nothing(home: Path, arguments: list[str]) -> None:
    whole = words(screens.captured(home, *arguments, columns=WHOLE))
    names = re.split(r"\s\s+|\n", screens.captured(home, *arguments, columns=WHOLE))
    for width in WIDTHS:
        screen = screens.captured(home, *arguments, columns=width)
        for line in screen.splitlines():
            assert len(line) <= width or len(line.split()) == 1, f"{width}: {line}"
        left_out = re.search(r"^left out: ([^;]*); a wider terminal or --json shows (it|them)$", joined(screen), re.M)
        cut = words(left_out[0]) if left_out else set()
        # Marks, dates and times are shown shorter, but no part of a word is.
        assert words(screen) - cut - {"…"} <= whole, width
        assert not left_out or all(name.strip() in names for name in left_out[1].split(","))
        for part in SHOWN[" ".join(arguments)]:
            assert part in " ".join(screen.split()), f"{width}: {part}"


@pytest.mark.parametrize(("ref", "digests"), [(LEAF, 2), (f"{MEDICINE}@4", 3)])
@pytest.mark.parametrize("width", WIDTHS)
def test_digests_are_whole_and_have_a_label_and_a_line_of_their_own(
    home: Path, width: int, ref: str, digests: int
) -> None:
    screen = screens.captured(home, "show" if "@" in ref else "resolve", ref, columns=width)
    found = [line for line in screen.splitlines() if "sha256:" in line]
    assert len(found) == digests
    assert all(re.search(r"sha256:[0-9a-f]{64}$", line) for line in found)
    assert re.search(r"^(composition|digest)\s+sha256:", screen, re.M)
    assert re.search(rf"^base\s+{BASE}\s+sha256:", screen, re.M)


def test_states_have_a_colour_unless_no_color_is_set(home: Path) -> None:
    yellow, red, bold_red = "\x1b[33m", "\x1b[31m", "\x1b[1;31m"
    resolved = on_terminal(home, "resolve", LEAF, plain=False)
    assert f"{yellow}stale" in resolved
    assert f"{yellow}4 levels" in resolved
    drawn = on_terminal(home, "tree", plain=False)
    assert all(f"{style}{word}" in drawn for style, word in ((yellow, "stale"), (bold_red, "quarantined")))
    assert f"{red}withdrawn: diverges" in on_terminal(home, "show", MEDICINE, plain=False)
    assert f"{bold_red}quarantined: trained on" in on_terminal(home, "lineage", CONTRACTS, plain=False)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", on_terminal(home, "resolve", LEAF, plain=False, NO_COLOR="1"))


def test_show_says_which_version_is_stale_and_which_is_the_head_now(home: Path) -> None:
    cardiology = f"{MEDICINE}/cardiology"
    assert screens.captured(home, "show", cardiology).splitlines()[2].split()[-1] == "stale"
    shown = screens.captured(home, "show", f"{cardiology}@1")
    assert re.search(r"^state +stale$", shown, re.M)
    assert f"{MEDICINE}@1 (explicit), now @3" in " ".join(shown.split())
    assert re.search(r"^state +current$", screens.captured(home, "show", f"{MEDICINE}@3"), re.M)


def test_warnings_are_broken_between_words(home: Path) -> None:
    warned = screens.captured(home, "resolve", LEAF, "--follow", "stabel", columns=60)
    assert "(did you mean 'stable'?)" in " ".join(warned.split())
    assert all(len(line) <= 60 or len(line.split()) == 1 for line in warned.splitlines())


def test_a_weight_that_is_not_1_goes_before_other_columns(home: Path) -> None:
    assert " weight " not in screens.captured(home, "resolve", LEAF)
    weighted = screens.captured(home, "resolve", LEAF, "--weight", f"{MEDICINE}=0.25")
    assert re.search(rf"{MEDICINE}@1 .* 0\.25 ", weighted)


def test_a_pipe_gets_the_same_lines_as_ever(home: Path) -> None:
    shell = Shell(home)
    done = shell("resolve", LEAF)
    header, *rows, composition = done.stdout.splitlines()
    assert header.split("\t") == [
        *("version", "level", "rank", "scale", "weight", "trained on", "found", "state", "digest")
    ]
    assert [row.split("\t")[0] for row in rows] == CHAIN
    assert [row.split("\t")[7] for row in rows] == ["older: now @3", "stale", "current", "current"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", composition)
    base, verdict = done.stderr.splitlines()
    assert re.fullmatch(f"base {BASE} sha256:[0-9a-f]{{64}}", base)
    assert verdict == f"4 levels, 120 ranks, 482.6 KB; 1 edge is stale: {MEDICINE}@1, now @3"
    pins = shell("lineage", f"{CONTRACTS}/review")
    assert pins.stdout.splitlines()[2].split("\t")[:4] == [
        *(f"{CONTRACTS}@1", BASE, "explicit", "quarantined: trained on letters with the names of clients")
    ]
    assert re.match(f"base {BASE} sha256:[0-9a-f]{{64}}\n2 levels, .*; 1 version is quarantined", pins.stderr)
    heading, header, row, *_ = shell("show", MEDICINE).stdout.splitlines()
    assert heading == f"{MEDICINE} (domain) @3 (canary=3, stable=1)"
    assert header.split("\t")[-3:] == ["published", "digest", "state"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", row.split("\t")[8])
    assert row.endswith("\twithdrawn: diverges on prompts that are longer than 4,000 tokens")
    names, *nodes = [line.split("\t") for line in shell("ls", MEDICINE).stdout.splitlines()]
    assert names == ["path", "level", "head", "kind", "rank", "trained on", "found", "aliases", "state"]
    assert [node[3:7] for node in nodes] == [["LoRA", "32", f"{MEDICINE}@1", "explicit"]] * 2
    assert [node[8] for node in nodes] == ["stale", "stale"]
    marks = {line.split("\t")[0]: line.split("\t")[8] for line in shell("ls", DIAGNOSIS).stdout.splitlines()}
    assert (marks[LEAF], marks[f"{DIAGNOSIS}/user-123"]) == ("", "withdrawn")
    assert len(shell("tree", BASE).stdout.splitlines()) == 1 + 9 + USERS


@pytest.mark.parametrize("ref", [f"{MEDICINE}@4", f"{MEDICINE}/cardiology@1", BASE])
def test_a_pipe_gets_every_field_that_a_terminal_shows(home: Path, ref: str) -> None:
    fields = dict(line.split("\t") for line in Shell(home)("show", ref).stdout.splitlines()[1:])
    shown = on_terminal(home, "show", ref, columns=WHOLE)
    for line in filter(None, shown.splitlines()):
        label, value = re.split(r"  +", line, maxsplit=1)
        assert fields.pop(label) == value.strip()
    assert not any(fields.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", MEDICINE],
        ["ls"],
        ["base", "ls"],
        ["show", MEDICINE],
        ["show", f"{MEDICINE}/cardiology"],
        ["resolve", LEAF],
        ["resolve", LEAF, "--follow", "latest"],
        ["lineage", LEAF],
        ["dependents", f"{MEDICINE}@1"],
        ["alias", "ls", MEDICINE],
        ["log", MEDICINE],
    ],
    ids=" ".join,
)
def test_a_pipe_gets_every_column_and_cell_that_a_terminal_shows(home: Path, arguments: list[str]) -> None:
    done = Shell(home)(*arguments)
    piped = [line.split("\t") for line in done.stdout.splitlines()]
    cells = {cell for line in piped for cell in line}
    for line in on_terminal(home, *arguments, columns=WHOLE).splitlines():
        for cell in filter(None, re.split(r"  +", line.strip())):
            is_date = any(cell == known[:10] for known in cells)  # a time is cut at a terminal
            assert cell in cells or is_date or cell in done.stderr or f"{cell}" in ("composition", "base"), cell


def test_the_column_that_carries_the_meaning_is_there_at_any_width(home: Path) -> None:
    for width in (40, 60, 80, 100, 140):
        said = " ".join(screens.captured(home, "log", MEDICINE, columns=width).split())
        assert "version withdrawn: @4, reason diverges on prompts that are longer than 4,000 tokens" in said, width
        assert f"{DIAGNOSIS}/user-123" in said
        assert "left out" not in said
        assert "quarantined" in screens.captured(home, "show", CONTRACTS, columns=width)


def test_a_list_that_ends_early_says_so_and_holds_as_many_as_asked(home: Path) -> None:
    shell, more = Shell(home), "… and more: these are the first 3; a larger --limit prints more\n"
    commands = (["tree"], ["tree", BASE], ["ls", DIAGNOSIS], ["log"], ["dependents", f"{DIAGNOSIS}@1"])
    for command in commands:
        done = shell(*command, "--limit", "3", "--json")
        assert (len(json.loads(done.stdout)), done.stderr) == (3, more), command
        text = shell(*command, "--limit", "3")
        assert more in text.stderr, command
        assert len(text.stdout.splitlines()) == 3 + (command[0] != "tree"), command
        whole = shell(*command, "--json")
        assert (len(json.loads(whole.stdout)) > 100, whole.stderr) == (True, ""), command
    done = shell("ls", "--limit", "1", "--json")
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr == "… and more: this is the first; a larger --limit prints more\n"
    assert shell("ls", "--limit", "2").stderr == shell("ls", "--limit", "2", "--json").stderr == ""
    assert "are the first 20;" in shell("log").stderr


def test_lists_are_printed_as_one_record_of_them_would_be(home: Path) -> None:
    printed = Shell(home)("tree", BASE, "--json").stdout
    assert printed == json.dumps(json.loads(printed), indent=2, ensure_ascii=False) + "\n"


def test_a_chain_that_follows_an_alias_says_what_was_trained_on_something_else(home: Path) -> None:
    done = Shell(home)("resolve", LEAF, "--follow", "latest")
    others = (
        f"1 version stands on another than it was trained on: {MEDICINE}/cardiology@1 on {MEDICINE}@3, trained on "
        f"{MEDICINE}@1"
    )
    assert done.stderr.splitlines()[1] == f"4 levels, 120 ranks, 482.6 KB; {others}"
    assert [line.split("\t")[7] for line in done.stdout.splitlines()[1:-1]] == [
        *("current, by alias", "trained on @1, not @3, by alias", "current, by alias", "current")
    ]


def test_an_older_version_says_which_is_the_head(home: Path) -> None:
    assert f"{MEDICINE}@1 is older than its head, @3" in Shell(home)("resolve", f"{MEDICINE}@1").stderr
    assert f"{MEDICINE}@1 is older than its head, @3" in Shell(home)("lineage", f"{MEDICINE}@1").stderr
    assert "state\tolder: now @3\n" in Shell(home)("show", f"{MEDICINE}@1").stdout
    assert "withdrawn" in Shell(home)("resolve", f"{MEDICINE}@4").stderr


def test_a_path_without_versions_of_its_own_is_the_base_itself(home: Path) -> None:
    for command in ("resolve", "lineage"):
        assert "no level: this is qwen3-4b itself\n" in screens.captured(home, command, "qwen3-4b")


@pytest.mark.parametrize("command", [["ls"], ["tree"], ["base", "ls"]])
def test_an_empty_registry_says_what_to_do_next_and_prints_nothing_on_stdout(
    command: list[str], tmp_path: Path
) -> None:
    done = Shell(tmp_path / "home")(*command)
    assert done.stdout == ""
    assert f"the registry in {tmp_path / 'home'} (LORATREE_HOME) is empty" in done.stderr
    assert not (tmp_path / "home").exists()
    assert "`loratree base add NAME DIR`" in done.stderr
    assert "`loratree demo`" in done.stderr
    assert Shell(tmp_path)(*command, "--json").stdout == "[]\n"
    for line in on_terminal(tmp_path, *command, columns=60).splitlines():
        assert len(line) <= 60 or len(line.split()) == 1


def test_only_adding_a_base_begins_a_registry_in_a_folder_without_one(tmp_path: Path, filled: Filled) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "config.json").write_text("{}")
    shell = Shell(models)
    for command in (["ls"], ["tree"], ["base", "ls"], ["log"], ["ls", "--json"]):
        shell(*command)
    out = ["--out", tmp_path / "out"]
    for command in (
        *(["ls", "tiny"], ["show", "tiny"], ["show", "tiny/law@1"], ["tree", "tiny"], ["log", "tiny"]),
        *(["resolve", "tiny/law"], ["lineage", "tiny/law"], ["dependents", "tiny/law@1"], ["alias", "ls", "tiny/law"]),
        *(["base", "show", "tiny"], ["base", "pull", "tiny", *out], ["pull", "tiny/law", *out]),
        *(["compose", "tiny/law", "--mode", "merge", *out], ["base", "push", "tiny", filled.base], ["rm", "tiny/law"]),
        *(["base", "set", "tiny", "--source", "a/b"], ["base", "rm", "tiny"], ["retain", "tiny/law", "--keep", "1"]),
        *(["alias", "set", "tiny/law", "stable", "1"], ["alias", "rm", "tiny/law", "stable"]),
        *([mark, "tiny/law@1", "--reason", "x"] for mark in ("withdraw", "quarantine", "delete")),
        ["publish", filled.adapters[TINY_LEAF], "tiny/law", "--parent", "base"],
        ["publish", "--from-dir", filled.adapters[TINY_LEAF].parent, "tiny"],
    ):
        done = shell(*command, check=False)
        assert done.returncode == 1, command
        assert "is not known, as the registry has none: check LORATREE_HOME or LORATREE_URL" in done.stderr, command
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert [path.name for path in models.iterdir()] == ["config.json"]


def test_the_empty_registry_is_named_by_its_database(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/other.db"
    said = Shell(tmp_path / "home", variables={"LORATREE_DATABASE": address})("ls").stderr
    assert f"the registry in the database {address} (LORATREE_DATABASE) is empty" in said


def test_the_empty_registry_is_named_by_its_url(tmp_path: Path) -> None:
    with command_serving(tmp_path / "home") as url:
        assert f"the registry at {url} is empty" in Shell(tmp_path / "client", url)("ls").stderr


def test_a_base_without_versions_says_how_to_publish_the_first(home: Path) -> None:
    for command in (["ls", "qwen3-4b"], ["tree", "qwen3-4b"], ["tree"], ["show", "qwen3-4b"]):
        said = Shell(home)(*command).stderr
        assert said == "qwen3-4b has no versions yet: `loratree publish DIR qwen3-4b/NAME` publishes the first\n"
    assert Shell(home)("ls", "qwen3-4b").stdout == ""
    assert "`loratree publish DIR" in Shell(home)("show", f"{BASE}/legal").stderr
    assert "`loratree alias set" in Shell(home)("alias", "ls", CONTRACTS).stderr
    assert Shell(home)("ls", LEAF).stderr == f"nothing is below {LEAF}: `loratree show {LEAF}` shows its versions\n"


def test_tree_without_a_path_draws_every_base_and_lists_every_node_as_json(home: Path, shell: Shell) -> None:
    drawn = [
        line.split()[0] for line in Shell(home)("tree").stdout.splitlines() if not line.startswith(("├", "└", "│", " "))
    ]
    assert drawn == [BASE, "qwen3-4b"]
    assert json.loads(shell("tree", "--json").stdout) == json.loads(shell("tree", "tiny", "--json").stdout)
    assert [node["path"] for node in json.loads(Shell(home)("tree", "--json").stdout)][-1] == "qwen3-4b"


def test_depth_hides_what_is_below_and_counts_it(shell: Shell, filled: Filled) -> None:
    assert shell("tree", "tiny", "--depth", "2").stdout.splitlines()[-1].endswith("subdomain @1 … 1 task, 1 user")
    assert shell("tree", "tiny", "--depth", "0").stdout.split(" ", 2)[2] == "… 1 domain, 1 subdomain, 1 task, 1 user\n"


def test_a_node_that_has_no_head_any_more_is_marked(shell: Shell) -> None:
    shell("withdraw", f"{TINY_LEAF}@1", "--reason", "it diverges")
    assert "alice user withdrawn\n" in on_terminal(shell.home, "tree", "tiny")


def test_all_draws_every_node_at_a_terminal(home: Path) -> None:
    assert "user-199 user @1" in screens.captured(home, "tree", BASE, "--all")
    assert "user-199" not in screens.captured(home, "tree", BASE)
    assert "user-199" not in screens.captured(home, "tree", DIAGNOSIS, "--depth", "1")


def test_ten_thousand_users_are_drawn_at_once_with_their_counts(tmp_path: Path) -> None:
    registry = open_fresh(Settings.from_environment({"LORATREE_HOME": str(tmp_path)}))
    registry.add_base("balanced", trees.base())
    for batch in trees.batches("balanced", 10_000):
        with writing(registry._engine) as connection:
            load(connection, batch)
    registry.close()
    screen = on_terminal(tmp_path, "tree", columns=80)
    assert len(screen.splitlines()) <= 60
    assert re.search(r"└── d09 domain @1 .*… 10 subdomains, 100 tasks, 1,000 users\n", screen)
    assert "10 domains, 100 subdomains, 1,000 tasks, 10,000 users in all" in " ".join(screen.split())
    below = on_terminal(tmp_path, "tree", "balanced/d03/s07", columns=80)
    assert below.count("… 7 more users") == 10
    assert "10 tasks, 100 users in all" in below
    part = " ".join(on_terminal(tmp_path, "tree", "--limit", "5000", columns=80).split())
    assert re.search(r"more than 5 domains, .* in all; .* the first 5000; a larger --limit prints more$", part)
    assert len(on_terminal(tmp_path, "tree", "--all", columns=80).splitlines()) == 1 + 10 + 100 + 1_000 + 10_000


def words(screen: str) -> set[str]:
    return {word.rstrip(",:") for word in screen.split()}


def joined(screen: str) -> str:
    """The screen with its sentences on one line each."""
    return re.sub(r"(left out:[^;]*;[^.]*?shows\s(?:it|them))", lambda found: " ".join(found[0].split()), screen)
