"""The page that `seqlm demo` writes: as readable on a phone as on a desk."""

import html
import os
import pathlib

EXPECTATION = (
    "What to expect: a model of 300,000 parameters that trains for a minute learns the spelling, the common words and the "
    "layout of its texts, and stays fluent for a few words on end; it knows no facts and follows no request, and what it "
    "says means nothing."
)
STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:0 auto;padding:1rem}
p,li,pre{overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem;margin-bottom:.3rem}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:.35rem .3rem;text-align:right;border-bottom:1px solid #8884;vertical-align:top;
  white-space:nowrap}
th:first-child{text-align:left;font-weight:400;white-space:normal}
thead th{font-weight:600}
pre{background:#8882;padding:.75rem;border-radius:.4rem;white-space:pre-wrap;font-size:14px}
img{max-width:100%;height:auto;background:#fff}
ul{padding-left:1.2rem}
"""


def write_page(path, columns, rows, artifacts, prompt, command, made_by):
    """Write the report.

    Args:
        path: of the HTML file.
        columns: name -> title of the lines of the table; the first one names the models.
        rows: for each model a dict with a text for each of the columns, and `sample`, what it wrote after the prompt.
        artifacts: model -> (title, path) of each file and folder that is linked.
        prompt: what the samples go on from.
        command: the command to try.
        made_by: the versions that did it.
    """
    first, *others = columns
    names = "".join(f"<th scope='col'>{html.escape(row[first])}</th>" for row in rows)
    lines = "".join(
        f"<tr><th scope='row'>{html.escape(columns[key])}</th>"
        + "".join(f"<td>{html.escape(row[key])}</td>" for row in rows)
        + "</tr>"
        for key in others
    )
    samples = "".join(
        f"<h3>{html.escape(row[first])}</h3><pre><b>{html.escape(prompt)}</b>{html.escape(row['sample'])}</pre>"
        for row in rows
    )
    links = "".join(
        f"<li>{html.escape(name)}: "
        + ", ".join(f"<a href='{link(target, path)}'>{html.escape(title)}</a>" for title, target in found)
        + "</li>"
        for name, found in artifacts.items()
    )
    pathlib.Path(path).write_text(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>keras_seqlm: three models</title><style>{STYLE}</style></head><body>"
        "<h1>Three models, one contract</h1><p>Each learned the documentation of this Python, and was exported to a "
        "SavedModel (text in, text out) and to LiteRT. Each artifact wrote the texts of its model, greedy and sampled; the "
        "last lines count those whose every token is the same; of int8, whose weights are rounded, they say how much less "
        f"probable it finds them, in nats a token.</p><p>{html.escape(EXPECTATION)}</p>"
        f"<h2>Try it</h2><pre>{html.escape(command)}</pre>"
        f"<h2>In figures</h2><table><thead><tr><th></th>{names}</tr></thead><tbody>{lines}</tbody></table>"
        f"<h2>Learning</h2><img src='loss.png' alt='validation loss of each model over time'>"
        f"<h2>The same prompt</h2>{samples}<h2>What was written</h2><ul>{links}</ul><p>{html.escape(made_by)}</p></body></html>\n",
        encoding="utf-8",
    )


def link(target, path):
    """The way to a file from a page."""
    return html.escape(pathlib.PurePath(os.path.relpath(target, pathlib.Path(path).parent)).as_posix(), quote=True)
