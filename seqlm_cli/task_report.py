"""`RUN/report.html` of a finetuned run: figures, how it learned, what it takes for what, and whether it is as sure as it is right."""

import html
import math
import pathlib
import warnings

from seqlm_cli.report_page import STYLE, link

SHOWN_CLASSES = 30  # whose names stand beside a confusion matrix; of more the pairs in the table are what one can read
PAIRS = 12  # of classes, that are taken for each other most
_BLUE, _RED, _GREY = "#3b6ea5", "#c8442f", "#7a8ca3"


def write_report(folder, task, rows, figures, metric):
    """Write `report.html` and its pictures into a run folder; what fails is told of, and the run stays as it is.

    Args:
        folder: of the run, with its `history.csv`.
        task: whose model the run leaves.
        rows: the validation rows.
        figures: what `task.evaluate(rows)` gave.
        metric: by which the run went, "loss" for the validation loss.

    Returns:
        The path of the page, or None.
    """
    folder = pathlib.Path(folder)
    try:
        judged = task.judged(rows)
        parts = [_figures(figures), _learning(folder, metric)]
        if len(judged.get("truth", ())):
            parts.append(_confusion(folder, judged))
        if len(judged.get("confidence", ())):
            parts.append(_reliability(folder, judged))
        return _page(folder, task, parts)
    except (
        Exception
    ) as error:  # a library of drawing, a full disk, a damaged history: a run is worth more than its report
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"{folder / 'report.html'} could not be written ({reason}); the run is whole without it", stacklevel=2
        )
        return None


def _figures(figures):
    names = [name for name in figures if f"{name}_low" in figures]
    lines = "".join(
        f"<tr><th scope='row'>{html.escape(name.replace('_', ' '))}</th><td>{figures[name]:.4f}</td>"
        f"<td>{figures[f'{name}_low']:.4f} to {figures[f'{name}_high']:.4f}</td></tr>"
        for name in names
    )
    return (
        f"<h2>In figures</h2><p>Of {figures['count']:,} validation rows.</p><table><thead><tr><th></th><th>figure</th>"
        f"<th>95% interval</th></tr></thead><tbody>{lines}</tbody></table>"
    )


def _learning(folder, metric):
    from keras_seqlm.training import read_history

    rows = read_history(folder / "history.csv")
    column = None if metric == "loss" else f"validation_{metric}"
    shown = [("loss (nats)", {"loss": _GREY, "validation_loss": _RED})]
    if column is not None and any(row.get(column) is not None for row in rows):
        shown.append((f"validation, {metric.replace('_', ' ')}", {column: _BLUE}))
    figure, all_axes = _canvas((7.0, 2.6 * len(shown)), len(shown))
    for axes, (title, lines) in zip(all_axes, shown, strict=True):
        for name, color in lines.items():
            points = [
                (row["step"], row[name]) for row in rows if row.get(name) is not None and math.isfinite(row[name])
            ]
            if points:
                label = "validation" if name.startswith("validation") else "training"
                axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=label)
        axes.set_ylabel(title)
        axes.set_xlim(left=0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.legend(frameon=False)
    all_axes[-1].set_xlabel("step")
    _save(figure, folder / "learning.png")
    return "<h2>Learning</h2><img src='learning.png' alt='losses and the figure of the task over the steps'>"


def _confusion(folder, judged):
    import numpy as np

    from keras_seqlm.metrics.classification import confusion

    names = [str(name) for name in judged["names"]]
    counts = confusion(judged["truth"], judged["predicted"], len(names))
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, (axes,) = _canvas((6.4, 6.0), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the class")
    if len(names) <= SHOWN_CLASSES:
        short = [name if len(name) <= 24 else f"{name[:23]}\u2026" for name in names]
        size = 8 if len(names) <= 15 else 6
        axes.set_xticks(range(len(names)), short, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), short, fontsize=size)
    axes.set_xlabel("what it was taken for")
    axes.set_ylabel("what it is")
    _save(figure, folder / "confusion.png")
    np.fill_diagonal(counts, 0)
    worst = np.argsort(-counts, axis=None, kind="stable")[:PAIRS]
    pairs = [(*np.unravel_index(place, counts.shape), counts.flat[place]) for place in worst if counts.flat[place]]
    lines = "".join(
        f"<tr><th scope='row'>{html.escape(names[truth])}, taken for {html.escape(names[found])}</th><td>{count:,}</td></tr>"
        for truth, found, count in pairs
    )
    table = f"<table><tbody>{lines}</tbody></table>" if lines else "<p>None was taken for another.</p>"
    return (
        "<h2>What is taken for what</h2><img src='confusion.png' alt='confusion matrix'><p>Each line of the picture is one "
        f"class of {len(names)}, and sums to 1. Most often:</p>{table}"
    )


def _reliability(folder, judged):
    from keras_seqlm.metrics import calibration_error, reliability

    points = reliability(judged["confidence"], judged["right"])
    error = calibration_error(judged["confidence"], judged["right"])
    figure, (axes,) = _canvas((5.0, 4.6), 1)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    there = points[points[:, 2] > 0]
    axes.scatter(there[:, 0], there[:, 1], s=20 + 180 * there[:, 2] / there[:, 2].max(), color=_BLUE, alpha=0.75)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="how sure it is", ylabel="how often it is right")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    _save(figure, folder / "reliability.png")
    return (
        "<h2>How sure, and how right</h2><img src='reliability.png' alt='reliability diagram'><p>Expected calibration error "
        f"{error:.4f}, of {len(judged['right']):,} answers in 10 bins; the size of a dot is how many there are. Below the line it "
        "is surer than it should be.</p>"
    )


def _page(folder, task, parts):
    import keras

    from keras_seqlm.files import write_text

    files = ("history.csv", "figures.json", "run.toml", "bad_rows.txt")
    links = ", ".join(
        f"<a href='{link(folder / name, folder / 'report.html')}'>{name}</a>"
        for name in files
        if (folder / name).is_file()
    )
    path, name = folder / "report.html", html.escape(folder.name)
    made_by = f"{type(task.model).__name__}, {task.model.count_params():,} parameters; Keras {keras.__version__} on {keras.backend.backend()}"
    write_text(
        path,
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>keras_seqlm: {name}</title><style>{STYLE}</style></head><body><h1>{name}</h1>"
        f"<p>{html.escape(type(task).__name__)}: {html.escape(made_by)}</p>{''.join(parts)}<h2>Files</h2><p>{links}</p></body></html>\n",
    )
    return path


def _canvas(size, number):
    """A figure and its axes, one below the other; drawn without a display, whatever backend the user's session has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(number, 1, place + 1) for place in range(number)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path):
    from keras_seqlm.files import replacing

    with replacing(path) as beside:
        figure.savefig(beside, format="png")
