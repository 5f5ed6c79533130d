"""Time and memory against audio length, as a picture."""

WIDTH = 9.0  # inches, 900 pixels
PANELS = (
    ("median_s", "time, s"),
    ("peak_MB", "peak memory, MB"),
)


def plot_costs(rows, path):
    """Draws time and memory over audio length to a PNG file: two panels for each kind of run.

    Arguments
    ---------
    rows : list of dict
        Of `system_cost`; a value that is None is left out, and nothing is drawn beyond a
        system's longest measured length.
    path : str or Path
        PNG file.
    """
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["what"] for row in rows))
    names = list(dict.fromkeys(row["system"] for row in rows))
    figure = Figure(figsize=(WIDTH, 3.3 * len(kinds) + 0.4), layout="constrained")
    grid = figure.subplots(len(kinds), len(PANELS), squeeze=False)
    for kind, line in zip(kinds, grid):
        for axes, (column, label) in zip(line, PANELS):
            for index, name in enumerate(names):
                points = [r for r in rows if (r["what"], r["system"]) == (kind, name)]
                band = ("low_s", "high_s") if column == "median_s" else None
                _draw(axes, points, "seconds", column, name, index, band)
            _dress(axes, sorted({row["seconds"] for row in rows}))
            axes.set(xlabel="audio length, s", ylabel=label, title=f"{kind}: {label.split(',')[0]}")
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(names)))
    figure.savefig(path, dpi=100, format="png")


def plot_streams(rows, path):
    """Draws time for a chunk and the state's size over elapsed audio to a PNG file.

    Arguments
    ---------
    rows : list of dict
        Of `streaming_cost`.
    path : str or Path
        PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    time, state = figure.subplots(1, 2)
    rows = [{**row, "state_MB": row["state_bytes"] / 1e6} for row in rows]
    for index, name in enumerate(dict.fromkeys(row["system"] for row in rows)):
        points = [row for row in rows if row["system"] == name]
        _draw(time, points, "elapsed_s", "median_ms", name, index, ("median_ms", "p99_ms"))
        _draw(state, points, "elapsed_s", "state_MB", name, index)
    for axes, label in ((time, "time for a chunk, ms"), (state, "state of a stream, MB")):
        _dress(axes, sorted({row["elapsed_s"] for row in rows}))
        axes.set(xlabel="audio heard before, s", ylabel=label)
    time.set_title(
        f"chunks of {rows[0]['chunk_ms']} ms: median, up to 99th percentile", fontsize=10
    )
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100, format="png")


def _draw(axes, rows, across, column, name, index, band=None):
    rows = [row for row in rows if row[column] is not None and row[column] > 0]
    x, y = [row[across] for row in rows], [row[column] for row in rows]
    style = {"color": f"C{index % 10}", "marker": "os^Dv<>pP*X"[index % 11], "markersize": 4}
    axes.plot(x, y, label=name, **style)
    if band is not None:
        low, high = ([row[key] for row in rows] for key in band)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2)


def _dress(axes, lengths):
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set(xscale="log", yscale="log")
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 1.5)
    # figures less than some decades apart need labels between the powers of ten
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
