"""loratree gc."""

import click

from loratree_cli.options import parse_time
from loratree_cli.output import bytes_text, counted, echo, json_option, print_json, say, time_text
from loratree_cli.progress import working
from loratree_registry.core.times import rfc3339
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
    from loratree_registry.housekeeping.collecting import collect, count_waiting

    settings, idle = Settings.from_environment(), parse_time("--grace", grace)
    counts, size, done = {"blob": 0, "upload": 0}, 0, "would be removed" if dry_run else "removed"

    def kept() -> str:
        uploads = counted(counts["upload"], "unfinished upload")
        return f"{counted(counts['blob'], 'blob')} and {uploads} {done}: the same command goes on"

    with open_storage(settings, begun=True) as storage, working("collecting", kept=kept) as on_progress:
        for removed in collect(storage, settings.home / "uploads", grace=idle, dry_run=dry_run, progress=on_progress):
            counts[removed.kind] += 1
            size += removed.size
            if not as_json:
                echo(removed.name)
        waiting = count_waiting(storage, grace=idle)
    first, last = (None if used is None else rfc3339(used + idle) for used in (waiting.first, waiting.last))
    if as_json:
        totals = {"blobs": counts["blob"], "bytes": size, "uploads": counts["upload"]}
        later = {"blobs": waiting.blobs, "bytes": waiting.bytes, "first_at": first, "last_at": last}
        print_json({"dry_run": dry_run, "grace_s": int(idle.total_seconds()), **totals, "waiting": later})
        return
    blobs, uploads = counted(counts["blob"], "blob"), counted(counts["upload"], "unfinished upload")
    say(f"{blobs}, {bytes_text(size)}, and {uploads} {done}")
    if first is not None and last is not None:
        until = time_text(first) if first == last else f"{time_text(first)} to {time_text(last)}"
        more = f"{counted(waiting.blobs, 'blob')}, {bytes_text(waiting.bytes)}, that nothing needs"
        say(f"{more} {'waits' if waiting.blobs == 1 else 'wait'} for the grace of {grace}: collected from {until} on")
