"""One file with all of a report, for a browser that reaches nothing else."""

import base64
import html
from collections.abc import Mapping, Sequence

from hnetcl.reporting.runs import RunRecord
from hnetcl.reporting.table import Table, plain

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: left; white-space: nowrap; }
.number { text-align: right; }
.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 20rem; max-width: 34rem; }
img { width: 100%; background: white; }
figcaption { font-size: .85rem; }
pre { overflow-x: auto; background: #8881; padding: .6rem; }
"""


def page(title: str, tables: Sequence[Table], figures: Mapping[str, bytes], records: Sequence[RunRecord]) -> str:
    """HTML with everything inside: no script, no link, and what runs are called is text.

    Args:
        figures: name -> PNG.
        records: whose commands are listed.
    """
    pictures = "\n".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(name.replace('_', ' '))}</figcaption></figure>"
        for name, png in figures.items()
    )
    made: dict[str, list[str]] = {}
    for record in records:
        if record.command:
            made.setdefault(plain(record.command), []).append(plain(str(record.path)))
    commands = "\n\n".join("\n".join([*(f"# {path}" for path in paths), line]) for line, paths in made.items())
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        *(table.html() for table in tables),
        f'<h2>Figures</h2><div class="figures">{pictures}</div>' if figures else "",
        f"<h2>Commands that made these runs</h2><pre>{html.escape(commands)}</pre>" if commands else "",
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)
