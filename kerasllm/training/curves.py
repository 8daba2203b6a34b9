"""Curves of several trainings in one picture."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from kerasllm.errors import InputError
from kerasllm.files import atomic_file
from kerasllm.text.fonts import font_families

# Okabe and Ito's colours: told apart by colour-blind readers too
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#666666"


def plot_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike[str], *, title: str | None = None
) -> None:
    """Draw training and validation loss of several models over epochs, or over tokens seen.

    Args:
        histories: By model name, the `history.history` that `fit` returns: `"loss"` and, if there was validation,
            `"val_loss"`, one value an epoch, in nats per token. If every history has `"tokens"`, tokens seen by the end
            of each epoch, these are the x axis. Training curves are dashed, validation curves solid, a dot marks the
            best epoch; the right axis reads the same curves as perplexity.
        path: PNG to write, atomically.
        title: Written above the picture. It and the names may be Chinese: see `kerasllm.text.fonts`.

    Raises:
        InputError: There is no history, or one without `"loss"`, or no font has the characters of title and names.
    """
    if not histories:
        raise InputError("histories: empty; pass at least one training's history.history")
    for name, history in histories.items():
        if not history.get("loss"):
            raise InputError(f"histories[{name!r}]: has no 'loss'; pass the history.history that fit returns")
    # What is drawn takes the fonts of the moment in which it is made or measured
    families = font_families([title, *histories])
    # Chinese fonts seldom come in bold, and matplotlib would say so
    with rc_context(
        {"font.family": families, "axes.titleweight": "bold" if families == font_families([]) else "normal"}
    ):
        figure = _figure(histories, title)
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=150)


def _figure(histories: Mapping[str, Mapping[str, Sequence[float]]], title: str | None) -> Figure:
    """The picture of `plot_curves`."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    over_tokens = all("tokens" in history for history in histories.values())
    for i, (name, history) in enumerate(histories.items()):
        x = history["tokens"] if over_tokens else range(1, len(history["loss"]) + 1)
        _draw(axes, name, history, x, _COLOURS[i % len(_COLOURS)])
    _dress(axes, over_tokens, any("val_loss" in history for history in histories.values()))
    if title:
        axes.set_title(title, loc="left")
    return figure


def _draw(axes: Axes, name: str, history: Mapping[str, Sequence[float]], x: Sequence[float], colour: str) -> None:
    """One model: training dashed, validation solid, a dot and a figure at the best epoch."""
    marker = "o" if len(x) == 1 else None  # a line of one point is invisible
    validation = history.get("val_loss")
    style: dict[str, Any] = {"color": colour, "linewidth": 2, "marker": marker}
    if not validation:
        axes.plot(x, history["loss"], label=name, linestyle=(0, (4, 2)), **style)
        return
    axes.plot(x, history["loss"], linestyle=(0, (4, 2)), **{**style, "linewidth": 1.4, "alpha": 0.65})
    best = min(range(len(validation)), key=lambda i: validation[i] if math.isfinite(validation[i]) else math.inf)
    label = f"{name}: {validation[best]:.3f} nats, perplexity {math.exp(min(validation[best], 700)):.1f}"
    axes.plot(x, validation, label=label, **style)
    axes.plot([x[best]], [validation[best]], "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)


def _dress(axes: Axes, over_tokens: bool, validated: bool) -> None:
    """Axes, grid and legend."""
    axes.set_xlabel("tokens seen" if over_tokens else "epoch")
    axes.set_ylabel("loss (nats per token)")
    if over_tokens:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(left=0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=_GREY)
    # The same heights read as perplexity: ticks stay where the losses' are, so the grid serves both
    right = axes.secondary_yaxis("right")
    right.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{math.exp(min(loss, 700)):.3g}"))
    right.set_ylabel("perplexity")
    right.spines["right"].set_visible(False)
    right.tick_params(length=0, colors=_GREY)
    handles, _ = axes.get_legend_handles_labels()
    if validated:
        handles.append(Line2D([], [], color=_GREY, linewidth=2, label="validation (dot: best epoch)"))
    handles.append(Line2D([], [], color=_GREY, linewidth=1.4, linestyle=(0, (4, 2)), label="training"))
    axes.legend(handles=handles, fontsize="small", edgecolor="none", framealpha=0.9)
