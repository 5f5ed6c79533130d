import pytest

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.config import load_hyperparams, route_overrides, value_of

PART = """
lr: 0.1
width: 4
optimizer: !name:torch.optim.SGD
    lr: !ref <lr>
sizes: [!ref <width>, !ref <passed>]
"""
SYSTEM = """
width: 8
folder: results/x
common: !include:parts/part.yaml
    passed: 3
    width: !ref <width>
"""


@pytest.fixture
def system(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part.yaml").write_text(PART)
    path = tmp_path / "system.yaml"
    path.write_text(SYSTEM)
    return path


def test_parts_are_flattened_and_take_what_the_system_passes(system):
    hparams = load_hyperparams(system)
    assert (hparams["lr"], hparams["width"], hparams["sizes"]) == (0.1, 8, [8, 3])


def test_options_reach_the_file_that_defines_them(system):
    hparams = load_hyperparams(system, {"lr": 1e-3, "width": 16, "passed": 5})
    assert hparams["optimizer"].keywords == {"lr": 1e-3}
    assert hparams["sizes"] == [16, 5]
    assert route_overrides(system, {"lr": 1, "folder": "y"}) == {"common": {"lr": 1}, "folder": "y"}


def test_unknown_options_are_all_named_with_their_neighbours(system):
    with pytest.raises(UserError) as error:
        load_hyperparams(system, {"withd": 3, "zzz": 1})
    assert "--withd" in str(error.value) and "did you mean --width?" in str(error.value)
    assert "--zzz" in str(error.value) and "see the keys of" in str(error.value)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"lr": "fast"}, "--lr is 'fast', but must be a number"),
        ({"lr": None}, "--lr is None, but must be a number: write --lr VALUE"),
        ({"lr": True}, "--lr is True, but must be a number"),
        ({"lr": 0}, "--lr is 0, but must be above 0"),
        ({"num_workers": -1}, "--num_workers is -1, but must be 0 or more"),
        ({"averaged_checkpoints": 0}, "--averaged_checkpoints is 0, but must be above 0"),
        ({"width": 1.5}, "--width is 1.5, but must be a whole number"),
        ({"passed": "x"}, "--passed is 'x', but must be a whole number"),
        ({"flag": 1}, "--flag is 1, but must be True or False"),
        ({"sizes": ["x"]}, "system.yaml cannot be built with --sizes .* .ValueError: .*'x'"),
    ],
)
def test_values_of_another_kind(system, option, message):
    with open(system.parent / "parts/part.yaml", "a") as part:
        part.write("flag: False\nnum_workers: 4\naveraged_checkpoints: 5\n")
        part.write("made: !apply:numpy.array [!ref <sizes>, float]\n")
    with pytest.raises(UserError, match=message):
        load_hyperparams(system, option)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.yaml.*No such file.*give the path"):
        load_hyperparams(tmp_path / "absent.yaml")


def test_an_include_in_an_include_gets_options_and_gives_its_keys(tmp_path):
    (tmp_path / "outer.yaml").write_text("""
depth: 1
middle: !include:sub/middle.yaml
    passed: !ref <depth>
""")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/middle.yaml").write_text("""
rate: 0.5
inner: !include:inner.yaml
    passed: !ref <passed>
    width: 7
""")
    (tmp_path / "sub/inner.yaml").write_text("""
width: 2
height: 3
area: [!ref <width>, !ref <height>, !ref <passed>]
""")
    path = tmp_path / "outer.yaml"
    expected = {"depth": 1, "passed": 1, "rate": 0.5, "width": 7, "height": 3, "area": [7, 3, 1]}
    assert load_hyperparams(path) == expected
    options = {"depth": 4, "height": 5, "width": 6}
    changed = {**expected, **options, "passed": 4, "area": [6, 5, 4]}
    assert load_hyperparams(path, options) == changed
    assert route_overrides(path, {"height": 5}) == {"middle": {"inner": {"height": 5}}}
    with pytest.raises(UserError, match="--heigth: no such option.*did you mean --height"):
        route_overrides(path, {"heigth": 5})


def test_only_the_option_that_hinders_is_blamed(system):
    with open(system.parent / "parts/part.yaml", "a") as part:
        part.write("made: !apply:numpy.array [!ref <sizes>, float]\n")
    with pytest.raises(UserError, match=r"cannot be built with --sizes \['x'\] \(ValueError"):
        load_hyperparams(system, {"sizes": ["x"], "lr": 0.2, "width": 16})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: 1\n\tb: 2\n", "is no YAML .*line 2.*spaces, not by tabs"),
        (b"a: [1, 2\n", "is no YAML .*line"),
        (b"a: \xff\n", "is no UTF-8 text .byte 4.: save it as UTF-8"),
        (b"", "holds no keys"),
        (b"- a\n", "holds no keys"),
        (b"a: !ref <b>\n", "cannot be built with its own settings .*<?b"),
        (b"a: !new:torch.nn.Nothing\n", "cannot be built with its own settings .ImportError"),
        (b"a: !include:none.yaml\n", "none.yaml: cannot read this hyperparameter file"),
    ],
)
@pytest.mark.parametrize("part", [False, True])
def test_a_bad_file_is_named(system, content, message, part):
    path = system.parent / "parts/part.yaml" if part else system
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_hyperparams(system)
    assert str(system.parent) in str(error.value)


def test_a_value_of_a_file_with_a_key_twice(tmp_path):
    (tmp_path / "own.yaml").write_text("task: recognition\nlr: 1\nlr: 2\n")
    with pytest.raises(UserError, match=r"own\.yaml: cannot be read \(DuplicateKeyError.* mend"):
        value_of(tmp_path / "own.yaml", "task")


def test_options_reach_the_part_of_a_part(system):
    whole = system.with_name("whole.yaml")
    whole.write_text("lr: 0.3\nwhole: !include:system.yaml\n    common:\n        lr: !ref <lr>\n")
    assert load_hyperparams(whole)["optimizer"].keywords == {"lr": 0.3}
    assert load_hyperparams(whole, {"lr": 0.4})["optimizer"].keywords == {"lr": 0.4}
    assert load_hyperparams(whole, {"width": 2})["sizes"] == [2, 3]
    whole.write_text("whole: !include:system.yaml\n    lr: 0.3\n")
    with pytest.raises(UserError, match="gives lr to a file whose part common .*under common:"):
        load_hyperparams(whole)
