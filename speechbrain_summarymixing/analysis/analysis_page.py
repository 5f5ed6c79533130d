"""Tables, pictures and a page of what `analyse` found."""

import math

from speechbrain_summarymixing.analysis.analysis_pictures import (
    draw_heads,
    draw_profiles,
    draw_rows,
)
from speechbrain_summarymixing.files import write_atomically, write_table

MEANING = {
    "diagonality": "1 on the diagonal, about 1/2 for a uniform mean "
    "(arXiv 2011.04906, as in the Branchformer's paper, 2207.02971)",
    "entropy": "of a row over that of a uniform one: 1 is a plain mean, 0 a single frame",
    "to_mean_row": "weight of a row that lies elsewhere than in the mean row of the utterance "
    "(total variation): 0 is the same mean for all frames",
    "to_uniform": "the same beside the uniform mean",
    "decay": "of the decayed mean, decay^\\|i - j\\|, whose output is nearest to the head's; 1 is "
    "the uniform mean",
    "error_uniform": "distance of the head's output to that of the uniform mean, over its size",
    "error_decayed": "the same for that decayed mean",
    "error_mean_row": "the same for the mean row, of all means that are the same for all frames "
    "the best: the share of the output that changes over time",
    "neighbours": "weight of all neighbours together; the rest is the summaries'",
    "distance": "mean distance, in frames, of neighbours as they are weighed",
    "local": "mean norm of what the local part adds in the combiner, before the activation",
    "summary": "the same of the summary",
    "share": "summary / (local + summary)",
    "variation": "distance of the utterances' summaries to their mean, over their size",
}
SUMMARIES = "summary_"  # the columns of single ones begin so
WORST = 10  # changes of single heads that the page lists


def write_page(analysis, folder, command=None):
    """Writes heads.csv, replaced.csv, profiles.csv, pictures and README.md.

    Arguments
    ---------
    analysis : Analysis
    folder : Path
        Is made; files in it are replaced.
    command : str or None
        Which the page names.
    """
    heads = heads_of(analysis.parts)
    _write(folder / "heads.csv", _columns(heads), heads)
    replaced = [
        {**row, **{key: _from_one(row[key]) for key in ("layer", "head")}}
        for row in analysis.replaced
    ]
    if replaced:
        _write(folder / "replaced.csv", list(replaced[0]), replaced)
    profiles = [
        {"layer": part.layer + 1, "head": head + 1, "distance": place - len(weights) // 2,
         "weight": weight}
        for part in analysis.parts if part.profile() is not None
        for head, weights in enumerate(part.profile().tolist())
        for place, weight in enumerate(weights)
    ]  # fmt: skip
    pictures = {
        "heads.png": "Measures by layer and head, and the relative change of the encoder's output "
        "where one head is changed"
    }
    draw_heads(heads, replaced, folder / "heads.png")
    if profiles:
        _write(folder / "profiles.csv", list(profiles[0]), profiles)
        draw_profiles(analysis, folder / "profiles.png")
        pictures["profiles.png"] = "Mean weight of a frame by its distance, for each head"
    for part in analysis.parts:
        if part.picture() is not None:
            name = f"rows_{part.layer + 1:02d}.png"
            draw_rows(part, folder / name)
            pictures[name] = f"Layer {part.layer + 1}: rows of the utterance heard last"
    write_atomically(folder / "README.md", page(analysis, heads, replaced, pictures, command))


def heads_of(parts):
    """Returns a dict for each layer and head, with its module and the columns of its kind."""
    return [
        {"layer": part.layer + 1, "mixer": type(part.module).__name__, "module": part.name, **row}
        for part in parts
        for row in part.table()
    ]


def page(analysis, heads, replaced, pictures, command=None):
    """Returns the page as Markdown."""
    heard = (
        f"{analysis.utterances} utterances, {analysis.seconds:.0f} s, a frame each "
        f"{1000 * analysis.frame_seconds:.0f} ms."
    )
    if analysis.WER is not None:
        heard += f" WER {analysis.WER:.2f}% of {analysis.words} words (greedy search)."
    heard += " Every number is in heads.csv, replaced.csv and profiles.csv."
    lines = [f"# What the token mixers of {analysis.model} do", "", heard]
    if command is not None:
        lines += ["", f"    {command}"]
    lines += ["", "## By layer", "", "Means over heads; of SummaryMixing all heads together.", ""]
    names = [name for name in _columns(heads) if _is_measure(name)]
    lines += _table(["layer", "mixer", *names], by_layer(heads, names)) + [""]
    lines += [f"- `{name}`: {MEANING[name]}" for name in names if name in MEANING]
    if any(name.startswith(SUMMARIES) for name in names):
        lines.append(f"- `{SUMMARIES}1`, …: weight of each summary")
    if replaced:
        lines += ["", "## Replaced", "", _explained(analysis), ""]
        whole = [row for row in replaced if row["head"] is None]
        lines += _table(*_replaced(whole)) + ["", _answer(replaced), ""]
        single = [row for row in replaced if row["head"] is not None]
        if single:
            key = "WER" if analysis.WER is not None else "output"
            worst = sorted(single, key=lambda row: (row[key], row["output"]), reverse=True)[:WORST]
            lines += [f"The {len(worst)} single heads that cost most:", ""]
            lines += _table(*_replaced(worst))
    lines += ["", "## Pictures"]
    for name, caption in pictures.items():
        lines += ["", f"{caption}:", "", f"![{caption}]({name})"]
    return "\n".join(lines) + "\n"


def by_layer(heads, names):
    """Rows of layer, mixer and the mean over heads of columns."""
    rows = []
    for layer in dict.fromkeys(row["layer"] for row in heads):
        own = [row for row in heads if row["layer"] == layer]
        whole = [row for row in own if row["head"] is None] or own
        values = []
        for name in names:
            found = [row[name] for row in whole if row.get(name) is not None]
            values.append(_figure(sum(found) / len(found)) if found else "")
        rows.append([layer, own[0]["mixer"], *values])
    return rows


def _columns(rows):
    return list(dict.fromkeys(name for row in rows for name in row))


def _is_measure(name):
    return name in MEANING or name.startswith(SUMMARIES)


def _explained(analysis):
    text = (
        "`output` is the relative change of the encoder's output, |new - own| / |own|, mean over "
        "utterances."
    )
    if analysis.WER is not None:
        text += " `difference` is that of WER in points, with a 95% interval (paired bootstrap)."
    return text


def _answer(replaced):
    """How many heads can be changed alone at little cost."""
    lines = []
    for name in dict.fromkeys(row["change"] for row in replaced):
        own = [row["output"] for row in replaced if row["change"] == name and row["head"]]
        if own:
            few = [sum(value < limit for value in own) for limit in (0.01, 0.05)]
            lines.append(
                f"- {name}: of {len(own)} heads, changed one at a time, {few[0]} move the output "
                f"by less than 1%, {few[1]} by less than 5%"
            )
    return "\n".join(lines)


def _replaced(rows):
    columns = ["layer", "head", "change", "output"]
    columns += ["WER", "difference"] if rows and "WER" in rows[0] else []
    table = []
    for row in rows:
        where = ["all" if row[key] is None else row[key] for key in ("layer", "head")]
        line = [*where, row["change"], f"{row['output']:.3f}"]
        if "WER" in row:
            interval = f"({row['low']:+.2f} to {row['high']:+.2f})"
            line += [f"{row['WER']:.2f}%", f"{row['WER_difference']:+.2f} {interval}"]
        table.append(line)
    return columns, table


def _table(columns, rows):
    return [f"| {' | '.join(map(str, row))} |" for row in (columns, ["---"] * len(columns), *rows)]


def _write(path, columns, rows):
    table = ([_figure(row.get(name)) for name in columns] for row in rows)
    write_table(path, columns, table)


def _figure(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def _from_one(number):
    return None if number is None else number + 1
