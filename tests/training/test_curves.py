from speechbrain_summarymixing.training import curves


def row(epoch, wer=50.0):
    return {
        "epoch": epoch, "steps": 10 * epoch, "lr": 0.1, "train_loss": 3.0, "valid_loss": 2.0,
        "valid_WER": wer, "train_seconds": 1.5,
    }  # fmt: skip


def test_history_grows_and_a_resumed_run_replaces_what_it_does_again(tmp_path):
    assert curves.read(tmp_path) == []
    for epoch in (1, 2, 3):
        curves.record(tmp_path, row(epoch))
    curves.record(tmp_path, row(2, wer=40.0))
    rows = curves.read(tmp_path)
    assert [(r["epoch"], r["valid_WER"]) for r in rows] == [("1", "50.0"), ("2", "40.0")]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "history.csv"]
