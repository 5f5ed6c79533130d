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
                _draw(axes, points, column, name, index)
            _dress(axes, sorted({row["seconds"] for row in rows}))
            axes.set(xlabel="audio length, s", ylabel=label, title=f"{kind}: {label.split(',')[0]}")
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(names)))
    figure.savefig(path, dpi=100, format="png")


def _draw(axes, rows, column, name, index):
    rows = [row for row in rows if row[column] is not None and row[column] > 0]
    x, y = [row["seconds"] for row in rows], [row[column] for row in rows]
    style = {"color": f"C{index % 10}", "marker": "os^Dv<>pP*X"[index % 11], "markersize": 4}
    axes.plot(x, y, label=name, **style)
    if column == "median_s":
        low, high = [row["low_s"] for row in rows], [row["high_s"] for row in rows]
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
