"""loratree gc."""

import click

from loratree_cli.options import parse_time
from loratree_cli.output import bytes_text, echo, json_option, print_json, say
from loratree_cli.progress import working
from loratree_registry.settings import Settings


@click.command()
@click.option("--grace", metavar="TIME", default="24h", show_default=True, help="Leave bytes used within this time.")
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@json_option
def gc(grace: str, dry_run: bool, as_json: bool) -> None:
    """Remove stored bytes that nothing needs: of deleted versions, and of uploads that never became a version.

    Safe while others publish, and while another gc runs. Runs where the database is. Unfinished uploads stay for at
    least an hour.

    \b
    loratree gc --dry-run
    loratree gc --grace 7d --json
    """
    from loratree_registry.embedded.storage import open_storage
    from loratree_registry.housekeeping.collecting import collect

    settings, idle = Settings.from_environment(), parse_time("--grace", grace)
    counts, size, done = {"blob": 0, "upload": 0}, 0, "would be removed" if dry_run else "removed"

    def kept() -> str:
        return f"{counts['blob']} blobs and {counts['upload']} unfinished uploads {done}: the same command goes on"

    with open_storage(settings) as storage, working("collecting", kept=kept) as on_progress:
        for removed in collect(storage, settings.home / "uploads", grace=idle, dry_run=dry_run, progress=on_progress):
            counts[removed.kind] += 1
            size += removed.size
            if not as_json:
                echo(removed.name)
    if as_json:
        totals = {"blobs": counts["blob"], "bytes": size, "uploads": counts["upload"]}
        print_json({"dry_run": dry_run, "grace_s": int(idle.total_seconds()), **totals})
        return
    say(f"{counts['blob']} blobs, {bytes_text(size)}, and {counts['upload']} unfinished uploads {done}")
