"""A command line is read twice, by `command_line` and by absl, with the same result."""

import os
import pathlib

import absl_flags
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from refusals import refused

from biedsnet_jax import main
from biedsnet_jax.config import command_line, run_config
from biedsnet_jax.errors import BadInput
from configs import phantom

READ = ("mode", "workdir", "network", "output", "debug")
NAMES = [
    "workdir",
    "mode",
    "network",
    "output",
    "quiet",
    "noquiet",
    "debug",
    "nodebug",
    "noworkdir",
    "wokdir",
]
VALUES = [
    "train",
    "report",
    "runs/a",
    "a\nb",
    "a=b",
    "",
    "=",
    "--quiet",
    "--workdir=x",
    "-5",
    "~",
    "true",
    "x y",
    "ä",
]
WORDS = st.one_of(
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["-", "--", "---"]),
        st.sampled_from(NAMES),
        st.sampled_from(VALUES),
    ),
    st.builds("{}{}".format, st.sampled_from(["-", "--"]), st.sampled_from(NAMES)),
    st.sampled_from([*VALUES, "-", "--", "stray"]),
)


def parsed_by_absl(argv: list[str]) -> dict[str, object] | None:
    """Values that absl parses; None where it refuses the line or leaves words over."""
    absl_flags.forget()
    try:
        if flags.FLAGS(argv)[1:]:
            return None
    except (flags.Error, ValueError):
        return None
    values = {name: flags.FLAGS[name] for name in READ}
    return {name: flag.value if flag.present else None for name, flag in values.items()}


@settings(max_examples=400)
@given(st.lists(WORDS, max_size=5))
def test_what_absl_accepts_is_read_the_same(words):
    argv = ["main", *words]
    parsed = parsed_by_absl(argv)
    absl_flags.forget()
    if parsed is None:
        return
    for name in READ:
        value = command_line.value(argv, name, flags.FLAGS)
        if name == "debug" and value is not None:
            value = command_line.is_true(value)
        assert parsed[name] == value, argv


@pytest.mark.parametrize(
    ("words", "workdir"),
    [
        (["--workdir=runs/a\nb"], "runs/a\nb"),
        (["-workdir", "runs/a"], "runs/a"),
        (["--workdir=a=b"], "a=b"),
        (["--workdir=first", "--workdir", "last"], "last"),
        (["--workdir", "--mode=report"], "--mode=report"),
        (["--quiet", "--workdir=a"], "a"),
        (["--workdirs=a"], None),
        (["--noworkdir=a"], None),
        (["--output", "--workdir=b"], None),
        (["--", "--workdir=a"], None),
        (["stray", "--workdir=a"], None),
        (["--config.data.name=--workdir=a"], None),
    ],
)
def test_the_workdir_of_odd_command_lines(words, workdir):
    assert command_line.value(["main", *words], "workdir", flags.FLAGS) == workdir


@pytest.fixture
def parse(monkeypatch):
    """`parse(*words)` gives absl's flags after main's own parsing."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr("sys.argv", ["main"])

    def call(*words):
        absl_flags.forget()
        main.parse_flags(["main", *words])
        return flags.FLAGS

    yield call
    absl_flags.forget()


def workdir_of(folder: pathlib.Path, seed: int) -> pathlib.Path:
    c = phantom.get_config("unet,toy")
    c.seed = seed
    folder.mkdir(parents=True)
    run_config.save(c, folder / "config.json")
    return folder


def test_a_workdir_with_a_newline_in_its_name_is_not_cut_there(parse, tmp_path):
    """The part before the newline is another workdir, whose config was once taken."""
    workdir_of(tmp_path / "a", seed=1)
    wrong = f"{tmp_path}/a\nb"
    evaluate = ("--mode=evaluate", f"--workdir={wrong}")
    refused(lambda: parse(*evaluate), "--workdir", repr(wrong), "without it")
    workdir_of(tmp_path / "a\nb", seed=2)
    assert parse(*evaluate).config.seed == 2


@pytest.mark.parametrize("name", ["input", "output", "compare", "workdir"])
@pytest.mark.parametrize("sign", ["\n", "\r", "\t", "\0"])
def test_a_control_character_in_a_path_of_nothing(parse, tmp_path, name, sign):
    path = f"{tmp_path}/x{sign}y"
    report = ("--mode=report", f"--{name}={path}")
    refused(lambda: parse(*report), f"--{name}", repr(path), "without it")


def test_a_file_with_a_newline_in_its_name_is_taken(parse, tmp_path):
    (tmp_path / "x\ny.png").touch()
    flag = f"--input={tmp_path}/x\ny.png"
    assert parse("--mode=report", flag).input == f"{tmp_path}/x\ny.png"


def test_where_a_text_field_swallows_a_flag_the_line_is_refused(parse, tmp_path):
    line = [
        f"--config={ROOT}/configs/phantom.py",
        "--config.data.name",
        f"--workdir={tmp_path}",
    ]
    refused(lambda: parse(*line), "--workdir", "--name=value")
    assert parse(*line[:1], "--config.data.name=a", line[2]).workdir == str(tmp_path)


def test_flags_from_a_file_choose_the_workdir_too(parse, tmp_path):
    workdir_of(tmp_path / "run", seed=3)
    (tmp_path / "flags").write_text(f"--mode=evaluate\n--workdir={tmp_path}/run\n")
    assert parse(f"--flagfile={tmp_path}/flags").config.seed == 3
    refused(lambda: parse(f"--flagfile={tmp_path}/gone"), "gone")


@pytest.mark.parametrize(
    ("word", "shows"),
    [("--debug", True), ("-debug", True), ("--debug=1", True), ("--nodebug", False)],
)
def test_debug_is_read_as_absl_reads_it(parse, capsys, word, shows):
    absl_flags.forget()
    if shows:
        with pytest.raises(BadInput, match="stray"):
            main.run(["main", word, "stray"])
    else:
        assert main.run(["main", word, "stray"]) == 2


# --- the home folder -----------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["workdir", "input", "output", "compare"])
def test_a_tilde_is_the_home_folder_in_every_path(parse, home, name):
    assert parse("--mode=report", f"--{name}=~/a")[name].value == f"{home}/a"
    assert parse("--mode=report", f"--{name}", "~")[name].value == str(home)
    assert parse("--mode=report", f"--{name}=a~b/~")[name].value == "a~b/~"


def test_a_tilde_in_the_config_with_its_variants_and_in_a_list_of_workdirs(parse, home):
    home.mkdir()
    (home / "own.py").write_text(
        "from configs import phantom\nget_config = phantom.get_config\n"
    )
    parsed = parse("--config=~/own.py:unet,toy", "--workdir=~/a,~/b")
    assert parsed.config.network == "unet" and parsed.workdir == f"{home}/a,~/b"
    workdirs = parse("--mode=report", "--workdir=~/a,b,~/c").workdir
    assert workdirs == f"{home}/a,b,{home}/c"
    (home / "a,~").mkdir()
    assert parse("--mode=report", "--workdir=~/a,~").workdir == f"{home}/a,~"


@pytest.mark.parametrize("mode", ["predict", "evaluate", "serve", "export"])
def test_of_several_workdirs_the_first_has_the_config(parse, home, mode):
    workdir_of(home / "a", seed=1)
    workdir_of(home / "b", seed=2)
    parsed = parse(f"--mode={mode}", "--workdir=~/b,~/a", "--config.threshold=0.3")
    assert parsed.workdir == f"{home}/b,{home}/a"
    assert parsed.config.seed == 2
    assert parsed.config.threshold == 0.3
    workdir_of(home / "b,c", seed=3)
    assert parse(f"--mode={mode}", "--workdir=~/b,c").config.seed == 3
    refused(lambda: parse(f"--mode={mode}", "--workdir=~/d,~/a"), home / "d", "config")


def test_the_home_of_a_user(parse):
    workdir = parse("--mode=report", "--workdir=~root/a").workdir
    assert workdir == f"{os.path.expanduser('~root')}/a"


@pytest.mark.parametrize("path", ["~nobody_at_all/a", "~nobody_at_all"])
def test_an_unknown_home_is_refused_unless_a_folder_is_called_so(parse, home, path):
    home.parent.mkdir(exist_ok=True)
    report = ("--mode=report", f"--workdir={path}")
    refused(lambda: parse(*report), "~nobody_at_all", "./~nobody_at_all")
    (home.parent / path).mkdir(parents=True)
    assert parse(*report).workdir == path


@pytest.mark.parametrize("words", [["--data=~/x"], ["-data", "~/x"], ["--data", "~/x"]])
def test_data_is_short_for_the_root_of_evaluate(words):
    argv = ["main", "--mode=evaluate", "--workdir=w", *words]
    assert command_line.spelled_out(argv, flags.FLAGS) == [
        "main",
        "--mode=evaluate",
        "--workdir=w",
        "--config.data.root=~/x",
    ]


@pytest.mark.parametrize("mode", [None, "train", "predict", "serve", "report"])
def test_data_is_refused_where_nothing_is_scored(mode):
    argv = ["main", *([f"--mode={mode}"] if mode else []), "--data=x"]
    with pytest.raises(BadInput, match="--data is x"):
        command_line.spelled_out(argv, flags.FLAGS)


def test_init_is_short_for_its_source(parse, tmp_path):
    read = parse("--config=phantom:toy", f"--workdir={tmp_path}", "--config.init=mine")
    assert read.config.init.source == "mine"
    # Of two spellings the later counts, as of any flag that is given twice.
    both = ("--config.init=a.npz", "--config.init.source=b.npz")
    read = parse("--config=phantom:toy", f"--workdir={tmp_path}", *both)
    assert read.config.init.source == "b.npz"


def test_data_of_an_evaluation_reach_its_config(parse, tmp_path):
    run_config.save(phantom.get_config("toy"), tmp_path / "config.json")
    read = parse("--mode=evaluate", f"--workdir={tmp_path}", "--data=theirs")
    assert read.config.data.root == "theirs"
