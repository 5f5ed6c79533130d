"""Pictures of attention's rows, of measures by layer and head, and of weights by distance."""

import numpy
from matplotlib.figure import Figure

from speechbrain_summarymixing.files import atomically

ACROSS = 4  # panels in a line
FIXED = {"diagonality", "entropy", "to_mean_row", "to_uniform", "decay", "neighbours", "share"}
LEAST = 1e-4  # weight at the foot of profiles


def draw_heads(heads, replaced, path):
    """Draws each measure, and each change of single heads, as a map of layers and heads.

    Arguments
    ---------
    heads : list of dict
        Of `heads_of`.
    replaced : list of dict
        Of `Analysis`, layers and heads counted from 1.
    path : Path
        PNG file.
    """
    names = dict.fromkeys(name for row in heads for name in row)
    maps = {
        name: {(row["layer"], row["head"] or 1): row.get(name) for row in heads}
        for name in names
        if name not in ("layer", "mixer", "module", "head")
    }
    several = any(row["head"] for row in replaced)
    for row in replaced:
        if row["layer"] is not None and (row["head"] is not None or not several):
            cells = maps.setdefault(f"output: {row['change']}", {})
            cells[row["layer"], row["head"] or 1] = row["output"]
    layers = max(row["layer"] for row in heads)
    columns = max(row["head"] or 1 for row in heads)
    size = max(0.62 * columns + 1.0, 2.4), 0.36 * layers + 0.9  # inches, of a panel
    figure, panels = _panels(len(maps), size)
    for axes, (name, cells) in zip(panels, maps.items()):
        values = numpy.full((layers, columns), numpy.nan)
        for (layer, head), value in cells.items():
            values[layer - 1, head - 1] = numpy.nan if value is None else value
        fixed = name in FIXED or name.startswith("summary_")
        most = 1.0 if fixed else max(float(numpy.nanmax(values)), 1e-9)
        axes.imshow(values, cmap="Blues", vmin=0.0, vmax=most, origin="lower", aspect="auto")
        for (layer, head), value in numpy.ndenumerate(values):
            if not numpy.isnan(value):
                colour = "white" if value > 0.6 * most else "black"
                text = f"{value:.{3 if most < 0.2 else 2}f}"
                axes.text(head, layer, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(columns), range(1, columns + 1))
        axes.set_yticks(range(layers), range(1, layers + 1))
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="head", ylabel="layer")
    _save(figure, path)


def draw_profiles(analysis, path):
    """Draws the mean weight by distance, a panel for each layer and a line for each head."""
    parts = [part for part in analysis.parts if part.profile() is not None]
    figure, panels = _panels(len(parts), (3.4, 2.5), across=3)
    for axes, part in zip(panels, parts):
        profile = part.profile().numpy()
        reach = profile.shape[1] // 2
        distance = numpy.arange(-reach, reach + 1) * analysis.frame_seconds
        for head, weights in enumerate(profile):
            shown = numpy.where(weights > 0, weights, numpy.nan)
            axes.plot(distance, shown, linewidth=1.1, color=f"C{head % 10}", label=f"{head + 1}")
        axes.set(yscale="log", ylim=(LEAST, 1.2))
        axes.set_title(f"layer {part.layer + 1}", fontsize=10)
        axes.set(xlabel="distance, s", ylabel="mean weight")
        axes.grid(alpha=0.3)
    lines = max((axes.get_legend_handles_labels() for axes in panels), key=lambda x: len(x[0]))
    figure.legend(*lines, loc="outside lower center", ncols=10, title="head", fontsize=8)
    _save(figure, path)


def draw_rows(part, path):
    """Draws the rows of one utterance, a panel for each head."""
    rows = part.picture().numpy()
    near = rows.shape[2] - getattr(part, "summaries", 0)
    square = not hasattr(part, "summaries")
    figure, panels = _panels(len(rows), (3.0, 3.0))
    for head, (axes, own) in enumerate(zip(panels, rows)):
        most = max(float(numpy.quantile(own[:, :near], 0.995)), float(own[:, near:].max(initial=0)))
        if square:
            axes.imshow(own, cmap="viridis", vmin=0.0, vmax=max(most, 1e-9), aspect="equal")
            axes.set(xlabel="weighed frame", ylabel="frame")
        else:
            reach = near // 2
            wide = numpy.repeat(own[:, near:], max(1, near // 20), 1)  # summaries, to be seen
            gap = numpy.full((len(own), max(1, near // 30)), numpy.nan)
            picture = numpy.concatenate([own[:, :near], gap, wide], 1)
            axes.imshow(picture, cmap="viridis", vmin=0.0, vmax=max(most, 1e-9), aspect="auto")
            axes.set_xticks([0, reach, near - 1], [-reach, 0, reach])
            axes.set(xlabel="distance, frames | summaries", ylabel="frame")
        axes.set_title(f"head {head + 1}, up to {most:.2f}", fontsize=10)
    figure.suptitle(f"layer {part.layer + 1}", fontsize=11)
    _save(figure, path)


def _panels(count, size, across=ACROSS):
    """A figure, and panels of a size in inches, of which those that are too many are hidden."""
    columns = min(count, across)
    lines = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines + 0.3), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _save(figure, path):
    with atomically(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
