"""loratree doctor."""

import sys

import click

from loratree_cli.output import echo, json_option, print_json

_WORDS = {True: "ok", None: "warn", False: "fail"}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the database, the blob store and this machine, and print a remedy for each problem.

    It checks migrations, settings, clocks, permissions, conditional writes (in a race), checksums and leftover files;
    with LORATREE_URL, the server's health, release and latency. Test files are removed. A check that fails ends no
    other check. Exit status 1 if a check fails; a warning is no failure.

    \b
    loratree doctor
    LORATREE_DATABASE=postgresql://… LORATREE_BLOBS=s3://bucket/prefix loratree doctor --json
    """
    from loratree_registry.housekeeping.doctor import diagnose_environment

    checks = []
    for check in diagnose_environment():
        checks.append(check)
        if not as_json:
            echo(f"{_WORDS[check.ok]:<5} {check.name}: {check.says}")
    if as_json:
        print_json(checks)
    sys.exit(1 if any(check.ok is False for check in checks) else 0)
