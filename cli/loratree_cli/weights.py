"""The option --weight PATH=NUMBER."""

import click


def _read(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        path, _, number = text.partition("=")
        if path in weights:
            raise click.BadParameter(f"{path} is given twice", context, option)
        try:
            weights[path] = float(number)
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is not PATH=NUMBER, such as tiny/medicine=0.5", context, option
            ) from error
    return weights


weight_option = click.option(
    "--weight",
    "weights",
    metavar="PATH=NUMBER",
    multiple=True,
    callback=_read,
    help="How much the level at PATH adds, 1 unless said; 0 drops it. Repeatable.",
)
